"""The scoreboard: counters in memory that parent and workers share, and that outlive a killed worker.

Each worker's place has a row of words of its own, written only by the one process that has this
place just then. The parent reads. Besides, a byte for each copy of a handle that was sent twice.
"""

from __future__ import annotations

import mmap
from enum import IntEnum, auto


class Figure(IntEnum):
    """What is counted for each place. The first ones are no sums."""

    SEQUENCE = 0  # the last object's number
    DUPLICATES = auto()  # handles sent twice, so far
    LONGEST_LEASE_NS = auto()  # the longest wait for a lease
    LONGEST_CONNECT_NS = auto()
    READS_ONLY = auto()  # it has been told to stop, and produces no more

    LEASES = auto()
    POOLED = auto()
    CHUNKED = auto()
    DIRECT = auto()
    RELEASED = auto()  # leased and given back unpublished
    OBJECTS = auto()  # published
    HANDLES = auto()  # made by publish and publish_many
    SENT = auto()
    RECEIVED = auto()
    VERIFIED = auto()
    VERIFIED_BYTES = auto()
    VERIFIED_AGAIN = auto()  # arrays that outlived their buffer's release
    VIEWS_KEPT = auto()
    DISCARDED = auto()
    REFUSED_TWICE_SENT = auto()  # the other copy was first
    REFUSED_EXPIRED = auto()
    LEASE_TIMEOUTS = auto()  # of leases that would not wait
    HOGS = auto()  # took all there is for a moment
    CONNECTS = auto()
    CONNECT_RETRIES = auto()
    DIED_BY_EXIT = auto()
    DIED_BY_HARD_EXIT = auto()
    DIED_MID_WRITE = auto()
    DIED_BY_SEGFAULT = auto()
    DIED_BY_EXEC = auto()

    INTERRUPTS = auto()  # exceptions that ended something half way
    INTERRUPTED_FINALIZERS = auto()  # CPython prints these
    CLOSED = auto()  # pools that were closed while threads used them
    REFUSED_CLOSED = auto()
    SECOND_CYCLES = auto()  # objects written and read through a pool that is closed now and then
    CHILDREN = auto()
    GRANDCHILDREN = auto()
    VERIFIED_BY_CHILDREN = auto()  # arrays that were open at a fork


NOT_SUMS = 5
WORDS = 64
MAX_DUPLICATES = 1 << 16

assert len(Figure) <= WORDS


class Board:
    """Made by the parent before it forks."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._memory = mmap.mmap(-1, places * WORDS * 8 + places * MAX_DUPLICATES * 2)
        self.words = memoryview(self._memory)[: places * WORDS * 8].cast("Q")
        self._opened = memoryview(self._memory)[places * WORDS * 8 :]

    def add(self, place: int, figure: Figure, amount: int = 1) -> int:
        """Count, by the process that has the place; returns the new value."""
        self.words[place * WORDS + figure] += amount
        return self.words[place * WORDS + figure]

    def set(self, place: int, figure: Figure, value: int) -> None:
        self.words[place * WORDS + figure] = value

    def raise_to(self, place: int, figure: Figure, value: int) -> None:
        """Keep the largest value."""
        self.words[place * WORDS + figure] = max(value, self.words[place * WORDS + figure])

    def get(self, place: int, figure: Figure) -> int:
        return self.words[place * WORDS + figure]

    def total(self, figure: Figure) -> int:
        """Over all places: the sum, or the largest of what is no sum."""
        values = [self.get(place, figure) for place in range(self.places)]
        return sum(values) if figure >= NOT_SUMS else max(values)

    def note_opened(self, place: int, duplicate: int, copy: int) -> None:
        """A copy of a handle that *place* sent twice was opened."""
        self._opened[(place * MAX_DUPLICATES + duplicate) * 2 + copy] = 1

    def opened_twice(self) -> int:
        """Handles of which both copies were opened: must be none."""
        first, second = bytes(self._opened[::2]), bytes(self._opened[1::2])
        return sum(map(int.__and__, first, second))
