"""Spares: direct segments whose objects are done, kept a moment for the next object.

New pages cost more than the copy into them: reserved, zeroed, faulted in and freed again,
1.1 ms a MiB together, against 0.4 for the same use of pages that are there. So where direct
segments follow one another, one that is done is served again as it lies: with its row, its name and
its length, the generation counts on, and readers' maps stay right. Only one that is too short for what
is asked for becomes longer, under a new name of its row. None is cut: whoever maps it would die.

What lies here counts towards the cap, is given up before anything else when memory is
needed, when a client leaves, and soon anyhow. Not kept is the segment of a lone object, nor a
dead client's. A restart forgets spares: no row names them, so they are unlinked like other
leftovers.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from typing import Final, NamedTuple

#: Seconds from one look at what lies here to the next; what lay here at both goes.
LIFETIME: Final = 0.25
#: The largest part of the limit that may lie here, and the most segments.
SHARE: Final = 1 / 8
MOST: Final = 64
#: A spare serves an object of at least one part in so many of its size.
LARGEST_CUT: Final = 2


class Spare(NamedTuple):
    """A segment by the row and the generation that its name says; *nbytes* are whole pages. Its row is
    nobody's, and not given out otherwise."""

    row: int
    generation: int
    nbytes: int
    freed_at: float
    #: When its first segment was made.
    made_at: float = 0.0


class Spares:
    """The spares of one pool. Whoever takes one out accounts for its memory."""

    __slots__ = ("_asked_at", "_asked_before", "_most_nbytes", "_spares", "nbytes", "next_look")

    def __init__(self, limit: int, *, is_on: bool) -> None:
        self._most_nbytes = int(limit * SHARE) if is_on else 0
        self._spares: list[Spare] = []
        #: When a direct segment was asked for last, and the last time before that.
        self._asked_at = self._asked_before = float("-inf")
        #: What lies here, in bytes.
        self.nbytes = 0
        #: When `old` is to be asked, None while nothing lies here.
        self.next_look: float | None = None

    def __len__(self) -> int:
        return len(self._spares)

    def note_request(self, now: float) -> None:
        """Somebody asks for a direct segment."""
        self._asked_before, self._asked_at = self._asked_at, now

    def has_row(self, row: int) -> bool:
        """Whether a row's segment lies here."""
        return any(spare.row == row for spare in self._spares)

    def keep(self, row: int, generation: int, nbytes: int, now: float, made_at: float = 0.0) -> bool:
        """Keep a segment that nobody uses any more; False when it is to be removed: the last two
        were not asked for just now, or there is no more room here."""
        is_steady = now - self._asked_before < LIFETIME
        if not is_steady or self.nbytes + nbytes > self._most_nbytes or len(self._spares) >= MOST:
            return False
        self._spares.append(Spare(row, generation, nbytes, now, made_at))
        self.nbytes += nbytes
        if self.next_look is None:
            self.next_look = now + LIFETIME
        return True

    def take(self, nbytes: int) -> Spare | None:
        """The spare to make a segment of *nbytes* bytes of: the smallest that is large enough,
        else the largest that is not. None when it has to be a new one."""
        best = None
        for spare in self._spares:
            if spare.nbytes > nbytes * LARGEST_CUT:
                continue
            if best is None or _fit(spare, nbytes) > _fit(best, nbytes):
                best = spare
        if best is not None:
            self._take_out(best)
        return best

    def put_back(self, spare: Spare) -> None:
        """Undo `take`."""
        insort(self._spares, spare, key=_age)
        self.nbytes += spare.nbytes

    def old(self, now: float) -> Iterator[Spare]:
        """Take out what has lain here since the last look, if it is time."""
        if self.next_look is not None and self.next_look <= now:
            yield from self.idle_since(now - LIFETIME)
            self.next_look = now + LIFETIME if self._spares else None

    def idle_since(self, moment: float) -> Iterator[Spare]:
        """Take out what was kept at that moment or before, the oldest first, one by one."""
        while self._spares and self._spares[0].freed_at <= moment:
            spare = self._spares[0]
            self._take_out(spare)
            yield spare

    def _take_out(self, spare: Spare) -> None:
        self._spares.remove(spare)
        self.nbytes -= spare.nbytes


def _age(spare: Spare) -> float:
    return spare.freed_at


def _fit(spare: Spare, nbytes: int) -> tuple[bool, int]:
    """The greater the better."""
    is_enough = spare.nbytes >= nbytes
    return is_enough, -spare.nbytes if is_enough else spare.nbytes
