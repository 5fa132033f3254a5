"""The reader of a stream: chunks are copied out as they come."""

from __future__ import annotations

import io
from collections import deque
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..errors import LeaseReleased, ShmpoolError, StreamBroken, StreamTimeout
from ..link.waiting import check_timeout
from ..protocol.handle import Handle, pack_handle
from ..protocol.ledger import SEAT_BITS, SEAT_MASK, seat_of
from ..seat import tickets
from ..seat.outgoing import cell_of
from ..system import futex, libc
from ..system.finalizers import ends_by
from ..system.here import HERE, OURS
from ..system.importing import door, explained
from ..system.outside import own
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

if TYPE_CHECKING:
    from ..buffer import Buffer
    from ..pool import BasePool as Pool
    from ..seat.session import Session
    from .files import BufferFile

_MOST_CHUNKS = (PAGE_BYTES // 8 - RING) // 2


def is_stream(buffer: Buffer) -> bool:
    """Whether what was opened is the control page of a stream."""
    if buffer.nbytes != PREFIX_BYTES:
        return False
    with buffer.view.cast("Q") as page:
        return page[0] == MAGIC and (page[OWN_GRANT] ^ buffer._granted) >> SEAT_BITS == 0


def open_reader(
    pool: Pool, handle: Handle | bytes | bytearray | memoryview, timeout: float | None
) -> BufferFile | StreamReader:
    """The file, or the reading end of the stream, that a handle names."""
    with door, explained:
        from .files import BufferFile

    timeout = None if timeout is None else check_timeout(timeout)
    buffer = pool.open(handle)
    return StreamReader(pool, buffer, timeout) if is_stream(buffer) else BufferFile(buffer)


class _PutBack(NamedTuple):
    """Bytes that were read by a call that failed; *at* is how far what follows them is read."""

    view: memoryview
    at: int


def _close_collected(reader: StreamReader) -> None:
    if getattr(reader, "_page", None) is not None and HERE[OURS]:
        reader.close()


@ends_by(_close_collected)
class StreamReader(Uncopied, io.BufferedIOBase):
    """The reading end of a stream as a file; made by `Pool.open_reader`, for one thread at a time.

    What is read is copied out of chunks that go back to the writer. Where nothing has come yet, reading waits;
    an empty read is the end of the file. Raises `StreamTimeout` when nothing came in time, and
    `StreamBroken` when the writer died or gave the stream up, with the count of bytes that came: all
    that it had handed in, but what it withdrew. A call that raises (Ctrl-C too) has read nothing: the next
    one begins where it began. Closing it early tells the writer. In a forked child: `LeaseReleased`.
    """

    _why = "one stream has one reader: send what was read"

    def __init__(self, pool: Pool, buffer: Buffer, timeout: float | None) -> None:
        super().__init__()
        self._is_closed = False
        self._pool = pool
        self._timeout = timeout
        self._control = buffer
        record = buffer._record
        self._session = cast("Session", record.session)
        assert record.window is not None
        page = memoryview(record.window)[:PAGE_BYTES].cast("Q")
        self._head = libc.address_of(record.window) + 8 * HEAD
        self._words_at = libc.address_of(self._session._ledger)
        self._capacity = max(1, min(page[CAPACITY], _MOST_CHUNKS))
        announced = page[ANNOUNCED]
        #: Bytes that the writer announced, None where it did not.
        self.nbytes = None if announced == UNKNOWN else announced
        #: Chunks that were opened, the oldest first, and how far that is read.
        self._chunks: deque[Buffer | _PutBack] = deque()
        self._at = 0
        self._opened = self._read = 0
        self._page = page  # last: whose finalizer finds it has all that its end needs

    # --- reading --------------------------------------------------------------------------------

    def readable(self) -> bool:
        self._check_open()
        return True

    def flush(self) -> None:
        """Nothing; ValueError once it is closed, as every file says."""
        self._check_open()

    def tell(self) -> int:
        """Bytes read so far."""
        self._check_open()
        return self._read

    def readinto(self, buffer: Any, /) -> int:
        """Fill a writable *buffer*; less only at the end of the file."""
        self._check_open()
        target = memoryview(buffer).cast("B")
        deadline = deadline_of(self._timeout)
        at = 0
        try:
            length = len(target)
            while True:
                view = self._look(deadline) if at < length else None
                if view is None:
                    break
                step = min(len(view) - self._at, length - at)
                if step == length:
                    target[:] = view[self._at : self._at + step]
                else:
                    target[at : at + step] = view[self._at : self._at + step]
                at += step
                self._advance(step, len(view))
        except BaseException:
            self._put_back(bytes(target[:at]))
            raise
        return at

    def readinto1(self, buffer: Any, /) -> int:
        """The same with what there is: it waits only while there is nothing."""
        self._check_open()
        target = memoryview(buffer).cast("B")
        view = self._look(deadline_of(self._timeout)) if target else None
        if view is None:
            return 0
        step = min(len(view) - self._at, len(target))
        target[:step] = view[self._at : self._at + step]
        self._advance(step, len(view))
        return step

    def read(self, size: int | None = -1, /) -> bytes:
        """*size* bytes, all up to the end of the file for None or a negative number; less only at
        the end."""
        left = -1 if size is None else index(size)
        parts: list[bytes] = []
        self._check_open()
        try:
            deadline = deadline_of(self._timeout)
            while True:
                view = self._look(deadline) if left else None
                if view is None:
                    break
                step = len(view) - self._at if left < 0 else min(len(view) - self._at, left)
                parts.append(bytes(view[self._at : self._at + step]))
                left -= step if left > 0 else 0
                self._advance(step, len(view))
        except BaseException:
            self._put_back(b"".join(parts))
            raise
        return b"".join(parts)

    def read1(self, size: int | None = -1, /) -> bytes:
        """Up to *size* bytes of what there is: it waits only while there is nothing."""
        self._check_open()
        most = -1 if size is None else index(size)
        view = self._look(deadline_of(self._timeout)) if most else None
        if view is None:
            return b""
        step = len(view) - self._at if most < 0 else min(len(view) - self._at, most)
        found = bytes(view[self._at : self._at + step])
        self._advance(step, len(view))
        return found

    def peek(self, size: int = 0, /) -> bytes:
        """What follows in the chunk that is being read, without moving; nothing at the end."""
        view = self._look(deadline_of(self._timeout))
        return b"" if view is None else bytes(view[self._at :])

    def _look(self, deadline: float) -> memoryview | None:
        """The chunk that is to be read, None at the end of the file; waits for it."""
        self._check_open()
        if not self._chunks:
            if not HERE[OURS] or self._session.is_over:
                raise LeaseReleased("the stream belongs to the parent of this fork, or to a pool that is gone")
            if self._page[HEAD] == self._opened and not self._await_chunk(deadline):
                return None
            self._open_chunks()
        return self._chunks[0].view

    def _advance(self, step: int, length: int) -> None:
        """So much was copied out; a chunk that is read goes back."""
        self._at += step
        self._read += step
        if self._at < length:
            return
        chunks, page = self._chunks, self._page
        buffer = chunks[0]
        if isinstance(buffer, _PutBack):
            chunks.popleft()
            self._at = buffer.at
            return
        cell = buffer._record.cell
        buffer.release()
        self._at = 0
        chunks.popleft()
        if page[SLEEPS]:
            futex.wake(self._words_at + 8 * cell)
        if page[HEAD] != self._opened:
            self._open_chunks()

    def _put_back(self, data: bytes) -> None:
        """A call was ended by an exception: the next one begins where it began."""
        if data:
            self._chunks.appendleft(_PutBack(memoryview(data), self._at))
            self._at = 0
            self._read -= len(data)

    def _open_chunks(self) -> None:
        """Take the tickets of all chunks that were handed in: whatever becomes of the writer, they are
        ours from then on, and freed by our own end."""
        page, session = self._page, self._session
        head = page[HEAD]
        if session.barrier:
            session.barrier()
        if not 0 <= head - self._opened <= self._capacity:
            raise StreamBroken(f"the stream's control page is damaged, after {self._read} bytes")
        while self._opened < head:
            at = RING + 2 * (self._opened % self._capacity)
            handle = Handle(pack_handle(session.pool_id, page[at], page[at + 1]))
            try:
                self._chunks.append(self._pool.open(handle))
            except own(LookupError) as error:
                if self._chunks:
                    return  # first what there is
                raise StreamBroken(self._story("gave the stream up")) from error
            self._opened += 1

    def _await_chunk(self, deadline: float) -> bool:
        """Wait for the next chunk; False at the end of the file."""
        page, opened, session = self._page, self._opened, self._session
        patience, is_written = Patience(deadline), True
        while page[HEAD] == opened:
            if page[ENDED] or not is_written:
                end = page[ENDED]  # it may have ended, and then gone
                if page[HEAD] != opened:
                    break
                if end != End.CLOSED:
                    self._discard_unopened()
                    raise StreamBroken(self._story("gave the stream up" if end else "died"))
                if page[BYTES] != self._read:
                    raise StreamBroken(self._story(f"had handed in {page[BYTES]} bytes, and they are not all here"))
                return False
            if patience.spins:
                continue
            if patience.is_over:
                if is_written := self._is_written:
                    raise StreamTimeout(f"nothing came within {self._timeout} s, after {self._read} bytes")
                continue
            patience.sleep(self._head, opened)
            if session.is_over:
                raise LeaseReleased("the stream belongs to the parent of this fork, or to a pool that is gone")
            is_written = self._is_written
        return True

    @property
    def _is_written(self) -> bool:
        """Whether its writer lives: it has the custody of the control page, and sits."""
        control, session = self._control, self._session
        writer = seat_of(session.words[control._record.word])
        if not writer:
            return False
        return writer == session.seat or session.is_seated(writer)

    def _story(self, what: str) -> str:
        announced = "" if self.nbytes is None else f" of {self.nbytes}"
        return f"the stream's writer {what}; {self._read} bytes{announced} were read"

    # --- its end ----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def close(self) -> None:
        """Give everything back; a writer that goes on is told. Nothing happens the second time."""
        if self._is_closed:
            return
        self._is_closed = True
        chunks, page, session = self._chunks, self._page, self._session
        is_ours = HERE[OURS] and not session.is_over
        cell = 0
        while chunks:
            if not isinstance(buffer := chunks[0], _PutBack):
                cell = cell or buffer._record.cell
                buffer.release()
            chunks.popleft()
        if is_ours:
            cell = self._discard_unopened() or cell
            sleeps = page[SLEEPS]
        page.release()
        self._control.release()
        if is_ours and sleeps and cell:
            futex.wake(self._words_at + 8 * cell)

    def _discard_unopened(self) -> int:
        """Close the tickets that we shall not take, and that of a chunk which a dead writer had published and
        not yet announced; returns the oldest one's cell, 0 for none."""
        page, cell = self._page, 0
        for number in range(self._opened, min(page[HEAD], self._opened + self._capacity) + 1):
            at = RING + 2 * (number % self._capacity)
            granted, tail = page[at], page[at + 1]
            for word in (granted, granted & ~SEAT_MASK):  # a direct segment may be in the broker's custody
                try:
                    tickets.discard_handle(self._session, word, tail)
                    cell = cell or cell_of(tail)
                    break
                except own(ShmpoolError):
                    pass
        return cell

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("I/O operation on closed file")

    def __repr__(self) -> str:
        return f"<shmpool.streams.StreamReader, {self._read} bytes read{', closed' if self._is_closed else ''}>"
