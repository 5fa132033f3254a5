"""`multiprocessing.Pipe`: `send_bytes`, and `recv_bytes_into` the reader's own buffer."""

from __future__ import annotations

import multiprocessing
import select
import time
from collections.abc import Callable
from typing import Any

from ..plan import Plan
from .base import Peer


class Pipe(Peer):
    token_bytes = 0

    def __init__(self, **_: Any) -> None:
        self._receiver, self._sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def begin_producer(self) -> None:
        self._receiver.close()

    def begin_consumer(self) -> None:
        self._sender.close()

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        send_bytes = self._sender.send_bytes

        def send() -> None:
            send_bytes(source)

        return send

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        """Receiving copies the bytes out in any case."""
        receive, clock, spin = self._receiver.recv_bytes_into, time.perf_counter, plan.spin
        poller = select.poll()
        poller.register(self._receiver, select.POLLIN)
        poll = poller.poll

        def sleep() -> None:
            receive(target)

        def poll_first() -> None:
            if not poll(0):
                until = clock() + spin
                while not poll(0) and clock() < until:
                    pass
            receive(target)

        return poll_first if spin else sleep
