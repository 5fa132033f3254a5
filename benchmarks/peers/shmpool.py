"""shmpool, as its users write it, with a broker of its own: the plain client, or the compiled one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import shmpool

from ..plan import Plan
from .base import Absent, Peer


class Shmpool(Peer):
    token_bytes = 24

    def __init__(self, strategy: str = "adaptive", is_compiled: bool | None = None, **broker: Any) -> None:
        """*broker*: the configuration of its broker."""
        if is_compiled and not shmpool.__compiled__:
            raise Absent("the compiled part is not built (SHMPOOL_COMPILED=1 pip install …)")
        self._strategy = shmpool.Strategy(strategy)
        self._broker = shmpool.Broker(**broker)

    def begin_producer(self) -> None:
        self._pool = self._broker.connect()

    begin_consumer = begin_producer

    def producer(self, plan: Plan, source: bytes) -> Callable[[], bytes]:
        nbytes = plan.nbytes
        lease: Callable[[int], shmpool.Lease] = self._pool.lease
        if self._strategy is not shmpool.Strategy.ADAPTIVE:
            lease = _with_strategy(self._pool.lease, self._strategy)

        def fill() -> bytes:
            leased = lease(nbytes)
            leased.write(source)
            return leased.publish()

        def touch() -> bytes:
            leased = lease(nbytes)
            leased.view[0] = 1
            return leased.publish()

        return fill if plan.fills else touch

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[bytes], None]:
        open_ = self._pool.open

        def drain(token: bytes) -> None:
            buffer = open_(token)
            target[:] = buffer.view
            buffer.release()

        def touch(token: bytes) -> None:
            buffer = open_(token)
            buffer.view[0]
            buffer.release()

        def touch_both(token: bytes) -> None:
            buffer = open_(token)
            view = buffer.view
            view[0]
            view[-1]
            del view
            buffer.release()

        return drain if plan.drains else touch_both if plan.fills else touch

    def end_consumer(self) -> None:
        self._pool.close()

    def end_producer(self) -> None:
        self._pool.close()
        self._broker.close()


class ShmpoolQueue(Shmpool):
    """The same, with the tokens through a queue of the pool's; what is small lies in the queue itself, as `bytes`."""

    token_bytes = 0
    #: What a queue holds in itself.
    INLINE = 4096

    def begin_producer(self) -> None:
        super().begin_producer()
        self._queue = self._pool.queue("tokens")

    begin_consumer = begin_producer

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        lease, put, nbytes = self._pool.lease, self._queue.put, plan.nbytes

        def fill() -> None:
            leased = lease(nbytes)
            leased.write(source)
            put(leased.publish())

        def touch() -> None:
            leased = lease(nbytes)
            leased.view[0] = 1
            put(leased.publish())

        def fill_inline() -> None:
            put(source)

        if not plan.fills:
            return touch
        return fill_inline if nbytes <= self.INLINE else fill

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        open_, get = self._pool.open, self._queue.get

        def drain() -> None:
            buffer = open_(get())
            target[:] = buffer.view
            buffer.release()

        def touch() -> None:
            buffer = open_(get())
            buffer.view[0]
            buffer.release()

        def touch_both() -> None:
            buffer = open_(get())
            view = buffer.view
            view[0]
            view[-1]
            del view
            buffer.release()

        def drain_inline() -> None:
            target[:] = get()

        def touch_inline() -> None:
            found = get()
            found[0]
            found[-1]

        if plan.fills and plan.nbytes <= self.INLINE:
            return drain_inline if plan.drains else touch_inline
        return drain if plan.drains else touch_both if plan.fills else touch

    def end_consumer(self) -> None:
        self._queue.close()
        super().end_consumer()

    def end_producer(self) -> None:
        self._queue.close()
        super().end_producer()


def _with_strategy(lease: Callable[..., shmpool.Lease], strategy: shmpool.Strategy) -> Callable[[int], shmpool.Lease]:
    def leased(nbytes: int) -> shmpool.Lease:
        return lease(nbytes, strategy=strategy)

    return leased
