"""Requests that could not be granted at once, in the order they came.

FIFO among those who want the same: a request for a pooled slot never overtakes an earlier one
of its tier. One for chunks, for a direct segment or of another tier may go first where there is
not enough for the earlier one, because a waiter for much must not stop those whose work would
give it back; `earmarks` sees that it does not wait for ever. A waiter that has gone is never
granted to.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from shmpool.protocol.sizing import Tier


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
    number: int
    tier: Tier
    chunks: int
    count: int
    nbytes: int
    queue: bool
    since: float
    #: Its place in the order in which requests came.
    order: int = 0
    #: It stands in the line.
    is_waiting: bool = False
    #: Its client cancelled it or is gone.
    is_gone: bool = False
    #: When it began to wait, and what served it.
    joined_at: float | None = None
    rung: Rung | None = None
    #: Why the host had no room, when it had none.
    failure: str = ""
    #: How many turns it had in which what became free was kept for it, and the most that there
    #: was for it in one of them lately (see `earmarks`).
    turns: int = 0
    gathered: int = 0
    gathered_at: float = float("-inf")

    @property
    def is_in_line(self) -> bool:
        """It waits, and somebody waits for it."""
        return self.is_waiting and not self.is_gone

    @property
    def wanted_bytes(self) -> int:
        """The least that would satisfy it."""
        return self.nbytes or self.tier.size * self.chunks


class WaitingLine:
    """The requests that wait, a queue for each tier; and all that are under way by name.

    Who has gone is taken out when he comes to the head, or with all the others like him
    once they are most of a queue: leaving costs the same however long the queue is.
    """

    def __init__(self) -> None:
        self._queues: dict[int, deque[Request]] = {}
        #: By tier, how many in its queue have gone.
        self._gone: Counter[int] = Counter()
        #: Connection -> number -> request.
        self._under_way: dict[int, dict[int, Request]] = {}
        self._last_order = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def is_clear_for(self, connection: int) -> bool:
        """Whether nobody waits, and this connection has nothing else under way."""
        return not self._queues and connection not in self._under_way

    def count(self, connection: int) -> int:
        """Requests of one connection that are under way."""
        return len(self._under_way.get(connection, ()))

    def begin(self, request: Request) -> bool:
        """Note a request; False when its client already has one of that number."""
        self._last_order += 1
        request.order = self._last_order
        own = self._under_way.setdefault(request.connection, {})
        return own.setdefault(request.number, request) is request

    def knows(self, request: Request) -> bool:
        """Whether it is under way."""
        return self._under_way.get(request.connection, {}).get(request.number) is request

    def end(self, request: Request) -> None:
        """A request was answered."""
        self._forget(request.connection, request.number)

    def join(self, request: Request) -> None:
        """Wait. One that had left the line to be served and was not gets its place again."""
        queue = self._queues.setdefault(request.tier.index, deque())
        if not queue or queue[-1].order < request.order:
            queue.append(request)
        else:
            later = next(index for index, other in enumerate(queue) if other.order > request.order)
            queue.insert(later, request)
        request.is_waiting = True

    def is_behind(self, tier: Tier) -> bool:
        """Whether somebody already waits for this tier."""
        return tier.index in self._queues

    def heads(self) -> Iterator[Request]:
        """The first waiter of each tier."""
        for queue in self._queues.values():
            yield queue[0]

    def first(self, count: int) -> Iterator[Request]:
        """The first so many of each tier."""
        for queue in self._queues.values():
            yield from (request for request in islice(queue, count) if not request.is_gone)

    def at(self, index: int, place: int) -> Request | None:
        """The waiter in a place of a tier's queue, who may have gone; None when it is not so long."""
        queue = self._queues.get(index)
        return queue[place] if queue is not None and place < len(queue) else None

    def tiers(self) -> list[int]:
        """The indexes of the tiers that are waited for."""
        return list(self._queues)

    def leave(self, index: int, place: int) -> None:
        """Whoever is in this place leaves the line, to be served."""
        queue = self._queues[index]
        queue[place].is_waiting = False
        if place:
            del queue[place]
        else:
            queue.popleft()
        self._tidy(index)

    def all(self) -> list[Request]:
        """All that wait."""
        return [request for queue in self._queues.values() for request in queue if not request.is_gone]

    def cancel(self, connection: int, number: int) -> Request | None:
        """Forget a request. None if it is not known."""
        request = self._forget(connection, number)
        if request is not None:
            request.is_gone = True
            if request.is_waiting:
                self._gone[request.tier.index] += 1
                self._tidy(request.tier.index)
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
        return request

    def _tidy(self, index: int) -> None:
        """See that a queue begins with somebody who waits, and is mostly such; else it goes."""
        queue = self._queues[index]
        if self._gone[index] > len(queue) // 2:
            self._queues[index] = queue = deque(request for request in queue if not request.is_gone)
            del self._gone[index]
        while queue and queue[0].is_gone:
            queue.popleft()
            self._gone[index] -= 1
        if not queue:
            del self._queues[index], self._gone[index]
