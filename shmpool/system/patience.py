"""Waiting until a word of shared memory changes: looking again and again for a moment, then sleeping."""

from __future__ import annotations

import os
import time
from types import BuiltinFunctionType
from typing import Final

from . import futex

#: One that waits looks again and again for so long, if its peer has a core of its own; then it sleeps,
#: a little at first. In seconds.
SPIN: Final = 60e-6
FIRST_SLEEP: Final = 0.002
LONGEST_SLEEP: Final = 0.05
#: Where nobody wakes it.
_LONGEST_NAP: Final = 0.01


#: Whether there is a core for the peer. Where this process may run does not say: who is pinned to one has a peer that
#: is pinned to another, most likely; and if both have the same one, each look lets the other run.
_MAY_SPIN: Final = (os.cpu_count() or 1) > 1


def spin(words: memoryview[int], at: int, seen: int) -> bool:
    """Look again and again for a moment whether words[at] is another than was *seen*, where there is a core
    for that; lets others run. Whether it is."""
    if _MAY_SPIN:
        until = time.monotonic() + SPIN
        while words[at] == seen:
            os.sched_yield()
            if time.monotonic() >= until:
                break
        else:
            return True
    return words[at] != seen


class Patience:
    """One wait of one side: for a word to change."""

    __slots__ = ("_deadline", "_pause", "_spins_until")

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        now = time.monotonic()
        self._spins_until = now + SPIN if _MAY_SPIN else now
        self._pause = FIRST_SLEEP

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._deadline

    @property
    def spins(self) -> bool:
        """Whether to look again at once; lets others run."""
        if time.monotonic() >= self._spins_until:
            return False
        os.sched_yield()
        return True

    def sleep(self, address: int, seen: int, most: float = LONGEST_SLEEP) -> None:
        """Sleep while the word at *address* is as it was *seen*, not for long, and *most* seconds at the
        longest."""
        seconds = max(0.0, min(self._pause, most, self._deadline - time.monotonic()))
        if type(time.sleep) is BuiltinFunctionType:
            futex.wait(address, seen, seconds)
        else:  # gevent's: who would change the word may be in this very thread, and runs only while that sleeps so
            time.sleep(min(seconds, _LONGEST_NAP))
        self._pause = min(2 * self._pause, LONGEST_SLEEP)
