"""A queue on an event loop. Items are put and taken at once where that goes, and by whom waited longest first.

Who waits for an item watches the queue's descriptor; who waits for room looks again after pauses of a few
milliseconds, since nothing rings for that. No thread waits. A put or get that is cancelled has not happened.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, TypeVar

from ..link.waiting import check_timeout
from ..queues import Queue as SyncQueue
from ..system.outside import own, own_or_called
from ..uncopied import Uncopied

T = TypeVar("T")

#: Seconds between looks whether there is room: the first pause and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.01
#: A bell that was lost costs so many seconds.
_LOOK_AGAIN: Final = 1.0


class Queue(Uncopied):
    """The awaitable form of a `shmpool.Queue`, which is *sync*. For one event loop; made by `Pool.queue`, or of any
    queue that there is. Leaving ``async with`` closes it."""

    _why = "it belongs to its loop: send its `sync`, which is the same queue for threads"

    def __init__(self, sync: SyncQueue) -> None:
        #: The same queue, for threads.
        self.sync = sync
        self._loop = asyncio.get_running_loop()
        #: One task at each end waits for the queue, the others for their turn.
        self._getting, self._putting = asyncio.Lock(), asyncio.Lock()

    async def put(self, obj: Any, timeout: float | None = None) -> None:
        """Put an object; waits for room, *timeout* seconds at the longest (None: as long as it takes). It must not
        change meanwhile. Raises like `shmpool.Queue.put`."""
        self._check_loop()
        if timeout is not None:
            timeout = check_timeout(timeout)
        if not self._putting.locked():
            try:
                return self.sync.put_nowait(obj)
            except own(queue.Full):
                pass
        await self._in_turn(self._putting, lambda: self.sync.put_nowait(obj), queue.Full, timeout)

    async def get(self, timeout: float | None = None) -> Any:
        """Take the oldest object; waits for one, *timeout* seconds at the longest. Raises like
        `shmpool.Queue.get`."""
        self._check_loop()
        if timeout is not None:
            timeout = check_timeout(timeout)
        if not self._getting.locked():
            try:
                return self.sync.get_nowait()
            except own(queue.Empty):
                pass
        return await self._in_turn(self._getting, self.sync.get_nowait, queue.Empty, timeout)

    async def get_many(self, n: int, timeout: float | None = None) -> list[Any]:
        """Take up to *n* objects, what is there, at least one. Raises like `get`."""
        self._check_loop()
        return await self._in_turn(self._getting, lambda: self.sync.get_many(n, block=False), queue.Empty, timeout)

    async def put_many(self, objs: Iterable[Any], timeout: float | None = None) -> int:
        """Put objects in order, and say how many were put: fewer than all only when the time was over."""
        deadline, done = _deadline(timeout), 0
        for obj in objs:
            try:
                await self.put(obj, None if timeout is None else max(0.0, deadline - time.monotonic()))
            except own(queue.Full):
                break
            done += 1
        return done

    async def _in_turn(
        self, lock: asyncio.Lock, act: Callable[[], T], missing: type[Exception], timeout: float | None
    ) -> T:
        deadline = _deadline(timeout)
        try:
            async with asyncio.timeout_at(None if timeout is None else self._loop.time() + deadline - time.monotonic()):
                async with lock:
                    pause = _FIRST_PAUSE
                    while True:
                        if missing is queue.Empty or not self.sync.full():  # a full one need not pickle to say so
                            try:
                                found = act()
                                break
                            except own(missing):
                                pass
                        if missing is queue.Empty:
                            await self._item()
                        else:
                            await asyncio.sleep(pause)
                            pause = min(2 * pause, _LONGEST_PAUSE)
                    return found
        except own_or_called(TimeoutError):  # bare, it is asyncio's
            if time.monotonic() < deadline:
                raise  # not ours
            raise missing from None

    async def _item(self) -> None:
        """Wait until something may have been put."""
        rung = self._loop.create_future()
        descriptor = self.sync.fileno()
        self._loop.add_reader(descriptor, _settle, rung)
        try:
            if not self.sync.qsize():  # what was put before there was a watcher has not rung
                await asyncio.wait({rung}, timeout=_LOOK_AGAIN)
        finally:
            self._loop.remove_reader(descriptor)

    # --- the same in both ------------------------------------------------------------------------------------

    def put_nowait(self, obj: Any) -> None:
        """Put an object, or raise `queue.Full`."""
        self._check_loop()
        self.sync.put_nowait(obj)

    def get_nowait(self) -> Any:
        """Take an object, or raise `queue.Empty`."""
        self._check_loop()
        return self.sync.get_nowait()

    def qsize(self) -> int:
        """The number of items at this moment."""
        return self.sync.qsize()

    def empty(self) -> bool:
        """Whether it has no item at this moment."""
        return self.sync.empty()

    def full(self) -> bool:
        """Whether it has no room at this moment."""
        return self.sync.full()

    def shutdown(self, immediate: bool = False) -> None:
        """For all processes, as `shmpool.Queue.shutdown`."""
        self.sync.shutdown(immediate)

    def close(self) -> None:
        """This process uses it no more."""
        self.sync.close()

    async def __aenter__(self) -> Queue:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<shmpool.aio.Queue of {self.sync!r}>"

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} belongs to another event loop: make one in each loop")


def _settle(rung: asyncio.Future[None]) -> None:
    if not rung.done():
        rung.set_result(None)


def _deadline(timeout: float | None) -> float:
    return time.monotonic() + (float("inf") if timeout is None else check_timeout(timeout))
