"""Deferred releases: what was released, or published, while views of it live.

A view hangs on its window, and the window stays, so its reference count tells whether any view
is left. Nobody is called when the last one dies: what a signal handler raises in a callback is
thrown away, and dropping the window for the sake of one cost more than the object's whole cycle.
So the next call that has reason to looks, and the helper: soon at first, then more and more
rarely, and at once when somebody waits for memory. While calls come one upon the other they look
themselves, and the helper does so rarely: each time it wants the interpreter, and whoever works
there pays for that at each call of the kernel until it has it.
"""

from __future__ import annotations

import time
from itertools import count
from sys import getrefcount

from ..protocol.figures import DEFERRED, HELD_BY_VIEWS
from ..protocol.ledger import GENERATION_FIELD, STATE_SHIFT
from ..protocol.states import CellState
from ..system.here import COPIED, HERE, UNSHARED
from ..system.outside import own
from .guards import note_forks
from .openings import Openings
from .records import Reader, Record, Ticket
from .slot import Slot
from .tickets import release, ring
from .windows import AT_REST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_DONE: Final = CellState.DONE << STATE_SHIFT
#: So many releases are looked at by the next call; older ones by the helper.
RECENT: Final = 8
#: The helper's pauses between looks, in seconds; while tickets are only open, it looks as rarely
#: as the longest.
FIRST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.1
GROWTH: Final = 1.3
#: So many releases since the helper's last look, and their calls look after each other.
STEADY: Final = 8
#: Who waits is looked at so soon: a longer pause is ended.
SOON: Final = 0.02
IDLE_PAUSE: Final = 0.25
#: While only children keep what the parent has, too.
LONGEST_GUARD_PAUSE: Final = 1.0


class DeferredReleases:
    """Those of one session. Thread-safe. What a finalizer finds in the middle of anything stays for the next look."""

    #: Members with a place of their own, for the compiled twin.
    __slots__ = (
        "_lent", "_noted", "_number", "_numbers", "_old", "_openings", "_partings", "_pause", "_recent", "_session",
        "_watched_at",
    )  # fmt: skip

    def __init__(self, session: Reader, openings: Openings) -> None:
        self._session = session
        self._openings = openings
        self._numbers = count()
        #: The youngest, which the next call looks at, and all others. A number is used once, so
        #: that whoever settles one twice removes no other.
        self._recent: dict[int, Ticket] = {}
        self._old: dict[int, Ticket] = {}
        #: Slots that were published or released while their writers kept views, or a child had yet to
        #: copy them, and how it goes on with each after that.
        self._partings: dict[int, tuple[Slot, Callable[[], None]]] = {}
        #: Of what the compiled twin lends to arrays, which give it back by themselves (`_fast/lent.pxi`).
        self._lent: set[Record] = set()
        #: The number that the helper found the last time.
        self._number = 0
        self._pause = FIRST_PAUSE
        #: When the helper looked last whether anything is open. Looking more often would have nearly
        #: every open wake it.
        self._watched_at = float("-inf")
        #: What the seat's gauge says besides what is lent.
        self._noted = 0

    @property
    def any(self) -> bool:
        """Whether anything waits."""
        return bool(self._recent or self._old or self._partings or self._openings.left)

    def rows(self, *, are_read: bool) -> set[int]:
        """The rows of which only views are left: of what was opened here, or of what was leased."""
        if are_read:
            tickets = [*self._recent.copy().values(), *self._old.copy().values()]
            return {record.row for record in (*self._lent.copy(), *(ticket._record for ticket in tickets))}
        return {slot.row for slot, _ in self._partings.copy().values()}

    # --- adding -------------------------------------------------------------------------------

    def add(self, ticket: Ticket) -> None:
        """A ticket whose buffer was released while a view of it lives, or may live. Who adds looks,
        and tells what is left."""
        recent = self._recent
        while len(recent) >= RECENT:
            try:
                number = next(iter(recent))
                self._old[number] = recent[number]
                del recent[number]
            except own(KeyError, StopIteration, RuntimeError):  # another thread moves it
                pass
        ticket._last_fork = None
        recent[next(self._numbers)] = ticket

    def add_slot(self, slot: Slot, go_on: Callable[[], None]) -> None:
        """A slot that its writer keeps a view of, or that a child has yet to copy. Takes no lock that a
        finalizer could meet."""
        self._partings[next(self._numbers)] = slot, go_on
        self.tell()

    def has(self, ticket: Ticket) -> bool:
        """Whether it was added."""
        return any(waiting is ticket for waiting in [*self._recent.values(), *self._old.values()])

    def tell(self) -> None:
        """Say what waits, and have the helper look soon if anything does. Waking it costs its turn
        of the interpreter, so not for what was settled at once."""
        held = len(self._recent) + len(self._old) + len(self._partings)
        if held != self._noted:
            self._note()
        if held and (self._pause > SOON or not self._session.is_watched):
            self._hurry()

    def _note(self) -> None:
        """Tell in the seat's gauge how many wait. Threads may overtake each other: whoever looks
        next mends it."""
        held, session = len(self._recent) + len(self._old) + len(self._partings), self._session
        if held != self._noted and not session.is_over:
            self._noted = held
            session.words[session.counters + HELD_BY_VIEWS] = held + len(self._lent)

    def _hurry(self) -> None:
        if self._pause > SOON or not self._session.is_watched:
            self._pause = FIRST_PAUSE
            self._session.wake_helper()

    # --- looking ------------------------------------------------------------------------------

    def look(self) -> None:
        """What a call looks at on its way: the youngest."""
        if self._openings.left:
            self._look_at_left()
        if self._recent:
            self.look_at_recent()
        if self._partings:
            self.look_at_partings()

    def look_at_recent(self) -> None:
        """At the youngest tickets. Who takes one out stores its DONE; one that an exception catches
        in between is found by `recover`."""
        recent, session = self._recent, self._session
        is_quick = HERE[UNSHARED] and not session.is_over
        for number in list(recent):
            ticket = recent.get(number)
            if ticket is None or getrefcount(ticket._record.window) != AT_REST:
                continue
            if not is_quick or ticket._record.is_direct or ticket.is_given_back:
                if self._settle(ticket):
                    recent.pop(number, None)
            elif recent.pop(number, None) is not None:
                record, granted, words = ticket._record, ticket._granted, session.words
                if words[record.cell] == granted & GENERATION_FIELD | session.taken:
                    if session.barrier:
                        session.barrier()
                    words[record.cell] = granted & GENERATION_FIELD | _DONE
                    if words[record.word] != granted or session.header[record.wanted]:
                        ring(record, granted)

    def look_at_all(self) -> None:
        """What the helper looks at, and who has to give back."""
        self._session.guards.look()
        if self._openings.left:
            self._look_at_left()
        for waiting in (self._recent, self._old):
            for number, ticket in waiting.copy().items():
                if not ticket._record.is_looked_through and self._settle(ticket):
                    waiting.pop(number, None)
        self.look_at_partings()
        self._note()

    def recover(self) -> None:
        """Also what an exception lost: a ticket that is open and that nobody knows."""
        for ticket in self._openings.take_orphans():
            self._part_with(ticket)
        self.look_at_all()

    def abandon(self) -> None:
        """In a forked child."""
        self._recent.clear()
        self._old.clear()
        self._partings.clear()
        self._lent.clear()

    def _look_at_left(self) -> None:
        for ticket in self._openings.take_left():
            self._part_with(ticket)

    def _part_with(self, ticket: Ticket) -> None:
        """A ticket whose buffer is no more."""
        if ticket._record.is_looked_through:
            self._session.count(DEFERRED)
        elif self._settle(ticket):
            return
        self.add(ticket)
        self.tell()

    def _settle(self, ticket: Ticket) -> bool:
        """No view is left here. False while a child may have one."""
        session = self._session
        if not HERE[UNSHARED] and not session.is_over:
            if not note_forks():
                return False
            if ticket._last_fork is None:
                ticket._last_fork = session.guards.last
            if session.guards.between(ticket._fork, ticket._last_fork):
                return False
        return session.is_over or release(ticket)

    def look_at_partings(self) -> None:
        """At the slots that their writers kept views of, or children were to copy. Who takes one out goes
        on with it; one that an exception catches in between is found (`recovery`)."""
        partings = self._partings
        for number in list(partings):
            parting = partings.get(number)
            if parting is None:
                continue
            slot, go_on = parting
            if slot.window is not None and getrefcount(slot.window) != AT_REST:
                continue
            if not HERE[COPIED] and self._session.guards.awaits_copy(slot.row):
                continue
            if partings.pop(number, None) is not None and not self._session.is_over:
                go_on()

    # --- the helper's time --------------------------------------------------------------------

    def pause(self) -> float | None:
        """For the helper, before it waits: when it has to look again; None when not before it
        is told."""
        session = self._session
        before, self._number = self._number, next(self._numbers)
        if self._number > before + STEADY:
            session.is_watched = not session.is_over
            self._pause = FIRST_PAUSE  # as far as others see: none of them ends this one
            return LONGEST_PAUSE
        if self.any:
            session.is_watched = not session.is_over
            self._pause = min(LONGEST_PAUSE, GROWTH * self._pause)
            return self._pause
        if session.guards:
            self._pause = min(LONGEST_GUARD_PAUSE, GROWTH * self._pause)
            return self._pause
        if not session.is_watched:
            return None
        self._pause = IDLE_PAUSE
        now = time.monotonic()
        if now < self._watched_at + IDLE_PAUSE:  # it was woken for something else, or by that first open
            return self._watched_at + IDLE_PAUSE - now
        self._watched_at = now
        self._openings.forget_segments()
        # The first open wakes the helper again. One that was under way is found in a moment.
        session.is_watched = (self._openings.in_use or self._openings.maps_segments) and not session.is_over
        return IDLE_PAUSE
