"""What each client and each user has: leases, what is unread of theirs, what they have open to read,
and what lies idle in their magazines, as the ledger says.

Where little is granted it is looked at each time. Where much is, a census is taken at most once in
`FRESH` seconds, to which is added what was granted since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from shmpool.protocol.census import Census, Use

from ..chores import Chore, Chores
from ..connections.seats import Seats
from ..memory.inventory import Inventory
from .requests import Request

#: Rows that are looked at for one request, at most.
LOOKED_AT: Final = 128
#: Seconds for which a census serves, and how many times as long as it took until the next.
FRESH, REST = 1.0, 4
#: Seconds of a unit of chores.
UNIT: Final = 2e-6


class Ledger(Protocol):
    """Who holds what, by the ledger."""

    def sample(self, rows: Sequence[int]) -> Census:
        """What some granted rows say, at once."""

    def take_census(self) -> Generator[int, None, Census]:
        """What all of them say: a chore."""


@dataclass(slots=True)
class Used:
    """What somebody has, and what of it lies idle."""

    nbytes: int = 0
    buffers: int = 0
    idle_bytes: int = 0
    idle_buffers: int = 0

    def add(self, nbytes: int, buffers: int, *, is_idle: bool = False) -> None:
        """Count more."""
        self.nbytes += nbytes
        self.buffers += buffers
        if is_idle:
            self.idle_bytes += nbytes
            self.idle_buffers += buffers

    def join(self, other: Used) -> None:
        """Count all of another."""
        self.nbytes += other.nbytes
        self.buffers += other.buffers
        self.idle_bytes += other.idle_bytes
        self.idle_buffers += other.idle_buffers


class Usage:
    """What everybody has. *counted(now)* is called when a census was taken."""

    def __init__(
        self,
        seats: Seats,
        inventory: Inventory,
        chores: Chores,
        under_way: Callable[[], Iterable[tuple[int, int, int]]],
        counted: Callable[[float], None],
    ) -> None:
        #: The reports', which read it.
        self.ledger: Ledger
        self._seats = seats
        self._inventory = inventory
        self._chores = chores
        #: (seat, bytes, buffers) of what is taken for requests and not granted yet.
        self._under_way = under_way
        self._tell = counted
        #: By seat, at the last census, which began and ended at these times.
        self._counted: dict[int, Used] = {}
        self.began = self._ended = float("-inf")
        #: By seat, bytes and buffers that were granted since that census began, or the present one.
        self._since: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._meanwhile: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._is_counting = False
        self._rests_until = 0.0

    def note_granted(self, seat: int, nbytes: int) -> None:
        """A seat was granted a buffer."""
        for nbytes_by_seat, buffers_by_seat in (self._since, self._meanwhile):
            nbytes_by_seat[seat] += nbytes
            buffers_by_seat[seat] += 1

    def forget(self, seat: int) -> None:
        """A seat has ended; its number may be another's soon."""
        self._counted.pop(seat, None)
        for counter in (*self._since, *self._meanwhile):
            counter.pop(seat, None)

    def by_seat(self, now: float) -> dict[int, Used] | None:
        """What each seat has; None when a census must come first."""
        granted = self._inventory.granted
        if len(granted) <= LOOKED_AT:
            self._counted, self._since = _by_seat(self.ledger.sample(list(granted))), (Counter(), Counter())
            self.began = self._ended = now
        elif now >= self._ended + FRESH:
            self.count(now)
            return None
        uses = {seat: replace(used) for seat, used in self._counted.items()}
        for seat, nbytes in self._since[0].items():
            uses.setdefault(seat, Used()).add(nbytes, self._since[1][seat])
        for seat, nbytes, buffers in self._under_way():
            uses.setdefault(seat, Used()).add(nbytes, buffers)
        return uses

    def of(self, request: Request, uses: dict[int, Used]) -> tuple[Used, Used]:
        """What a request's client has, and its user."""
        uid, user = self._seats.taken[request.seat].peer.uid, Used()
        for number, used in uses.items():
            seat = self._seats.taken.get(number)
            if seat is not None and seat.peer.uid == uid:
                user.join(used)
        return uses.get(request.seat, Used()), user

    def count(self, now: float) -> None:
        """Take a census, unless one is being taken, or was just now."""
        if not self._is_counting and now >= self._rests_until:
            self._is_counting = True
            self._chores.begin(self._run(now), now, is_urgent=True)

    def _run(self, began: float) -> Chore:
        cost = 0
        self._meanwhile = (Counter(), Counter())
        steps = self.ledger.take_census()
        try:
            while True:
                units = next(steps)
                cost += units
                yield units
        except StopIteration as done:
            self._counted, self._since = _by_seat(done.value), self._meanwhile
            self.began, self._ended = began, self._chores.now
        finally:
            self._is_counting = False
            self._rests_until = self._chores.now + REST * UNIT * cost
            self._tell(self._chores.now)

    def count_anew(self, now: float) -> None:
        """The last census is too old to decide by."""
        self._ended = float("-inf")
        self.count(now)


def _by_seat(census: Census) -> dict[int, Used]:
    uses: dict[int, Used] = {}
    for (seat, use), tally in census.kept.items():
        uses.setdefault(seat, Used()).add(tally.nbytes, tally.buffers, is_idle=use is Use.IDLE)
    return uses
