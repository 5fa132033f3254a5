"""Guards: what tells a parent that a child still reads what was open at its fork, or has yet to copy
what was being written.

Each seat has one that stands ready for the next fork. The children inherit its pages, and drop them with
the last window that they keep (`life.forks`). A release drops its view, then looks at the guards, then
stores DONE: it waits for the forks between its open and itself, no others. A lease that ends drops its
view, then looks at the guards, then stores its slot's next state: the slot is not used again while a
child may be about to copy it.

Each page that is looked at after a fork is one that the kernel copies, so a fork only says that it was
(`HERE[NOTED]`), and all else is done by `note_forks`: by who opens, ends or looks next. Until then
nothing that was open or leased is used again, and another fork's children inherit the same guard.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import count

from .. import log
from ..errors import ShmpoolError
from ..protocol.names import header_name
from ..system import heirs
from ..system.here import COPIED, FORKING, FORKS, GUARDED, HERE, NOTED, OURS, UNSHARED
from ..system.outside import own
from ..system.segments import SegmentGone, open_segment
from .seat import Seat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

#: Guards of forks that left nothing behind are looked for when there are so many.
MANY: Final = 16
#: So long a new seat waits for a fork to be over, in seconds.
LONGEST_FORK: Final = 0.5
#: Seconds from look to look whether another thread has noted the forks.
_NOTING: Final = 0.0001


class Guard:
    """One fork, or a few in a row, as one seat sees them. *copies* and *page* are what their children
    inherit, and are the parent's until the forks are noted; *copied* are the rows that a child may have yet
    to copy; *is_certain* is False for one that cannot be seen to end."""

    __slots__ = ("copied", "copies", "is_certain", "number", "page", "why_not")

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.copies: heirs.Page | None = None
        self.page: heirs.Page | None = None
        self.copied: Collection[int] = ()
        self.is_certain = False
        self.why_not = ""


#: Sessions that have a seat one after the other do not share a guard.
_numbers = count(1)
#: Those of all sessions that are not over.
_seats: Final[set[Guards]] = set()
#: All guards of this process that may be held, of the same.
_all: Final[set[Guard]] = set()
#: Under 0: who notes forks, by its thread.
_noting: Final[dict[int, list[int]]] = {}


class Guards:
    """Those of one session."""

    def __init__(self, session: Seat) -> None:
        self._session = session
        #: Those of forks that are over.
        self._guards: list[Guard] = []
        #: The one for the next fork.
        self.standing: Guard | None = None
        #: The rows whose leases ended while a fork was under way, or not noted.
        self._ended: deque[int] = deque()
        #: Something may have been leased or opened.
        self._is_used = False
        #: How many forks had begun when they were noted here last.
        self._forks = 0
        #: The number of the last guard that children have inherited.
        self.last = 0

    def __bool__(self) -> bool:
        return bool(self._guards) or not HERE[NOTED]

    # --- forks ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """The seat is to be used, forks see it from now on. One that is under way may not have, so this
        waits for its end; not for long: this thread may be the one that forks, in another hook."""
        _seats.add(self)
        HERE[GUARDED] = 0
        deadline = time.monotonic() + LONGEST_FORK
        while not self._is_used:
            note_forks()
            if HERE[NOTED]:
                self._forks, self._is_used = HERE[FORKS], True
            elif time.monotonic() >= deadline:
                self._is_used = True  # and what that fork's children have of it cannot be seen
            else:
                time.sleep(0.0005)

    def stand(self) -> bool:
        """Have a guard ready; False where it cannot be seen to end. May be called again after an exception."""
        if self.standing is None:
            self.standing = Guard()
        guard, session = self.standing, self._session
        if not guard.is_certain and not guard.why_not:
            try:
                guard.copies, guard.page = heirs.hold_fork(session.pool_id, session.seat, guard.number)
                guard.is_certain = True
            except own(SegmentGone):
                guard.is_certain = True  # the pool was removed: nothing of it is used again
            except own(OSError, ShmpoolError) as error:
                guard.why_not = str(error)
        return guard.is_certain

    def note(self) -> Guard | None:
        """Forks are over, and what this process has of their guard was the children's alone. Returns one that
        cannot be seen to end. May be called again after an exception."""
        if self._session.is_over:
            self.forget_all()
            return None
        guard, forks = self.standing, HERE[FORKS]
        if forks == self._forks:
            return None  # all are noted here: an exception ended the last call behind it
        if guard is None:
            if not self._is_used:
                return None
            guard = self.standing = Guard()  # none was begun: what the children have cannot be seen
        # First what is leased, then what ended meanwhile: a lease that ends says so before its slot
        # has another state.
        guard.copied = self._session.written_rows() | set(self._ended)
        _all.add(guard)
        if guard not in self._guards:
            self._guards.append(guard)
        self.last = self._session.forks = guard.number
        self.standing, self._forks = None, forks  # nothing is called in between
        self._ended.clear()
        return None if guard.is_certain else guard

    def after_noting(self) -> bool:
        """What was noted is the children's; whether the next fork finds a guard, where forks are made at all."""
        for guard in self._guards:
            guard.copies = guard.page = None
        if len(self._guards) >= MANY:
            self._look()
        return self.last > 0 and self.stand()

    def has_copied(self) -> None:
        """In the child: what its parent was writing is its own by now."""
        if self.standing is not None:
            self.standing.copies = None

    def forget_all(self) -> None:
        """The session is over: nothing of it waits for anybody any more."""
        _seats.discard(self)
        _all.difference_update(self._guards)
        self._guards.clear()
        self.standing = None

    # --- who waits ------------------------------------------------------------------------------

    def between(self, first: int, last: int) -> bool:
        """Whether children of a fork after *first* and up to *last* may still read."""
        return any(first < guard.number <= last for guard in self._guards)

    def awaits_copy(self, row: int) -> bool:
        """Whether a child may have yet to copy what was written there."""
        return not HERE[NOTED] or any(row in guard.copied for guard in self._guards)

    def note_release(self, row: int) -> bool:
        """A lease is over, published or not, and its slot's next state not yet stored: whether a child may
        have yet to copy it, now or after the fork that is under way. Takes no lock that a finalizer could
        meet."""
        if not HERE[NOTED]:
            self._ended.append(row)
        return self.awaits_copy(row)

    def look(self) -> None:
        """Forget the guards that nobody holds any more."""
        if note_forks():
            self._look()

    def _look(self) -> None:
        if not self._guards:
            return
        session = self._session
        try:
            fd = open_segment(header_name(session.pool_id), writable=False)
        except own(SegmentGone):  # the pool was removed
            _all.difference_update(self._guards)
            self._guards.clear()
            return
        except own(OSError, ShmpoolError):
            return  # no descriptor now
        for guard in self._guards.copy():
            if not guard.is_certain:
                continue
            if guard.copied and not heirs.is_held(fd, heirs.copies_at(session.seat, guard.number)):
                guard.copied = ()
            if not heirs.is_held(fd, heirs.guard_at(session.seat, guard.number)):
                try:
                    self._guards.remove(guard)
                except own(ValueError):
                    pass  # another thread looks too
                _all.discard(guard)

    def settle(self) -> None:
        """Look whether the children have made their copies: they do it first of all."""
        self.look()
        look()


def stand_ready() -> bool:
    """For who forks: have a guard for each seat; False where one cannot be seen to end."""
    while (other := _noting.get(0)) is not None:
        if other[0] == threading.get_ident():  # it was called from there: by a finalizer
            del _noting[0]
        else:
            time.sleep(_NOTING)
    return not [seat for seat in _seats.copy() if not seat.stand()]  # all stand, also where one cannot


def note_forks() -> bool:
    """Have the guards know of the forks that are over. False while one is under way, or another thread is at
    it: who asks waits for more than he needs to, then. Takes no lock that a finalizer could meet."""
    return bool(HERE[NOTED]) or _note_forks()


def look() -> None:
    """For the helper: let releases be quick again when nobody holds a guard, and ends of leases when nobody
    copies."""
    if not (HERE[UNSHARED] and HERE[COPIED]):
        _note_forks()


def _note_forks() -> bool:
    # Who forks says so and then waits for who is at it, unless it finds GUARDED; who is at it takes GUARDED away
    # and then looks whether anybody forks. So one of the two sees the other, and a fork that began and ended
    # meanwhile is not lost: it waited, or took the claim away.
    me, noted = [threading.get_ident()], []
    try:
        if _noting.setdefault(0, me) is not me:
            return False
        HERE[GUARDED] = 0
        if HERE[FORKING] or not HERE[OURS]:
            return False
        seats = _seats.copy()
        if not HERE[NOTED]:
            noted = [seat.note() for seat in seats]
        is_guarded = False not in [seat.after_noting() for seat in seats]
        is_unshared, is_copied = not _all, not any(guard.copied for guard in _all.copy())
        if 0 in _noting and _noting[0] is me and not HERE[FORKING]:
            # Nothing is called from the look on, so nobody forks in between.
            HERE[UNSHARED] = is_unshared
            HERE[COPIED] = is_copied
            HERE[NOTED] = 1
            HERE[GUARDED] = is_guarded
    finally:
        if 0 in _noting and _noting[0] is me:
            del _noting[0]
    for guard in filter(None, noted):
        log.warning(
            "a fork could not be guarded (%s): what is open or leased is held until this process ends",
            guard.why_not or "its hook failed, or was before the pool's",
        )
    return bool(HERE[NOTED])


def abandon_all() -> None:
    """In a forked child: they are the parent's."""
    for seat in _seats:
        seat._guards.clear()
        seat.standing = None
    _all.clear()
    _seats.clear()
    _noting.clear()
