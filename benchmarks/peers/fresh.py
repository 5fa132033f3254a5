"""What people write today: a new `SharedMemory` for each object. Create, write, send the
name, attach, read, close, unlink; one resource tracker for both processes."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from ..plan import Plan
from .base import Peer


class Fresh(Peer):
    def __init__(self, **_: Any) -> None:
        resource_tracker.ensure_running()

    def producer(self, plan: Plan, source: bytes) -> Callable[[], bytes]:
        nbytes, width = plan.nbytes, self.token_bytes

        def fill() -> bytes:
            segment = SharedMemory(create=True, size=nbytes)
            segment.buf[:nbytes] = source
            token = segment.name.encode().ljust(width)
            segment.close()
            return token

        def touch() -> bytes:
            segment = SharedMemory(create=True, size=nbytes)
            segment.buf[0] = 1
            token = segment.name.encode().ljust(width)
            segment.close()
            return token

        return fill if plan.fills else touch

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[bytes], None]:
        nbytes = plan.nbytes

        def drain(token: bytes) -> None:
            segment = SharedMemory(token.rstrip().decode())
            target[:] = segment.buf[:nbytes]
            segment.close()
            segment.unlink()

        def touch(token: bytes) -> None:
            segment = SharedMemory(token.rstrip().decode())
            segment.buf[0]
            segment.close()
            segment.unlink()

        def touch_both(token: bytes) -> None:
            segment = SharedMemory(token.rstrip().decode())
            segment.buf[0]
            segment.buf[nbytes - 1]
            segment.close()
            segment.unlink()

        return drain if plan.drains else touch_both if plan.fills else touch
