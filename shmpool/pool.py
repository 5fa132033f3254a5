"""The verbs of a pool that everything else stands on: `lease`, `open`, `discard`, `stats`.

`lease` and `open` hold the hot paths: what they store in the ledger, and in which order,
is the protocol of docs/protocol.md. Everything that is not hot is elsewhere: `pools.Pool`, which
users have, is this with the verbs of `objects` and `streams` and with its life (`life.lifetime`).
"""

from __future__ import annotations

import struct
from _weakref import proxy
from fcntl import fcntl
from operator import index
from time import perf_counter, perf_counter_ns

from .buffer import Buffer, EndedBuffer, LiveBuffer, SharedBuffer
from .direct_lease import DirectLease
from .errors import InvalidHandle, PoolClosed, ShmpoolError, StaleHandle
from .lease import Lease
from .link.refusals import Forked
from .link.waiting import check_timeout
from .live_lease import LiveLease
from .protocol.figures import LEASES, SAMPLE_EVERY
from .protocol.handle import HANDLE_BYTES, Handle, unpack_handle
from .protocol.ledger import EXTENT, GENERATION_FIELD, MAX_NBYTES, NAME_BYTES, NBYTES_BITS, SHAPE_MASK
from .protocol.sizing import (
    PAGE,
    PAGE_SHIFT,
    Sizing,
    Strategy,
    as_strategy,
    categorize,
    check_enabled,
    check_nbytes,
    check_pooled,
    pooled_tier,
    select_strategy,
)
from .seat import private, tickets
from .seat.direct import DirectSlot
from .seat.magazine import Magazine
from .seat.records import Record
from .seat.seat import TOLD_AT_ONCE
from .seat.session import Session
from .seat.slot import Slot, ViewTaken
from .system import frames
from .system.descriptors import CLOSED
from .system.here import HERE, NOTED, OURS
from .system.importing import door, explained
from .system.locks import F_OFD_SETLK, UNLOCK_ALL
from .system.outside import own, own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, ClassVar, Final

    from .protocol.sizing import StrategyLike
    from .stats import Stats

_ADAPTIVE: Final = Strategy.ADAPTIVE
_PAGE_LESS_ONE: Final = PAGE - 1
_SAMPLE_MASK: Final = SAMPLE_EVERY - 1
_POOLED_SMALL: Final = LEASES
_POOLED_MEDIUM: Final = LEASES + 1
_CHUNKED_LARGE: Final = LEASES + 4 + 2
_DIRECT_VERY_LARGE: Final = LEASES + 8 + 3
_STRATEGY_INDEX: Final = {Strategy.POOLED: 0, Strategy.CHUNKED: 1, Strategy.DIRECT: 2}
_CATEGORY_INDEX: Final = {"small": 0, "medium": 1, "large": 2, "very_large": 3}

_new_lease = LiveLease.__new__
_new_buffer = LiveBuffer.__new__


class BasePool:
    """A pool over its session. Thread-safe."""

    __slots__ = ("__dict__", "__weakref__", "_session")

    #: Of UTF-8, the longest name of a shared publication.
    most_name_bytes: ClassVar[int] = NAME_BYTES

    #: Its broker's socket.
    address: str
    _session: Session | None
    _is_closed: bool
    _timeout: float

    def _live_session(self, timeout: float | None = None) -> Session:
        """The session; connects anew after a fork, or where the broker came back with another pool,
        within the pool's timeout or *timeout* seconds if that is less."""
        raise NotImplementedError

    def _get_shared(
        self, buffer: SharedBuffer, writable: bool, copy: bool | None, allow: Collection[str] | None
    ) -> Any:
        """The object of a shared publication that was just opened; the verbs of objects know how."""
        raise NotImplementedError

    # --- leasing -----------------------------------------------------------------------------------

    def lease(self, nbytes: int, *, strategy: StrategyLike = _ADAPTIVE, timeout: float | None = None) -> Lease:
        """Lease a buffer of *nbytes* bytes to write.

        *timeout* is in seconds, up to a day or infinity; None means the configured
        ``lease_timeout``, 0 one try without queueing. A broker that does not answer delays that by
        50 ms at most. Raises `LeaseTimeout`, `PoolingRefused`, `InvalidSize`, `TypeError`,
        `SharedMemoryFull`, `QuotaExceeded`, `BrokerUnavailable`, `PoolClosed`; nothing is
        leased then. A warm lease talks to nobody; a miss is a round trip to the broker.
        Blocking, so on an event loop use ``timeout=0`` or `asyncio.to_thread`.
        """
        if timeout is not None:
            timeout = check_timeout(timeout)
        try:
            session = self._session
            if (
                session is None
                or session.is_over
                or not HERE[OURS]
                or strategy is not _ADAPTIVE
                or type(nbytes) is not int
                or nbytes < 0
            ):
                return self._lease_otherwise(nbytes, strategy, timeout)
            started = perf_counter() if session.has_details else 0.0
            if nbytes < session.pooled_below:
                magazine = session.pooled[nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT]
                counter = session.counters + (_POOLED_SMALL if nbytes < session.medium_from else _POOLED_MEDIUM)
            elif nbytes < session.chunked_below:
                if (found := session.chunked.get(nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT)) is None:
                    return self._lease_otherwise(nbytes, strategy, timeout)
                magazine = found
                counter = session.counters + _CHUNKED_LARGE
            elif (shelf := session.shelves.get(nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT)) is not None:
                magazine = shelf
                counter = session.counters + _DIRECT_VERY_LARGE
            else:
                return self._lease_otherwise(nbytes, strategy, timeout)
            words = session.words
            if not words[counter] & _SAMPLE_MASK:
                return self._lease_sampled(session, magazine, counter, nbytes, timeout)
            try:
                slot = magazine.ready.pop() if magazine.ready else magazine.reap()
            except own(IndexError):  # another thread took it
                slot = None
            if slot is None:
                slot = session.obtain(magazine, nbytes, timeout)
                if slot.magazine is not magazine:
                    other = self._make_lease(session, slot, nbytes, counter)
                    if started:
                        session.timed[counter].append((perf_counter() - started) * 1e9)
                    return other
            word = slot.word
            # LEASED with its own generation before anything is written: a sweep frees it if we die here.
            words[word] = slot.base | session.leased
            words[word + EXTENT] = slot.extent_word | nbytes
            words[counter] += 1
            lease = _new_lease(LiveLease)
            lease._slot = slot
            lease.nbytes = nbytes
            slot.lease = proxy(lease)  # behind these: who closes the pool finds it by that
            window = slot.window or session.window_for(slot)
            lease.view = memoryview(window)[:nbytes]
            if started:
                session.timed[counter].append((perf_counter() - started) * 1e9)
            return lease
        except own(Forked, ViewTaken):
            if session is None or not session.is_abandoned:
                raise
            return self._lease_otherwise(nbytes, strategy, timeout)  # a child that was forked in the middle
        except BaseException as error:
            lease = other = slot = window = None  # type: ignore[assignment]  # somebody may keep the exception
            frames.clear(error)
            raise

    def _lease_sampled(
        self, session: Session, magazine: Magazine, counter: int, nbytes: int, timeout: float | None
    ) -> Lease:
        """One lease in `SAMPLE_EVERY` is timed, with `detailed_metrics` each."""
        started = perf_counter_ns()
        slot = magazine.take() or session.obtain(magazine, nbytes, timeout)
        lease = self._make_lease(session, slot, nbytes, counter)
        self._note_latency(session, counter, perf_counter_ns() - started)
        return lease

    def _note_latency(self, session: Session, counter: int, nanoseconds: int) -> None:
        """A lease was timed that counts there. Where each is, they are told many at once."""
        if session.has_details:
            session.timed[counter].append(nanoseconds)
            session.note_timed(TOLD_AT_ONCE)
        else:
            session.note_latency((counter - session.counters - LEASES) % 4, nanoseconds)

    def _lease_otherwise(self, nbytes: int, strategy: StrategyLike, timeout: float | None) -> Lease:
        """Every lease that the hot path does not serve, and what a fork in its middle leaves of it to the child."""
        while True:
            session = self._live_session(timeout)
            try:
                return self._lease_from(session, nbytes, strategy, timeout)
            except own(Forked, ViewTaken):
                if not session.is_abandoned:
                    raise  # else the next one is this process's own

    def _lease_from(self, session: Session, nbytes: int, strategy: StrategyLike, timeout: float | None) -> Lease:
        nbytes = _as_nbytes(nbytes)
        strategy = as_strategy(strategy)
        chosen = strategy
        if strategy is _ADAPTIVE:
            chosen = Strategy.DIRECT if session.prefers_direct else select_strategy(nbytes, session.sizing)
        counter = self.counter_of(session, chosen, nbytes)
        if chosen is Strategy.DIRECT:
            return self._lease_direct(session, nbytes, counter, timeout)
        if chosen is Strategy.POOLED:
            check_pooled(nbytes, session.sizing)
            tier = pooled_tier(nbytes, session.tiers)
            assert tier is not None
            magazine = session.magazine(tier, 1)
        else:
            check_enabled(session.sizing)
            magazine = session.run_magazine(nbytes)
            if strategy is _ADAPTIVE and nbytes >= session.sizing.large_object_threshold:
                # Chunks are whole pages, so all sizes of as many pages have this magazine.
                session.chunked[nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT] = magazine
        return self._lease_sampled(session, magazine, counter, nbytes, timeout)

    @staticmethod
    def counter_of(session: Session, strategy: Strategy, nbytes: int) -> int:
        """The word that counts the leases of a strategy and of that size's category."""
        category = _CATEGORY_INDEX[categorize(nbytes, session.sizing).value]
        return session.counters + LEASES + 4 * _STRATEGY_INDEX[strategy] + category

    def _lease_direct(self, session: Session, nbytes: int, counter: int, timeout: float | None) -> Lease:
        started = perf_counter_ns()
        lease = self._make_lease(session, session.obtain_direct(nbytes, timeout), nbytes, counter)
        self._note_latency(session, counter, perf_counter_ns() - started)
        return lease

    def _make_direct_lease(self, session: Session, slot: DirectSlot, nbytes: int, counter: int) -> Lease:
        slot.claim = [None]
        session.words[slot.word] = slot.base | session.leased
        session.words[slot.word + EXTENT] = slot.extent_word | nbytes
        session.words[counter] += 1
        lease = DirectLease.__new__(DirectLease)
        lease._slot, lease.nbytes = slot, nbytes
        try:
            slot.lease = proxy(lease)
        except BaseException:
            lease = slot = None  # type: ignore[assignment]  # somebody may keep the exception
            raise
        return lease

    def _make_lease(self, session: Session, slot: Slot, nbytes: int, counter: int) -> Lease:
        """The broker may have granted what another strategy has: it is counted by what it is."""
        category = (counter - session.counters - LEASES) % 4
        counter = session.counters + LEASES + 4 * slot.tier.kind + category
        if isinstance(slot, DirectSlot) and not slot.is_kept:
            return self._make_direct_lease(session, slot, nbytes, counter)
        session.words[slot.word] = slot.base | session.leased
        session.words[slot.word + EXTENT] = slot.extent_word | nbytes
        session.words[counter] += 1
        lease = _new_lease(LiveLease)
        lease._slot, lease.nbytes = slot, nbytes
        try:
            slot.lease = proxy(lease)
            lease.view = memoryview(session.window_for(slot))[:nbytes]
        except BaseException as error:
            lease = slot = None  # type: ignore[assignment]  # somebody may keep the exception
            frames.clear(error)
            raise
        return lease

    # --- opening ------------------------------------------------------------------------------------

    def open(self, handle: Handle | bytes | bytearray | memoryview, *, writable: bool = False) -> Buffer:
        """Open a published buffer, read-only and without a copy. *handle* is a `Handle` or its
        24 bytes, as they came over a channel. It opens once. A *writable* one has a private view:
        what is written is copied, a page at a time, and seen by nobody else.

        Raises `StaleHandle` (the buffer was reused, or is of another pool) and `HandleUsed`
        (opened, discarded or expired before); `TypeError` for what is not bytes.
        """
        if writable:
            return self._open_writable(handle)
        session = self._session
        try:
            if session is None or not session.is_watched or not HERE[NOTED] or len(handle) != HANDLE_BYTES:
                session = self._check_handle(handle)
                session.watch()
            pool_id, granted, tail = unpack_handle(handle)
        except own_or_called(TypeError, BufferError, struct.error):
            self._check_handle(handle)
            raise
        if pool_id != session.pool_id:
            raise _foreign(handle, session)
        if session.left:
            session.deferred.look()
        try:
            record = session.records.get(tail >> NBYTES_BITS)
            words = session.words
            # In this order: see `records.map_record`.
            if record is None or (record.links and not record.is_mapped_right) or record.window is None:
                record = session.openings.find(granted, tail)
            buffer = _new_buffer(LiveBuffer)  # before the ticket: from then on its end is seen
            buffer._record = record
            buffer._granted = granted
            buffer._fork = session.forks
            buffer.nbytes = nbytes = tail & MAX_NBYTES
            buffer._left = record.left
            # TAKEN while the byte is locked, then the unlock, then the view. The gate lets one thread at a
            # time lock through this descriptor, so that to unlock all of it lets go of this byte alone.
            # An exception behind TAKEN leaves a record that is open and that nobody knows: it is found.
            # In the middle of what its own thread does there this must neither unlock nor store: the other way can.
            swap = session.swap
            if session.is_gate_used and session.is_nested:
                is_mine = False
            else:
                with session.ticket_gate:
                    session.is_gate_used = True
                    if swap is not None:  # no lock: while the cell is PENDING nobody changes what is looked at before
                        is_mine = (
                            words[record.word] == granted
                            and words[record.word + EXTENT] & SHAPE_MASK == record.shape | nbytes
                            and not session.is_over
                            and swap(record.cell, granted, granted & GENERATION_FIELD | session.taken)
                        )
                    else:
                        try:
                            fcntl(session.tickets_fd, F_OFD_SETLK, record.lock)
                            is_mine = (
                                words[record.cell] == granted == words[record.word]
                                and words[record.word + EXTENT] & SHAPE_MASK == record.shape | nbytes
                            )
                            if is_mine:
                                words[record.cell] = granted & GENERATION_FIELD | session.taken
                        except own(OSError, PoolClosed):
                            is_mine = False  # busy: the other way waits a little; or closed meanwhile, as it says
                        finally:  # also where an exception came between the lock and the next line
                            if (fd := session.tickets_fd) is not CLOSED:
                                fcntl(fd, F_OFD_SETLK, UNLOCK_ALL)
                    session.is_gate_used = False
            if not is_mine:
                if session.is_abandoned:  # a child that was forked in the middle
                    buffer.__class__ = EndedBuffer  # type: ignore[assignment]
                    return self.open(handle)
                record = self._open_otherwise(session, buffer, tail)
            if session.barrier:
                session.barrier()  # no load of the bytes comes before the look at the cell
            buffer.view = memoryview(record.window)[:nbytes]  # type: ignore[arg-type]
            return buffer
        except BaseException as error:
            record = buffer = None  # somebody may keep the exception
            frames.clear(error)
            raise

    def _open_writable(self, handle: Handle | bytes | bytearray | memoryview) -> Buffer:
        self._check_handle(handle)
        window = private.reserve(int(unpack_handle(handle)[2]) & MAX_NBYTES)
        buffer = self.open(handle)
        try:
            assert isinstance(buffer, LiveBuffer)
            buffer.view = private.show(window, buffer, buffer.view)
        except BaseException as error:
            del window
            frames.clear(error)
            buffer.release()
            buffer = None  # type: ignore[assignment]  # somebody may keep the exception
            raise
        return buffer

    def _open_otherwise(self, session: Session, buffer: LiveBuffer, tail: int) -> Record:
        """The slow way: the custodian has changed, the shape has, the ticket is busy or
        cannot be had."""
        record, granted = buffer._record, buffer._granted
        try:
            if not record.is_mapped_right or record.window is None:
                record = buffer._record = session.openings.find(granted, tail)
            tickets.take(record, granted, tail & MAX_NBYTES)
        except own(ShmpoolError):  # it is refused; after any other exception the ticket may be ours
            buffer.__class__ = EndedBuffer  # type: ignore[assignment]
            raise
        return record

    def discard(self, handle: Handle | bytes | bytearray | memoryview) -> None:
        """Close the ticket of a handle that will not be delivered. Raises like `open`."""
        session = self._check_handle(handle)
        pool_id, granted, tail = unpack_handle(handle)
        if pool_id != session.pool_id:
            raise _foreign(handle, session)
        tickets.discard_handle(session, granted, tail, waits=True)

    def reclaim(self) -> int:
        """Close the tickets of what this process has published and nobody has opened; their
        handles are `HandleUsed` from here on. Returns how many there were. What is open elsewhere
        stays open, and so does what a forked child published: that is its own pool's."""
        return tickets.discard_unopened(self._live_session())

    def _check_handle(self, handle: Handle | bytes | bytearray | memoryview) -> Session:
        if not isinstance(handle, bytes | bytearray | memoryview):
            raise TypeError(f"a Handle or its bytes are expected, not {type(handle).__name__}")
        is_view = isinstance(handle, memoryview)
        if len(handle) != HANDLE_BYTES or (is_view and handle.nbytes != HANDLE_BYTES):  # type: ignore[union-attr]
            raise InvalidHandle(f"a handle is {HANDLE_BYTES} bytes long, this is {len(handle)}")
        if is_view and not handle.c_contiguous:  # type: ignore[union-attr]
            raise InvalidHandle(f"the {HANDLE_BYTES} bytes of a handle lie in one piece, those of this view do not")
        return self._live_session()

    @property
    def sizing(self) -> Sizing:
        """The pool's thresholds and slot sizes, for `select_strategy` and the like."""
        return self._live_session().sizing

    @property
    def default_buffer_size(self) -> int:
        """What a stream of unknown size leases first, in bytes."""
        return self._live_session().default_buffer_size

    # --- figures ------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The broker's figures, the same as ``shmpool stats --json``. A round trip of its
        own to the broker; raises `BrokerUnavailable`, `PoolClosed`."""
        with door, explained:
            from .stats import query

        if self._is_closed:
            raise PoolClosed("the pool is closed; connect() makes a new one")
        session = self._session
        if session is not None and not session.is_over:  # the figures of this moment
            session.note_timed()
            if session.deferred.any:
                session.deferred.look_at_all()
        return query(self.address, timeout=self._timeout)


def _as_nbytes(nbytes: Any) -> int:
    """Whole numbers of other types (numpy's) are fine, bools and floats are not."""
    if type(nbytes) is not int and not isinstance(nbytes, bool):
        try:
            nbytes = index(nbytes)
        except own_or_called(TypeError):
            pass  # refused below, in our words
    check_nbytes(nbytes)
    return int(nbytes)


def _foreign(handle: bytes | bytearray | memoryview, session: Session) -> StaleHandle:
    return StaleHandle(
        f"the handle is of pool {Handle(handle).pool_id:016x}, this is pool {session.pool_id:016x};"
        " a broker that starts anew has a new pool"
    )
