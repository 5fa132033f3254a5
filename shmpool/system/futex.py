"""Sleeping until a word of shared memory changes, across processes: futex(2).

The kernel compares the word when the sleep begins, under a lock of its own, so a change that came
before is never slept through. Who changes a word and wakes nobody costs the sleeper its bounded
sleep: a delay, never a hang. A map that is only readable will do on either side.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, Final

_NUMBER: Final = {
    "x86_64": 202, "AMD64": 202, "i686": 240, "i386": 240, "aarch64": 98, "riscv64": 98, "loongarch64": 98,
    "ppc64le": 221, "s390x": 238, "armv7l": 240,
}.get(os.uname().machine)  # fmt: skip
_WAIT, _WAKE = 0, 1
#: The half of a 64-bit word that counts, which is what a futex has: 32 bits.
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 4
_LOW: Final = 0xFFFFFFFF


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


# `CDLL[...]` makes an object of its own: the prototype is not that of `libc`. The interpreter's lock
# is let go for as long as the call takes.
_futex: Final[Any] = ctypes.CDLL(None)["syscall"]
_futex.restype = ctypes.c_long
_futex.argtypes = (
    ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_ulong, ctypes.POINTER(_Timespec),
)  # fmt: skip


def wait(address: int, seen: int, seconds: float) -> None:
    """Sleep for *seconds* at the longest while the low half of the 64-bit word at *address* is that
    of *seen*. Returns for no reason too, a signal for one: the caller looks again."""
    if _NUMBER is None:
        raise NotImplementedError(f"shmpool does not know this processor: {os.uname().machine}")
    timespec = _Timespec(int(seconds), int(seconds % 1 * 1e9))
    _futex(_NUMBER, address + _LOW_HALF, _WAIT, seen & _LOW, timespec)


def wake(address: int, sleepers: int = 1) -> int:
    """Wake so many of those who sleep at the word at *address*; how many there were."""
    if _NUMBER is None:
        raise NotImplementedError(f"shmpool does not know this processor: {os.uname().machine}")
    return int(_futex(_NUMBER, address + _LOW_HALF, _WAKE, sleepers, None))
