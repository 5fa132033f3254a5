"""Guards: what tells a parent that a child still reads what was open at its fork, or has yet to copy
what was being written.

Each fork has one for each seat, made before it: the child inherits the page that holds it, and
drops it with the last window that it keeps (`life.forks`). A release drops its view, then looks
at the guards, then stores DONE: it waits for the forks between its open and itself, no others.
A lease that ends drops its view, then looks at the guards, then stores its slot's next state: the slot
is not used again while a child may be about to copy it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

from ..errors import ShmpoolError
from ..protocol.names import header_name
from ..system import heirs
from ..system.descriptors import Descriptor
from ..system.here import COPIED, FORKING, HERE, UNSHARED
from ..system.segments import open_segment
from .seat import Seat

#: Guards of forks that left nothing behind are looked for when there are so many.
MANY: Final = 16
#: So long a new seat waits for a fork to be over, in seconds.
LONGEST_FORK: Final = 0.5

_log: Final = logging.getLogger("shmpool")


class Guard:
    """One fork, as one seat sees it. *page* is there until the fork is over, and in the child, where
    *fd* is the open file that it holds; *copied* are the rows that a child may have yet to copy;
    *is_certain* is False for one that cannot be seen to end."""

    __slots__ = ("copied", "fd", "is_certain", "number", "page", "why_not")

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd: Descriptor | None = None
        self.page: heirs.Page | None = None
        self.copied: Collection[int] = ()
        self.is_certain = False
        self.why_not = "its hook failed"


#: One fork at a time: a child must not inherit half of what another thread makes for its own.
fork_lock: Any = threading.RLock()
#: How many forks of this process are over: the number of the one that is under way.
forks_ended = 0
#: All guards of this process that may be held, of sessions that are not over.
_all: Final[set[Guard]] = set()


class Guards:
    """Those of one session. `before_fork` and `after_fork` are for the forking thread, one at a time;
    what one has begun the other ends, also if the session is over by then."""

    def __init__(self, session: Seat) -> None:
        self._session = session
        self._guards: list[Guard] = []
        #: The guard of the fork that is under way.
        self.begun: Guard | None = None
        #: The rows whose leases ended while a fork was under way.
        self._ended: deque[int] = deque()
        #: Something may have been leased or opened.
        self._is_used = False
        #: The number of the last fork of this process that was begun here. Sessions that have a
        #: seat one after the other do not share a guard.
        self.last = 0

    def __bool__(self) -> bool:
        return bool(self._guards)

    # --- forks ----------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Before a fork of this process: from here on what is released waits for the child. May be
        called again after an exception."""
        if self.last <= forks_ended:
            if len(self._guards) >= MANY:
                self.look()
            self.begun = Guard(forks_ended + 1)
            self.last = self.begun.number  # last: it says that this is done
        guard = self.begun
        if guard is None:
            return
        _all.add(guard)
        if guard not in self._guards:
            self._guards.append(guard)
        if guard.page is None:
            session = self._session
            try:
                guard.fd, guard.page = heirs.hold_fork(session.pool_id, session.seat, guard.number)
                guard.is_certain = True
            except FileNotFoundError:
                guard.is_certain = True  # the pool was removed: nothing of it is used again
            except (OSError, ShmpoolError) as error:
                guard.why_not = str(error)

    def begin(self) -> None:
        """The seat is to be used, forks see it from now on. One that is under way may not have, so this
        waits for its end; not for long: this thread may be the one that forks, in another hook."""
        deadline = time.monotonic() + LONGEST_FORK
        while HERE[FORKING] and time.monotonic() < deadline:
            time.sleep(0.0005)
        self._is_used = True

    def after_fork(self) -> None:
        """After it, in the parent: page and descriptor are the child's alone. May be called again."""
        if self._session.is_over:
            self.forget_all()
            return
        # First what is leased, then what ended meanwhile: a lease that ends says so before its slot
        # has another state.
        copied = self._session.written_rows() | set(self._ended)
        guard = self.begun
        if self.last <= forks_ended and self._is_used:  # it was not begun: what the child has cannot be seen
            guard = Guard(forks_ended + 1)
            _all.add(guard)
            self._guards.append(guard)
            self.last = guard.number
        if guard is not None:
            guard.copied = copied
            guard.fd = guard.page = self.begun = None
            if not guard.is_certain:
                _log.warning(
                    "a fork could not be guarded (%s): what is open or leased is held until this process ends",
                    guard.why_not,
                )
        self._ended.clear()
        self._session.forks = self.last

    def has_copied(self) -> None:
        """In the child: what its parent was writing is its own by now."""
        guard = self.begun
        if guard is not None and guard.fd is not None:
            with suppress(OSError):  # somebody closed all descriptors: it is told with the page
                heirs.has_copied(guard.fd, self._session.seat, guard.number)

    def forget_all(self) -> None:
        """The session is over: nothing of it waits for anybody any more."""
        _all.difference_update(self._guards)
        self._guards.clear()
        self.begun = None

    # --- who waits ------------------------------------------------------------------------------

    def between(self, first: int, last: int) -> bool:
        """Whether children of a fork after *first* and up to *last* may still read."""
        return any(first < guard.number <= last for guard in self._guards)

    def awaits_copy(self, row: int) -> bool:
        """Whether a child may have yet to copy what was written there."""
        return bool(HERE[FORKING]) or any(row in guard.copied for guard in self._guards)

    def note_release(self, row: int) -> bool:
        """A lease is over, published or not, and its slot's next state not yet stored: whether a child may
        have yet to copy it, now or after the fork that is under way. Takes no lock that a finalizer could
        meet."""
        if HERE[FORKING]:
            self._ended.append(row)
        return self.awaits_copy(row)

    def look(self) -> None:
        """Forget the guards that nobody holds any more."""
        if not self._guards:
            return
        session = self._session
        try:
            fd = open_segment(header_name(session.pool_id), writable=False)
        except FileNotFoundError:  # the pool was removed
            _all.difference_update(self._guards)
            self._guards.clear()
            return
        except (OSError, ShmpoolError):
            return  # no descriptor now
        for guard in self._guards.copy():
            if guard is self.begun or not guard.is_certain:
                continue
            if guard.copied and not heirs.is_held(fd, heirs.copies_at(session.seat, guard.number)):
                guard.copied = ()
            if not heirs.is_held(fd, heirs.guard_at(session.seat, guard.number)):
                with suppress(ValueError):  # another thread looks too
                    self._guards.remove(guard)
                _all.discard(guard)

    def settle(self) -> None:
        """Look whether the children have made their copies: they do it first of all."""
        if not HERE[FORKING]:
            self.look()
            look()


def abandon_all() -> None:
    """In a forked child: they are the parent's."""
    _all.clear()


def share_nothing() -> None:
    """Let releases be quick again when nobody holds a guard, and ends of leases when nobody copies.
    Under the lock of forks."""
    if not _all:
        HERE[UNSHARED] = 1
    if not any(guard.copied for guard in _all.copy()):
        HERE[COPIED] = 1


def look() -> None:
    """For the helper: let releases be quick again, when no child keeps anything."""
    if not (HERE[UNSHARED] and HERE[COPIED]) and fork_lock.acquire(blocking=False):
        try:
            if not HERE[FORKING]:
                share_nothing()
        finally:
            fork_lock.release()


def count_fork() -> None:
    """A fork is over, in the parent and in the child. No exception of a handler comes between two
    stores."""
    global forks_ended
    forks_ended = forks_ended + 1
    HERE[FORKING] = 0
