"""Holds: who has which shared publication open, by seat and the number of the request that asked for it.

They are no part of the ledger: after a lost connection a client tells all of its own again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..memory.holding import Holding

#: Holds of one seat.
MOST_HOLDS = 65_536


@dataclass(slots=True, eq=False)
class Publication:
    """A shared publication. *name* is empty where it has none, or has lost it."""

    holding: Holding
    name: str
    #: Its maker's.
    uid: int
    #: KEPT, CACHED, or neither.
    keep: int
    #: The generation of a queue's memory, None of what is no queue's.
    queue: int | None
    #: Its maker has told of it; else it may just not have come to that.
    is_announced: bool = False
    #: When its ttl is over.
    ends_at: float | None = None
    #: (seat, number) of every hold.
    holders: set[tuple[int, int]] = field(default_factory=set)

    @property
    def row(self) -> int:
        """Its head."""
        return self.holding.row


class Holds:
    """All of them. A seat has `MOST_HOLDS` at most."""

    def __init__(self) -> None:
        self._by_seat: dict[int, dict[int, Publication]] = {}
        #: By connection that tells what it holds, in several messages: what it has not told yet.
        self._untold: dict[int, set[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, seat: int) -> Collection[int]:
        """The numbers of a seat's."""
        return self._by_seat.get(seat, ())

    def take(self, publication: Publication, seat: int, number: int) -> bool:
        """A seat holds it from now on; False when it has too many."""
        own = self._by_seat.setdefault(seat, {})
        before = own.get(number)
        if before is None:
            if len(own) >= MOST_HOLDS:
                return False
            self._count += 1
        elif before is not publication:
            before.holders.discard((seat, number))
        own[number] = publication
        publication.holders.add((seat, number))
        return True

    def leave(self, seat: int, number: int) -> Publication | None:
        """A hold is over; what it was of."""
        own = self._by_seat.get(seat)
        publication = own.pop(number, None) if own is not None else None
        if own is not None and not own:
            del self._by_seat[seat]
        if publication is not None:
            publication.holders.discard((seat, number))
            self._count -= 1
        return publication

    def end(self, publication: Publication) -> None:
        """It is nobody's any more."""
        for seat, number in list(publication.holders):
            self.leave(seat, number)

    # --- telling ---------------------------------------------------------------------------------------

    def begin_telling(self, connection: int, seat: int) -> set[int]:
        """A client tells what it holds, from the first message on that comes over a connection: the numbers
        that are known and were not told yet."""
        untold = self._untold.get(connection)
        if untold is None:
            untold = self._untold[connection] = set(self.of(seat))
        return untold

    def end_telling(self, connection: int) -> None:
        """All was told, or the connection is gone."""
        self._untold.pop(connection, None)
