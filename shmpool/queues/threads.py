"""What each thread has for queues: a pickler, and the open file through which it locks.

The locks are bytes of the tickets' file that no ticket has. Each thread opens that file itself, so the
kernel excludes threads as it excludes processes, frees the lock of a dead process, and unlocking what
was not locked is nothing: an exception may come between any two lines.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from fcntl import fcntl
from threading import get_ident
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from ..protocol.names import tickets_path
from ..system.descriptors import Descriptor
from ..system.locks import F_OFD_SETLK, FileId, lock_bytes, open_beside, unlock_bytes
from .pickling import SmallPickler

if TYPE_CHECKING:
    from ..seat.session import Session

#: A row's bytes in the tickets' file that are no cell's.
TAIL_BYTE: Final = 13
HEAD_BYTE: Final = 14
#: Who does not wait at all waits so long for a lock: in it nobody sleeps, unless he was stopped.
LEAST_PATIENCE: Final = 0.05
_YIELDS: Final = 50
_FIRST_PAUSE: Final = 50e-6
_LONGEST_PAUSE: Final = 1e-3

#: All of this process.
_alive: set[weakref.ref[Thread]] = set()


class Thread:
    """A thread's."""

    __slots__ = ("__weakref__", "dumps", "fd", "holds", "session")

    def __init__(self, session: Session) -> None:
        expected = FileId.of(session.tickets_fd)  # type: ignore[arg-type]
        self.fd: Descriptor = open_beside(session.address, tickets_path, expected, session.pool_id)
        self.session = session
        self.dumps = SmallPickler().dumps
        #: The queues' ends that this thread has locked, or is about to lock: who interrupts it must not take them
        #: for free, since to the kernel he has them.
        self.holds: tuple[End, ...] = ()
        _alive.add(weakref.ref(self, _alive.discard))


class Threads:
    """Those of one session: all queues of it have the same, and with the last of them the files are closed."""

    __slots__ = ("__weakref__", "_session", "_table")

    def __init__(self, session: Session) -> None:
        self._session = session
        #: By `get_ident`; who comes after a thread that has ended may have its number, and then its file.
        self._table: dict[int, Thread] = {}

    def mine(self) -> Thread:
        """This thread's."""
        return self._table.get(get_ident()) or self._make()

    def _make(self) -> Thread:
        # Their numbers alone: our own frame is among them, and would refer to itself, and so keep whatever our
        # callers have until garbage is collected.
        alive = set(sys._current_frames())
        for ident in list(self._table):
            if ident not in alive:
                self._table.pop(ident, None)
        made = self._table[get_ident()] = Thread(self._session)
        return made


_tables: WeakValueDictionary[int, Threads] = WeakValueDictionary()


def of(session: Session) -> Threads:
    """Those of a session, as long as anybody has them."""
    found = _tables.get(id(session))
    if found is None or found._session is not session:
        found = _tables[id(session)] = Threads(session)
    return found


class End:
    """One end of a queue, as who locks it sees it."""

    __slots__ = ("lock", "marked", "unlock")

    def __init__(self, row: int, byte: int) -> None:
        self.lock = lock_bytes(row << 4 | byte)
        self.unlock = unlock_bytes(row << 4 | byte)
        #: What `Thread.holds` says of a thread that has nothing else locked.
        self.marked = (self,)

    def acquire(self, thread: Thread, deadline: float) -> bool:
        """Lock it; False when that was not possible in time. Within the ``try`` whose ``finally`` unlocks
        it, by a call of `fcntl` itself."""
        yields, pause = _YIELDS, _FIRST_PAUSE
        deadline = max(deadline, time.monotonic() + LEAST_PATIENCE)
        while True:
            try:
                fcntl(thread.fd, F_OFD_SETLK, self.lock)
                return True
            except (BlockingIOError, PermissionError):
                pass
            if yields:
                yields -= 1
                os.sched_yield()
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)


def raise_interrupted() -> None:
    """In a signal handler."""
    raise RuntimeError("a queue was used by a signal handler that had interrupted its use by this thread")


def _abandon_all() -> None:
    """In a forked child: an inherited descriptor would keep the lock of a parent that dies in it. The number
    stays open, for whoever is just using it."""
    null = -1
    try:
        for reference in list(_alive):
            if (thread := reference()) is not None:
                if null < 0:
                    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(null, thread.fd, inheritable=False)
    finally:
        if null >= 0:
            os.close(null)
    _alive.clear()
    _tables.clear()


os.register_at_fork(after_in_child=_abandon_all)
