"""Ending: what becomes of a session's seat when nothing is left of it, the broker has given it up, or the
process forks."""

from __future__ import annotations

from ..link.helper import Helper
from ..protocol.messages import Goodbye
from ..system.descriptors import CLOSED
from .deferred import DeferredReleases
from .direct import DirectSlot
from .expiry import Expiry
from .joining import Joining
from .openings import Openings
from .outgoing import Outgoing


class Ending(Joining):
    """A session as far as it ends."""

    openings: Openings
    deferred: DeferredReleases
    helper: Helper
    #: Tickets that are discarded when nobody opens them in time.
    expiry: Expiry
    #: The streams that are written here, and those whose chunks are still to be read.
    outgoing: set[Outgoing]

    def discard_seat(self) -> None:
        """The seat is gone. Views stay readable, nothing is stored for them any more."""
        with self.ticket_gate, self.gate_use:
            self._close_tickets()
        self.guards.forget_all()
        self.link.discard_all()

    def _close_tickets(self) -> None:
        """The seat is over, and from here on nobody takes a ticket for it. For who has the gate: an `open` that
        looked at the session before has had its turn, or finds no descriptor and swaps nothing."""
        self.is_over, self.is_watched = True, False
        self.tickets_fd = CLOSED

    @property
    def is_in_use(self) -> bool:
        """Whether this seat is the custodian of anything (after `close_magazines`: of what is leased
        or just being leased), or has a ticket taken or asked for, or a view of anything lives."""
        in_use = self.owns_any or self.deferred.any or self.openings.in_use or self.holds.in_use
        return in_use or bool(self.asked_for)

    def say_goodbye(self) -> bool:
        """The seat ends, unless something is still in use: somebody may be just opening. That may be this thread
        itself, which a finalizer or handler has interrupted there: then the helper ends it."""
        if self.is_nested:
            return False
        with self.ticket_gate, self.gate_use, self.holds.lock:
            is_first, is_left = not self.is_over, self.is_over or not self.is_in_use
            if is_left:
                self._close_tickets()
        # Over, then the unlock, then the word: whoever gets this seat's number finds its byte free, and
        # the readers' page goes before the broker may take what we had open for done.
        if is_first and is_left:
            self.link.send_bells()
            self.unlock_seat()
            self.guards.forget_all()
            self.readers = None  # nothing is open any more
            self.send(Goodbye())
        return is_left

    def close_descriptors(self) -> None:
        """Close what this session has open. Twice is fine."""
        self.guards.forget_all()
        self._forget_slots()
        self.unmap()
        self.link.close()

    def abandon(self) -> None:
        """In a forked child: forget the seat. The parent's memory is out of reach already."""
        self.is_over, self.is_watched, self.is_abandoned = True, False, True
        self.outgoing.clear()
        # Other threads may have had these locks: they are not here. Made by their class, which is in C.
        self.ticket_gate, self.expiry.lock = type(self.ticket_gate)(), type(self.expiry.lock)()
        self.is_gate_used, self.settled = False, -1
        for slot in self._owned.values():
            if isinstance(slot, DirectSlot):
                slot.close()  # else this process would keep the segment's memory
        self.helper.abandon()
        self.link.abandon()
        # As `unmap`, and nobody has the gate.
        self.tickets_fd = self._seat_fd = CLOSED
        self._fds.clear()
        self.readers = None
