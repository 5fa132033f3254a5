"""What one pair of processes is asked to do in one lap. Standard library only."""

from __future__ import annotations

import mmap
import random
from dataclasses import dataclass
from functools import lru_cache

#: Objects whose tokens and credits travel together when many are in flight.
BATCH = 8
#: But where more bytes are moved, each is told of at once, as iceoryx2, kickmsg and a queue do, which have a channel of
#: their own: a batch of eight of 4 MiB has left the caches before the first of them is read.
TOLD_AT_ONCE = 1 << 20
#: How long who waits for a token polls before it sleeps, where it may. Seconds.
SPIN = 200e-6
#: Bytes that are made by chance: making more takes seconds.
_RANDOM = 16 << 20


@dataclass(frozen=True)
class Plan:
    """Hand over *objects* objects of *nbytes* bytes, at most *in_flight* of them at a time."""

    nbytes: int
    in_flight: int = 1
    #: The producer copies all the bytes in, or touches one.
    fills: bool = True
    #: The consumer copies all the bytes out, or touches one.
    drains: bool = True
    #: Seconds of polling before sleeping; 0 sleeps at once.
    spin: float = SPIN
    objects: int = 1
    #: So many more are handed over first, in the same breath, that are not timed.
    prelude: int = 0

    @property
    def batch(self) -> int:
        """Objects that are sent, and acknowledged, together."""
        if self.nbytes > TOLD_AT_ONCE and (self.fills or self.drains):
            return 1
        return min(BATCH, self.in_flight)


@lru_cache(maxsize=1)
def payload(nbytes: int) -> bytes:
    """What is handed over: the same random bytes on both sides, written before the clock starts; of a
    very large one the same ones again and again."""
    some = random.Random(nbytes).randbytes(min(nbytes, _RANDOM))
    return some if nbytes <= _RANDOM else (some * (nbytes // _RANDOM + 1))[:nbytes]


def paged(nbytes: int) -> memoryview:
    """Memory that begins with a page. Where a target lies 16 bytes further within its page than
    the source, as malloc's large blocks do beside a map, some processors (`rep movsb` of AMD's
    Zen 3 and 4) copy 8 to 512 KiB at a sixteenth of their speed; by luck one peer would be hit
    and another not."""
    return memoryview(mmap.mmap(-1, max(1, nbytes)))[:nbytes]


_target = lru_cache(maxsize=1)(paged)


def blank_target(nbytes: int) -> memoryview:
    """Where it is copied to: the same memory in every lap, with a byte of each page cleared,
    so that no page has to be found while the clock runs and no old bytes pass for new ones."""
    target = _target(nbytes)
    pages = slice(None, None, mmap.PAGESIZE)
    target[pages] = bytes(len(target[pages]))
    return target
