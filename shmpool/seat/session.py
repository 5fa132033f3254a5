"""A session: one seat in one pool. Its custody, its link to the broker, what it has opened.

A session begins with a welcome and ends when the pool is closed and its last view is gone, the
process forks (the child begins its own) or the broker comes back with another pool. What the hot
paths of `lease` and `buffer` need lies ready in its attributes.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING
from weakref import ref

from .. import hints
from ..direct import DirectSlot
from ..errors import BrokerUnavailable, ShmpoolError
from ..life import closing, forks
from ..link.connection import (
    Connection,
    Interruption,
    await_welcome,
    dial,
    greet,
)
from ..link.helper import Helper
from ..link.link import Link
from ..link.prefetch import Prefetch
from ..link.refusals import dismissed, refused
from ..link.requests import Request
from ..protocol import figures
from ..protocol.codes import Code
from ..protocol.header import BROKER_PID, WANTED
from ..protocol.messages import (
    Account,
    Direct,
    Goodbye,
    Message,
    Refill,
    Role,
    Welcome,
)
from ..system.limits import explain
from ..system.memory import MemoryGroup, memory_groups
from .custody import Custody
from .deferred import DeferredReleases
from .guards import Guards
from .magazine import Magazine, Slot
from .mapping import SeatTaken
from .openings import Openings
from .sites import Sites

if TYPE_CHECKING:
    from ..pool import Pool


class Session(Custody):
    """One seat. Thread-safe; over after a fork (`is_over`), in the child only."""

    def __init__(self, *, strict: bool) -> None:
        """Without a seat yet: `join` takes one. Raises BrokerUnavailable without descriptors."""
        super().__init__()
        self.address = ""
        self.strict = strict
        self.is_over = False
        #: Its pool is being closed, or was.
        self.is_closing = False
        #: It has no pool any more, which was closed or collected: its helper ends it once nothing is
        #: in use.
        self.is_orphaned = False
        #: The interpreter ends.
        self.is_at_exit = False
        #: A release saw the wanted flag.
        self.is_wanted = False
        #: Whose session it is: its class follows some settings.
        self.pool: ref[Pool] | None = None
        self.warned_of_views = False
        #: Who leased and opened what, where that is noted.
        self.sites = Sites()
        self.openings = Openings(self)
        #: Its table, for `Pool.open`.
        self.records = self.openings.records
        #: Buffers that were collected unreleased, for the same.
        self.left = self.openings.left
        self.deferred = DeferredReleases(self, self.openings)
        self.guards = Guards(self)
        #: The last fork that is over: what is opened from now on waits for no child of it.
        self.forks = 0
        #: The seat lives, and the helper looks now and then whether something was left open.
        self.is_watched = False
        try:  # before a seat is taken: without them there would be nobody to leave it
            self.link = Link(self)
        except OSError as error:
            raise BrokerUnavailable(f"no descriptors to connect to a broker: {explain(error)}") from None
        self.bells = self.link.bells
        self.prefetch = Prefetch(self)
        #: Started by who takes the seat.
        self.helper = Helper(self, partial(closing.end_if_unused, self))

    # --- the seat ----------------------------------------------------------------------------------

    def join(self, find: Callable[[], str], deadline: float, is_given_up: Callable[[], bool]) -> None:
        """Take a seat of the broker at the address that *find* says. Raises BrokerUnavailable, and
        has nothing open then."""
        try:
            while not self._take_seat(*self._knock(find, deadline, is_given_up)):
                pass  # the broker has that seat to clear, and another for us, or none at all
            self._make_tables()
        except BaseException:
            self.close_descriptors()
            raise

    def _knock(
        self, find: Callable[[], str], deadline: float, is_given_up: Callable[[], bool]
    ) -> tuple[Connection, Welcome]:
        self.nonce = int.from_bytes(os.urandom(8))
        self.address, self.link.connection, welcome = await_welcome(find, self.nonce, deadline, is_given_up)
        return self.link.connection, welcome

    def _take_seat(self, connection: Connection, welcome: Welcome) -> bool:
        """Map the pool. False when the seat cannot be had: it is left as it is, and the broker
        clears it when its lock is free."""
        try:
            self.map(welcome, self.nonce)
        except SeatTaken:
            self.link.drop(connection)
            return False
        except OSError as error:
            raise BrokerUnavailable(hints.unmappable(self.address, error)) from None
        return True

    def reconnect(self, timeout: float, interruption: Interruption | None = None) -> bool:
        """Try once to take the seat up again. False: try later. Ends the session when the
        broker has another pool or has given the seat up."""
        deadline = time.monotonic() + timeout
        try:
            connection = dial(self.address, deadline, interruption)
            welcome = greet(connection, Role.WORKER, self.nonce, self.pool_id, self.seat, deadline, interruption)
        except ShmpoolError:
            return False
        if not welcome.resumed or welcome.pool_id != self.pool_id:
            connection.close()
            self.end()
            return True
        self.apply(welcome.settings)
        self._adopt_unknown()
        self.link.attach(connection)
        self.is_wanted = 1 in [self.header[WANTED + tier.index] for tier in self.tiers]  # recalls that we missed
        return True

    def broker_pid(self) -> int:
        """The broker's process, as it sees itself."""
        return self.header[BROKER_PID]

    def apply(self, settings: list[list[int]]) -> None:
        super().apply(settings)
        if self.pool is not None and (pool := self.pool()) is not None:
            pool.fit_class(self)

    # --- getting slots ----------------------------------------------------------------------------

    def obtain(self, magazine: Magazine, nbytes: int, timeout: float | None) -> Slot:
        """A slot when the magazine has none ready: reap, else ask the broker and wait for
        the grant or for an own slot that comes back. Raises LeaseTimeout."""
        slot = magazine.take()
        if slot is None and self.deferred.any:
            self.deferred.look_at_all()
            slot = magazine.take()
        if slot is not None:
            return slot
        queue = timeout != 0
        if not queue:
            self.prefetch.give_up()  # nobody will be recalled for this request, so neither are we
        message = Refill(self.link.next_number(), magazine.tier.index, magazine.chunks, magazine.grow(), queue)
        slot = self._ask(Request(message, magazine), nbytes, timeout)
        self.count(figures.MISSES)  # now: one that is refused is no lease, so neither a hit nor a miss
        return slot

    def obtain_direct(self, nbytes: int, timeout: float | None) -> Slot:
        """A direct segment's row, granted by the broker, maybe ahead."""
        started = time.monotonic()
        slot = self.prefetch.take(nbytes, timeout)
        if slot is None:
            if timeout != 0:  # for the one ahead some of it may have been waited already
                seconds = self.lease_timeout if timeout is None else timeout
                timeout = max(0.001, started + seconds - time.monotonic())
            message = Direct(self.link.next_number(), nbytes, timeout != 0)
            slot = self._ask(Request(message), nbytes, timeout)
        self.prefetch.ask(nbytes)
        return slot

    #: Not a `functools.cached_property`: before Python 3.12 that has one lock for all sessions, which
    #: a forked child would find taken for ever.
    _memory_groups: list[MemoryGroup] | None = None

    @property
    def memory_groups(self) -> list[MemoryGroup]:
        """What limits the memory of this process, which is charged for direct segments."""
        if self._memory_groups is None:
            self._memory_groups = memory_groups()
        return self._memory_groups

    def _ask(self, request: Request, nbytes: int, timeout: float | None) -> Slot:
        if not self.helper.is_running:  # an exception came when it was to be started again
            self.helper.start()
        started = time.monotonic()
        slot = self.link.ask(request, timeout)
        if slot is None and not request.message.queue and _is_over_quota(request):
            # Who does not wait is not recalled either: what lies idle here may be all that is in the way.
            self.prefetch.give_up()
            self.return_all()
            request = Request(request.message._replace(request=self.link.next_number()), request.magazine)
            slot = self.link.ask(request, timeout)
        if slot is not None:
            return slot
        if self.link.is_dismissed:
            raise dismissed(self.is_closing)
        waited = time.monotonic() - started
        error = refused(request.refusal, nbytes, waited, "" if self.link.connection else self.address)
        if isinstance(error, TimeoutError):
            self.count(figures.TIMEOUTS)
        raise error

    # --- to the broker ------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection | None:
        """The connection to the broker, None while it is away."""
        return self.link.connection

    def send(self, message: Message) -> None:
        """Send a message, and the bells that are left with it."""
        self.link.send(message)

    def ring(self, row: int) -> None:
        """Have the broker look at a row at once. Not for finalizers."""
        self.link.ring(row)

    def watch(self) -> None:
        """Have the helper look now and then whether something was left open."""
        self.guards.use()
        self.is_watched = not self.is_over
        self.wake_helper()

    def wake_helper(self) -> None:
        """Make the helper thread look at what is left for it."""
        self.link.wake()

    def account_for(self, rows: list[int], *, is_reader: bool) -> None:
        """Tell the broker what is known here of buffers that it takes for leaked."""
        views, sites = self.deferred.rows(are_read=is_reader), self.sites
        told = [[row, row in views, sites.text(row, self.words, is_reader=is_reader)] for row in rows]
        self.link.send(Account(told, is_reader))

    # --- what the helper does ---------------------------------------------------------------------------

    def look_after_views(self) -> None:
        """Settle what waited for a view, or for a child that has one."""
        self.deferred.look_at_all()
        forks.look()

    def answer_recall(self) -> None:
        """Somebody waits: give back what is idle here."""
        self.is_wanted = False
        self.link.serve()
        self.prefetch.give_up()
        self.return_idle()

    def look_after_rested(self) -> bool:
        """Return what was not used; False when nothing idle is left."""
        lies_ahead = self.prefetch.give_up_rested()
        return self.return_rested() or lies_ahead

    # --- the end ----------------------------------------------------------------------------------------

    def end(self) -> None:
        """The seat is gone. Views stay readable, nothing is stored for them any more."""
        self.is_over, self.is_watched = True, False
        self.guards.forget_all()
        self.link.dismiss()

    @property
    def is_in_use(self) -> bool:
        """Whether this seat is the custodian of anything (after `close_magazines`: of what is leased
        or just being leased), or has a ticket taken, or a view of anything lives."""
        return self.owns_any or self.deferred.any or self.openings.in_use

    def say_goodbye(self) -> bool:
        """The seat ends, unless something is still in use: another thread may be just opening."""
        with self.ticket_gate:
            is_first, is_left = not self.is_over, self.is_over or not self.is_in_use
            if is_left:
                self.is_over, self.is_watched = True, False
        if is_first and is_left:
            self.link.send_bells()
            self.unlock_seat()
            self.readers = None  # nothing is open any more
            self.link.send(Goodbye())
        return is_left

    def close_descriptors(self) -> None:
        """Close what this session has open. Twice is fine."""
        self.guards.forget_all()
        self._returned.clear()
        self.unmap()
        self.link.close()

    def abandon(self) -> None:
        """In a forked child: forget the seat. The parent's memory is out of reach already."""
        self.is_over, self.is_watched = True, False
        self.guards.forget_all()
        self.ticket_gate = threading.Lock()  # a thread that is not here may have had it
        for slot in self._owned.values():
            if isinstance(slot, DirectSlot):
                slot.close()  # else this process would keep the segment's memory
        self.link.abandon_in_child()
        self._returned.clear()
        self.unmap()

    def count(self, figure: int) -> None:
        """Add one to a counter of this seat."""
        self.words[self.counters + figure] += 1

    def note_latency(self, category: int, nanoseconds: int) -> None:
        """A lease of a category was timed."""
        timed = self.counters + figures.LATENCIES + figures.LATENCY_WORDS * category
        self.words[timed] += nanoseconds
        self.words[timed + figures.TO_BUCKET[nanoseconds.bit_length()]] += 1

    def warn_of_view(self) -> None:
        """Once: a writer kept a view of what it published."""
        self.count(figures.DEFERRED)
        if not self.warned_of_views:
            self.warned_of_views = True
            warnings.warn(
                "a view of a published or released buffer is still alive (an array or slice of lease.view);"
                " its slot is not used again until the view is gone",
                ResourceWarning,
                stacklevel=4,
            )


def _is_over_quota(request: Request) -> bool:
    return request.refusal is not None and request.refusal.code == Code.QUOTA
