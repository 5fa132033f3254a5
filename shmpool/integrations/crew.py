"""The crew of an executor: its workers, what they do, and what waits for them. One thread has all of it.

A worker has one task at a time, through a pipe of its own: so it is known whose task a dead worker had, and
nobody's lock dies with it. What waits has not been pickled yet. A task's input is published when a worker is
free for it; where the pool has no room, it waits for one that is under way to end, and where none is, goes
through the pipe. Results that find no room go through the pipe, too. So memory that users keep (results they have
not dropped) makes things slower and never stands still.

A retried task finds its input as it was: it is published with one ticket for each try.
"""

from __future__ import annotations

import itertools
import os
import selectors
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Final

from ..errors import BrokerUnavailable, HandleUsed, ShmpoolError, StaleHandle
from ..objects.encoding import Encoded
from ..pools import Pool
from ..system.descriptors import CLOSED, Closed, Descriptor, drain, make_eventfd, signal
from ..system.outside import own, own_or_called
from . import payloads
from .workers import FAILED, Duty, work

#: Seconds that a worker which was told to end has before it is terminated.
_PATIENCE: Final = 5.0


class Task:
    """A call and its future. *frames* are what a worker is sent, one for each try."""

    __slots__ = ("call", "frames", "future", "source", "tries")

    def __init__(self, future: Future[Any], call: tuple[Any, Any, Any]) -> None:
        self.future = future
        self.call = call
        self.source: Encoded | None = None
        self.frames: list[bytes] = []
        self.tries = 0


class Member:
    """One worker, as its parent sees it."""

    __slots__ = ("done", "pipe", "process", "task")

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe
        #: What it is doing.
        self.task: Task | None = None
        self.done = 0


class Crew:
    """All but `submit` and `shutdown` run in its thread."""

    def __init__(
        self, pool: Pool, duty: Duty, context: BaseContext, size: int, retries: int, close: Callable[[], None]
    ) -> None:
        self.pool = pool
        self.processes: dict[int, Any] = {}
        self.broken: BaseException | None = None
        #: What went through pipes because the pool had no room.
        self.spilled = 0
        self.size = size
        self._duty, self._context, self._retries = duty, context, retries
        self._close = close
        self._members: list[Member] = []
        #: Behind `lock`, as is `is_ending`.
        self._pending: deque[Task] = deque()
        self.lock = threading.Lock()
        self.is_ending = False
        self._wakeup: Descriptor | Closed = make_eventfd()
        self._selector = selectors.DefaultSelector()
        self._names = itertools.count(1)
        self.thread: threading.Thread | None = None
        self._owner = os.getpid()

    # --- from any thread ----------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Have a task done. Raises RuntimeError after the end, BrokenProcessPool."""
        if os.getpid() != self._owner:
            raise RuntimeError("an Executor belongs to the process that made it: make another one in a forked child")
        with self.lock:
            if self.broken is not None:
                raise BrokenProcessPool(str(self.broken))
            if self.is_ending:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self.thread is None:
                self._begin()
            self._pending.append(task)
        self.wake()

    def _begin(self) -> None:
        """With the first task. Forked workers come before the thread: a fork copies no other thread."""
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        if self._context.get_start_method(allow_none=False) == "fork":
            try:
                for _ in range(self.size):
                    self._add_member()
            except BaseException as error:
                self.broken = error
                for member in self._members.copy():
                    member.process.terminate()
                    self._forget(member)
                raise
        self.thread = threading.Thread(target=self._run, name="shmpool-executor")
        crews[self.thread] = self
        self.thread.start()

    def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Let it end when what was submitted is done. Any number of times."""
        cancelled: list[Task] = []
        if os.getpid() != self._owner:
            return  # a forked child's copy, whose lock may be held for ever
        with self.lock:
            is_first, self.is_ending = not self.is_ending, True
            if cancel_futures:
                cancelled = list(self._pending)
                self._pending.clear()
        for task in cancelled:
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
        if self.thread is not None:
            self.wake()
        elif is_first:
            self._close_all()

    def wake(self) -> None:
        """Have the thread look."""
        signal(self._wakeup)

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            is_over = self._is_over()
            while True:
                if is_over:
                    break
                self._assign()
                is_over = self._is_over()
                if is_over:
                    continue
                for key, _ in self._selector.select():
                    if key.data is None:
                        drain(self._wakeup)
                        continue
                    if key.data not in self._members:
                        continue
                    self._hear(key.data)
        except BaseException as error:  # nobody would do the tasks
            self._break(f"the executor's thread ended: {error!r}")
            raise
        finally:
            self._close_all()

    def _is_over(self) -> bool:
        if self.broken is not None:
            return True
        with self.lock:
            return self.is_ending and not self._pending and all(member.task is None for member in self._members)

    def _assign(self) -> None:
        """Give tasks to who is free."""
        while self.broken is None and self._pending:
            member = next((one for one in self._members if one.task is None and not self._is_done(one)), None)
            if member is None and len(self._members) < self.size:
                member = self._add_member_or_break()
            if member is None:
                return
            with self.lock:
                if not self._pending:
                    return
                task = self._pending.popleft()
            if not self._prepare(task):
                continue
            if not task.frames:  # no room
                with self.lock:
                    self._pending.appendleft(task)
                return
            self._send(member, task)

    def _prepare(self, task: Task) -> bool:
        """Pickle a task's input and publish it, if there is room; False if there is no task any more."""
        if task.frames:
            return True
        if task.future.cancelled():
            task.future.set_running_or_notify_cancel()
            return False
        if task.source is None:
            try:
                task.source = payloads.encoded(task.call, self._duty.pickler)
            except BaseException as error:
                if task.future.set_running_or_notify_cancel():
                    task.future.set_exception(error)
                return False
        frames = self._frames(task.source)
        if not frames:
            return True
        if not task.future.set_running_or_notify_cancel():
            self._discard(frames)
            return False
        task.frames, task.source = frames, None
        return True

    def _frames(self, source: Encoded) -> list[bytes]:
        if source.nbytes >= payloads.INLINE_BELOW:
            try:
                if self.pool._live_session().link.await_connection(0):  # a worker may have to connect yet
                    return payloads.leased(source, self.pool, self._retries + 1)
            except own(BrokerUnavailable):
                pass
            except own(ShmpoolError, MemoryError):
                if any(member.task is not None for member in self._members):
                    return []  # when that is done, there may be room
            self.spilled += 1
        return [payloads.inline(source)] * (self._retries + 1)

    def _send(self, member: Member, task: Task) -> None:
        member.task = task
        try:
            member.pipe.send_bytes(task.frames[task.tries])
        except own(OSError):  # it died idle
            member.task = None
            with self.lock:
                self._pending.appendleft(task)
            self._hear(member)  # why, if it said so

    # --- members --------------------------------------------------------------------------------------

    def _is_done(self, member: Member) -> bool:
        """Whether it ends by itself."""
        return self._duty.max_tasks is not None and member.done >= self._duty.max_tasks

    def _add_member_or_break(self) -> Member | None:
        try:
            return self._add_member()
        except BaseException as error:
            self._break(f"a worker could not be started: {error!r}", error)
            return None

    def _add_member(self) -> Member:
        mine, its = self._context.Pipe()
        is_forked = self._context.get_start_method(allow_none=False) == "fork"
        try:
            process = self._context.Process(  # type: ignore[attr-defined]
                target=work,
                args=(its, self._duty, [mine, *(one.pipe for one in self._members)] if is_forked else ()),
                name=f"shmpool-worker-{next(self._names)}",
            )
            process.start()
        except BaseException:
            mine.close()
            raise
        finally:
            its.close()
        member = Member(process, mine)
        self._members.append(member)
        self.processes[process.pid] = process
        self._selector.register(mine, selectors.EVENT_READ, member)
        self._selector.register(process.sentinel, selectors.EVENT_READ, member)
        return member

    def _hear(self, member: Member) -> None:
        """It has sent something, or it is no more."""
        try:
            frame = member.pipe.recv_bytes() if member.pipe.poll() else None
        except own(EOFError, OSError):
            frame = None
        if frame is None:
            self._bury(member)
        elif frame == FAILED:
            self._break("a worker's initializer raised; the log has its traceback")
        elif (task := member.task) is not None:
            member.task = None
            member.done += 1
            if frame == payloads.UNREAD:
                self._try_without_pool(task)
                return
            self._assign()  # first: the worker need not wait for what comes of the result
            self._settle(task, frame)

    def _settle(self, task: Task, frame: bytes) -> None:
        self._discard(task.frames[task.tries + 1 :])
        future, task.call = task.future, ()  # type: ignore[assignment]
        try:
            is_error, value = payloads.unpacked(frame, lambda: self.pool)
        except own_or_called(HandleUsed, StaleHandle, BrokerUnavailable) as error:
            future.set_exception(BrokenProcessPool(f"a result was lost: {error}"))
        except BaseException as error:
            future.set_exception(error)
        else:
            if is_error:
                future.set_exception(value)
            else:
                future.set_result(value)

    def _try_without_pool(self, task: Task) -> None:
        """A worker could not read its input: the broker is gone."""
        self._discard(task.frames)
        try:
            frame = payloads.inline(payloads.encoded(task.call, self._duty.pickler))
        except BaseException as error:
            task.future.set_exception(error)
            return
        self.spilled += 1
        task.frames = [frame] * len(task.frames)
        with self.lock:
            self._pending.appendleft(task)

    def _bury(self, member: Member) -> None:
        """A worker is no more. If it had not done its share, its task is tried again, or everything is broken."""
        self._forget(member)
        task, member.task = member.task, None
        if self._is_done(member):
            return
        text = f"a worker (pid {member.process.pid}) died, exit code {member.process.exitcode}"
        if self._retries == 0:
            if task is not None:
                with self.lock:
                    self._pending.appendleft(task)
            self._break(text)
        elif task is not None:
            self._discard(task.frames[task.tries : task.tries + 1])
            task.tries += 1
            if task.tries < len(task.frames):
                with self.lock:
                    self._pending.appendleft(task)
            else:
                task.future.set_exception(BrokenProcessPool(f"{text}; the task was tried {task.tries} times"))

    def _forget(self, member: Member) -> None:
        """Let a process end that has nothing more to do, and see it gone."""
        self._members.remove(member)
        self._selector.unregister(member.pipe)
        self._selector.unregister(member.process.sentinel)
        try:
            connection = member.pipe
            while True:  # what it had sent before it died
                if not connection.poll():
                    break
                payloads.discard(member.pipe.recv_bytes(), self.pool)
        except own(EOFError, OSError):
            pass
        member.pipe.close()
        member.process.join(_PATIENCE)
        if member.process.is_alive():
            member.process.kill()
            member.process.join()
        self.processes.pop(member.process.pid, None)

    # --- the end ----------------------------------------------------------------------------------------

    def _break(self, why: str, cause: BaseException | None = None) -> None:
        """Nothing more is done, as for CPython's own executor when a worker has died."""
        with self.lock:
            self.broken = BrokenProcessPool(why)
            tasks = [*self._pending, *(member.task for member in self._members if member.task is not None)]
            self._pending.clear()
        for member in self._members.copy():
            member.task = None
            member.process.terminate()
            self._forget(member)
        for task in tasks:
            self._discard(task.frames)
            if task.frames or task.future.set_running_or_notify_cancel():
                error = BrokenProcessPool(why)
                error.__cause__ = cause
                task.future.set_exception(error)

    def _discard(self, frames: list[bytes]) -> None:
        for frame in frames:
            payloads.discard(frame, self.pool)

    def _close_all(self) -> None:
        """Everything that was begun is done."""
        for member in self._members:
            try:
                member.pipe.send_bytes(payloads.LAST)
            except own(OSError):
                pass
        for member in self._members.copy():
            self._forget(member)
        self._selector.close()
        self._wakeup = CLOSED
        if self.thread is not None:
            crews.pop(self.thread, None)
        self._close()


#: The crews whose thread runs.
crews: Final[weakref.WeakKeyDictionary[threading.Thread, Crew]] = weakref.WeakKeyDictionary()


def _at_exit() -> None:
    """The interpreter ends: what was submitted is done first."""
    for thread, crew in list(crews.items()):
        crew.shutdown()
        thread.join()  # in a forked child it is over already


# Threads that run are joined before any other exit handler: this one has to come before that.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
