"""The pool as a user sees it: `connect`, then `lease`, `open`, `discard`, `stats`.

`lease` and `open` hold the hot paths: what they store in the ledger, and in which order,
is the protocol of docs/protocol.md. Everything that is not hot is elsewhere.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
import warnings
from collections.abc import Collection
from fcntl import fcntl
from functools import cache
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload
from weakref import proxy, ref

from . import direct, private
from .addresses import resolve
from .buffer import Buffer, EndedBuffer, LiveBuffer
from .direct import DirectLease
from .errors import BrokerUnavailable, InvalidHandle, PoolClosed, ShmpoolError, StaleHandle
from .lease import Lease, LiveLease
from .life import closing, forks
from .link.connection import listens
from .link.waiting import check_timeout
from .protocol.figures import LEASES, SAMPLE_EVERY
from .protocol.handle import HANDLE_BYTES, Handle, unpack_handle
from .protocol.ledger import EXTENT, GENERATION_FIELD, MAX_NBYTES, NBYTES_BITS, SHAPE_MASK
from .protocol.sizing import (
    PAGE,
    PAGE_SHIFT,
    Sizing,
    Strategy,
    StrategyLike,
    as_strategy,
    categorize,
    check_enabled,
    check_nbytes,
    check_pooled,
    pooled_tier,
    select_strategy,
)
from .seat import tickets
from .seat.magazine import Magazine, Slot
from .seat.session import Session
from .seat.tickets import Record
from .system.here import HERE, OURS
from .system.locks import F_OFD_SETLK, UNLOCK_ALL

if TYPE_CHECKING:
    from .embedded import Broker
    from .objects.encoding import PicklerClass
    from .stats import Stats
    from .streams.files import BufferFile, LeaseFile

_ADAPTIVE: Final = Strategy.ADAPTIVE
_PAGE_LESS_ONE: Final = PAGE - 1
_SAMPLE_MASK: Final = SAMPLE_EVERY - 1
_POOLED_SMALL: Final = LEASES
_POOLED_MEDIUM: Final = LEASES + 1
_CHUNKED_LARGE: Final = LEASES + 4 + 2
_STRATEGY_INDEX: Final = {Strategy.POOLED: 0, Strategy.CHUNKED: 1, Strategy.DIRECT: 2}
_CATEGORY_INDEX: Final = {"small": 0, "medium": 1, "large": 2, "very_large": 3}

_new_lease = LiveLease.__new__
_new_buffer = LiveBuffer.__new__


class Pool:
    """A connection to a broker. Made by `shmpool.connect`.

    May be used by many threads. After a fork the child's pool connects by itself, with a
    seat of its own, on first use. Picklable by address, for `spawn`ed workers. Not to be
    used from a signal handler.

    *address* is its broker's socket. A pool as an argument of every task costs nothing: unpickling
    gives the pool that the process has open at that address already.
    """

    def __init__(self, address: str | None, *, timeout: float = 5.0, strict: bool = False) -> None:
        self.address = resolve(address)
        self._timeout = timeout
        self._strict = strict
        self._is_traced = os.environ.get("SHMPOOL_TRACE", "") not in ("", "0")
        self._is_closed = False
        #: One thread connects.
        self._connecting = threading.Lock()
        self._session: Session | None = None
        #: The session that `close` is to end, until it has.
        self._closing: Session | None = None
        #: The private broker that made this pool is not to end before it.
        self._broker: Broker | None = None
        self._name = ""
        self._connect(address, timeout)
        forks.pools.add(self)

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
        if nbytes < session.pooled_below:
            magazine = session.pooled[nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT]
            counter = session.counters + (_POOLED_SMALL if nbytes < session.medium_from else _POOLED_MEDIUM)
        elif nbytes < session.chunked_below and (found := session.chunked.get(nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT)):
            magazine = found
            counter = session.counters + _CHUNKED_LARGE
        else:
            return self._lease_otherwise(nbytes, strategy, timeout)
        words = session.words
        if not words[counter] & _SAMPLE_MASK:
            return self._lease_sampled(session, magazine, counter, nbytes, timeout)
        try:
            slot = magazine.ready.pop() if magazine.ready else magazine.reap()
        except IndexError:  # another thread took it
            slot = None
        if slot is None:
            slot = session.obtain(magazine, nbytes, timeout)
        word = slot.word
        words[word] = slot.base | session.leased
        words[word + EXTENT] = slot.extent | nbytes
        words[counter] += 1
        lease = _new_lease(LiveLease)
        lease._slot = slot
        slot.lease = proxy(lease)
        lease.nbytes = nbytes
        window = slot.window or session.window_for(slot)
        lease.view = memoryview(window)[:nbytes]
        return lease

    def _lease_sampled(
        self, session: Session, magazine: Magazine, counter: int, nbytes: int, timeout: float | None
    ) -> Lease:
        """One lease in `SAMPLE_EVERY` is timed."""
        started = time.perf_counter_ns()
        slot = magazine.take() or session.obtain(magazine, nbytes, timeout)
        lease = self._make_lease(session, slot, nbytes, counter)
        session.note_latency((counter - session.counters - LEASES) % 4, time.perf_counter_ns() - started)
        return lease

    def _lease_otherwise(self, nbytes: int, strategy: StrategyLike, timeout: float | None) -> Lease:
        """Every lease that the hot path does not serve."""
        session = self._live_session(timeout)
        nbytes = _as_nbytes(nbytes)
        strategy = as_strategy(strategy)
        chosen = strategy
        if strategy is _ADAPTIVE:
            chosen = Strategy.DIRECT if session.prefers_direct else select_strategy(nbytes, session.sizing)
        counter = session.counters + LEASES + 4 * _STRATEGY_INDEX[chosen]
        counter += _CATEGORY_INDEX[categorize(nbytes, session.sizing).value]
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

    def _lease_direct(self, session: Session, nbytes: int, counter: int, timeout: float | None) -> Lease:
        started = time.perf_counter_ns()
        slot = direct.obtain(session, nbytes, timeout)
        session.words[slot.word] = slot.base | session.leased
        session.words[slot.word + EXTENT] = slot.extent | nbytes
        lease = DirectLease.__new__(DirectLease)
        lease._slot, lease.nbytes = slot, nbytes
        slot.lease = proxy(lease)
        session.words[counter] += 1
        session.note_latency((counter - session.counters - LEASES) % 4, time.perf_counter_ns() - started)
        return lease

    def _make_lease(self, session: Session, slot: Slot, nbytes: int, counter: int) -> Lease:
        session.words[slot.word] = slot.base | session.leased
        session.words[slot.word + EXTENT] = slot.extent | nbytes
        session.words[counter] += 1
        lease = _new_lease(LiveLease)
        lease._slot, lease.nbytes = slot, nbytes
        slot.lease = proxy(lease)
        lease.view = memoryview(session.window_for(slot))[:nbytes]
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
            if session is None or not session.is_watched or not HERE[OURS] or len(handle) != HANDLE_BYTES:
                session = self._check_handle(handle)
                session.watch()
            pool_id, granted, tail = unpack_handle(handle)
        except (TypeError, struct.error):
            self._check_handle(handle)
            raise
        if pool_id != session.pool_id:
            raise _foreign(handle, session)
        if session.left:
            session.deferred.look()
        record = session.records.get(tail >> NBYTES_BITS)
        words = session.words
        # In this order: see `tickets.map_record`.
        if record is None or (record.links and not record.is_mapped_right) or record.window is None:
            record = session.openings.find(granted, tail)
        buffer = _new_buffer(LiveBuffer)  # before the ticket: from then on its end is seen
        buffer._record = record
        buffer._granted = granted
        buffer._fork = session.forks
        buffer.nbytes = nbytes = tail & MAX_NBYTES
        buffer._left = record.left
        with session.ticket_gate:
            try:
                fcntl(session.tickets_fd, F_OFD_SETLK, record.lock)
                is_mine = (
                    words[record.cell] == granted == words[record.word]
                    and words[record.word + EXTENT] & SHAPE_MASK == record.shape | nbytes
                )
                if is_mine:
                    words[record.cell] = granted & GENERATION_FIELD | session.taken
            except OSError:
                is_mine = False  # busy: the other way waits a little
            finally:  # also where an exception came between the lock and the next line
                fcntl(session.tickets_fd, F_OFD_SETLK, UNLOCK_ALL)
        if not is_mine:
            record = self._open_otherwise(session, buffer, tail)
        if session.barrier:
            session.barrier()
        buffer.view = memoryview(record.window)[:nbytes]  # type: ignore[arg-type]
        return buffer

    def _open_writable(self, handle: Handle | bytes | bytearray | memoryview) -> Buffer:
        self._check_handle(handle)
        window = private.reserve(int(unpack_handle(handle)[2]) & MAX_NBYTES)
        buffer = self.open(handle)
        assert isinstance(buffer, LiveBuffer)
        try:
            buffer.view = private.show(window, buffer)
        except BaseException:
            del window
            buffer.release()
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
        except ShmpoolError:  # it is refused; after any other exception the ticket may be ours
            buffer.__class__ = EndedBuffer  # type: ignore[assignment]
            raise
        return record

    def discard(self, handle: Handle | bytes | bytearray | memoryview) -> None:
        """Close the ticket of a handle that will not be delivered. Raises like `open`."""
        session = self._check_handle(handle)
        pool_id, granted, tail = unpack_handle(handle)
        if pool_id != session.pool_id:
            raise _foreign(handle, session)
        record = tickets.make_ticket(session, tail)
        tickets.discard(record, granted, tail & MAX_NBYTES)
        if session.words[record.word] != granted or session.header[record.wanted] or granted & 0xFFFF == 0:
            session.ring(record.row)

    def _check_handle(self, handle: Handle | bytes | bytearray | memoryview) -> Session:
        if not isinstance(handle, bytes | bytearray | memoryview):
            raise TypeError(f"a Handle or its bytes are expected, not {type(handle).__name__}")
        if len(handle) != HANDLE_BYTES or (isinstance(handle, memoryview) and handle.nbytes != HANDLE_BYTES):
            raise InvalidHandle(f"a handle is {HANDLE_BYTES} bytes long, this is {len(handle)}")
        return self._live_session()

    # --- objects ----------------------------------------------------------------------------------

    @overload
    def put(
        self,
        obj: Any,
        *,
        readers: Literal[1] = 1,
        timeout: float | None = None,
        pickler: PicklerClass | None = None,
    ) -> Handle: ...
    @overload
    def put(
        self, obj: Any, *, readers: int, timeout: float | None = None, pickler: PicklerClass | None = None
    ) -> list[Handle]: ...
    def put(
        self, obj: Any, *, readers: int = 1, timeout: float | None = None, pickler: PicklerClass | None = None
    ) -> Handle | list[Handle]:
        """Publish a Python object, in one lease, its arrays, tables and large bytes without a copy
        on the way there; `get` makes it again. For more than one of *readers* a list of handles, one
        each. *pickler* is a class like `cloudpickle.Pickler` for what plain pickle refuses.

        The object must not change meanwhile. Raises what pickling raises, and like `lease`; nothing
        is leased then.
        """
        from .objects.exchange import put

        handles = put(self, obj, readers, timeout, pickler)
        return handles[0] if readers == 1 else handles

    def get(
        self,
        handle: Handle | bytes | bytearray | memoryview,
        *,
        writable: bool = False,
        copy: bool | None = None,
        allow: Collection[str] | None = None,
    ) -> Any:
        """The object that `put` published. Its arrays lie in the pool's memory, which each of them
        keeps until it dies; they are read-only, with *writable* private to this process. *copy* says
        whether they are copied out at once; None: what is small is. Tensors are always private.

        Unpickling runs code that the writer chose: trust who may write to the pool. *allow*, a set of
        ``"module.qualname"``, refuses all other classes and functions but plain data (of the standard
        library and numpy) with `FormatError`; it is no sandbox. Raises like `open`, `FormatError` for
        what `put` did not make, and what unpickling raises; the handle is used up then.
        """
        from .objects.exchange import get

        return get(self, handle, writable, copy, allow)

    # --- files ------------------------------------------------------------------------------------

    def open_writer(self, nbytes: int | None = None, *, timeout: float | None = None) -> LeaseFile:
        """A lease of *nbytes* bytes as a binary file (`io.BufferedIOBase`); None: it grows. Leaving
        the ``with`` block publishes what was written, and its ``handle`` names it; an exception
        gives it back. Raises like `lease`."""
        from .streams.files import LeaseFile

        return LeaseFile(self, nbytes, timeout)

    def open_reader(self, handle: Handle | bytes | bytearray | memoryview) -> BufferFile:
        """A published buffer as a binary file (`io.BufferedIOBase`), given back when it is closed.
        Raises like `open`."""
        from .streams.files import BufferFile

        return BufferFile(self.open(handle))

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
        from .stats import query

        if self._is_closed:
            raise PoolClosed("the pool is closed; connect() makes a new one")
        session = self._session
        if session is not None and not session.is_over and session.deferred.any:
            session.deferred.look_at_all()  # the figures of this moment
        return query(self.address, timeout=self._timeout)

    # --- life ---------------------------------------------------------------------------------------

    def _connect(self, address: str | None, timeout: float) -> Session:
        """A session, if there is none; None is the default address, looked for anew at each try."""
        with self._connecting:
            session = self._session
            if session is None or session.is_over:
                self._raise_if_closed()
                self._forget_session()
                session = self._begin_session(address, timeout)
        return session

    def _begin_session(self, address: str | None, timeout: float) -> Session:
        session = Session(strict=self._strict)
        try:
            session.join(lambda: resolve(address), time.monotonic() + timeout, lambda: self._is_closed)
            closing.sessions.add(session)
            session.helper.start()
            self.address = session.address
            session.pool = ref(self)
            self.fit_class(session)
            self._session = session
            self._name = f"{session.pool_id:016x}"
            self._raise_if_closed()
        except BaseException as error:  # also where there is no thread to be had
            self._session = None
            closing.abort(session)
            if isinstance(error, BrokerUnavailable):
                self._raise_if_closed()
            raise
        return session

    def fit_class(self, session: Session) -> None:
        """What a session does besides (sums, times, notes) its pool's class does, so that others pay nothing."""
        self.__class__ = _pool_class(session.has_checksums, session.has_details, self._is_traced)

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise PoolClosed("the pool is closed; connect() makes a new one")

    def _forget_session(self) -> None:
        """Close one that is over, once: there may be no other for a while."""
        session, self._session = self._session, None
        if session is not None:
            closing.leave(session)

    def _live_session(self, timeout: float | None = None) -> Session:
        """The session; connects anew after a fork, or where the broker came back with another pool,
        within the pool's timeout or *timeout* seconds if that is less."""
        if not HERE[OURS]:
            raise _being_forked()
        session = self._session
        if session is None or session.is_over or self._is_closed:
            self._raise_if_closed()
            return self._connect(self.address, self._timeout if timeout is None else min(timeout, self._timeout))
        return session

    def close(self) -> None:
        """Give everything back. Never blocks on the broker: new calls raise, idle slots and
        publications go to the broker, unpublished leases are released (ResourceWarning);
        the seat stays until the last view that this process still has is gone. Once more finishes
        what an exception (Ctrl-C) has ended."""
        if not HERE[OURS]:
            return  # in a finalizer of a child that is not itself yet
        self._is_closed = True
        if self._session is not None:
            self._closing, self._session = self._session, None
        if self._closing is not None:
            closing.close(self._closing)
            self._closing = None
        forks.pools.discard(self)
        self._broker = None

    def forget_parent(self) -> None:
        """In a forked child: the seat is the parent's."""
        self._connecting = threading.Lock()
        self._session = self._closing = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    @property
    def name(self) -> str:
        """The pool's id, 16 hexadecimal digits, as in `Stats.pool_id` and its segments' names; of
        the pool connected to last. Another one is at the same address when a broker starts anew."""
        return self._name

    def __del__(self) -> None:
        """A pool that nobody closed: its helper does it, once no lease or buffer is left.
        A finalizer takes no lock and starts no thread."""
        session = getattr(self, "_session", None) or getattr(self, "_closing", None)
        if session is None or session.is_at_exit or not HERE[OURS]:
            return
        session.is_orphaned = True
        session.wake_helper()
        if session.is_over:
            closing.sessions.discard(session)
        else:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconnect, (self.address, self._timeout, self._strict)

    def __repr__(self) -> str:
        session = self._session
        what = "closed" if session is None else f"seat {session.seat} of pool {session.pool_id:016x}"
        return f"<Pool at {self.address}: {what}>"


def connect(
    address: str | os.PathLike[str] | None = None,
    *,
    timeout: float = 5.0,
    autostart: bool = False,
    strict: bool = False,
) -> Pool:
    """Connect to a broker.

    *address* is its socket's path; None means ``$SHMPOOL_SOCKET``, else the user's
    ``$XDG_RUNTIME_DIR/shmpool/broker.sock``, else ``/run/shmpool/broker.sock``. *timeout*, in
    seconds, is for connecting: a broker that is still to come, or that listens and does not
    answer yet, is waited for as long, and the default address looked for anew at each try. With
    *autostart* a private broker for this process tree is started, at once where nobody listens.
    *strict* (or ``SHMPOOL_STRICT=1``) makes leaked views an error. Raises `BrokerUnavailable`.
    """
    timeout = check_timeout(timeout)
    strict = strict or os.environ.get("SHMPOOL_STRICT", "") not in ("", "0")
    path = None if address is None else os.fspath(address)
    try:
        if autostart:
            return _of_listener(path, timeout, strict)
        return Pool(path, timeout=timeout, strict=strict)
    except BrokerUnavailable:
        if not autostart:
            raise
    from . import embedded

    return Pool(embedded.autostart().address, timeout=timeout, strict=strict)


def _of_listener(address: str | None, timeout: float, strict: bool) -> Pool:
    """A pool of a broker that listens now, however long it takes to answer."""
    if not listens(resolve(address)):
        raise BrokerUnavailable(f"nobody listens at {resolve(address)}")
    return Pool(address, timeout=timeout, strict=strict)


@cache
def _pool_class(has_checksums: bool, has_details: bool, is_traced: bool) -> type[Pool]:
    """The class of a pool with these properties."""
    bases: list[type[Pool]] = []
    if is_traced:
        from .traced import TracedPool

        bases.append(TracedPool)
    if has_checksums:
        from .checked import CheckedPool

        bases.append(CheckedPool)
    if has_details:
        from .detailed import DetailedPool

        bases.append(DetailedPool)
    if len(bases) < 2:
        return bases[0] if bases else Pool
    return type("Pool", tuple(bases), {})


#: Pools that came as an argument, by address and strictness: nobody else keeps them for the next.
_received: dict[tuple[str, bool], Pool] = {}


def _reconnect(address: str, timeout: float, strict: bool) -> Pool:
    """Unpickle: the pool that this process has open at that address, else a new one, which it
    then keeps. Where the process is only just being started for its task, and there is no
    broker, it ends with a line that says so: a traceback would show multiprocessing's inside."""
    received = _received.get((address, strict))
    if received is not None and not received.closed:
        return received
    for pool in list(forks.pools):
        if (pool.address, pool._strict) == (address, strict) and not pool.closed:
            return pool
    try:
        pool = Pool(address, timeout=timeout, strict=strict)
    except BrokerUnavailable as error:
        if _is_being_spawned():
            raise SystemExit(f"shmpool: {error}") from None
        raise
    _received[address, strict] = pool
    return pool


def _is_being_spawned() -> bool:
    """Whether multiprocessing is just unpickling what this process is to do."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and getattr(process.current_process(), "_inheriting", False)


def _as_nbytes(nbytes: Any) -> int:
    """Whole numbers of other types (numpy's) are fine, bools and floats are not."""
    if type(nbytes) is not int and not isinstance(nbytes, bool):
        try:
            nbytes = index(nbytes)
        except TypeError:
            pass  # refused below, in our words
    check_nbytes(nbytes)
    return int(nbytes)


def _being_forked() -> BrokerUnavailable:
    return BrokerUnavailable("this process is just being forked: its pools are not its own yet")


def _foreign(handle: bytes | bytearray | memoryview, session: Session) -> StaleHandle:
    return StaleHandle(
        f"the handle is of pool {Handle(handle).pool_id:016x}, this is pool {session.pool_id:016x};"
        " a broker that starts anew has a new pool"
    )
