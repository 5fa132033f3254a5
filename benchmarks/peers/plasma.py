"""Arrow Plasma, the object store of pyarrow to 11.0: create, seal, get, release, delete.
Runs in an interpreter of its own (`benchmarks/plasma_environment.py`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

from ..plan import Plan
from .base import Absent, Peer

warnings.filterwarnings("ignore", category=DeprecationWarning)
try:
    from pyarrow import plasma
except ImportError as error:
    raise Absent(f"pyarrow has no Plasma here ({error})") from error


class Plasma(Peer):
    token_bytes = 20

    def __init__(self, memory: int = 1 << 30, **_: Any) -> None:
        self._folder = tempfile.mkdtemp(prefix="shmpool-benchmarks-")
        self._socket = os.path.join(self._folder, "plasma")
        command = [os.path.join(os.path.dirname(sys.executable), "plasma_store"), "-m", str(memory), "-s", self._socket]
        self._store = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def begin_producer(self) -> None:
        self._client = plasma.connect(self._socket, num_retries=100)
        self._numbers = count(1)

    def begin_consumer(self) -> None:
        self._client = plasma.connect(self._socket, num_retries=100)

    def producer(self, plan: Plan, source: bytes) -> Callable[[], bytes]:
        create, seal, nbytes = self._client.create, self._client.seal, plan.nbytes
        numbers, width, object_id = self._numbers, self.token_bytes, plasma.ObjectID

        def fill() -> bytes:
            token = next(numbers).to_bytes(width, "little")
            name = object_id(token)
            buffer = create(name, nbytes)
            memoryview(buffer).cast("B")[:] = source
            seal(name)
            return token

        def touch() -> bytes:
            token = next(numbers).to_bytes(width, "little")
            name = object_id(token)
            buffer = create(name, nbytes)
            memoryview(buffer).cast("B")[0] = 1
            seal(name)
            return token

        return fill if plan.fills else touch

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[bytes], None]:
        get, delete, object_id = self._client.get_buffers, self._client.delete, plasma.ObjectID

        def drain(token: bytes) -> None:
            names = [object_id(token)]
            target[:] = memoryview(get(names)[0]).cast("B")
            delete(names)

        def touch(token: bytes) -> None:
            names = [object_id(token)]
            memoryview(get(names)[0])[0]
            delete(names)

        def touch_both(token: bytes) -> None:
            names = [object_id(token)]
            view = memoryview(get(names)[0])
            view[0]
            view[-1]
            delete(names)

        return drain if plan.drains else touch_both if plan.fills else touch

    def end_consumer(self) -> None:
        self._client.disconnect()

    def end_producer(self) -> None:
        self._client.disconnect()
        self._store.terminate()
        self._store.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
