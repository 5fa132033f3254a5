"""Compare-and-swap of a word in shared memory, which Python has no words for: by the compiled part where it is there,
else by GCC's libatomic, else not at all.

A swap is atomic towards every process that maps the word, and orders all loads and stores around it.
"""

from __future__ import annotations

import ctypes
from functools import cache

from .libc import address_of
from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    #: ``swap(index, expected, wanted)`` stores *wanted* in a word that says *expected*, and tells whether it did.
    #: Raises IndexError for no word, ValueError for memory that was given up.
    Swap = Callable[[int, int, int], bool]

#: Makes swaps of words, once the compiled part is installed.
compiled: Callable[[memoryview], Swap] | None = None

_SEQ_CST: Final = 5


def swap_of(words: memoryview) -> Swap | None:
    """The swap of the words of a memoryview of format "Q", which it keeps; None where this process has none."""
    return compiled(words) if compiled is not None else _by_libatomic(words)


def is_there() -> bool:
    """Whether this process has any."""
    return compiled is not None or _libatomic() is not None


def _by_libatomic(words: memoryview) -> Swap | None:
    exchange = _libatomic()
    if exchange is None:
        return None
    base, word, reference = address_of(words), ctypes.c_uint64, ctypes.byref

    def swap(index: int, expected: int, wanted: int) -> bool:
        # The look also raises what there is to raise, before an address is made of the index.
        return words[index] == expected and exchange(
            base + 8 * index, reference(word(expected)), wanted, _SEQ_CST, _SEQ_CST
        )

    return swap


@cache
def _libatomic() -> Any:
    """Its function for words of 8 bytes, which keeps the interpreter's lock; None without it."""
    try:
        exchange = ctypes.PyDLL("libatomic.so.1").__atomic_compare_exchange_8
    except own(OSError, AttributeError):
        return None
    exchange.argtypes = (
        ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint64, ctypes.c_int, ctypes.c_int,
    )  # fmt: skip
    exchange.restype = ctypes.c_bool
    return exchange
