"""cloudtoid-interprocess: a queue of bytes in a memory-mapped file, copied in and copied out. Both sides poll."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from ..plan import Plan
from ..units import MIB
from .base import Absent, Peer

try:
    import cloudtoid_interprocess as interprocess
except ImportError as error:
    raise Absent(f"cloudtoid-interprocess is not installed ({error})") from error

#: As much as may be in flight of the largest objects.
CAPACITY = 256 * MIB


class Cloudtoid(Peer):
    token_bytes = 0

    def __init__(self, **_: Any) -> None:
        self._directory = tempfile.mkdtemp(dir="/dev/shm")

    def begin_producer(self) -> None:
        self._publisher = interprocess.Publisher("objects", CAPACITY, self._directory)

    def begin_consumer(self) -> None:
        self._subscriber = interprocess.Subscriber("objects", CAPACITY, self._directory)

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        send = self._publisher.try_send

        def put() -> None:
            while not send(source):
                pass

        return put

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        receive = self._subscriber.try_receive

        def drain() -> None:
            while (found := receive()) is None:
                pass
            target[:] = found

        def touch() -> None:
            while (found := receive()) is None:
                pass
            found[0]

        return drain if plan.drains else touch

    def end_consumer(self) -> None:
        self._subscriber.close()

    def end_producer(self) -> None:
        self._publisher.close()
        shutil.rmtree(self._directory, ignore_errors=True)
