"""The writer of a stream: an object of any size handed over in chunks, while it is read."""

from __future__ import annotations

import errno
import io
import time
import warnings
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import ref

from ..errors import LeaseReleased, LeaseTimeout, QuotaExceeded, SharedMemoryFull, StreamBroken, StreamTimeout
from ..link.waiting import check_timeout
from ..protocol.handle import Handle, unpack_handle
from ..protocol.ledger import (
    BOUND_CELL,
    BOUND_TO,
    EXTENT,
    GENERATION_FIELD,
    ONE_GENERATION,
    STATE_SHIFT,
    generation_of,
    link_word,
)
from ..protocol.sizing import PAGE, TierKind, check_nbytes, page_round
from ..protocol.states import CellState
from ..seat.outgoing import Chunk, Outgoing, cell_of
from ..seat.slot import LAST_BASE
from ..system import futex, libc
from ..system.finalizers import ends_by
from ..system.here import HERE, OURS
from ..system.outside import own, own_or_called
from ..system.patience import Patience
from ..uncopied import Uncopied
from .control import (
    ANNOUNCED,
    BYTES,
    CAPACITY,
    ENDED,
    HEAD,
    MAGIC,
    OWN_GRANT,
    PAGE_BYTES,
    PREFIX_BYTES,
    RING,
    SLEEPS,
    UNKNOWN,
    End,
    deadline_of,
)
from .room import lease_by_any

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..lease import Lease
    from ..pool import BasePool as Pool
    from ..seat.session import Session
    from ..seat.slot import Slot

#: A chunk's size, where the pool is large enough: whole chunks of 128 KiB. The larger, the less each byte costs
#: beside its copies; with three of them less than 2 MiB are held.
CHUNK_BYTES: Final = 640 * 1024
CHUNKS: Final = 3
_DISCARDED_MEANWHILE: Final = "the stream was discarded meanwhile: another thread has closed it, or its pool"
_DONE: Final = CellState.DONE << STATE_SHIFT
_BOUND: Final = CellState.BOUND << STATE_SHIFT
#: Of a small pool a stream takes this part for each chunk.
_SHARE: Final = 16


def _discard_collected(writer: StreamWriter) -> None:
    if getattr(writer, "_outgoing", None) is None or writer.closed or not HERE[OURS]:
        return
    is_at_exit = writer._session.is_at_exit
    writer.discard()
    if not is_at_exit:
        warnings.warn(f"unclosed {writer!r}: it is discarded", ResourceWarning, source=writer, stacklevel=3)


@ends_by(_discard_collected)
class StreamWriter(Uncopied, io.BufferedIOBase):
    """A stream as a file to write; made by `Pool.stream`, for one thread at a time.

    `handle` names it from the beginning: a reader opens it with `Pool.open_reader` while this goes on
    writing. Chunks that are full are handed in; `flush` hands in what there is. With as many chunks
    on their way as there are, `write` waits for the reader. Leaving the ``with`` block, or `close`, is the
    end of the file; what was handed in is the reader's, whenever it comes. An exception in the block
    gives the stream up, as does whoever drops it unclosed: the reader gets `StreamBroken`.

    Writing raises `StreamBroken` (also a BrokenPipeError) when the reader has closed the stream or died, or
    discarded the handle, and `StreamTimeout` when no chunk came back in time: `tell` says then how
    many bytes were taken, and the stream goes on. In a forked child it cannot be used (`LeaseReleased`).
    """

    _why = "one stream has one writer: send its handle"

    #: Names the stream, for one reader.
    handle: Handle

    def __init__(self, pool: Pool, nbytes: int | None, timeout: float | None) -> None:
        super().__init__()
        if nbytes is not None:
            check_nbytes(nbytes)
        self._timeout = None if timeout is None else check_timeout(timeout)
        #: Bytes announced, None for as many as come.
        self.nbytes = nbytes
        self._pool = pool
        #: The chunk that is written: a lease, or a slot that was leased again.
        self._lease: Lease | None = None
        self._slot: Slot | None = None
        #: What the stream's own cell says while it is read.
        self._reader = 0
        self._view: memoryview | None = None
        self._fill = self._handed = 0
        self._is_closed = self._is_broken = False
        #: An exception that comes while this is set leaves the stream in pieces.
        self._is_torn = False
        self._chunk = _chunk_size(pool, nbytes)
        self._begin(pool.lease(PAGE_BYTES, timeout=timeout))

    def _begin(self, lease: Lease) -> None:
        """Write the control page and publish what does not change of it."""
        slot = lease._slot
        session = self._session = cast("Session", slot.session)
        lease.view[:] = bytes(PAGE_BYTES)
        page = lease.view.cast("Q")
        page[0], page[CAPACITY], page[OWN_GRANT] = MAGIC, CHUNKS, slot.base | session.published
        page[ANNOUNCED] = UNKNOWN if self.nbytes is None else self.nbytes
        assert slot.window is not None
        self._head = libc.address_of(slot.window) + 8 * HEAD
        self._page = memoryview(slot.window)[:PAGE_BYTES].cast("Q")
        page.release()
        lease.shorten(PREFIX_BYTES)
        self.handle, let_go = lease.publish_kept()
        self._let_go: Callable[[], None] | None = let_go  # of the page; None when it has been
        #: What a chunk says of its stream, for the broker, should both its ends die.
        self._bond = link_word(slot.row, generation_of(slot.base))
        self._words_at = libc.address_of(session._ledger)
        _, granted, tail = unpack_handle(self.handle)
        self._outgoing = Outgoing(session, session.outgoing, granted, tail, ref(self))
        session.outgoing.add(self._outgoing)
        session.wake_helper()

    # --- writing --------------------------------------------------------------------------------

    def writable(self) -> bool:
        self._check_open()
        return True

    def tell(self) -> int:
        """Bytes taken so far."""
        self._check_open()
        return self._handed + self._fill

    def write(self, data: Any, /) -> int:
        """Take a bytes-like object, all of it, in as many chunks as that is. Past the announced size
        OSError (ENOSPC), and nothing of it is taken."""
        source = memoryview(data)
        if source.ndim != 1 or source.format != "B":
            source = source.cast("B")
        if self._is_closed or self._is_torn or self._session.is_over or not HERE[OURS]:
            self._check_whole()
        length = len(source)
        if self.nbytes is not None and self._handed + self._fill + length > self.nbytes:
            raise OSError(
                errno.ENOSPC,
                f"{self._handed + self._fill + length} bytes are more than the {self.nbytes} that were announced",
            )
        deadline = None
        try:
            at = 0
            while True:
                if at == length:
                    break
                view = self._view
                if view is None:
                    view = self._lease_same()
                    if view is None:
                        if deadline is None:
                            deadline = deadline_of(self._timeout)
                        view = self._next_chunk(deadline)
                fill = self._fill
                step = min(len(view) - fill, length - at)
                if step == length:
                    view[fill : fill + step] = source
                else:
                    view[fill : fill + step] = source[at : at + step]
                self._fill = fill = fill + step
                at += step
                if fill == len(view):
                    self._hand_in()
        except own_or_called(ValueError):
            self._raise_if_discarded()
            raise
        return length

    def flush(self) -> None:
        """Hand in what was written: the reader sees it."""
        self._check_whole()
        try:
            if self._fill:
                self._hand_in()
        except own_or_called(ValueError):
            self._raise_if_discarded()
            raise

    def _lease_same(self) -> memoryview | None:
        """The oldest chunk, if it has come back and the reader is the one that was there before: the steady
        flow. It is leased again by the stores of a lease, without an object for it."""
        outgoing, session = self._outgoing, self._session
        words, chunks = session.words, outgoing.chunks
        try:
            chunk = chunks[0]
            slot = chunk.slot
            if (
                words[chunk.cell] != chunk.done
                or words[outgoing.cell] != self._reader
                or slot is None
                or session.header[slot.wanted]
                or session.has_checksums
                or slot.base >= LAST_BASE
            ):
                return None
            chunk.claim.pop()
            chunks.remove(chunk)
        except own(IndexError, ValueError):
            return None  # there is none, or the helper was faster
        slot.base += ONE_GENERATION
        words[slot.word] = slot.base | session.leased
        words[slot.word + EXTENT] = slot.extent_word | self._chunk
        words[self._counter] += 1
        view = memoryview(slot.window)[: self._chunk]  # type: ignore[arg-type]
        # Last, and in one step: whoever discards the stream meanwhile gives back what stands here, its view first.
        self._slot, self._view = slot, view
        return view

    def _next_chunk(self, deadline: float) -> memoryview:
        """A chunk to write in. Raises like `write`."""
        outgoing = self._outgoing
        while True:
            self._check_reader()
            done = outgoing.take_done()
            if done is not None:
                lease = self._lease_again(done)
                if lease is not None:
                    break
            elif len(outgoing.chunks) == CHUNKS:
                self._await_chunk(deadline)
            elif (lease := self._lease_anew(deadline)) is not None:
                break
            else:
                self._await_chunk(deadline)
        view = lease.view
        self._lease, self._view = lease, view
        return view

    def _lease_again(self, chunk: Chunk) -> Lease | None:
        """The chunk that has come back, unless others wait for such."""
        slot, session = chunk.slot, self._session
        if slot is None or slot.base >= LAST_BASE or session.header[slot.wanted]:
            chunk.return_slot()
            return None
        try:
            chunk.claim.pop()
        except own(IndexError):
            return None  # the helper has returned it
        slot.base += ONE_GENERATION
        lease = self._pool._make_lease(session, slot, self._chunk, self._counter)
        lease.__class__ = self._class
        return lease

    def _lease_anew(self, deadline: float) -> Lease | None:
        """One more chunk; with others on their way only one that can be had at once."""
        pool, size = self._pool, self._chunk
        try:
            if self._outgoing.chunks:
                lease = pool.lease(size, timeout=0)
            else:
                left = None if self._timeout is None else max(0.0, deadline - time.monotonic())
                lease = lease_by_any(pool, size, left, pooled=pool.sizing.pooled_sizes[-1])
                size = self._chunk = lease.nbytes  # from here on, if it is less
        except own(LeaseTimeout, SharedMemoryFull, QuotaExceeded):
            if self._outgoing.chunks:
                return None  # one of ours comes back
            raise
        if lease._slot.tier.kind is not TierKind.DIRECT:  # such a chunk does not come back
            self._class = type(lease)
            self._counter = pool.counter_of(self._session, lease.strategy, size)
        return lease

    def _await_chunk(self, deadline: float) -> None:
        """Wait until the oldest of the chunks on their way has come back."""
        outgoing, words, page = self._outgoing, self._session.words, self._page
        try:
            cell, granted = outgoing.chunks[0][:2]
        except own(IndexError):
            return  # the helper has let go of what had come back
        patience = Patience(deadline)
        while outgoing.is_out(cell, granted):
            if patience.spins:
                continue
            page[SLEEPS] = 1
            try:
                seen = words[cell]
                if not outgoing.is_out(cell, granted):
                    break
                if patience.is_over:
                    raise StreamTimeout(
                        f"no chunk came back within {self._timeout} s: the reader is behind, or has not come;"
                        f" {self._handed + self._fill} bytes were taken"
                    )
                patience.sleep(self._words_at + 8 * cell, seen)
            finally:
                page[SLEEPS] = 0
            self._check_reader(is_thorough=True)

    def _publish(self, lease: Lease, fill: int) -> Chunk:
        if fill < lease.nbytes:
            lease.shorten(fill)
        slot = lease._slot
        handle, return_to_magazine = lease.publish_kept(self._bind)
        _, granted, tail = unpack_handle(handle)
        done, is_direct = granted & GENERATION_FIELD | _DONE, slot.tier.kind is TierKind.DIRECT
        chunk = Chunk(cell_of(tail), granted, tail, done, None if is_direct else slot, [return_to_magazine])
        if chunk.slot is None:
            chunk.return_slot()
        return chunk

    def _bind(self, slot: Slot) -> None:
        """For who has the lease: whoever closes the pool meanwhile ends it, and the row may be another's then."""
        words, first = self._session.words, slot.word
        words[first + BOUND_TO] = self._bond
        words[first + BOUND_CELL] = slot.base | _BOUND

    def _publish_same(self, slot: Slot, fill: int) -> Chunk:
        """The stores of `LiveLease.publish`, in its order."""
        session = self._session
        words, base, first = session.words, slot.base, slot.first_cell
        granted = base | session.published
        if fill < self._chunk:
            words[slot.word + EXTENT] = slot.extent_word | fill
        words[slot.word + BOUND_CELL] = base | _BOUND
        words[first] = granted
        if session.barrier:
            session.barrier()
        words[slot.word] = granted
        slot.last_cell = first
        slot.done = base | _DONE
        assert slot.magazine is not None
        return Chunk(first, granted, slot.tail | fill, slot.done, slot, [partial(slot.magazine.published.append, slot)])

    def _hand_in(self) -> None:
        """Publish the chunk and say so. The ring names it before it is published: a reader that outlives us
        closes what we did not come to announce."""
        fill, page, chunks, session = self._fill, self._page, self._outgoing.chunks, self._session
        self._is_torn = True
        # In one step: whoever discards the stream meanwhile gives back what it finds.
        lease, slot, view, self._lease, self._slot, self._view = self._lease, self._slot, self._view, None, None, None
        if view is None:
            raise LeaseReleased(_DISCARDED_MEANWHILE)
        number, handed = page[HEAD], self._handed + fill
        at = RING + 2 * (number % CHUNKS)
        if slot is not None:
            view.release()
            page[at], page[at + 1] = slot.base | session.published, slot.tail | fill
            chunk = self._publish_same(slot, fill)
        else:
            assert lease is not None
            page[at], page[at + 1] = lease._slot.base | session.published, lease._slot.tail | fill
            chunk = self._publish(lease, fill)
            page[at] = chunk.granted  # of a direct segment the broker may be the custodian
        page[BYTES] = handed
        if session.barrier:
            session.barrier()
        page[HEAD] = number + 1
        newest = chunks[-1] if chunks else None
        chunks.append(chunk)
        self._handed, self._fill = handed, 0
        self._is_torn = False
        # A reader that has not taken the one before looks once more before it sleeps.
        if newest is None or session.words[newest.cell] != newest.granted:
            futex.wake(self._head)

    # --- its end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """The end of the file. Raises ValueError when less was written than announced: the stream is
        given up then. Nothing happens the second time."""
        if self.closed:
            return
        if self._is_stranded:
            self._abandon()
            return
        if self._is_torn:
            self.discard()
            raise StreamBroken("an exception came while a chunk was being handed in: the stream is given up")
        written = self._handed + self._fill
        if self.nbytes is not None and written < self.nbytes:
            self.discard()
            raise ValueError(f"{written} bytes were written of the {self.nbytes} that were announced")
        try:
            if self._fill or self._is_broken or self._outgoing.has_lost:
                self._check_reader()
                self._hand_in()
            self._close(End.CLOSED)
        except BaseException as error:
            if isinstance(error, own_or_called(ValueError)):
                self._raise_if_discarded()
            self.discard()
            raise

    def discard(self) -> None:
        """End it without an end of file: what nobody has opened is taken back, the reader's next call
        raises `StreamBroken`. Nothing happens the second time."""
        if self.closed:
            return
        if self._is_stranded:
            self._abandon()
            return
        lease, slot, view, self._lease, self._slot, self._view = self._lease, self._slot, self._view, None, None, None
        if view is not None:
            view.release()
        if slot is not None:
            self._session.return_unpublished(slot)
        if lease is not None:
            lease.release()
        self._close(End.GIVEN_UP)
        self._outgoing.withdraw()

    def _close(self, how: End) -> None:
        page, session = self._page, self._session
        if session.barrier:
            session.barrier()
        page[ENDED] = how
        futex.wake(self._head)
        self._is_closed = True
        page.release()
        self._outgoing.return_all()
        let_go, self._let_go = (
            self._let_go,
            None,
        )  # once, whoever else ends it: a slot in a magazine twice is leased twice
        if let_go is not None:
            let_go()

    @property
    def _is_stranded(self) -> bool:
        """Whether the seat that it is of is not ours any more: in a forked child, or behind a broker
        that came back with another pool."""
        return not HERE[OURS] or self._session.is_over

    def _abandon(self) -> None:
        self._is_closed = True
        self._lease = self._slot = self._view = None
        self._page.release()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._is_closed

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _check_whole(self) -> None:
        self._check_open()
        if self._is_torn:
            self.discard()
            raise StreamBroken("an exception came while a chunk was being handed in: the stream is given up")
        if self._is_stranded:
            raise LeaseReleased("the stream belongs to the parent of this fork, or to a pool that is gone")

    def _raise_if_discarded(self) -> None:
        """What is behind a view that was released: another thread closed the pool."""
        if self._is_closed:
            raise LeaseReleased(_DISCARDED_MEANWHILE) from None

    def _check_reader(self, *, is_thorough: bool = False) -> None:
        """Raises StreamBroken when nobody reads any more. Where no broker may be there to say so, a
        *thorough* look asks the kernel."""
        outgoing, session = self._outgoing, self._session
        if session.is_over:
            raise LeaseReleased("the stream belongs to the parent of this fork, or to a pool that is gone")
        is_read = outgoing.may_be_read
        self._reader = session.words[outgoing.cell]
        if is_read and is_thorough and (reader := outgoing.reader) not in (0, session.seat):
            is_read = session.is_seated(reader) or outgoing.reader != reader
        if not is_read:
            self._is_broken = True
            outgoing.settle()
            raise StreamBroken(
                f"nobody reads the stream any more, after {self._handed + self._fill} bytes were taken: its reader"
                " was closed or has died, or its handle was discarded"
            )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __repr__(self) -> str:
        closed = ", closed" if self.closed else ""
        return f"<shmpool.streams.StreamWriter, {self._handed + self._fill} bytes written{closed}>"


def _chunk_size(pool: Pool, nbytes: int | None) -> int:
    """Bytes of a chunk: whole pages, no more than the whole object, and little of a small pool."""
    share = pool._live_session().memory_limit // _SHARE // PAGE * PAGE
    whole = CHUNK_BYTES if nbytes is None else page_round(nbytes)
    return max(PAGE, min(CHUNK_BYTES, whole, share))
