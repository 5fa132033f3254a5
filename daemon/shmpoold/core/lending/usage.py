"""What each client and each user has: leases, what is unread of theirs, what they have open to read, made
to share or hold of what is shared, and what lies idle in their magazines, as the ledger says.

Where little is granted it is looked at each time. Where much is, a census is taken at most once in
`FRESH` seconds, to which is added what was granted since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from shmpool.protocol.census import Census, Use

from ..chores import Chore, Chores, Lane
from ..connections.seats import Seat, Seats
from ..memory.inventory import Inventory
from .requests import Request

#: Rows and holds that are looked at for one request, at most.
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

    @property
    def holds(self) -> int:
        """How many holds of what is shared are counted beside them."""


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

    def leave(self, other: Used) -> None:
        """Count nothing of another any more."""
        self.nbytes -= other.nbytes
        self.buffers -= other.buffers
        self.idle_bytes -= other.idle_bytes
        self.idle_buffers -= other.idle_buffers


class Usage:
    """What everybody has. *counted(now)* is called when a census was taken. What one client and one user
    have costs no look at the others."""

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
        #: By seat, at the last census, which began and ended at these times, and with what was granted since
        #: it began; the same by user.
        self._by_seat: dict[int, Used] = {}
        self._by_user: dict[int, Used] = {}
        self.began = self._ended = float("-inf")
        #: By seat, bytes and buffers that were granted since the present census began.
        self._meanwhile: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._is_counting = False
        self._rests_until = 0.0

    def note_granted(self, seat: int, nbytes: int) -> None:
        """A seat was granted a buffer."""
        self._add(seat, Used(nbytes, 1))
        if self._is_counting:
            nbytes_by_seat, buffers_by_seat = self._meanwhile
            nbytes_by_seat[seat] += nbytes
            buffers_by_seat[seat] += 1

    def _add(self, number: int, used: Used) -> None:
        self._by_seat.setdefault(number, Used()).join(used)
        seat = self._seats.taken.get(number)
        if seat is not None:
            self._by_user.setdefault(seat.peer.uid, Used()).join(used)

    def forget(self, seat: Seat) -> None:
        """A seat ends; its number may be another's soon."""
        used = self._by_seat.pop(seat.number, None)
        if used is not None and seat.peer.uid in self._by_user:
            self._by_user[seat.peer.uid].leave(used)
        for counter in self._meanwhile:
            counter.pop(seat.number, None)

    def is_known(self, now: float) -> bool:
        """Whether what everybody has is known; else a census comes first."""
        granted = self._inventory.granted
        if len(granted) + self.ledger.holds <= LOOKED_AT:
            self._take(self.ledger.sample(list(granted)), (Counter(), Counter()))
            self.began = self._ended = now
        elif now >= self._ended + FRESH:
            self.count(now)
            return False
        return True

    def of(self, request: Request) -> tuple[Used, Used]:
        """What a request's client has, and its user."""
        own, uid = Used(), self._seats.taken[request.seat].peer.uid
        own.join(self._by_seat.get(request.seat, NOTHING))
        user = Used()
        user.join(self._by_user.get(uid, NOTHING))
        for number, nbytes, buffers in self._under_way():
            seat = self._seats.taken.get(number)
            if seat is not None and seat.peer.uid == uid:
                user.add(nbytes, buffers)
                if number == request.seat:
                    own.add(nbytes, buffers)
        return own, user

    def idlers_of(self, uid: int) -> Iterator[tuple[int, Seat]]:
        """The seats of a user that have anything idle, and how many bytes. Looks at all."""
        for number, used in self._by_seat.items():
            seat = self._seats.taken.get(number)
            if seat is not None and used.idle_buffers and seat.peer.uid == uid:
                yield used.idle_bytes, seat

    def count(self, now: float) -> None:
        """Take a census, unless one is being taken, or was just now."""
        if not self._is_counting and now >= self._rests_until:
            self._is_counting = True
            self._meanwhile = (Counter(), Counter())
            self._chores.begin(self._run(now), now, Lane.REQUESTS)

    def _run(self, began: float) -> Chore:
        cost = 0
        steps = self.ledger.take_census()
        try:
            while True:
                units = next(steps)
                cost += units
                yield units
        except StopIteration as done:
            self._take(done.value, self._meanwhile)
            self.began, self._ended = began, self._chores.now
        finally:
            self._is_counting = False
            self._rests_until = self._chores.now + REST * UNIT * cost
            self._tell(self._chores.now)

    def _take(self, census: Census, since: tuple[Counter[int], Counter[int]]) -> None:
        self._by_seat, self._by_user = {}, {}
        for (number, use), tally in census.kept.items():
            used = Used()
            used.add(tally.nbytes, tally.buffers, is_idle=use is Use.IDLE)
            self._add(number, used)
        for number, nbytes in since[0].items():
            self._add(number, Used(nbytes, since[1][number]))

    def count_anew(self, now: float) -> None:
        """The last census is too old to decide by."""
        self._ended = float("-inf")
        self.count(now)


NOTHING: Final = Used()
