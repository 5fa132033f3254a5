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

        return drain if plan.drains else touch

    def end_consumer(self) -> None:
        self._pool.close()

    def end_producer(self) -> None:
        self._pool.close()
        self._broker.close()


def _with_strategy(lease: Callable[..., shmpool.Lease], strategy: shmpool.Strategy) -> Callable[[int], shmpool.Lease]:
    def leased(nbytes: int) -> shmpool.Lease:
        return lease(nbytes, strategy=strategy)

    return leased
