"""The hand-over alone, which is what the pool is for: arrays (bytes, where there is no numpy) that lie ready
in one process until another has them to work on, by way of `shmpool.Queue`, and of `multiprocessing.Queue`.

One object is on its way at a time, so that nothing but its own way is timed: from before it is given,
in one process, until it is there, in the other; both look at the same clock. Reading the file comes
before, the digest that it is judged by after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pickle import PickleBuffer
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from ..connecting import connect
from .crew import Link
from .files import Skipped, opened, read_whole
from .tasks import Share

#: By this name both find the pool's queue.
QUEUE_NAME: Final = "hand-over"
#: Each file goes so many times each way, and the first time is not counted.
TIMES: Final = 6


class Way(Enum):
    """How an object gets to the other process."""

    POOL = "shmpool.Queue"
    QUEUE = "multiprocessing.Queue"


class Given(NamedTuple):
    """What goes ahead of each object: the file's index, its way, and whether it is judged."""

    file: int
    way: Way
    is_judged: bool


class Handed(NamedTuple):
    """An object has arrived. *nanoseconds* are None for one that is not counted, *sha256* for one
    that was judged before."""

    file: int
    way: Way
    nanoseconds: int | None
    sha256: bytes | None


def give(link: Link, share: Share, address: str, pipe: Connection, queue: Queue[Any]) -> None:
    """Read each file, then give its bytes; the other side says when it is ready for the next."""
    with ExitStack() as stack:
        pool = stack.enter_context(connect(address))
        stack.enter_context(pipe)
        ours = pool.queue(QUEUE_NAME)
        np = _numpy()
        link.await_go()
        for index, path in share:
            try:
                with opened(path) as (fd, identity):
                    data = read_whole(fd, identity.size)
            except Skipped:
                continue  # it was readable just now
            array = None if np is None else np.frombuffer(data, np.uint8)
            ways: dict[Way, tuple[Callable[[Any], None], Any]] = {
                Way.POOL: (ours.put, PickleBuffer(data) if array is None else array),
                Way.QUEUE: (queue.put, data if array is None else array),
            }
            for number in range(TIMES):
                for way, (send, obj) in ways.items():
                    pipe.send(Given(index, way, not number))
                    pipe.recv()
                    began = perf_counter_ns()
                    send(obj)
                    pipe.send(began)
                    pipe.recv()
        pipe.send(None)
        queue.close()


def take(link: Link, address: str, pipe: Connection, queue: Queue[Any]) -> None:
    """Take what comes, say when it was there, and judge it."""
    with connect(address) as pool, pipe:
        ours = pool.queue(QUEUE_NAME)
        _numpy()
        link.await_go()
        while (given := pipe.recv()) is not None:
            pipe.send(True)
            got = ours.get() if given.way is Way.POOL else queue.get()
            arrived = perf_counter_ns()
            took = arrived - pipe.recv()
            digest = hashlib.sha256(got).digest() if given.is_judged else None
            del got
            link.put(Handed(given.file, given.way, None if given.is_judged else took, digest))
            pipe.send(True)
        link.flush()


def _numpy() -> Any:
    """numpy, imported before anything is timed; None where it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy
