"""Requests that could not be granted at once, in the order they came.

FIFO within a tier: a request never overtakes an earlier one for the same tier. Across
tiers a later one may go first, because a waiter for much must not stop those whose work
would give it back. A waiter that has gone is never granted to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from shmpool.protocol.sizing import Tier


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
    #: Its client cancelled it or is gone.
    is_gone: bool = False
    #: Why the host had no room, when it had none.
    failure: str = ""

    @property
    def wanted_bytes(self) -> int:
        """The least that would satisfy it."""
        return self.nbytes or self.tier.size * self.chunks


class WaitingLine:
    """The requests that wait, a queue for each tier; and all that are under way by name."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Request]] = {}
        self._by_name: dict[tuple[int, int], Request] = {}
        self._last_order = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def begin(self, request: Request) -> bool:
        """Note a request; False when its client already has one of that number."""
        self._last_order += 1
        request.order = self._last_order
        return self._by_name.setdefault((request.connection, request.number), request) is request

    def end(self, request: Request) -> None:
        """A request was answered."""
        self._by_name.pop((request.connection, request.number), None)

    def join(self, request: Request) -> None:
        """Wait. One that had left the line to be served and was not gets its place again."""
        queue = self._queues.setdefault(request.tier.index, deque())
        if not queue or queue[-1].order < request.order:
            queue.append(request)
        else:
            later = next(index for index, other in enumerate(queue) if other.order > request.order)
            queue.insert(later, request)

    def is_behind(self, tier: Tier) -> bool:
        """Whether somebody already waits for this tier."""
        return tier.index in self._queues

    def heads(self) -> Iterator[Request]:
        """The first waiter of each tier."""
        for index in list(self._queues):
            head = self._head(index)
            if head is not None:
                yield head

    def pop(self, tier: Tier) -> None:
        """The first waiter of a tier leaves the line."""
        self._queues[tier.index].popleft()
        self._head(tier.index)

    def all(self) -> list[Request]:
        """All that wait."""
        return [request for queue in self._queues.values() for request in queue]

    def cancel(self, connection: int, number: int) -> Request | None:
        """Forget a request. None if it is not known."""
        request = self._by_name.pop((connection, number), None)
        if request is not None:
            request.is_gone = True
            queue = self._queues.get(request.tier.index)
            if queue and request in queue:
                queue.remove(request)
            self._head(request.tier.index)
        return request

    def cancel_all(self, connection: int) -> None:
        """Forget all that a connection asked for."""
        for name in [name for name in self._by_name if name[0] == connection]:
            self.cancel(*name)

    def _head(self, index: int) -> Request | None:
        queue = self._queues.get(index)
        if not queue:
            self._queues.pop(index, None)
            return None
        return queue[0]
