"""The demo's processes: started together, watched, ended without exception.

Each member has a pipe of its own to the parent, so a member that dies takes no lock with
it: the parent sees the end of its pipe and goes on with the others. Members are spawned,
never forked. They do not see Ctrl-C, which is for the parent to act upon, and end with it.

A member's life: it says READY, waits for the go, sends lists of results, closes its pipe.
A member that was stopped (SIGSTOP) and not killed is waited for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple

SPAWN: Final[SpawnContext] = multiprocessing.get_context("spawn")

_READY: Final = "ready"
_BATCH: Final = 64
_BATCH_SECONDS: Final = 0.05
_END_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.5


class CrewFailed(Exception):
    """The crew could not do its job; the text says who failed and how."""


class _Collapse(NamedTuple):
    """What a member sends instead of going on."""

    text: str


class _Spent(NamedTuple):
    """What a member sends at its end: processor time since the go, in seconds."""

    seconds: float


class Link:
    """A member's end of its pipe: collects results and sends them in batches."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batch: list[Any] = []
        self._sent_at = 0.0
        self._cpu_before = 0.0

    def await_go(self) -> None:
        """Say that this member is ready, and wait until all are."""
        self._connection.send(_READY)
        self._connection.recv()
        self._sent_at, self._cpu_before = time.monotonic(), time.process_time()

    def end(self) -> None:
        """The last word."""
        self.flush()
        self._connection.send(_Spent(time.process_time() - self._cpu_before))

    def put(self, result: Any) -> None:
        """Report a result, now or soon."""
        self._batch.append(result)
        if len(self._batch) >= _BATCH or time.monotonic() - self._sent_at > _BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what was put."""
        if self._batch:
            self._connection.send(self._batch)
            self._batch = []
        self._sent_at = time.monotonic()


class _Member:
    """One process, as the parent sees it."""

    def __init__(self, name: str, process: BaseProcess, connection: Connection, theirs: Connection) -> None:
        self.name = name
        self.process = process
        self.connection = connection
        self.theirs = theirs
        self.ended = False
        self.collapse = ""

    def casualty(self) -> str | None:
        """How it failed, once it has ended; None when it did not."""
        self.process.join(_END_SECONDS)
        status = self.process.exitcode
        if self.collapse:
            return f"{self.name} failed: {self.collapse}"
        if status is None:
            return f"{self.name} does not end"
        if status < 0:
            return f"{self.name} was killed by signal {-status}"
        return f"{self.name} ended with status {status}" if status else None


class Crew:
    """Processes that work together on one job. Use it in a ``with`` block, which none of
    them survives."""

    def __init__(self) -> None:
        self._members: list[_Member] = []
        #: How members failed, in the order it was seen.
        self.casualties: list[str] = []
        #: Processor time of the members that have ended, without their start.
        self.cpu_seconds = 0.0

    def add(self, name: str, task: Callable[..., None], *args: Any) -> None:
        """Add a member that will run ``task(link, *args)``. The name's first word is its role."""
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_main, args=(theirs, task, args), name=name, daemon=True)
        self._members.append(_Member(name, process, ours, theirs))

    def start(self) -> None:
        """Start everybody and return when all are ready. Raises CrewFailed otherwise."""
        for member in self._members:
            with _interrupts_held():
                member.process.start()
            member.theirs.close()
        for member in self._members:
            try:
                first = member.connection.recv()
            except (EOFError, OSError):
                first = None
            if first == _READY:
                continue
            if isinstance(first, _Collapse):
                member.collapse = first.text
            raise CrewFailed(member.casualty() or f"{member.name} ended before it began")

    def go(self) -> None:
        """Let everybody begin."""
        for member in self._members:
            with suppress(OSError):  # it has died: results() will find out
                member.connection.send(None)

    def alive(self, role: str) -> int:
        """How many members of a role have not ended."""
        return sum(not member.ended and member.name.split()[0] == role for member in self._members)

    def results(self) -> Iterator[list[Any]]:
        """The members' results, in batches, until all have ended; an empty batch now and
        then, so that the caller can look around. A member that fails is noted in
        `casualties`, and the others go on."""
        while open_pipes := {member.connection: member for member in self._members if not member.ended}:
            ready_pipes = wait(list(open_pipes), _LOOK_SECONDS)
            for ready in ready_pipes:
                assert isinstance(ready, Connection)
                yield self._receive(open_pipes[ready])
            if not ready_pipes:
                yield []

    def _receive(self, member: _Member) -> list[Any]:
        try:
            received = member.connection.recv()
        except (EOFError, OSError):
            member.ended = True
            if casualty := member.casualty():
                self.casualties.append(casualty)
            return []
        if isinstance(received, _Collapse):
            member.collapse = received.text
            return []
        if isinstance(received, _Spent):
            self.cpu_seconds += received.seconds
            return []
        assert isinstance(received, list)
        return received

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        """End whoever is left."""
        started = [member for member in self._members if member.process.pid is not None]
        for member in started:
            if not member.ended:
                member.process.terminate()
        for member in started:
            member.process.join(_END_SECONDS)
            if member.process.exitcode is None:
                member.process.kill()
                member.process.join()
            member.process.close()
        for member in self._members:
            member.connection.close()
            member.theirs.close()


def _main(connection: Connection, task: Callable[..., None], args: tuple[Any, ...]) -> None:
    """What a member runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    link = Link(connection)
    try:
        task(link, *args)
        link.end()
    except (BrokenPipeError, ConnectionResetError):
        raise SystemExit(1) from None  # parent or partners are gone: nobody is left to tell
    except Exception as error:
        with suppress(OSError):
            connection.send(_Collapse(f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None
    finally:
        connection.close()


def _end_with_parent() -> None:
    """Whatever this member is waiting for, it does not outlive its parent."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts: it inherits the mask, and so never dies of
    it with a traceback of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
