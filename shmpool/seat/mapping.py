"""What a client has mapped of a pool: ledger, header, tiers; its tickets and seats files.

Ledger and header are used word by word; slots are seen through windows of their own
(`windows`). Descriptors of the tiers are opened when they are first needed.
"""

from __future__ import annotations

import threading
from fcntl import fcntl

from ..errors import ConfigError, PoolClosed
from ..protocol.header import (
    CHECKSUMS,
    KNOWN_PROPERTIES,
    SEAT_NONCE,
    SEAT_STATE,
    TICKETS_BY_CAS,
    counters_at,
    header_bytes,
    ledger_bytes,
    seat_at,
)
from ..protocol.ledger import (
    EXTENT,
    LINK,
    MAX_EXTENTS,
    ROW_WORDS,
    SEAT_LOCKS,
    STATE_SHIFT,
    chunks_of,
    chunks_of_link,
    next_row_of,
)
from ..protocol.messages import Setting, Welcome
from ..protocol.names import (
    header_name,
    ledger_name,
    seats_path,
    tickets_path,
    tier_name,
)
from ..protocol.sizing import (
    Sizing,
    Strategy,
    Tier,
    TierKind,
    rows_of,
)
from ..protocol.states import CellState, State
from ..system import atomics, heirs, libc
from ..system.descriptors import (
    CLOSED,
    Closed,
    Descriptor,
)
from ..system.heirs import READERS
from ..system.locks import (
    F_OFD_SETLK,
    UNLOCK_ALL,
    any_locked,
    lock_bytes,
    open_beside,
)
from ..system.outside import own
from ..system.segments import SegmentGone, open_segment
from .windows import (
    READ,
    WRITE,
    Piece,
    Windows,
)


class GateUse:
    """Around what is done behind the gate of one seat, but for `Pool.open`, which has it in place."""

    __slots__ = ("_seat",)

    def __init__(self, seat: Mapping) -> None:
        self._seat = seat

    def __enter__(self) -> None:
        self._seat.is_gate_used = True

    def __exit__(self, *_: object) -> None:
        self._seat.is_gate_used = False


class SeatTaken(Exception):
    """The seat of a welcome cannot be had any more; another one can."""


def _no_swap(index: int, expected: int, wanted: int) -> bool:
    """In the place of a swap: who cannot has not swapped anything."""
    return False


class Mapping:
    """The maps of one seat; the base of `Session`, which has the hot paths' attributes in
    one place. Thread-safe."""

    #: The socket that was dialled.
    address: str
    is_over: bool

    #: What the hot paths read of a session: members with a place of their own, which the compiled twin
    #: finds without a look-up.
    __slots__ = (
        "__dict__", "__weakref__", "_timed", "chunked", "chunked_below", "counters", "deferred", "forks", "has_details",
        "header", "idle", "is_gate_used", "is_over", "is_watched", "leased", "left", "medium_from", "pool_id", "pooled",
        "pooled_below", "published", "records", "shelves", "strict", "swap", "taken", "ticket_gate", "tickets_fd",
        "warned_of_views", "words",
    )  # fmt: skip

    def __init__(self) -> None:
        self._fds: dict[tuple[int, bool], Descriptor] = {}
        self.tickets_fd: Descriptor | Closed = CLOSED
        self._seat_fd: Descriptor | Closed = CLOSED
        #: Threads of one process share the tickets' descriptor and so its byte locks. Whoever closes
        #: it has the gate, too.
        self._make_gate()
        #: The cells that a thread has asked the broker for just now.
        self.asked_for: set[int] = set()
        self.windows = Windows()
        #: Held by our children too, for as long as they read what was open here.
        self.readers: heirs.Page | None = None

    def _make_gate(self) -> None:
        """The gate is reentrant, since a finalizer or a signal handler may come in the middle of what its own thread
        does behind it, and call the pool. `is_gate_used` is stored behind the gate before anything is done there, and
        taken back after all of it: who finds it, and that the gate is his own, `is_nested`, and does what is right
        at any point of what he has interrupted. (One that an exception leaves stays until the next has had its
        turn: nobody is nested in it, and who looks only at it goes the slow way.)"""
        self.ticket_gate = threading.RLock()
        self.is_gate_used = False
        self.gate_use = GateUse(self)
        #: The cell that was stored to under the lock of its byte, as long as that may be locked.
        self.settled = -1

    @property
    def is_nested(self) -> bool:
        """Whether this is called in the middle of what its own thread does behind the tickets' gate."""
        return self.is_gate_used and self.ticket_gate._is_owned()  # type: ignore[attr-defined]

    def map(self, welcome: Welcome, nonce: int) -> None:
        """Map what a welcome describes. Raises OSError, SeatTaken, and ConfigError for a pool
        with properties that this version does not know."""
        if unknown := welcome.properties & ~KNOWN_PROPERTIES:
            raise ConfigError(
                f"the pool has properties that this process does not know ({unknown:#x}): it runs an older shmpool"
                " than the broker; restart it with the broker's version"
            )
        self.pool_id = welcome.pool_id
        self.seat = welcome.seat
        self.tiers = tuple(Tier(i, TierKind(t[0]), *t[1:]) for i, t in enumerate(welcome.tiers))
        self.rows = rows_of(self.tiers)
        self.apply(welcome.settings)
        medium, large, very_large = map(welcome.setting, (
            Setting.MEDIUM_OBJECT_THRESHOLD, Setting.LARGE_OBJECT_THRESHOLD, Setting.VERY_LARGE_OBJECT_THRESHOLD,
        ))  # fmt: skip
        self.sizing = Sizing(
            medium,
            large,
            very_large,
            pooled_sizes=tuple(tier.size for tier in self.tiers if tier.kind is TierKind.POOLED),
            chunk_sizes=tuple(tier.size for tier in self.tiers if tier.kind is TierKind.CHUNK),
            large_object_strategy=Strategy.CHUNKED if welcome.setting(Setting.IS_CHUNKING) else Strategy.DIRECT,
            is_pooling=bool(welcome.setting(Setting.IS_POOLING)),
        )
        self.medium_from = medium  # for hot paths
        self._make_words(welcome)
        self._make_tags()
        #: How tickets are taken: None under the byte locks of the tickets' file, else by compare-and-swap,
        #: which the broker does for a process that cannot (`asks_for_tickets`).
        self.swap: atomics.Swap | None = None
        self.asks_for_tickets = False
        if welcome.properties & TICKETS_BY_CAS:
            swap = atomics.swap_of(self.words)
            self.swap, self.asks_for_tickets = swap or _no_swap, swap is None
        self.has_checksums = bool(welcome.properties & CHECKSUMS)
        try:
            self.tickets_fd = open_beside(self.address, tickets_path, welcome.tickets_file, self.pool_id)
            self._seat_fd = open_beside(self.address, seats_path, welcome.seats_file, self.pool_id)
        except BaseException:
            self.unmap()
            raise
        self._sit_down(nonce)
        self.barrier = libc.barrier if libc.needs_barrier() else None
        if self.barrier:
            libc.register_barrier()

    def apply(self, settings: list[list[int]]) -> None:
        """Take over settings, of a welcome or changed since. Thresholds stay as they were when
        the pool was mapped."""
        for number, value in settings:
            if number == Setting.MEMORY_LIMIT:
                self.memory_limit = value
            elif number == Setting.LEASE_TIMEOUT_MS:
                self.lease_timeout = value / 1000
            elif number == Setting.MAGAZINE_BYTES:
                self.magazine_bytes = value
            elif number == Setting.MAGAZINE_FIRST_BATCH:
                self.first_batch = value
            elif number == Setting.MAGAZINE_MAX_BATCH:
                self.max_batch = value
            elif number == Setting.MAGAZINE_IDLE_MS:
                self.magazine_idle = value / 1000
            elif number == Setting.DEFAULT_BUFFER_SIZE:
                self.default_buffer_size = value
            elif number == Setting.DETAILED_METRICS:
                self.has_details = bool(value)
            elif number == Setting.PREFERS_DIRECT:
                self.prefers_direct = bool(value)

    def _sit_down(self, nonce: int) -> None:
        """Take the seat's byte lock, and see that the seat is still ours. Raises SeatTaken: the
        welcome may be an old broker's last, and a new one may have cleared the seat and given
        its number to another; or a child of the number's last owner has inherited the lock.
        Without it we must not sit here: when that child ends, the byte is free, and a broker
        that probes it takes us for gone."""
        try:
            fcntl(self._seat_fd, F_OFD_SETLK, lock_bytes(SEAT_LOCKS + self.seat))
        except own(BlockingIOError) as error:
            self.unmap()
            raise SeatTaken from error
        at = seat_at(self.seat)
        if not self.header[at + SEAT_STATE] or self.header[at + SEAT_NONCE] != nonce:
            self.unmap()
            raise SeatTaken

    def _make_words(self, welcome: Welcome) -> None:
        """Map ledger and header. The broker has reserved them whole."""
        sizes = ledger_bytes(self.rows, welcome.seats), header_bytes(welcome.seats)
        ledger = open_segment(ledger_name(self.pool_id), writable=True)
        self._ledger = self.windows.make_sparse(ledger, sizes[0], WRITE)
        header = open_segment(header_name(self.pool_id), writable=False)
        self._header = self.windows.make_sparse(header, sizes[1], READ)
        # In an open file of its own: the header's map would keep the lock beyond the seat.
        self.readers = heirs.hold_anew(self.pool_id, READERS + self.seat)
        self.words = memoryview(self._ledger).cast("Q")
        self.header = memoryview(self._header).cast("Q")
        self.counters = counters_at(self.rows, self.seat)

    def _make_tags(self) -> None:
        """State and seat of the words that this client stores."""
        self.idle = State.IDLE << STATE_SHIFT | self.seat
        self.leased = State.LEASED << STATE_SHIFT | self.seat
        self.published = State.PUBLISHED << STATE_SHIFT | self.seat
        self.taken = CellState.TAKEN << STATE_SHIFT | self.seat

    def tier_of(self, row: int) -> Tier:
        """The tier that a row belongs to."""
        for tier in self.tiers:  # no generator: what is raised while one is closed reaches nobody
            if row < tier.end:
                return tier
        raise IndexError(f"the pool has no row {row}")

    def extents_of(self, row: int) -> tuple[tuple[int, int], ...]:
        """The extents of the lease that a row heads, as its words say. Raises ValueError
        for links that no broker writes."""
        words, tier = self.words, self.tier_of(row)
        extents = [(row, chunks_of(words[row * ROW_WORDS + EXTENT]))]
        following = next_row_of(words[row * ROW_WORDS + LINK])
        while following:
            if not tier.base <= following < tier.end or len(extents) == MAX_EXTENTS:
                raise ValueError(f"row {row} links to row {following}")
            link = words[following * ROW_WORDS + LINK]
            extents.append((following, chunks_of_link(link)))
            following = next_row_of(link)
        for first, count in extents:
            if not 0 < count <= tier.end - first:
                raise ValueError(f"row {row} has an extent of {count} chunks from row {first}")
        return tuple(extents)

    def piece(self, row: int, count: int, *, writable: bool) -> Piece:
        """Where *count* adjacent slots lie."""
        tier = self.tier_of(row)
        key = tier.index, writable
        fd = self._fds.get(key)
        if fd is None:
            try:
                opened = open_segment(tier_name(self.pool_id, tier.index), writable=writable)
            except own(SegmentGone):
                if self.is_over:  # another thread has just closed the pool, and its broker is gone
                    raise PoolClosed("the pool was closed, or its broker came back with another one") from None
                raise
            fd = self._fds.setdefault(key, opened)  # threads may open it twice: one of them stays
        return Piece(fd, (row - tier.base) * tier.size, count * tier.size)

    def is_seated(self, seat: int) -> bool:
        """Whether another seat's byte is held: evidence of life where no broker says who has died."""
        try:
            return any_locked(self._seat_fd, SEAT_LOCKS + seat, 1) >= 0  # type: ignore[arg-type]  # whatever has a fileno
        except own(PoolClosed):
            return True

    def unlock_seat(self) -> None:
        """Before the seat is given up: its next holder may be here before our descriptor
        is closed."""
        try:
            fcntl(self._seat_fd, F_OFD_SETLK, UNLOCK_ALL)
        except own(PoolClosed):  # it was closed, which unlocks it
            pass

    def unmap(self) -> None:
        """Close the descriptors: who is just using one has it until then. Maps go with their last
        reference."""
        with self.ticket_gate, self.gate_use:  # who has the gate finds the descriptor that it locked with
            self.tickets_fd = self._seat_fd = CLOSED
        self._fds.clear()
        self.readers = None
