"""A session: one seat in one pool. The maps, the magazines, the way to the broker.

A session begins with a welcome and ends when the pool is closed, the process forks (the
child begins its own) or the broker comes back with another pool. What the hot paths of
`lease` and `buffer` need lies ready in its attributes.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import warnings
from collections import deque
from fcntl import fcntl
from typing import Final

from .buffer import Record
from .connection import Connection, dial, greet
from .direct import DirectSlot
from .errors import (
    BrokerUnavailable,
    InvalidSize,
    LeaseTimeout,
    PoolClosed,
    QuotaExceeded,
    SharedMemoryFull,
    ShmpoolError,
)
from .magazine import Magazine, Slot
from .protocol import figures
from .protocol.codes import Code
from .protocol.header import WANTED, counters_at, header_bytes, ledger_bytes
from .protocol.ledger import (
    EXTENT,
    GENERATION_FIELD,
    LINK,
    MAX_EXTENTS,
    ONE_GENERATION,
    ROW_WORDS,
    SEAT_LOCKS,
    STATE_SHIFT,
    chunks_of,
    chunks_of_link,
    nbytes_of,
    next_row_of,
)
from .protocol.messages import (
    MAX_ROWS_PER_MESSAGE,
    Bell,
    Cancel,
    Direct,
    Goodbye,
    Grant,
    Message,
    Refill,
    Refusal,
    Return,
    Role,
    Welcome,
)
from .protocol.names import header_name, ledger_name, tier_name
from .protocol.sizing import (
    PAGE_SHIFT,
    Sizing,
    Tier,
    TierKind,
    chunk_run,
    format_bytes,
    pooled_tier,
    rows_of,
)
from .protocol.states import CellState, State
from .system import libc
from .system.locks import F_OFD_SETLK, lock_bytes
from .system.segments import open_segment
from .windows import READ, WRITE, Piece, Window, Windows

#: After a cancel: how long the broker's last word is waited for.
_LAST_WORD: Final = 1.0
#: A request without queueing is answered at once; a broker that is stopped is not.
_ANSWER: Final = 5.0


class Request:
    """A lease that waits for the broker, or for an own slot to come back."""

    __slots__ = ("_gate", "magazine", "message", "number", "refusal", "slot")

    def __init__(self, number: int, message: Message, magazine: Magazine | None) -> None:
        self.number = number
        self.message = message
        self.magazine = magazine
        self.slot: Slot | None = None
        self.refusal: Refusal | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def is_answered(self) -> bool:
        """Whether waiting is over."""
        return self.slot is not None or self.refusal is not None

    def wait(self, deadline: float) -> bool:
        """Wait for `wake` until *deadline*; False when it has passed."""
        return self._gate.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def wake(self) -> None:
        """Let the waiting thread look again."""
        try:
            self._gate.release()
        except RuntimeError:
            pass  # it is awake already


class Session:
    """One seat. Thread-safe; over after a fork (`is_over`), in the child only."""

    def __init__(self, address: str, timeout: float, *, strict: bool) -> None:
        deadline = time.monotonic() + timeout
        self.address = address
        self.strict = strict
        self.nonce = secrets.randbits(64)
        self.is_over = False
        self.is_closing = False
        self.connection: Connection | None = dial(address, deadline)
        welcome = greet(self.connection, Role.WORKER, self.nonce, 0, 0, deadline)
        try:
            self._map(welcome)
        except OSError as error:
            self.connection.close()
            raise BrokerUnavailable(f"the pool of the broker at {address} cannot be mapped: {error}") from error
        except BaseException:
            self.connection.close()
            raise
        self._lock = threading.Lock()
        self._requests: dict[int, Request] = {}
        #: Every slot whose custodian is this seat, by its head's row.
        self._owned: dict[int, Slot] = {}
        #: A release saw the wanted flag.
        self.is_wanted = False
        self._last_number = 0
        #: What finalizers and hot paths leave for the helper: it must take no lock.
        self.bells: deque[int] = deque()
        self.wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.warned_of_views = False
        #: What this reader knows of cells that it opened, by row * 16 + cell.
        self.records: dict[int, Record] = {}
        #: Its pool was garbage-collected unclosed.
        self.is_forsaken = False

    # --- mapping ------------------------------------------------------------------------------

    def _map(self, welcome: Welcome) -> None:
        self.pool_id = welcome.pool_id
        self.seat = welcome.seat
        self.tiers = tuple(Tier(i, TierKind(t[0]), *t[1:]) for i, t in enumerate(welcome.tiers))
        self.rows = rows_of(self.tiers)
        self.memory_limit = welcome.memory_limit
        self.lease_timeout = welcome.lease_timeout_ms / 1000
        self.magazine_idle = welcome.magazine_idle_ms / 1000
        self.magazine_bytes = welcome.magazine_bytes
        medium, large, very_large = welcome.thresholds
        self.sizing = Sizing(
            medium,
            large,
            very_large,
            pooled_sizes=tuple(tier.size for tier in self.tiers if tier.kind is TierKind.POOLED),
            chunk_sizes=tuple(tier.size for tier in self.tiers if tier.kind is TierKind.CHUNK),
        )
        self.windows = Windows()
        self._fds: dict[tuple[int, bool], int] = {}
        self._make_words(welcome)
        self._make_tags()
        self._make_tables()
        self.has_checksums = welcome.checksums
        self.tickets_fd = os.open(welcome.tickets, os.O_RDWR | os.O_CLOEXEC)
        fcntl(self.tickets_fd, F_OFD_SETLK, lock_bytes(SEAT_LOCKS + self.seat))
        #: Threads of one process share the tickets' descriptor and so its byte locks.
        self.ticket_gate = threading.Lock()
        self.barrier = libc.barrier if libc.needs_barrier() else None
        if self.barrier:
            libc.register_barrier()

    def _make_words(self, welcome: Welcome) -> None:
        """Map ledger and header. The broker has reserved them whole."""
        sizes = ledger_bytes(self.rows, welcome.seats), header_bytes(welcome.seats)
        ledger = open_segment(ledger_name(self.pool_id), writable=True)
        try:
            self._ledger = self.windows.make_sparse(ledger, sizes[0], WRITE)
        finally:
            os.close(ledger)
        header = open_segment(header_name(self.pool_id), writable=False)
        try:
            self._header = self.windows.make_sparse(header, sizes[1], READ)
        finally:
            os.close(header)
        self.words = memoryview(self._ledger).cast("Q")
        self.header = memoryview(self._header).cast("Q")
        self.counters = counters_at(self.rows, self.seat)

    def _make_tags(self) -> None:
        """State and seat of the words that this client stores."""
        self.idle = State.IDLE << STATE_SHIFT | self.seat
        self.leased = State.LEASED << STATE_SHIFT | self.seat
        self.published = State.PUBLISHED << STATE_SHIFT | self.seat
        self.taken = CellState.TAKEN << STATE_SHIFT | self.seat

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

    def piece(self, row: int, count: int, *, writable: bool) -> Piece:
        """Where *count* adjacent slots lie."""
        tier = self.tier_of(row)
        key = tier.index, writable
        fd = self._fds.get(key)
        if fd is None:
            with self._lock:
                if key not in self._fds:
                    self._fds[key] = open_segment(tier_name(self.pool_id, tier.index), writable=writable)
                fd = self._fds[key]
        return Piece(fd, (row - tier.base) * tier.size, count * tier.size)

    def tier_of(self, row: int) -> Tier:
        """The tier that a row belongs to."""
        return next(tier for tier in self.tiers if row < tier.end)

    def spans_of(self, row: int) -> tuple[tuple[int, int], ...]:
        """The extents of the lease that a row heads, as its words say. Raises ValueError
        for links that no broker writes."""
        words, tier = self.words, self.tier_of(row)
        spans = [(row, chunks_of(words[row * ROW_WORDS + EXTENT]))]
        following = next_row_of(words[row * ROW_WORDS + LINK])
        while following:
            if not tier.base <= following < tier.end or len(spans) == MAX_EXTENTS:
                raise ValueError(f"row {row} links to row {following}")
            link = words[following * ROW_WORDS + LINK]
            spans.append((following, chunks_of_link(link)))
            following = next_row_of(link)
        for first, count in spans:
            if not 0 < count <= tier.end - first:
                raise ValueError(f"row {row} has an extent of {count} chunks from row {first}")
        return tuple(spans)

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
        self.words[self.counters + figures.MISSES] += 1
        queue = timeout != 0
        message = Refill(self._next_number(), magazine.tier.index, magazine.chunks, magazine.grow(), queue)
        return self._ask(message, magazine, nbytes, timeout)

    def obtain_direct(self, nbytes: int, timeout: float | None) -> Slot:
        """A direct segment's row, granted by the broker."""
        return self._ask(Direct(self._next_number(), nbytes, timeout != 0), None, nbytes, timeout)

    def _next_number(self) -> int:
        with self._lock:
            self._last_number = self._last_number % 0xFFFFFFFF + 1
            return self._last_number

    def _ask(self, message: Refill | Direct, magazine: Magazine | None, nbytes: int, timeout: float | None) -> Slot:
        started = time.monotonic()
        seconds = self.lease_timeout if timeout is None else timeout
        deadline = started + (seconds if message.queue else _ANSWER)
        request = Request(message.request, message, magazine)
        with self._lock:
            self._requests[request.number] = request
        own: Slot | None = None
        try:
            self._send(message)
            while not (request.is_answered or own or self.is_over) and request.wait(deadline):
                if magazine is not None and not request.is_answered:
                    own = magazine.take()
            if not (request.is_answered or own):
                self._give_up(request)
        except BaseException:
            self._send(Cancel(request.number))
            self._put_aside(self._close(request), own)
            raise
        granted = self._close(request)
        if granted is not None:
            self._put_aside(own)
            return granted
        if own is not None:
            return own
        raise self._refused(request, nbytes, time.monotonic() - started)

    def _give_up(self, request: Request) -> None:
        """The deadline has passed: cancel. A grant that crosses the cancel still counts."""
        if self.connection is not None and not self.is_over:
            self._send(Cancel(request.number))
            deadline = time.monotonic() + _LAST_WORD
            while not request.is_answered and request.wait(deadline):
                pass

    def _close(self, request: Request) -> Slot | None:
        """From here on nothing is granted to this request; what already was, is returned."""
        with self._lock:
            self._requests.pop(request.number, None)
            return request.slot

    def _put_aside(self, *slots: Slot | None) -> None:
        """Slots that nobody waits for any more: into their magazines, or back."""
        for slot in slots:
            if slot is None:
                continue
            if slot.magazine is not None:
                slot.magazine.ready.appendleft(slot)
            else:  # a direct segment serves one object
                slot.base += ONE_GENERATION
                self.give_back([slot])

    def _refused(self, request: Request, nbytes: int, waited: float) -> ShmpoolError:
        if self.is_closing:
            return PoolClosed("the pool was closed while a lease waited")
        refusal = request.refusal
        if refusal is None:
            away = "" if self.connection else f"; the broker at {self.address} is away"
            self._count_timeout()
            return LeaseTimeout(f"no buffer of {format_bytes(nbytes)} within {waited:.3g} s{away}")
        code = Code(refusal.code)
        if code is Code.TOO_LARGE:
            return InvalidSize(refusal.text)
        if code is Code.SHM_FULL:
            return SharedMemoryFull(refusal.text)
        if code is Code.QUOTA:
            return QuotaExceeded(refusal.text)
        if code is Code.STOPPING:
            return BrokerUnavailable(refusal.text)
        self._count_timeout()
        return LeaseTimeout(f"no buffer of {format_bytes(nbytes)} within {waited:.3g} s: {refusal.text}")

    def _count_timeout(self) -> None:
        self.words[self.counters + figures.TIMEOUTS] += 1

    # --- giving back -------------------------------------------------------------------------------

    def give_back(self, slots: list[Slot]) -> None:
        """Return slots to the broker. Their *base* already names the next generation."""
        returned = State.RETURNED << STATE_SHIFT
        if self.barrier:
            self.barrier()
        for slot in slots:
            slot.window = None
            self._owned.pop(slot.row, None)
            self.words[slot.word] = slot.base | returned
        self._send_rows(Return, [slot.row for slot in slots])

    def pass_on(self, slot: Slot, state: State) -> None:
        """Make the broker the custodian of one row by one store, and have it look. Takes no
        lock that a finalizer could meet."""
        self._owned.pop(slot.row, None)
        if self.barrier:
            self.barrier()
        self.words[slot.word] = slot.base | state << STATE_SHIFT
        self.ring(slot.row)

    def keep_or_return(self, slot: Slot) -> None:
        """A slot that was not published comes back: to its magazine, or to the broker if
        somebody waits for its tier. Takes no lock that a finalizer could meet."""
        slot.base += ONE_GENERATION
        self.words[slot.word] = slot.base | self.idle
        assert slot.magazine is not None
        slot.magazine.ready.append(slot)
        if self.header[WANTED + slot.tier.index]:
            self.is_wanted = True
            self.wake_helper()

    def ring(self, row: int) -> None:
        """Have the broker look at a row. From any thread and from finalizers."""
        self.bells.append(row)
        self.wake_helper()

    def wake_helper(self) -> None:
        """Make the helper thread look at what is left for it."""
        try:
            os.eventfd_write(self.wakeup, 1)
        except (BlockingIOError, OSError):
            pass  # it is awake, or gone

    # --- what the helper does ---------------------------------------------------------------------------

    def handle(self, message: Message) -> None:
        """A message from the broker."""
        if isinstance(message, Grant):
            self._on_grant(message)
        elif isinstance(message, Refusal):
            request = self._requests.get(message.request)
            if request is not None:
                request.refusal = message
                request.wake()
        else:  # Recall: nothing else comes without being asked for
            self.answer_recall()

    def answer_recall(self) -> None:
        """Somebody waits: give back what is idle here."""
        self.is_wanted = False
        self.serve_waiters()
        self.return_all()

    def _on_grant(self, grant: Grant) -> None:
        slots = [slot for row in grant.rows if (slot := self.adopt_row(row))]
        with self._lock:
            request = self._requests.get(grant.request)
            if request is not None and slots and not request.is_answered:
                request.slot = slots.pop(0)
        if request is not None:
            request.wake()
        self._put_aside(*slots)

    def adopt_row(self, row: int) -> Slot | None:
        """The record of a row that says (IDLE, this seat); None if it says anything else."""
        word = self.words[row * ROW_WORDS]
        if word & ~GENERATION_FIELD != self.idle or row in self._owned:
            return None
        tier, spans = self.tier_of(row), self.spans_of(row)
        if tier.kind is TierKind.DIRECT:
            size = nbytes_of(self.words[row * ROW_WORDS + EXTENT])
            direct = self._owned[row] = DirectSlot(self, tier, spans, size, word & GENERATION_FIELD)
            return direct
        chunks = sum(count for _, count in spans)
        slot = self._owned[row] = Slot(self, tier, spans, chunks * tier.size, word & GENERATION_FIELD)
        slot.magazine = self.magazine(tier, chunks)
        return slot

    def serve_waiters(self) -> None:
        """Own slots that came back go to own waiters first."""
        with self._lock:
            for request in self._requests.values():
                if request.magazine is not None and not request.is_answered:
                    request.slot = request.magazine.take()
                request.wake()

    def return_all(self) -> None:
        """Reap, and return everything that is idle."""
        for magazine in list(self.magazines.values()):
            slot = magazine.reap(len(magazine.published))
            slots = magazine.empty() + ([slot] if slot else [])
            magazine.batch = 1
            if slots:
                self.give_back(slots)

    def return_rested(self) -> bool:
        """Return what the magazines did not use; False when all of them are empty."""
        for magazine in list(self.magazines.values()):
            slots = magazine.rested()
            if slots:
                self.give_back(slots)
        return any(magazine.ready for magazine in list(self.magazines.values()))

    def send_bells(self) -> None:
        """Tell the broker which rows to look at."""
        rows = set()
        while self.bells:
            rows.add(self.bells.popleft())
        self._send_rows(Bell, sorted(rows))

    def _send_rows(self, kind: type[Return] | type[Bell], rows: list[int]) -> None:
        for at in range(0, len(rows), MAX_ROWS_PER_MESSAGE):
            self._send(kind(rows[at : at + MAX_ROWS_PER_MESSAGE]))

    def _send(self, message: Message) -> None:
        connection = self.connection
        if connection is not None:
            connection.send(message)
            if connection.has_outbox:
                self.wake_helper()
        elif isinstance(message, Return | Bell):
            self.bells.extend(message.rows)  # for the next connection

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
        for request in list(self._requests.values()):
            self._send(request.message)
        self.send_bells()
        return True

    def _adopt_unknown(self) -> None:
        """Rows that say (IDLE, this seat) and that no magazine knows: their grant was lost
        with the old connection."""
        mine = self.idle
        grants = self.words[: self.rows * ROW_WORDS : ROW_WORDS].tolist()
        idle = [row for row, word in enumerate(grants) if word & ~GENERATION_FIELD == mine]
        self._put_aside(*[self.adopt_row(row) for row in idle])

    # --- the end ----------------------------------------------------------------------------------------

    def end(self) -> None:
        """The seat is gone. Views stay readable, nothing is stored for them any more."""
        self.is_over = True
        self.serve_waiters()

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
        self._send_rows(Bell, rows)

    def say_goodbye(self) -> None:
        """Nothing is held any more: the seat may end."""
        self.send_bells()
        self._send(Goodbye())
        self.is_over = True

    def close_descriptors(self) -> None:
        """Close what this session has open."""
        self.lose_connection()
        for fd in (*self._fds.values(), self.tickets_fd, self.wakeup):
            os.close(fd)
        self._fds.clear()
        self.tickets_fd = self.wakeup = -1

    def abandon(self) -> None:
        """In a forked child: put the parent's memory out of reach and forget the seat."""
        self.is_over = True
        self.windows.cover_all()
        if self.connection is not None:
            self.connection.abandon()
            self.connection = None
        self.close_descriptors()

    def count_deferred(self) -> None:
        """A release waits for a view."""
        self.words[self.counters + figures.DEFERRED] += 1

    def warn_of_view(self) -> None:
        """Once: a writer kept a view of what it published."""
        self.count_deferred()
        if not self.warned_of_views:
            self.warned_of_views = True
            warnings.warn(
                "a view of a published or released buffer is still alive (an array or slice of lease.view);"
                " its slot is not used again until the view is gone",
                ResourceWarning,
                stacklevel=4,
            )
