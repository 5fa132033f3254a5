"""How an event loop waits for the broker without a thread: by attempts.

A verb of the synchronous pool is called in the loop's thread. Where it would wait for an answer, the request is sent,
the call ends with `Suspended`, and the task waits on the loop; the helper thread, which reads the socket, wakes it.
Then the same verb is called again, and finds the answer where it asked. So what is leased, counted and raised is what
the synchronous verb leases, counts and raises, and it pays nothing for that.

For verbs that hold nothing yet when they ask: all those that ask once, before anything else. What was granted to a
task that is cancelled, or to an attempt that no longer needed it, joins its magazine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from ..link.link import Link
from ..link.requests import Request
from ..protocol.messages import Cancel
from ..seat.session import Session
from ..seat.slot import Slot
from ..system.outside import own

T = TypeVar("T")

#: Seconds that a broker has to say why there was nothing.
_WORD: Final = 0.25


class Suspended(BaseException):
    """An attempt would have had to wait. Not an Exception: nobody on the way is to handle it."""


class _Waiter:
    """In the place of a thread that waits (`link.waiting.Waiter`): the task that does."""

    __slots__ = ("_future", "_loop", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        self._loop, self._future = loop, future
        #: None of them.
        self.thread = -1

    def wake(self) -> None:
        """Let the task look again. From any thread."""
        try:
            self._loop.call_soon_threadsafe(_settle, self._future)
        except own(RuntimeError):
            pass  # the loop is closed: nobody waits any more


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Attempts:
    """All attempts at one thing. *timeout* is in seconds; with 0 the broker's answer is still waited for."""

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        #: What was asked and is not used yet, over which link, and whether it was answered.
        self._request: Request | None = None
        self._link: Link | None = None
        self._future: asyncio.Future[None] | None = None
        self._pause = 0.0
        #: There is no time for another question.
        self._is_last = False

    async def make(self, act: Callable[[float], T], find: Callable[[], Awaitable[Session]]) -> T:
        """What *act* returns in the end, which is given the seconds that are left. Raises what it raises, when it
        need not wait. *find* gives the session of the moment."""
        try:
            while True:
                session = await find()
                left = max(0.001, self._deadline - time.monotonic()) if self._timeout else 0.0
                try:
                    with self._in_place(session.link):
                        return act(left)
                except Suspended:
                    pass
                await self._wait()
        finally:
            self._discard()

    @contextmanager
    def _in_place(self, link: Link) -> Iterator[None]:
        if self._link is not link:
            self._discard()
            self._link = link
        thread = threading.get_ident()
        link.attempts[thread] = self
        try:
            yield
        finally:
            del link.attempts[thread]

    # --- what the link calls -------------------------------------------------------------------------

    def ask(self, request: Request) -> Slot | None:
        """The answer that is there, in the place of *request*; else ask."""
        assert self._link is not None
        before, self._request = self._request, None
        if before is not None and (type(before.message), before.magazine) == (type(request.message), request.magazine):
            request.began, request.state = before.began, before.state
            request.slot, request.answer, request.refusal = before.slot, before.answer, before.refusal
            if not request.is_waiting or self._is_last:
                return request.slot
        elif before is not None:
            self._link.discard(before)
        if self._is_last or self._link.is_discarding:  # nobody answers any more: its refusal is the caller's to say
            return None
        self._future = self._loop.create_future()
        request.waiter = _Waiter(self._loop, self._future)
        self._request = request
        self._link.begin(request)
        raise Suspended

    def pause(self, seconds: float) -> bool:
        """Try again later; False when there is no time left for that."""
        if time.monotonic() >= self._deadline + (0.0 if self._timeout else _WORD):
            self._is_last = True
            return False
        self._pause = seconds
        raise Suspended

    # --- what the task does --------------------------------------------------------------------------

    async def _wait(self) -> None:
        pause, self._pause = self._pause, 0.0
        if pause:
            await asyncio.sleep(pause)
            return
        link, request, future = self._link, self._request, self._future
        assert link is not None and request is not None and future is not None
        while request.is_waiting and not link.is_discarding:
            left = self._deadline - time.monotonic() if self._timeout else _WORD
            if left > 0 and await _done(future, left):
                future = self._future = self._loop.create_future()
                request.waiter = _Waiter(self._loop, future)  # and looks once more, whoever woke it before
                continue
            if self._timeout and link.connection is not None:
                link.send(Cancel(request.number))  # its answer, a refusal that says why or a grant, still comes
                await _done(future, _WORD)
            self._is_last = True
            break
        request.slot = link.conclude(request)

    def _discard(self) -> None:
        request, self._request = self._request, None
        if request is not None and self._link is not None:
            self._link.discard(request)


async def _done(future: asyncio.Future[None], seconds: float) -> bool:
    done, _ = await asyncio.wait({future}, timeout=None if seconds == float("inf") else seconds)
    return bool(done)
