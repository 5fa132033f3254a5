"""Requests that could not be granted at once, in the order they came.

FIFO among those who want the same: a request for a pooled slot never overtakes an earlier one
of its tier. One for chunks, for a direct segment or of another tier may go first where there is
not enough for the earlier one, because a waiter for much must not stop those whose work would
give it back; `earmarks` sees that it does not wait for ever. A waiter that has gone is never
granted to.

A process has `STANDING` places in the queue of a tier at most. Those that it asked for beyond
them are behind: when one of its own leaves the queue, the next gets a place at the end of it, as
if it came then; and where the requests of a queue differ, those that were tried in vain take
turns with those behind, all but the oldest. So what a process has in line costs the others the
same, be it sixteen requests or a thousand.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from shmpool.protocol.sizing import Tier, TierKind

#: Places that one process has in the queue of a tier.
STANDING = 16


class Rung(Enum):
    """What served a request, by the name that the figures have for it."""

    READY = "ready"
    """Something was warm and nobody's."""
    WARM = "warm"
    """Something was warmed, or made, under the cap."""
    EVICT = "evict"
    """Caches that nobody holds were given up for it, and that was enough."""
    COOL = "cool"
    """Idle slots of other tiers, or spares, were cooled for it."""
    LARGER = "larger"
    """A slot of a larger tier, or a run of another chunk tier."""
    RECALL = "recall"
    """What others gave back at the first recall."""
    FALLBACK = "fallback"
    """A direct segment, for what no slot and no run could serve."""
    WAIT = "wait"
    """What came back later, first come first served."""
    REFUSED = "refused"
    """Nothing: it did not wait, or there was nothing to wait for."""
    WITHDRAWN = "withdrawn"
    """Its client asked no longer: its time was up, or a slot of its own came back."""


@dataclass(slots=True, eq=False)
class Request:
    """One Refill or Direct that is under way; *nbytes* is of a direct segment."""

    connection: int
    seat: int
    #: Its process: what one has in line is bounded, through however many connections it asks.
    process: tuple[int, int]
    number: int
    tier: Tier
    chunks: int
    count: int
    nbytes: int
    queue: bool
    since: float
    #: Its place in the order in which requests came; one that was behind came when it got its place.
    order: int = 0
    #: It waits in the line.
    is_waiting: bool = False
    #: It has a place in a queue, between these two.
    is_linked: bool = False
    before: Request | None = field(default=None, repr=False)
    after: Request | None = field(default=None, repr=False)
    #: It waits for a place in its queue.
    is_behind: bool = False
    #: What becomes free is kept for it, or was and is (see `earmarks`).
    is_kept_for: bool = False
    #: Its client cancelled it or is gone.
    is_gone: bool = False
    #: When it began to wait, and what served it.
    joined_at: float | None = None
    rung: Rung | None = None
    #: Bytes of caches that were given up for it just now.
    given_up: int = 0
    #: Why the host had no room, when it had none.
    failure: str = ""
    #: Since when enough has to have come back, before anything is kept for it (see `earmarks`).
    awaits_since: float = 0.0
    #: How many turns it had in which what became free was kept for it; of those since then the seconds, the
    #: most that they may take, and the most that there was for it in one of them.
    turns: int = 0
    spent: float = 0.0
    allowance: float = 0.0
    gathered: int = 0

    @property
    def is_in_line(self) -> bool:
        """It waits, and somebody waits for it."""
        return self.is_waiting and not self.is_gone

    @property
    def wanted_bytes(self) -> int:
        """The least that would satisfy it."""
        return self.nbytes or self.tier.size * self.chunks


@dataclass(slots=True)
class Queue:
    """The requests of one tier in the order in which they came, linked one to the next: whoever comes, goes
    or is tried in the middle costs the same however many there are."""

    first: Request | None = None
    last: Request | None = None
    #: How many of them wait; one that is just being tried does not.
    waiting: int = 0

    def __iter__(self) -> Iterator[Request]:
        request = self.first
        while request is not None:
            following = request.after
            yield request
            request = following

    def insert(self, request: Request) -> None:
        """Put it behind all that came before it. One that comes back had come early."""
        before = self.last
        if before is not None and before.order > request.order:
            before = None
            for other in self:
                if other.order > request.order:
                    break
                before = other
        after = self.first if before is None else before.after
        request.before, request.after, request.is_linked = before, after, True
        if before is None:
            self.first = request
        else:
            before.after = request
        if after is None:
            self.last = request
        else:
            after.before = request

    def remove(self, request: Request) -> None:
        """Take it out."""
        before, after = request.before, request.after
        if before is None:
            self.first = after
        else:
            before.after = after
        if after is None:
            self.last = before
        else:
            after.before = before
        request.before = request.after = None
        request.is_linked = False


@dataclass(slots=True)
class Party:
    """What one process has in line for one tier: in the queue, and behind; each by its order."""

    standing: OrderedDict[int, Request] = field(default_factory=OrderedDict)
    behind: OrderedDict[int, Request] = field(default_factory=OrderedDict)


class WaitingLine:
    """The requests that wait, a queue for each tier; and all that are under way by name."""

    def __init__(self) -> None:
        self._queues: dict[int, Queue] = {}
        #: Process -> tier -> what it has in line; whoever had no turn for longest comes first.
        self._parties: OrderedDict[tuple[int, int], dict[int, Party]] = OrderedDict()
        #: How many wait in all of them.
        self._waiting = 0
        #: By tier, who is to be tried next: where a turn stopped that did not get through the line.
        self.places: dict[int, Request] = {}
        #: By tier, the order of whoever came last before that turn: who is behind it was tried, or is tried next time.
        self._ends: dict[int, int] = {}
        #: Connection -> number -> request; and how many of each process.
        self._under_way: dict[int, dict[int, Request]] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._last_order = 0

    def __bool__(self) -> bool:
        return self._waiting > 0

    def __len__(self) -> int:
        return self._waiting

    def is_clear_for(self, connection: int) -> bool:
        """Whether nobody waits, and this connection has nothing else under way."""
        return not self._waiting and connection not in self._under_way

    def count(self, process: tuple[int, int]) -> int:
        """Requests of one process that are under way."""
        return self._numbers.get(process, 0)

    def begin(self, request: Request) -> bool:
        """Note a request; False when its client already has one of that number."""
        request.order = self._next_order()
        own = self._under_way.setdefault(request.connection, {})
        if own.setdefault(request.number, request) is not request:
            return False
        self._numbers[request.process] = self.count(request.process) + 1
        return True

    def _next_order(self) -> int:
        self._last_order += 1
        return self._last_order

    def knows(self, request: Request) -> bool:
        """Whether it is under way."""
        return self._under_way.get(request.connection, {}).get(request.number) is request

    def end(self, request: Request) -> None:
        """A request was answered."""
        self._forget(request.connection, request.number)

    # --- the queues ------------------------------------------------------------------------------

    def join(self, request: Request) -> None:
        """Wait. One that had left the line to be served and was not gets its place again."""
        if request.is_waiting:
            return
        if not request.is_linked:
            party = self._parties.setdefault(request.process, {}).setdefault(request.tier.index, Party())
            if len(party.standing) >= STANDING:
                self._go_behind(request, party)
                return
            self._stand(request, party)
        self._count(request, 1)

    def try_out(self, request: Request) -> None:
        """It is to be served: its place is kept until `settle`."""
        self._count(request, -1)

    def settle(self, request: Request, *, waits: bool) -> None:
        """It was tried, and waits on or is out of the line. The next one is to be tried; nobody behind it,
        where all want the same."""
        if not waits:
            if request.is_linked:
                self._remove(request)
            return
        self.join(request)
        index = request.tier.index
        if self.places.get(index) is not request:
            return
        if request.tier.kind is TierKind.POOLED:
            del self.places[index]
        else:
            self._go_on_after(request)
            self._let_another_stand(request)

    def _let_another_stand(self, request: Request) -> None:
        """Whoever was tried in vain goes behind those of its process that are there."""
        party = self._parties[request.process][request.tier.index]
        if party.behind and not request.is_kept_for and next(iter(party.standing.values())) is not request:
            self._leave_queue(request, party)
            request.order = self._next_order()
            self._go_behind(request, party)
            self._let_next_stand(party)

    def _go_behind(self, request: Request, party: Party) -> None:
        party.behind[request.order] = request
        request.is_behind = request.is_waiting = True
        self._waiting += 1

    def _count(self, request: Request, more: int) -> None:
        request.is_waiting = more > 0
        self._queues[request.tier.index].waiting += more
        self._waiting += more

    def _stand(self, request: Request, party: Party) -> None:
        party.standing[request.order] = request
        self._queues.setdefault(request.tier.index, Queue()).insert(request)

    def _let_next_stand(self, party: Party) -> None:
        _, request = party.behind.popitem(last=False)
        self._waiting -= 1
        request.is_behind, request.order = False, self._next_order()
        self._stand(request, party)
        self._count(request, 1)

    def _leave_queue(self, request: Request, party: Party) -> None:
        index = request.tier.index
        queue = self._queues[index]
        if self.places.get(index) is request:
            self._go_on_after(request)
        if request.is_waiting:
            self._count(request, -1)
        queue.remove(request)
        del party.standing[request.order]
        if queue.first is None:
            del self._queues[index]

    def _remove(self, request: Request) -> None:
        parties = self._parties[request.process]
        party = parties[request.tier.index]
        if request.is_behind:
            del party.behind[request.order]
            request.is_behind = request.is_waiting = False
            self._waiting -= 1
            return
        if party.behind:
            self._let_next_stand(party)
            self._ends[request.tier.index] = self._last_order  # what was there for this one may be for the next
        self._leave_queue(request, party)
        if not party.standing:
            del parties[request.tier.index]
            if not parties:
                del self._parties[request.process]

    def _go_on_after(self, request: Request) -> None:
        index, after = request.tier.index, request.after
        if after is None or after.order > self._ends[index]:
            self.places.pop(index, None)
        else:
            self.places[index] = after

    def begin_turn(self) -> None:
        """Those are to be tried who come first of each tier that is not gone through just now."""
        for index, queue in self._queues.items():
            if queue.first is not None and index not in self.places:
                self.places[index], self._ends[index] = queue.first, self._last_order

    def is_behind(self, tier: Tier) -> bool:
        """Whether somebody already waits for this tier."""
        queue = self._queues.get(tier.index)
        return queue is not None and queue.waiting > 0

    def heads(self) -> Iterator[Request]:
        """The first waiter of each tier."""
        for queue in self._queues.values():
            if (first := next((request for request in queue if request.is_waiting), None)) is not None:
                yield first

    def processes(self, count: int) -> list[tuple[int, int]]:
        """Those that have anything in line: so many, whoever had no turn for longest first."""
        return list(islice(self._parties, count))

    def standing(self, process: tuple[int, int]) -> Iterator[Request]:
        """What waits of one process and has a place in a queue."""
        for party in self._parties[process].values():
            yield from (request for request in party.standing.values() if request.is_waiting)

    def had_turn(self, process: tuple[int, int]) -> None:
        """The others come first, the next time."""
        self._parties.move_to_end(process)

    def all(self) -> list[Request]:
        """All that wait."""
        standing = [request for queue in self._queues.values() for request in queue if request.is_waiting]
        parties = [party for own in self._parties.values() for party in own.values()]
        return standing + [request for party in parties for request in party.behind.values()]

    # --- going -----------------------------------------------------------------------------------

    def cancel(self, connection: int, number: int) -> Request | None:
        """Forget a request. None if it is not known."""
        request = self._forget(connection, number)
        if request is not None:
            request.is_gone = True
            if request.is_linked or request.is_behind:
                self._remove(request)
        return request

    def cancel_all(self, connection: int) -> None:
        """Forget all that a connection asked for."""
        for number in list(self._under_way.get(connection, ())):
            self.cancel(connection, number)

    def _forget(self, connection: int, number: int) -> Request | None:
        own = self._under_way.get(connection, {})
        request = own.pop(number, None)
        if not own:
            self._under_way.pop(connection, None)
        if request is not None:
            self._numbers[request.process] -= 1
            if not self._numbers[request.process]:
                del self._numbers[request.process]
        return request
