"""A session: one seat in one pool, from its welcome to its end.

It begins with a welcome and ends when the pool is closed and its last view is gone, the
process forks (the child begins its own) or the broker comes back with another pool. What the hot
paths of `lease` and `buffer` need lies ready in its attributes.
"""

from __future__ import annotations

import warnings
from functools import partial

from ..errors import BrokerUnavailable, LeaseReleased
from ..link.connection import Connection
from ..link.helper import Helper
from ..link.link import Link
from ..link.prefetch import Prefetch
from ..link.requests import Request
from ..protocol.figures import DEFERRED, TICKETS_ASKED
from ..protocol.handle import Handle
from ..protocol.header import BROKER_PID
from ..protocol.messages import Account, Take
from ..system.limits import explain
from ..system.outside import own
from . import guards
from .deferred import DeferredReleases
from .ending import Ending
from .expiry import Expiry
from .holds import HoldTable
from .openings import Openings
from .outgoing import Outgoing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Session(Ending):
    """One seat. Thread-safe; over after a fork (`is_over`), in the child only."""

    def __init__(self, *, strict: bool, close_if_unused: Callable[[Session], bool]) -> None:
        """Without a seat yet: `join` takes one. *close_if_unused* is called while it has no pool any more.
        Raises BrokerUnavailable without descriptors."""
        super().__init__()
        self.address = ""
        self.strict = strict
        self.warned_of_views = False
        self.openings = Openings(self)
        #: Its table, for `Pool.open`.
        self.records = self.openings.records
        #: Buffers that were collected unreleased, for the same.
        self.left = self.openings.left
        self.deferred = DeferredReleases(self, self.openings)
        #: Tickets that are discarded when nobody opens them in time.
        self.expiry = Expiry(self)
        #: Shared publications that are open here.
        self.holds = HoldTable(self)
        #: Makes a `Shared` of a lease; the pool's.
        self.on_share: Callable[[object, str | None, object, float | None], Any] | None = None
        self.guards = guards.Guards(self)
        #: The streams that are written here, and those whose chunks are still to be read.
        self.outgoing: set[Outgoing] = set()
        try:  # before a seat is taken: without them there would be nobody to leave it
            self.link = Link(self)
        except own(OSError) as error:
            raise BrokerUnavailable(f"no descriptors to connect to a broker: {explain(error)}") from None
        self.prefetch = Prefetch(self)
        #: Started by who takes the seat.
        self.helper = Helper(self, partial(close_if_unused, self))

    # --- the link ----------------------------------------------------------------------------------

    def broker_pid(self) -> int:
        """The broker's process, as it sees itself."""
        return self.header[BROKER_PID]

    @property
    def connection(self) -> Connection | None:
        """The connection to the broker, None while it is away."""
        return self.link.connection

    @property
    def is_locked_here(self) -> bool:
        """Whether this thread has any of these locks: a finalizer or a handler came in the middle of a call."""
        locks = self.ticket_gate, self.openings.lock, self.holds.lock, self.expiry.lock
        return any(lock._is_owned() for lock in locks)  # type: ignore[attr-defined]

    # --- what tickets call upwards ---------------------------------------------------------------------

    def ask_for_ticket(self, index: int, pending: int) -> None:
        self.helper.stand_by()
        self.count(TICKETS_ASKED)
        request = Request(Take(self.link.next_number(), index >> 4, index & 15, pending, False))
        self.link.ask_here(request, None)
        if request.answer is None:
            raise (
                self.discarded()
                if self.link.is_discarding
                else BrokerUnavailable(f"the broker at {self.address} did not take the handle's ticket")
            )

    def close_soon(self, granted: int, tail: int) -> None:
        self.expiry.close(granted, tail)

    # --- what leases call upwards --------------------------------------------------------------------

    def discard_in(self, ttl: float, handles: list[Handle]) -> None:
        self.expiry.add(handles, ttl)

    def share_lease(self, lease: object, name: str | None, keep: object, ttl: float | None) -> Any:
        if self.is_over or self.on_share is None:
            raise LeaseReleased("the lease's seat is gone: the pool was closed, or the broker came back with a new one")
        return self.on_share(lease, name, keep, ttl)

    def let_go(self, number: int) -> None:
        """What was held, or was to be made, under this number is nobody's here. A broker that is away is
        told what is held, and so of this, when it is back."""
        self.holds.let_go(number)

    # --- what is seen of it --------------------------------------------------------------------------

    def watch(self) -> None:
        """Have the helper look now and then whether something was left open. What is opened from now on waits
        for no child of a fork that is over."""
        guards.note_forks()
        self.is_watched = not self.is_over
        self.wake_helper()

    def look_after_views(self) -> None:
        """Settle what waited for a view, or for a child that has one, and the streams that nobody reads
        any more; return the segments that nobody uses. For the helper."""
        self.deferred.look_at_all()
        for stream in self.outgoing.copy():
            stream.look()
        guards.look()
        self.segments.look()
        self.expiry.look()
        self.holds.look()

    @property
    def pause(self) -> float | None:
        """For the helper: when something expires, or a hold may end."""
        pauses = [pause for pause in (self.expiry.pause, self.holds.pause) if pause is not None]
        return min(pauses, default=None)

    def let_go_of_idle(self) -> bool:
        return self.holds.look(at_once=True)

    def answer_recall(self) -> None:
        self.holds.look(at_once=True)
        super().answer_recall()

    def account_for(self, rows: list[int], *, is_reader: bool) -> None:
        """Tell the broker what is known here of buffers that it takes for leaked."""
        views, sites = self.deferred.rows(are_read=is_reader), self.sites
        told = [[row, row in views, sites.text(row, self.words, is_reader=is_reader)] for row in rows]
        self.send(Account(told, is_reader))

    def warn_of_view(self) -> None:
        """Once: a writer kept a view of what it published."""
        self.count(DEFERRED)
        if not self.warned_of_views:
            self.warned_of_views = True
            warnings.warn(
                "a view of a published or released buffer is still alive (an array or slice of lease.view);"
                " its slot is not used again until the view is gone",
                ResourceWarning,
                stacklevel=4,
            )
