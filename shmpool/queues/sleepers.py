"""How many sleep at one end of a queue: a word of shared memory, written under that end's lock.

The word has the **epoch** in its high part, the moment at which it ends in milliseconds of the monotonic
clock, and the number of those who have lain down in it in its low 16 bits. Nobody sleeps over an
epoch's end, so one who died in his sleep is counted for a second at most, and nobody has to look for
him. Who is woken leaves the epoch in which he lay down, if it goes on.
"""

from __future__ import annotations

import time
from typing import Final

from ..protocol.queues import SLEEPERS_MASK, SLEEPERS_SHIFT

COUNT: Final = SLEEPERS_MASK
_EPOCH_SHIFT: Final = SLEEPERS_SHIFT
#: Milliseconds of an epoch.
EPOCH: Final = 1000


class Rest:
    """One wait of one side: whether it has lain down, and what it has seen."""

    __slots__ = ("epoch", "left", "odd", "seen")

    def __init__(self) -> None:
        self.epoch = self.seen = self.odd = 0
        self.left = 0.0

    def lie_down(self, words: memoryview[int], at: int) -> None:
        """Under the lock."""
        self.epoch, self.left = lie_down(words, at)

    def get_up(self, words: memoryview[int], at: int) -> None:
        """Under the lock, if it has lain down."""
        if self.epoch:
            get_up(words, at, self.epoch)
            self.epoch = 0


def lie_down(words: memoryview[int], at: int) -> tuple[int, float]:
    """Count one more, under the lock; the epoch, and how many seconds it goes on."""
    now = time.monotonic_ns() // 1_000_000
    word = words[at]
    epoch = word >> _EPOCH_SHIFT
    if not now < epoch <= now + EPOCH or word & COUNT == COUNT:
        epoch = now + EPOCH
        word = epoch << _EPOCH_SHIFT
    words[at] = word + 1
    return epoch, (epoch - now) / 1000


def get_up(words: memoryview[int], at: int, epoch: int) -> None:
    """Count one less, under the lock, if that epoch goes on."""
    word = words[at]
    if word >> _EPOCH_SHIFT == epoch and word & COUNT:
        words[at] = word - 1


def any_asleep(word: int) -> bool:
    """Whether somebody may be asleep."""
    return bool(word & COUNT) and word >> _EPOCH_SHIFT >= time.monotonic_ns() // 1_000_000
