"""Recalls: while somebody waits, the others are asked to give back what is idle.

A round goes through all who hold something, whoever holds most first, a few in each turn; the
next one begins `RECALL_EVERY` later at the earliest, whoever waits by then: a client that asks
and cancels in a loop has nobody asked more often. Between rounds one client is asked when a
publication of its is seen to be done. Whoever was asked is left in peace for `SPACING`.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from shmpool.protocol.messages import Recall

from ..connections.seats import Seat, Seats
from ..outbox import Outbox

#: From one round to the next (seconds).
RECALL_EVERY = 0.05
#: How many are asked in one turn of a round, and seconds between two turns.
RECALLED_PER_TURN = 32
PAUSE = 0.001
#: Seconds in which one client is asked at most once.
SPACING = 0.005


class Recalls:
    """Who is asked to give back, and when."""

    def __init__(self, seats: Seats, outbox: Outbox, tiers_of_use: Callable[[], set[int]]) -> None:
        self._seats = seats
        #: Those of which something has to come back, that anybody who waits may be served.
        self._tiers_of_use = tiers_of_use
        self._outbox = outbox
        #: Seats that the present round has not come to, whoever holds least first.
        self._round: list[int] = []
        #: Seats that are to be asked once they have had their peace, in the order in which they were asked last.
        self._later: dict[int, None] = {}
        self._next_round = 0.0
        self._next_turn = 0.0

    @property
    def next_deadline(self) -> float:
        """When `tick` is due while somebody waits."""
        due = self._next_turn if self._round else self._next_round
        if self._later:
            seat = self._seats.taken.get(next(iter(self._later)))
            due = min(due, seat.recalled_at + SPACING if seat is not None else 0.0)
        return due

    def begin(self, now: float) -> None:
        """Somebody begins to wait: a round is due, unless one was just now."""
        if now >= (self._next_turn if self._round else self._next_round):
            self.tick(now)

    def tick(self, now: float) -> bool:
        """Ask those whose turn it is. True when a round begins."""
        for number in [number for number in self._later if self._is_due(number, now)][:RECALLED_PER_TURN]:
            del self._later[number]
            self._ask(self._seats.taken.get(number), now)
        begins = not self._round and now >= self._next_round
        if begins:
            self._next_round = now + RECALL_EVERY
            connected = [seat for seat in self._seats.taken.values() if seat.rows and seat.connection is not None]
            tiers = self._tiers_of_use()
            holding = [seat for seat in connected if not tiers.isdisjoint(seat.tiers)]
            self._round = [seat.number for seat in sorted(holding, key=attrgetter("nbytes"))]
            self._next_turn = now
        if self._round and now >= self._next_turn:
            self._next_turn = now + PAUSE
            for _ in range(min(RECALLED_PER_TURN, len(self._round))):
                self._ask(self._seats.taken.get(self._round.pop()), now)
        return begins

    def rest(self) -> None:
        """Nobody waits any more."""
        self._round.clear()
        self._later.clear()

    def ask(self, number: int, now: float) -> None:
        """Ask one client to reap and give back, soon if it was asked just now."""
        seat = self._seats.taken.get(number)
        if seat is not None and now < seat.recalled_at + SPACING:
            self._later[number] = None
        else:
            self._ask(seat, now)

    def _is_due(self, number: int, now: float) -> bool:
        seat = self._seats.taken.get(number)
        return seat is None or now >= seat.recalled_at + SPACING

    def _ask(self, seat: Seat | None, now: float) -> None:
        if seat is not None and seat.connection is not None and seat.rows and now >= seat.recalled_at + SPACING:
            seat.recalled_at = now
            self._later.pop(seat.number, None)
            self._outbox.send(seat.connection, Recall())
