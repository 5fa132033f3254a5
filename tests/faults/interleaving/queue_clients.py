"""Processes that put and get: the real queue, patched where it meets the kernel (`queue_memory`), in a real session.

Time does not pass for who waits: a sleep in a lock's wait, and one at TAIL or HEAD, ends when the world says so.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import F_UNLCK
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import shmpool.queues.getting
import shmpool.queues.locks
import shmpool.queues.memory
import shmpool.queues.queue
import shmpool.queues.ring
import shmpool.queues.runs
import shmpool.queues.sleepers
from shmpool.protocol.queues import GRANULE_BYTES, LOW, Kind
from shmpool.queues.memory import Memory
from shmpool.queues.pickling import Item
from shmpool.queues.queue import Queue
from shmpool.queues.ring import Ring

from .clients import Client, Wrong, offset_of
from .fingerprints import fingerprint
from .machines import Context
from .queue_memory import Cells, Futex, QueueStart, QueueWords, Raw, Semaphores
from .start import Start

#: Of a large item, which goes into a lease.
LARGE = "large"
#: Local names that say when, and not what.
_TIMES = frozenset({"now", "started", "pause", "deadline", "patience", "yields"})


def _context() -> Context:
    assert Context.current is not None
    return Context.current


def _cut() -> None:
    """All that a party does from here on depends on where it is, and on what it has."""
    context = _context()
    frames, frame = [], sys._getframe(2)
    while frame is not None and frame.f_code is not QueueClient.run.__code__:
        here = frame.f_locals
        frames.append((frame.f_code.co_name, frame.f_lasti, [here[name] for name in sorted(set(here) - _TIMES)]))
        frame = frame.f_back  # type: ignore[assignment]
    client: QueueClient = context.client
    context.cut((client.step, fingerprint(frames, client.session, client.queue, context.lease, context.buffer)))


class Clock:
    """Nothing is soon, and no time is over."""

    @staticmethod
    def monotonic() -> float:
        return 0.0

    @staticmethod
    def sleep(seconds: float) -> None:
        _cut()
        _context().ask("pause")


class Patience:
    """Stands for `system.patience.Patience`."""

    is_over = False

    def __init__(self, deadline: float) -> None:
        pass

    def sleep(self, address: int, seen: int, most: float = 0.0) -> None:
        layout: Any = _context().machine.start.layout
        number = layout.queue[address >> 3]
        _cut()
        if _context().ask("sleep", number, seen & LOW):
            _context().ask("asleep", number)


class Life:
    """Stands for `queues.locks.Life`: a byte that each process has locked, as long as it lives."""

    fd = -2

    def __init__(self, session: Any) -> None:
        pass

    def is_alive(self, name: int) -> bool:
        return bool(_context().ask("alive", name >> 48))


def _lock(fd: int, command: int, lock: bytes) -> None:
    """One byte of the seats' file."""
    context = _context()
    if int.from_bytes(lock[:2], sys.byteorder) == F_UNLCK:
        context.ask("unlock", (offset_of(lock),))
    elif not context.ask("lock", offset_of(lock)):
        raise BlockingIOError(errno.EAGAIN, "another has it")


def spin(words: QueueWords, at: int, seen: int) -> bool:
    """`system.patience.spin`, of one who has no time."""
    return bool(words[at] != seen)


def _map(ring: Memory) -> Raw:
    start: Any = _context().machine.start
    return Raw(QueueWords(_context(), start.queue), 8 * len(start.queue.constants))


def in_lease(pool: Any, obj: Any, pieces: Any, timeout: Any) -> Item:
    """`pickling.in_lease`: what is written is what only this generation's readers may see."""
    client = QueueClient.of(_context())
    assert client.lease(), "its slot is its own"
    client.write()
    context = _context()
    lease, context.lease = context.lease, None
    return Item(Kind.PICKLED, None, lease)


def restore(kind: int, buffer: Any) -> str:
    """`pickling.restore`: it reads for a while, and the payload is looked at in every state."""
    context = _context()
    context.buffer = buffer
    context.ask("pass")
    context.buffer = None
    buffer.release()
    return LARGE


def restored(kind: int, content: Any) -> Any:
    """`pickling.restored`."""
    return content if isinstance(content, bytes) else restore(kind, content)


@contextmanager
def patched() -> Iterator[None]:
    """The queue's modules over the instrumented kernel."""
    queues = shmpool.queues
    here = SimpleNamespace(address_of=lambda thing: 0 if isinstance(thing, Raw) else -1)
    with ExitStack() as stack:
        for module, name, stand_in in (
            (queues.locks, "life_of", Life),
            (queues.locks, "semaphores", Semaphores),
            (queues.locks, "libc", here),
            (queues.locks, "fcntl", _lock),
            (queues.locks, "time", Clock),
            (queues.locks, "_YIELDS", 0),
            (queues.locks, "_LOOK_AFTER", 0.0),
            (queues.memory, "libc", here),
            (queues.memory, "futex", Futex),
            (queues.memory, "spin", spin),
            (queues.memory, "Patience", Patience),
            (queues.ring, "futex", Futex),
            (queues.ring, "Patience", Patience),
            (queues.getting, "spin", spin),
            (queues.getting, "restore", restore),
            (queues.getting, "restored", restored),
            (queues.queue, "restored", restored),
            (queues.queue, "in_lease", in_lease),
            (queues.runs, "_cells", Cells),
            (queues.runs, "_contents", Cells),
            (queues.sleepers, "time", SimpleNamespace(monotonic_ns=lambda: 0)),
            (Memory, "_map", _map),
        ):
            stack.enter_context(patch.object(module, name, stand_in))
        stack.enter_context(patch.object(queues.memory, "memoryview", lambda raw: raw, create=True))
        yield


class QueueClient(Client):
    """A process that has the queue. What it has put and what it has got, in order, are its marks."""

    def __init__(self, context: Context, start: Start) -> None:
        assert isinstance(start, QueueStart)
        self.step = 0
        super().__init__(context, start)
        context.memory = list(start.memory)
        record = SimpleNamespace(session=self.session, row=3)
        opened = SimpleNamespace(_record=record, _granted=0, release=lambda: None)
        ring = Ring(self.pool, SimpleNamespace(open=lambda: opened))  # type: ignore[arg-type]
        context.memory = None
        queue = self.queue = object.__new__(Queue)
        queue._pool, queue._ring, queue._is_closed, queue.name = self.pool, ring, False, None
        self.have_put: tuple[Any, ...] = ()
        self.have_got: tuple[Any, ...] = ()

    @staticmethod
    def of(context: Context) -> QueueClient:
        assert isinstance(context.client, QueueClient)
        return context.client

    def run(self, role: Any) -> None:
        """All that it does."""
        context = self._context
        try:
            role(self)
        finally:
            if not context.is_dead:
                self.exit()
            self.queue._is_closed = True  # its finalizer does nothing

    def _begin(self) -> None:
        self.step += 1
        self._mark()

    def _mark(self) -> None:
        self._context.marks = (self.have_put, self.have_got)
        _cut()

    def put(self, *items: Any) -> None:
        """Put one, or many at once."""
        self._begin()
        if len(items) == 1:
            self.queue.put(*map(_large, items))
        else:
            assert self.queue.put_many(map(_large, items)) == len(items)
        self.have_put += items
        self._mark()

    def get(self, count: int = 1) -> None:
        """Get one, or up to so many at once. Raises `Wrong` for what is no item, came before or is out of order."""
        self._begin()
        for item in self.queue.get_many(count) if count > 1 else [self.queue.get()]:
            if item in self.have_got:
                raise Wrong(f"{item} came twice")
            if any(of_same(other, item) and other > item for other in self.have_got):
                raise Wrong(f"{item} came after {self.have_got}")
            self.have_got += (item,)
            self._context.won |= {item}
        self._mark()

    def get_all(self, total: int, most: int = 1) -> None:
        """Get so many items."""
        while len(self.have_got) < total:
            self.get(min(most, total - len(self.have_got)))

    def shut(self, *, immediate: bool) -> None:
        """Shut it down."""
        self._begin()
        self.queue.shutdown(immediate)


def of_same(one: Any, other: Any) -> bool:
    """Whether two items are small ones of the same putter."""
    return LARGE not in (one, other) and bool(one[:1] == other[:1])


def _large(item: Any) -> Any:
    return bytearray(GRANULE_BYTES) if item == LARGE else item
