"""The floor with about the interpreted steps and the system calls of a lease beside its copies: what
the gate compares a hand-off with, so that a slower interpreter changes both sides alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..calibration import ByteLock, Work
from ..plan import Plan
from .floor import Floor


class Gauge(Floor):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._work, self._lock = Work(), ByteLock()

    def producer(self, plan: Plan, source: bytes) -> Callable[[], bytes]:
        make, lease, release = super().producer(plan, source), self._work.lease, self._work.release

        def put() -> bytes:
            held = lease(1000)
            token = make()
            release(held)
            return token

        return put

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[bytes], None]:
        read, lease, release = super().consumer(plan, target), self._work.lease, self._work.release
        take_and_drop = self._lock.take_and_drop

        def take(token: bytes) -> None:
            take_and_drop()
            held = lease(1000)
            read(token)
            release(held)

        return take
