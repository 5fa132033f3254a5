"""Quotas: how much each client and each user may have at a time, in bytes and in buffers.

Counted for whoever holds it: leases, publications that somebody has yet to open, and what is open
for reading, as the ledger says; a publication whose tickets are all taken is its readers'. What lies
idle in magazines can be leased without a word, so it counts when more is asked for, but a request
is not refused for it: it is recalled first, from all whose quota it is, and the request held back
meanwhile. Opening is never refused: it counts when its reader asks for memory the next time.

Where little is granted it is looked at for each request. Where much is, a census is taken at most
once in `FRESH` seconds, to which is added what was granted since; one that was begun after the
request came decides a refusal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from shmpool.protocol.census import Census, Use
from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Refusal
from shmpool.protocol.sizing import format_bytes

from ..chores import NEVER, Chore, Chores
from ..connections.seats import Seat, Seats
from ..memory.inventory import Inventory
from ..outbox import Outbox
from ..settings import Settings
from .recalls import Recalls
from .requests import Request, WaitingLine

#: Rows that are looked at for one request, at most.
LOOKED_AT: Final = 128
#: Seconds for which a census serves, and how many times as long as it took until the next.
FRESH, REST = 1.0, 4
#: Seconds of a unit of chores.
UNIT: Final = 2e-6
#: Seconds for which a request is held back while idle slots are recalled: a recall leaves a steady
#: stream what it used within the last second. And between two looks at those who are held back.
PATIENCE, LOOK_EVERY, LOOK_AGAIN = 1.25, 0.02, 0.002
#: How many of them are looked at in one turn.
LOOKED_AFTER_PER_TURN = 16


class Ledger(Protocol):
    """Who holds what, by the ledger."""

    def sample(self, rows: Sequence[int]) -> Census:
        """What some granted rows say, at once."""

    def take_census(self) -> Generator[int, None, Census]:
        """What all of them say: a chore."""


class Limits(NamedTuple):
    """The quotas, 0 for none."""

    client_bytes: int = 0
    client_buffers: int = 0
    uid_bytes: int = 0
    uid_buffers: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those of the configuration."""
        return cls(
            settings.client_quota_bytes,
            settings.client_quota_buffers,
            settings.uid_quota_bytes,
            settings.uid_quota_buffers,
        )


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


class Room(NamedTuple):
    """What somebody may still have."""

    nbytes: float
    buffers: float

    def count(self, nbytes: int) -> int:
        """How many buffers of so many bytes that is; at most some thousand matter."""
        return int(max(0, min(self.buffers, self.nbytes // max(1, nbytes), 1 << 20)))


class Quotas:
    """Who may have more, and the requests that are held back. *serve(request, now)* is called for
    those that may go on."""

    def __init__(
        self,
        seats: Seats,
        inventory: Inventory,
        line: WaitingLine,
        recalls: Recalls,
        chores: Chores,
        outbox: Outbox,
        under_way: Callable[[], Iterable[tuple[int, int, int]]],
        serve: Callable[[Request, float], None],
    ) -> None:
        self.limits = Limits()
        #: The reports', which read it.
        self.ledger: Ledger
        self._seats = seats
        self._inventory = inventory
        self._line = line
        self._recalls = recalls
        self._chores = chores
        self._outbox = outbox
        #: (seat, bytes, buffers) of what is taken for requests and not granted yet.
        self._under_way = under_way
        self._serve = serve
        #: Those who are held back, the oldest first, and since when.
        self.held: dict[Request, float] = {}
        self._looked_at = 0.0
        self._next_look = NEVER
        #: By seat, at the last census, which began and ended at these times.
        self._counted: dict[int, Used] = {}
        self._began = self._ended = float("-inf")
        #: By seat, bytes and buffers that were granted since that census began, or the present one.
        self._since: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._meanwhile: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._is_counting = False
        self._rests_until = 0.0

    @property
    def is_on(self) -> bool:
        """Whether there is any quota."""
        return any(self.limits)

    # --- what somebody has ------------------------------------------------------------------------

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

    def room(self, request: Request, now: float) -> Room | None:
        """What a request's client may still be granted; None when that has to be counted first."""
        uses = self._uses(now)
        if uses is None:
            return None
        limits, (client, user) = self.limits, self._of(request, uses)
        return Room(
            min(_left(limits.client_bytes, client.nbytes), _left(limits.uid_bytes, user.nbytes)),
            min(_left(limits.client_buffers, client.buffers), _left(limits.uid_buffers, user.buffers)),
        )

    def _uses(self, now: float) -> dict[int, Used] | None:
        """What each seat has; None when a census must come first."""
        granted = self._inventory.granted
        if len(granted) <= LOOKED_AT:
            self._counted, self._since = _by_seat(self.ledger.sample(list(granted))), (Counter(), Counter())
            self._began = self._ended = now
        elif now >= self._ended + FRESH:
            self._count(now)
            return None
        uses = {seat: replace(used) for seat, used in self._counted.items()}
        for seat, nbytes in self._since[0].items():
            uses.setdefault(seat, Used()).add(nbytes, self._since[1][seat])
        for seat, nbytes, buffers in self._under_way():
            uses.setdefault(seat, Used()).add(nbytes, buffers)
        return uses

    def _of(self, request: Request, uses: dict[int, Used]) -> tuple[Used, Used]:
        """What a request's client has, and its user."""
        uid, user = self._seats.taken[request.seat].peer.uid, Used()
        for number, used in uses.items():
            seat = self._seats.taken.get(number)
            if seat is not None and seat.peer.uid == uid:
                user.join(used)
        return uses.get(request.seat, Used()), user

    def _count(self, now: float) -> None:
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
            self._began, self._ended = began, self._chores.now
        finally:
            self._is_counting = False
            self._rests_until = self._chores.now + REST * UNIT * cost
            self._next_look = self._chores.now if self.held else NEVER

    # --- those who are held back --------------------------------------------------------------------

    def hold(self, request: Request, now: float) -> None:
        """Hold back a request that its quota does not allow now: while what it needs lies idle, or as
        long as that has to be counted. Else refuse it."""
        self.held[request] = now
        self._look_at(request, now)
        self._next_look = min(self._next_look, now + LOOK_EVERY)

    def note_freed(self) -> None:
        """Something has come back."""
        if self.held:
            self._next_look = min(self._next_look, self._looked_at + LOOK_AGAIN)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        return self._next_look if self.held else NEVER

    def tick(self, now: float) -> None:
        """Look at some of those who are held back, if it is time."""
        if not self.held or now < self._next_look:
            return
        self._looked_at, self._next_look = now, now + LOOK_EVERY
        for request in list(self.held)[:LOOKED_AFTER_PER_TURN]:
            if request in self.held:
                self.held[request] = self.held.pop(request)  # to the end of the line
                self._look_at(request, now)

    def _look_at(self, request: Request, now: float) -> None:
        if request.is_gone:
            del self.held[request]
            return
        room = self.room(request, now)
        if room is None:
            return
        if room.count(request.wanted_bytes):
            del self.held[request]
            self._serve(request, now)
            return
        if self._began < self.held[request]:  # it may have got less since
            self._ended = float("-inf")
            self._count(now)
            return
        uses = self._uses(now)
        assert uses is not None
        client, user = self._of(request, uses)
        is_in_vain = self._excess(request, client, user, with_idle=False) is not None
        if is_in_vain or not request.queue or now >= self.held[request] + PATIENCE:
            del self.held[request]
            self._refuse(request, self._excess(request, client, user, with_idle=True) or "", client, user)
            return
        for seat in self._to_recall(request, uses):
            self._recalls.ask(seat.number, now)

    def _to_recall(self, request: Request, uses: dict[int, Used]) -> Iterator[Seat]:
        """Those whose idle slots stand in the way."""
        own = self._seats.taken[request.seat]
        yield own
        if self.limits.uid_bytes or self.limits.uid_buffers:
            for number, used in uses.items():
                seat = self._seats.taken.get(number)
                if seat is not None and seat is not own and used.idle_buffers and seat.peer.uid == own.peer.uid:
                    yield seat

    def _excess(self, request: Request, client: Used, user: Used, *, with_idle: bool) -> str | None:
        """The first quota that a request would exceed, None when it would not."""
        wanted = request.wanted_bytes
        for name, limit, used, idle, more in (
            ("client_bytes", self.limits.client_bytes, client.nbytes, client.idle_bytes, wanted),
            ("client_buffers", self.limits.client_buffers, client.buffers, client.idle_buffers, 1),
            ("uid_bytes", self.limits.uid_bytes, user.nbytes, user.idle_bytes, wanted),
            ("uid_buffers", self.limits.uid_buffers, user.buffers, user.idle_buffers, 1),
        ):
            if limit and used - (0 if with_idle else idle) + more > limit:
                return name
        return None

    def _refuse(self, request: Request, name: str, client: Used, user: Used) -> None:
        self._line.end(request)
        self._outbox.send(
            request.connection, Refusal(request.number, Code.QUOTA, self._story(request, name, client, user))
        )

    def story(self, request: Request, now: float) -> str | None:
        """Why a request is held back; None when it is not."""
        uses = self._uses(now) if request in self.held and request.seat in self._seats.taken else None
        if uses is None:
            return None
        client, user = self._of(request, uses)
        name = self._excess(request, client, user, with_idle=True)
        return None if name is None else self._story(request, name, client, user)

    def _story(self, request: Request, name: str, client: Used, user: Used) -> str:
        whose, kind = name.split("_")
        used = client if whose == "client" else user
        limit = getattr(self.limits, name)
        who = "this client" if whose == "client" else f"uid {self._seats.taken[request.seat].peer.uid}"
        if kind == "bytes":
            said = [format_bytes(one) for one in (limit, used.nbytes, used.idle_bytes, request.wanted_bytes)]
        else:
            said = [str(one) for one in (limit, used.buffers, used.idle_buffers, 1)]
        idle = f", {said[2]} of it idle" if used.idle_buffers else ""
        return (
            f"{whose}_quota_{kind} is {said[0]}, {who} has {said[1]} leased, unread and open to read{idle}, and asks"
            f" for {said[3]} more"
        )


def _left(limit: int, used: int) -> float:
    return limit - used if limit else float("inf")


def _by_seat(census: Census) -> dict[int, Used]:
    uses: dict[int, Used] = {}
    for (seat, use), tally in census.kept.items():
        uses.setdefault(seat, Used()).add(tally.nbytes, tally.buffers, is_idle=use is Use.IDLE)
    return uses
