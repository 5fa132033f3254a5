"""Deferred releases: what was released, or published, while views of it live.

A view hangs on its window, and the window stays, so its reference count tells whether any view
is left. Nobody is called when the last one dies: what a signal handler raises in a callback is
thrown away, and dropping the window for the sake of one cost more than the object's whole cycle.
So the next call that has reason to looks, and the helper: soon at first, then more and more
rarely, and at once when somebody waits for memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from sys import getrefcount
from typing import TYPE_CHECKING, Final

from ..protocol.figures import DEFERRED, HELD_BY_VIEWS
from ..tickets import Ticket, finish
from ..windows import AT_REST
from .openings import Openings

if TYPE_CHECKING:
    from ..magazine import Slot
    from ..session import Session

#: So many releases are looked at by the next call; older ones by the helper.
RECENT: Final = 8
#: The helper's pauses between looks, in seconds; while tickets are only open, it looks as rarely
#: as the longest.
FIRST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.1
GROWTH: Final = 1.3
IDLE_PAUSE: Final = 0.25


class Parting:
    """A slot that was published or released while its writer kept a view: *go_on* when that
    is gone."""

    __slots__ = ("_go_on", "_slot")

    def __init__(self, slot: Slot, go_on: Callable[[], None]) -> None:
        self._slot = slot
        self._go_on: Callable[[], None] | None = go_on

    def settle(self) -> bool:
        """Go on if no view is left. For one thread at a time: once."""
        slot = self._slot
        if self._go_on is None:
            return True
        if slot.has_views:
            return False
        if not slot.session.is_over:
            go_on, self._go_on = self._go_on, None
            go_on()
        return True


class DeferredReleases:
    """Those of one session. Thread-safe, but `look` is not for finalizers; `add` is."""

    def __init__(self, session: Session, openings: Openings) -> None:
        self._session = session
        self._openings = openings
        self._numbers = count()
        #: The youngest, which the next call looks at, and all others. A number is used once, so
        #: that whoever settles one twice removes no other.
        self._recent: dict[int, Ticket] = {}
        self._old: dict[int, Ticket] = {}
        self._partings: dict[int, Parting] = {}
        #: Reentrant: what a collection finds meanwhile may call the pool.
        self._parting_lock = threading.RLock()
        self._pause = FIRST_PAUSE
        #: What the seat's gauge says.
        self._noted = 0

    @property
    def any(self) -> bool:
        """Whether anything waits."""
        return bool(self._recent or self._old or self._partings or self._openings.left)

    # --- adding -------------------------------------------------------------------------------

    def add(self, ticket: Ticket) -> None:
        """A ticket whose buffer was released while a view of it lives."""
        recent = self._recent
        while len(recent) >= RECENT:
            with suppress(KeyError, StopIteration, RuntimeError):  # another thread moves it
                number = next(iter(recent))
                self._old[number] = recent[number]
                del recent[number]
        recent[next(self._numbers)] = ticket
        self._note()
        self._hurry()

    def add_slot(self, slot: Slot, go_on: Callable[[], None]) -> None:
        """A slot that its writer keeps a view of. Takes no lock that a finalizer could meet."""
        self._partings[next(self._numbers)] = Parting(slot, go_on)
        self._note()
        self._hurry()

    def _note(self) -> None:
        """Tell in the seat's gauge how many wait. Threads may overtake each other: whoever looks
        next mends it."""
        held, session = len(self._recent) + len(self._old) + len(self._partings), self._session
        if held != self._noted and not session.is_over:
            self._noted = held
            session.words[session.counters + HELD_BY_VIEWS] = held

    def _hurry(self) -> None:
        if self._pause > 4 * FIRST_PAUSE or not self._session.is_watched:
            self._pause = FIRST_PAUSE
            self._session.wake_helper()

    # --- looking ------------------------------------------------------------------------------

    def look(self) -> None:
        """What a call looks at on its way: the youngest."""
        if self._openings.left:
            self._look_at_left()
        recent = self._recent
        for number, ticket in recent.copy().items():
            if getrefcount(ticket._record.window) == AT_REST:
                self._settle(ticket)
                recent.pop(number, None)
        if self._partings:
            self._look_at_partings()
        self._note()

    def look_at_all(self) -> None:
        """What the helper looks at, and who has to give back."""
        if self._openings.left:
            self._look_at_left()
        for waiting in (self._recent, self._old):
            for number, ticket in waiting.copy().items():
                if not ticket._record.is_looked_through:
                    self._settle(ticket)
                    waiting.pop(number, None)
        self._look_at_partings()
        self._note()

    def recover(self) -> None:
        """Also what an exception lost: a ticket that is open and that nobody knows."""
        for ticket in self._openings.take_orphans():
            self._part_with(ticket)
        self.look_at_all()

    def _look_at_left(self) -> None:
        for ticket in self._openings.take_left():
            self._part_with(ticket)

    def _part_with(self, ticket: Ticket) -> None:
        """A ticket whose buffer is no more."""
        if ticket._record.is_looked_through:
            self._session.count(DEFERRED)
            self.add(ticket)
        else:
            self._settle(ticket)

    def _settle(self, ticket: Ticket) -> None:
        """No view is left."""
        if not self._session.is_over:
            finish(ticket._record, ticket._granted)

    def _look_at_partings(self) -> None:
        for number, parting in self._partings.copy().items():
            with self._parting_lock:
                is_settled = parting.settle()
            if is_settled:
                self._partings.pop(number, None)

    # --- the helper's time --------------------------------------------------------------------

    def pause(self) -> float | None:
        """For the helper, before it waits: when it has to look again; None when not before it
        is told."""
        session = self._session
        if self.any:
            session.is_watched = not session.is_over
            self._pause = min(LONGEST_PAUSE, GROWTH * self._pause)
            return self._pause
        if not session.is_watched:
            return None
        if self._pause < IDLE_PAUSE:
            self._pause = IDLE_PAUSE
            return IDLE_PAUSE
        # The first open wakes the helper again. One that was under way is found in a moment.
        session.is_watched = self._openings.in_use and not session.is_over
        return IDLE_PAUSE
