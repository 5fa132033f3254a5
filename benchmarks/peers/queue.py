"""`multiprocessing.Queue`: pickled by a thread of its own, over its own pipe. It cannot be
polled cheaply, so it always sleeps until something comes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from ..plan import Plan
from .base import Peer


class Queue(Peer):
    token_bytes = 0

    def __init__(self, **_: Any) -> None:
        self._queue: multiprocessing.Queue[bytes] = multiprocessing.get_context("fork").Queue()

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        put = self._queue.put

        def send() -> None:
            put(source)

        return send

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        get = self._queue.get

        def drain() -> None:
            target[:] = get()

        def touch() -> None:
            get()[0]

        return drain if plan.drains else touch

    def end_producer(self) -> None:
        self._queue.close()
        self._queue.cancel_join_thread()
