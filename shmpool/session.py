"""A session: one seat in one pool. Its magazines, its custody, its way to the broker.

A session begins with a welcome and ends when the pool is closed, the process forks (the
child begins its own) or the broker comes back with another pool. What the hot paths of
`lease` and `buffer` need lies ready in its attributes.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from functools import cached_property
from typing import Final

from . import lost
from .ahead import Ahead
from .bells import Bells
from .buffer import Record
from .connection import Connection, ConnectionEnded, dial, greet
from .direct import DirectSlot
from .errors import BrokerUnavailable, InvalidSize, ProtocolError, ShmpoolError
from .magazine import LAST_BASE, Magazine, Slot
from .mapping import Mapping, SeatTaken
from .protocol import figures
from .protocol.header import WANTED
from .protocol.ledger import EXTENT, GENERATION_FIELD, ONE_GENERATION, ROW_WORDS, STATE_SHIFT, nbytes_of
from .protocol.messages import (
    MAX_ROWS_PER_MESSAGE,
    Bell,
    Direct,
    Fault,
    Goodbye,
    Grant,
    Message,
    Refill,
    Refusal,
    Return,
    Role,
    Settings,
)
from .protocol.sizing import PAGE_SHIFT, Tier, TierKind, chunk_run, pooled_tier
from .protocol.states import State
from .requests import Requests
from .system.memory import MemoryGroup, memory_groups
from .windows import WRITE, Window

#: Slots that were returned whose records and windows are kept: they may be granted again.
#: Each window is a map of the kernel's.
MAX_RETURNED: Final = 2048


class Session(Mapping):
    """One seat. Thread-safe; over after a fork (`is_over`), in the child only."""

    def __init__(self, address: str, timeout: float, *, strict: bool) -> None:
        deadline = time.monotonic() + timeout
        self.address = address
        self.strict = strict
        self.is_over = False
        self.is_closing = False
        self.connection: Connection | None
        self._make_descriptors()
        try:
            while not self._take_seat(deadline):
                pass  # the broker has that seat to clear, and another for us, or none at all
        except BaseException:
            self.requests.close()
            os.close(self.wakeup)
            raise
        self._make_tables()
        self.ahead = Ahead(self)
        #: The helper does not read: a waiting thread does.
        self.helper_stands_aside = False
        #: Every slot whose custodian is this seat, by its head's row.
        self._owned: dict[int, Slot] = {}
        #: Slots that were ours, by row. Making a window anew costs as much as all else that a
        #: client does for a grant.
        self._returned: dict[int, Slot] = {}
        #: For rows that say IDLE: to know one and to give one back exclude each other. No
        #: finalizer takes it: what they pass on is LEASED or PUBLISHED.
        self._owned_lock = threading.Lock()
        #: A release saw the wanted flag.
        self.is_wanted = False
        self.bells = Bells(self.wake_helper)
        self.warned_of_views = False
        #: What this reader knows of cells that it opened, by row * 16 + cell.
        self.records: dict[int, Record] = {}
        #: Its pool was garbage-collected unclosed.
        self.is_forsaken = False

    def _make_descriptors(self) -> None:
        """Before a seat is taken: without them there would be nobody to leave it."""
        try:
            self.wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                self.requests = Requests(self)
            except BaseException:
                os.close(self.wakeup)
                raise
        except OSError as error:
            raise BrokerUnavailable(f"no descriptors to connect to {self.address}: {error.strerror}") from error

    def _take_seat(self, deadline: float) -> bool:
        """Connect, and map the pool. False when the seat cannot be had: it is left as it is,
        and the broker clears it when its lock is free."""
        self.nonce = int.from_bytes(os.urandom(8))
        self.connection = connection = dial(self.address, deadline)
        welcome = greet(connection, Role.WORKER, self.nonce, 0, 0, deadline)
        try:
            self.map(welcome, self.nonce)
        except SeatTaken:
            connection.close()
            return False
        except OSError as error:
            connection.close()
            raise BrokerUnavailable(f"the pool of the broker at {self.address} cannot be mapped: {error}") from error
        except BaseException:
            connection.close()
            raise
        return True

    # --- magazines ---------------------------------------------------------------------------------

    def _make_tables(self) -> None:
        """Size in pages -> magazine, so that choosing one costs a look-up. A size that is
        exactly a threshold is told apart by the caller."""
        sizing = self.sizing
        self.medium_from = sizing.medium_object_threshold
        self.pooled_below = min(sizing.large_object_threshold, sizing.pooled_sizes[-1] + 1)
        self.chunked_below = sizing.very_large_object_threshold
        self.magazines: dict[tuple[int, int], Magazine] = {}
        self.pooled: list[Magazine] = []
        for pages in range((self.pooled_below - 1 >> PAGE_SHIFT) + 2):
            tier = pooled_tier(pages << PAGE_SHIFT, self.tiers) or self.tiers[len(sizing.pooled_sizes) - 1]
            self.pooled.append(self.magazine(tier, 1))
        # Filled on demand; the very-large threshold may be far up.
        self.chunked: dict[int, Magazine] = {}

    def magazine(self, tier: Tier, chunks: int) -> Magazine:
        """The magazine of a tier's slots or of its runs of a length."""
        key = tier.index, chunks
        return self.magazines.get(key) or self.magazines.setdefault(
            key, Magazine(self, tier, chunks, self.magazine_bytes)
        )

    def run_magazine(self, nbytes: int) -> Magazine:
        """The magazine of the runs that hold *nbytes* bytes with least waste."""
        choice = chunk_run(nbytes, self.tiers)
        if choice is None:
            largest = max((t.size * t.capacity for t in self.tiers if t.kind is TierKind.CHUNK), default=0)
            raise InvalidSize(
                f"{nbytes} bytes fit no chunk tier of this pool, the largest holds {largest}: lease them DIRECT"
            )
        return self.magazine(*choice)

    def window_for(self, slot: Slot) -> Window:
        """The window through which a slot is written, made on its first use."""
        if slot.window is None:
            try:
                pieces = [self.piece(row, count, writable=True) for row, count in slot.spans]
                slot.window = self.windows.make(pieces, WRITE)
            except BaseException:
                self.keep_or_return(slot)  # the lease fails, the slot is not lost
                raise
        return slot.window

    # --- getting slots ----------------------------------------------------------------------------

    def obtain(self, magazine: Magazine, nbytes: int, timeout: float | None) -> Slot:
        """A slot when the magazine has none ready: reap, else ask the broker and wait for
        the grant or for an own slot that comes back. Raises LeaseTimeout."""
        slot = magazine.take()
        if slot is not None:
            return slot
        self.count(figures.MISSES)
        queue = timeout != 0
        if not queue:
            self.ahead.give_up()  # nobody will be recalled for this request, so neither are we
        message = Refill(self.requests.next_number(), magazine.tier.index, magazine.chunks, magazine.grow(), queue)
        return self.requests.ask(message, magazine, nbytes, timeout)

    def obtain_direct(self, nbytes: int, timeout: float | None) -> Slot:
        """A direct segment's row, granted by the broker, maybe ahead."""
        started = time.monotonic()
        slot = self.ahead.take(nbytes, timeout)
        if slot is None:
            if timeout != 0:  # for the one ahead some of it may have been waited already
                seconds = self.lease_timeout if timeout is None else timeout
                timeout = max(0.001, started + seconds - time.monotonic())
            message = Direct(self.requests.next_number(), nbytes, timeout != 0)
            slot = self.requests.ask(message, None, nbytes, timeout)
        self.ahead.ask(nbytes)
        return slot

    @cached_property
    def memory_groups(self) -> list[MemoryGroup]:
        """What limits the memory of this process, which is charged for direct segments."""
        return memory_groups()

    def put_aside(self, *slots: Slot | None) -> None:
        """Slots that nobody waits for any more: into their magazines, or back."""
        for slot in slots:
            if slot is None:
                continue
            if slot.magazine is not None:
                slot.magazine.ready.appendleft(slot)
            else:  # a direct segment serves one object
                self.give_back([slot])

    # --- giving back -------------------------------------------------------------------------------

    def give_back(self, slots: list[Slot]) -> None:
        """Return slots to the broker, each with a generation that no handle has named."""
        returned = State.RETURNED << STATE_SHIFT
        if self.barrier:
            self.barrier()
        for slot in slots:
            if self.words[slot.word] & GENERATION_FIELD == slot.base:
                slot.base += ONE_GENERATION  # granted or released, and not used since
            with self._owned_lock:  # a row that is forgotten and still IDLE looks like a lost grant
                self._owned.pop(slot.row, None)
                self._keep_window(slot)
                self.words[slot.word] = slot.base | returned
        rows = [slot.row for slot in slots]
        for at in range(0, len(rows), MAX_ROWS_PER_MESSAGE):
            self.send(Return(rows[at : at + MAX_ROWS_PER_MESSAGE]))

    def _keep_window(self, slot: Slot) -> None:
        """Keep what a slot is seen through, unless a user has a view of it. A direct segment's
        map must go: its memory would stay with it."""
        if slot.window is None or slot.has_views or slot.magazine is None:
            slot.window = None
            return
        if len(self._returned) >= MAX_RETURNED:
            del self._returned[next(iter(self._returned))]
        self._returned[slot.row] = slot

    def pass_on(self, slot: Slot, state: State) -> None:
        """Make the broker the custodian of one row by one store, and have it look soon. Takes no
        lock that a finalizer could meet."""
        self._owned.pop(slot.row, None)
        if self.barrier:
            self.barrier()
        self.words[slot.word] = slot.base | state << STATE_SHIFT
        self.bells.soon(slot.row)

    def keep_or_return(self, slot: Slot) -> None:
        """A slot that was not published comes back: to its magazine, or to the broker if
        somebody waits for its tier. Takes no lock that a finalizer could meet."""
        slot.base += ONE_GENERATION
        assert slot.magazine is not None
        if slot.base > LAST_BASE:
            self.pass_on(slot, State.RETURNED)
            return
        self.words[slot.word] = slot.base | self.idle
        slot.magazine.ready.append(slot)
        if self.header[WANTED + slot.tier.index]:
            self.is_wanted = True
            self.wake_helper()

    def ring(self, row: int) -> None:
        """Have the broker look at a row: at once, or by the helper where that could block.
        From any thread and from finalizers."""
        connection = self.connection
        if connection is None or not connection.try_send(Bell([row])):
            self.bells.now(row)

    def wake_helper(self) -> None:
        """Make the helper thread look at what is left for it."""
        try:
            os.eventfd_write(self.wakeup, 1)
        except (BlockingIOError, OSError):
            pass  # it is awake, or gone

    # --- what the helper does ---------------------------------------------------------------------------

    def receive(self, connection: Connection) -> None:
        """Handle what has arrived. For who holds `requests.reading`."""
        try:
            for message in connection.receive():
                self._handle(message)
        except (ConnectionEnded, ProtocolError):
            self.lose_connection()

    def _handle(self, message: Message) -> None:
        if isinstance(message, Grant):
            self.requests.grant(message.request, [slot for row in message.rows if (slot := self.adopt_row(row))])
        elif isinstance(message, Refusal):
            self.requests.refuse(message)
        elif isinstance(message, Fault):
            raise ConnectionEnded(message.text)
        elif isinstance(message, Settings):
            self.apply(message.settings)
        else:  # Recall: nothing else comes without being asked for
            self.answer_recall()

    def answer_recall(self) -> None:
        """Somebody waits: give back what is idle here."""
        self.is_wanted = False
        self.requests.serve()
        self.return_all()

    def adopt_row(self, row: int) -> Slot | None:
        """The record of a row that says (IDLE, this seat) and that is not known yet; None
        for any other."""
        with self._owned_lock:
            word = self.words[row * ROW_WORDS]
            if word & ~GENERATION_FIELD != self.idle or row in self._owned:
                return None
            slot = self._owned[row] = self._make_slot(row, word & GENERATION_FIELD)
        return slot

    def _make_slot(self, row: int, base: int) -> Slot:
        known = self._returned.pop(row, None)
        if known is not None and (known.tier.kind is TierKind.POOLED or known.spans == self.spans_of(row)):
            known.base = base
            return known
        tier, spans = self.tier_of(row), self.spans_of(row)
        if tier.kind is TierKind.DIRECT:
            return DirectSlot(self, tier, spans, nbytes_of(self.words[row * ROW_WORDS + EXTENT]), base)
        chunks = sum(count for _, count in spans)
        slot = Slot(self, tier, spans, chunks * tier.size, base)
        slot.magazine = self.magazine(tier, chunks)
        return slot

    def return_all(self) -> None:
        """Reap, and return everything that is idle, or lost."""
        self.ahead.give_up()
        lost.finish_lost_tickets(self)
        for magazine in list(self.magazines.values()):
            magazine.resting, magazine.newest = [], None  # they would keep a lost slot known
            slot = magazine.reap(len(magazine.published))
            slots = magazine.empty() + ([slot] if slot else [])
            magazine.batch = 1
            if slots:
                self.give_back(slots)
        with self._owned_lock:  # two threads must not both find one
            slots = lost.lost_slots(self, self._owned)
        if slots:
            self.give_back(slots)

    def return_rested(self) -> bool:
        """Return what was not used; False when nothing idle is left."""
        lies_ahead = self.ahead.give_up_rested()
        for magazine in list(self.magazines.values()):
            magazine.reap_rested()
            slots = magazine.rested()
            if slots:
                self.give_back(slots)
        return lies_ahead or any(magazine.ready or magazine.published for magazine in list(self.magazines.values()))

    def send(self, message: Message) -> None:
        """Send a message, and the bells that are left with it."""
        connection = self.connection
        if connection is not None:
            connection.send(*self.bells.take(), message)
            if connection.has_outbox:
                self.wake_helper()
        elif isinstance(message, Return | Bell):
            self.bells.now(*message.rows)  # for the next connection

    def send_bells(self) -> None:
        """Tell the broker which rows to look at."""
        connection = self.connection
        if connection is not None and self.bells:
            connection.send(*self.bells.take())
            if connection.has_outbox:
                self.wake_helper()

    # --- reconnecting --------------------------------------------------------------------------------

    def lose_connection(self) -> None:
        """The old socket is closed, and with it what had not been read."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def reconnect(self, timeout: float) -> bool:
        """Try once to take the seat up again. False: try later. Ends the session when the
        broker has another pool or has given the seat up."""
        deadline = time.monotonic() + timeout
        try:
            connection = dial(self.address, deadline)
            welcome = greet(connection, Role.WORKER, self.nonce, self.pool_id, self.seat, deadline)
        except ShmpoolError:
            return False
        if not welcome.resumed or welcome.pool_id != self.pool_id:
            connection.close()
            self.end()
            return True
        self.connection = connection
        self._adopt_unknown()
        for message in self.requests.messages():
            self.send(message)
        self.send_bells()
        return True

    def _adopt_unknown(self) -> None:
        """Rows that say (IDLE, this seat) and that no magazine knows: their grant was lost
        with the old connection."""
        mine = self.idle
        grants = self.words[: self.rows * ROW_WORDS : ROW_WORDS].tolist()
        idle = [row for row, word in enumerate(grants) if word & ~GENERATION_FIELD == mine]
        self.put_aside(*[self.adopt_row(row) for row in idle])

    # --- the end ----------------------------------------------------------------------------------------

    def end(self) -> None:
        """The seat is gone. Views stay readable, nothing is stored for them any more."""
        self.is_over = True
        self.requests.serve()

    @property
    def owns_any(self) -> bool:
        """Whether this seat is the custodian of anything (after `close_magazines`: of what
        is leased or just being leased), or has a ticket taken."""
        words, taken = self.words, self.taken
        tickets = [words[record.cell] & ~GENERATION_FIELD for record in list(self.records.values())]
        return bool(self._owned) or taken in tickets

    def close_magazines(self) -> None:
        """Return what is idle and hand the publications to the broker."""
        self.return_all()
        handed = State.PUBLISHED << STATE_SHIFT
        rows = []
        for magazine in list(self.magazines.values()):
            while magazine.published:
                slot = magazine.published.popleft()
                slot.window = None
                self._owned.pop(slot.row, None)
                self.words[slot.word] = slot.base | handed
                rows.append(slot.row)
        self.bells.now(*rows)
        self.send_bells()

    def say_goodbye(self) -> None:
        """Nothing is held any more: the seat may end."""
        self.send_bells()
        self.unlock_seat()
        self.send(Goodbye())
        self.is_over = True

    def close_descriptors(self) -> None:
        """Close what this session has open. Once."""
        self.lose_connection()
        self._returned.clear()
        self.unmap()
        self.requests.close()
        os.close(self.wakeup)
        self.wakeup = -1

    def abandon(self) -> None:
        """In a forked child: forget the seat. The parent's memory is out of reach already."""
        self.is_over = True
        self.ticket_gate = threading.Lock()  # a thread that is not here may have had it
        self.windows.forget_callbacks()
        for slot in self._owned.values():
            if isinstance(slot, DirectSlot):
                slot.close()  # else this process would keep the segment's memory
        if self.connection is not None:
            self.connection.abandon()
            self.connection = None
        self.close_descriptors()

    def count(self, figure: int) -> None:
        """Add one to a counter of this seat."""
        self.words[self.counters + figure] += 1

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
