"""pyzmq over `ipc://`, PUSH to PULL, without copies in Python on either side."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ..plan import Plan
from .base import Absent, Peer

try:
    import zmq
except ImportError as error:
    raise Absent(f"pyzmq is not installed ({error})") from error


class Zmq(Peer):
    token_bytes = 0

    def __init__(self, **_: Any) -> None:
        self._folder = tempfile.mkdtemp(prefix="shmpool-benchmarks-")
        self._address = "ipc://" + os.path.join(self._folder, "zmq")

    def begin_producer(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.bind(self._address)

    def begin_consumer(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.connect(self._address)

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        """The source is immutable, so nothing is copied before the kernel does it."""
        send_message = self._socket.send

        def send() -> None:
            send_message(source, copy=False)

        return send

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        receive = _polling(self._socket, plan.spin) if plan.spin else self._socket.recv

        def drain() -> None:
            target[:] = receive(copy=False).buffer

        def touch() -> None:
            receive(copy=False).buffer[0]

        return drain if plan.drains else touch

    def end_consumer(self) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def end_producer(self) -> None:
        self.end_consumer()
        shutil.rmtree(self._folder, ignore_errors=True)


def _polling(socket: zmq.Socket, spin: float) -> Callable[..., zmq.Frame]:
    clock, receive = time.perf_counter, socket.recv

    def poll_first(copy: bool) -> zmq.Frame:
        until = clock() + spin
        while clock() < until:
            try:
                return receive(zmq.NOBLOCK, copy)
            except zmq.Again:
                pass
        return receive(0, copy)

    return poll_first
