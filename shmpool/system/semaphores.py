"""Semaphores in memory of our own choosing: the compare-and-swap that Python has no word for.

The interpreter's own lock over a POSIX semaphore, which `multiprocessing` uses, is laid over an address instead of a
name. One call takes it or gives it back, knows which thread has it, and no signal handler runs in between. What it does
not know is which process has it, and nobody frees it when its holder dies: `queues.locks` does.
"""

from __future__ import annotations

import ctypes
from _multiprocessing import SemLock  # type: ignore[import-not-found]  # typeshed has no stub
from typing import Any, Final

from . import libc

#: 64-bit words that a semaphore takes at the most.
WORDS: Final = 4
_RECURSIVE_MUTEX: Final = 0


def make(address: int, value: int) -> None:
    """Put a semaphore there, which processes may share: 1 is free, 0 is taken."""
    libc.make_semaphore(address, value)


def lock_over(address: int) -> Any:
    """The lock of this process over the semaphore there: ``acquire(block, timeout)``, ``release()``, which raises
    AssertionError in a thread that has not acquired it, and ``_is_mine()``. The memory must outlive its use."""
    made = SemLock._rebuild(address, _RECURSIVE_MUTEX, 1, None)
    if not libc.IS_GLIBC:  # which others are not prepared to close: it stays for ever
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made
