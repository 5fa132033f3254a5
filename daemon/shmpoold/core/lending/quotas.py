"""Quotas: how much each client and each user may have at a time, in bytes and in buffers.

Counted for whoever holds it: leases, publications that somebody has yet to open, and what is open
for reading, as the ledger says; a publication whose tickets are all taken is its readers'. What is shared
counts for its maker while that lives, and for everybody else who holds it. What lies
idle in magazines can be leased without a word, so it counts when more is asked for, but a request
is not refused for it: it is recalled first, from all whose quota it is, and the request held back
meanwhile. Opening is never refused: it counts when its reader asks for memory the next time.

What each has is counted by `usage`; only a count that was begun after the request came decides a
refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nlargest
from operator import itemgetter
from typing import NamedTuple

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Refusal
from shmpool.protocol.sizing import format_bytes

from ..chores import NEVER, Chores
from ..connections.seats import Seats
from ..memory.inventory import Inventory
from ..outbox import Outbox
from ..settings import Settings
from .recalls import RECALL_EVERY, RECALLED_PER_TURN, Recalls
from .requests import Request, WaitingLine
from .usage import Usage, Used

#: Seconds for which a request is held back while idle slots are recalled: a recall leaves a steady
#: stream what it used within the last second. And between two looks at those who are held back.
PATIENCE, LOOK_EVERY, LOOK_AGAIN = 1.25, 0.02, 0.002
#: A recall leaves a client what it used within so many seconds: asked again sooner, it has nothing new.
KEPT_FOR = 1.0
#: How many of them are looked at in one turn.
LOOKED_AFTER_PER_TURN = 16


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
        self.usage = Usage(seats, inventory, chores, under_way, self._on_counted)
        self._seats = seats
        self._line = line
        self._recalls = recalls
        self._outbox = outbox
        self._serve = serve
        #: Those who are held back, the oldest first, and since when.
        self.held: dict[Request, float] = {}
        #: By user, when its processes may be asked again.
        self._next_round: dict[int, float] = {}
        self._looked_at = 0.0
        self._next_look = NEVER

    @property
    def is_on(self) -> bool:
        """Whether there is any quota."""
        return any(self.limits)

    def room(self, request: Request, now: float) -> Room | None:
        """What a request's client may still be granted; None when that has to be counted first."""
        if not self.usage.is_known(now):
            return None
        limits, (client, user) = self.limits, self.usage.of(request)
        return Room(
            min(_left(limits.client_bytes, client.nbytes), _left(limits.uid_bytes, user.nbytes)),
            min(_left(limits.client_buffers, client.buffers), _left(limits.uid_buffers, user.buffers)),
        )

    # --- those who are held back --------------------------------------------------------------------

    def hold(self, request: Request, now: float) -> None:
        """Hold back a request that its quota does not allow now: while what it needs lies idle, or as
        long as that has to be counted. Else refuse it."""
        self.held[request] = now
        self._look_at(request, now)
        self._next_look = min(self._next_look, now + LOOK_EVERY)

    def _on_counted(self, now: float) -> None:
        self._next_look = now if self.held else NEVER

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
        if self.usage.began < self.held[request]:  # it may have got less since
            self.usage.count_anew(now)
            return
        client, user = self.usage.of(request)
        is_in_vain = self._excess(request, client, user, with_idle=False) is not None
        if is_in_vain or not request.queue or now >= self.held[request] + PATIENCE:
            del self.held[request]
            self._refuse(request, self._excess(request, client, user, with_idle=True) or "", client, user)
            return
        self._recalls.ask(request.seat, now)
        if self.limits.uid_bytes or self.limits.uid_buffers:
            self._recall_from_user(self._seats.taken[request.seat].peer.uid, now)

    def _recall_from_user(self, uid: int, now: float) -> None:
        """Ask a user's processes for what lies idle with them, as a round of recalls does: not more often,
        whoever has most of it first, some at a time."""
        if now < self._next_round.get(uid, 0.0):
            return
        self._next_round = {other: due for other, due in self._next_round.items() if due > now}
        self._next_round[uid] = now + RECALL_EVERY
        idlers = [idler for idler in self.usage.idlers_of(uid) if idler[1].recalled_at < now - KEPT_FOR]
        for _, seat in nlargest(RECALLED_PER_TURN, idlers, key=itemgetter(0)):
            self._recalls.ask(seat.number, now)

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
        if request not in self.held or request.seat not in self._seats.taken or not self.usage.is_known(now):
            return None
        client, user = self.usage.of(request)
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
