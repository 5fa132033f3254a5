"""Guards: what tells a parent that a child still reads what was open at its fork.

Each fork has one for each seat, made before it: the child inherits the page that holds it, and
drops it with the last window that it keeps (`life.forks`). A release drops its view, then looks
at the guards, then stores DONE: it waits for the forks between its open and itself, no others.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Any, Final

from ..errors import ShmpoolError
from ..protocol.names import header_name
from ..system import heirs
from ..system.here import FORKING, HERE, UNSHARED
from ..system.segments import open_segment
from .seat import Seat

#: Guards of forks that left nothing behind are looked for when there are so many.
MANY: Final = 16
#: So long a first open waits for a fork to be over, in seconds.
LONGEST_FORK: Final = 0.5

_log: Final = logging.getLogger("shmpool")


class Guard:
    """One fork, as one seat sees it. *page* is there until the fork is over, and in the child;
    *is_certain* is False for one that cannot be seen to end."""

    __slots__ = ("is_certain", "number", "page", "why_not")

    def __init__(self, number: int) -> None:
        self.number = number
        self.page: heirs.Page | None = None
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
        #: Something may have been opened. A fork that was under way when the seat was taken did not
        #: see it, so the first open waits for its end.
        self._is_used = False
        #: The number of the last fork of this process that was begun here. Sessions that have a
        #: seat one after the other do not share a guard.
        self.last = 0

    def __bool__(self) -> bool:
        return bool(self._guards)

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
                guard.page = heirs.hold_anew(session.pool_id, heirs.guard_at(session.seat, guard.number))
                guard.is_certain = True
            except FileNotFoundError:
                guard.is_certain = True  # the pool was removed: nothing of it is used again
            except (OSError, ShmpoolError) as error:
                guard.why_not = str(error)

    def use(self) -> None:
        """Something is to be opened. A fork that is under way may not have seen this seat, so this
        waits for its end; not for long: this thread may be the one that forks, in another hook."""
        if not self._is_used:
            deadline = time.monotonic() + LONGEST_FORK
            while HERE[FORKING] and time.monotonic() < deadline:
                time.sleep(0.0005)
            self._is_used = True

    def after_fork(self) -> None:
        """After it, in the parent: the page is the child's alone. May be called again."""
        if self._session.is_over:
            self.forget_all()
            return
        guard = self.begun
        if self.last <= forks_ended and self._is_used:  # it was not begun: what the child has cannot be seen
            guard = Guard(forks_ended + 1)
            _all.add(guard)
            self._guards.append(guard)
            self.last = guard.number
        if guard is not None:
            guard.page, self.begun = None, None
            if not guard.is_certain:
                _log.warning(
                    "a fork could not be guarded (%s): what is open for reading is held until this process ends",
                    guard.why_not,
                )
        self._session.forks = self.last

    def forget_all(self) -> None:
        """The session is over: nothing of it waits for anybody any more."""
        _all.difference_update(self._guards)
        self._guards.clear()
        self.begun = None

    def between(self, first: int, last: int) -> bool:
        """Whether children of a fork after *first* and up to *last* may still read."""
        return any(first < guard.number <= last for guard in self._guards)

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
            is_over = guard is not self.begun and guard.is_certain
            if is_over and not heirs.is_held(fd, heirs.guard_at(session.seat, guard.number)):
                with suppress(ValueError):  # another thread looks too
                    self._guards.remove(guard)
                _all.discard(guard)


def abandon_all() -> None:
    """In a forked child: they are the parent's."""
    _all.clear()


def share_nothing() -> None:
    """Let releases be quick again when nobody holds a guard. Under the lock of forks."""
    if not _all:
        HERE[UNSHARED] = 1


def look() -> None:
    """For the helper: let releases be quick again, when no child keeps anything."""
    if not HERE[UNSHARED] and fork_lock.acquire(blocking=False):
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
