"""A lease as a file to write, a buffer as a file to read.

Both are binary, seekable, and for one thread at a time, like `io.BytesIO`, whose errors they raise.
What is read is copied; `getbuffer` gives the memory itself.
"""

from __future__ import annotations

import errno
import io
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..system import frames
from ..system.finalizers import ends_by
from ..system.outside import own_or_called
from ..uncopied import Uncopied
from .room import lease_by_any

if TYPE_CHECKING:
    from ..buffer import Buffer
    from ..lease import Lease
    from ..pool import BasePool
    from ..protocol.handle import Handle

#: A line is looked for in so many bytes at a time.
_BLOCK = 8192


class _MemoryFile(Uncopied, io.BufferedIOBase):
    """Reading and seeking in a memoryview; what is in it ends at `_end`."""

    _view: memoryview
    _end: int

    def __init__(self) -> None:
        self._at = 0

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to *size* bytes from here, all that is left for None or a negative number."""
        start, self._at = self._at, self._upto(size)
        return bytes(self._view[start : self._at])

    def read1(self, size: int | None = -1, /) -> bytes:
        """The same: nothing has to be waited for."""
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a writable *buffer*; returns how many bytes that took."""
        target = memoryview(buffer).cast("B")
        start, self._at = self._at, self._upto(len(target))
        target[: self._at - start] = self._view[start : self._at]
        return self._at - start

    def readinto1(self, buffer: Any, /) -> int:
        """The same: nothing has to be waited for."""
        return self.readinto(buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Up to and with the next newline, at most *size* bytes."""
        last = self._upto(size)
        start = at = self._at
        while at < last:
            found = bytes(self._view[at : min(at + _BLOCK, last)]).find(b"\n")
            if found >= 0:
                last = at + found + 1
                break
            at += _BLOCK
        self._at = max(start, last)
        return bytes(self._view[start : self._at])

    def peek(self, size: int = 0, /) -> bytes:
        """What follows, at most 8 KiB, without moving."""
        self._check_open()
        return bytes(self._view[self._at : min(self._at + _BLOCK, self._end)])

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move; also past the end, where there is nothing to read."""
        self._check_open()
        offset = index(offset)
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if whence == io.SEEK_SET and offset < 0:
            raise ValueError(f"negative seek position {offset}")
        base = (0, self._at, self._end)[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """The position, in bytes from the beginning."""
        self._check_open()
        return self._at

    def getbuffer(self) -> memoryview:
        """The memory itself, as far as there is something in it: no copy."""
        self._check_open()
        return self._view[: self._end]

    def getvalue(self) -> bytes:
        """All of it, wherever the position is."""
        return bytes(self.getbuffer())

    def _upto(self, size: int | None) -> int:
        """Where a read of *size* bytes ends."""
        self._check_open()
        if size is None or (size := index(size)) < 0:
            return max(self._at, self._end)
        return max(self._at, min(self._at + size, self._end))

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class BufferFile(_MemoryFile):
    """A published object as a file; made by `Pool.open_reader`. Closing it gives the buffer back,
    once the last memoryview of `getbuffer` is gone."""

    _why = "its buffer's ticket is used up: send what `getvalue` returns, or a handle for each reader"

    def __init__(self, buffer: Buffer) -> None:
        super().__init__()
        self._buffer = buffer
        self._view, self._end = buffer.view, buffer.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes published."""
        return self._buffer.nbytes

    def writable(self) -> bool:
        self._check_open()
        return False

    def close(self) -> None:
        """Give the buffer back. Nothing happens the second time."""
        self._close(None)

    def _close(self, kind: type[BaseException] | None) -> None:
        if not self.closed:
            try:
                super().close()
                self._let_go(kind)
            except BaseException as error:
                self._let_go(type(error))  # somebody may keep the exception, and with it this file
                raise

    def _let_go(self, kind: type[BaseException] | None) -> None:
        # Python closes what is collected, and prints what that raises: what an exception left half made, too.
        vars(self).pop("_view", None)
        if "_buffer" in vars(self):
            self._buffer._release_after(kind)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind)

    def __repr__(self) -> str:
        return f"<shmpool.streams.BufferFile of {self.nbytes} bytes{', closed' if self.closed else ''}>"


def _discard_collected(file: LeaseFile) -> None:
    if hasattr(file, "_lease"):
        file.discard()  # like a file that nobody closed: but half an object is not published


@ends_by(_discard_collected)
class LeaseFile(_MemoryFile):
    """A lease as a file; made by `Pool.open_writer`.

    Leaving the ``with`` block publishes what was written, and `handle` names it from then on; an
    exception in the block gives the lease back unpublished. `close` outside of a block publishes too.
    Of a known size, writing past it raises OSError (ENOSPC) and writes nothing of that piece; of an
    unknown one the memory grows by a larger lease, at the price of a copy.
    """

    _why = "one buffer has one writer: close it and send its handle"

    #: The published object, for one reader; None until the file was closed.
    handle: Handle | None = None

    def __init__(self, pool: BasePool, nbytes: int | None, timeout: float | None) -> None:
        super().__init__()
        self._pool = pool
        self._timeout = timeout
        self._may_grow = nbytes is None
        self._lease: Lease = lease_by_any(pool, pool.default_buffer_size if nbytes is None else nbytes, timeout)
        self._end = 0

    @property
    def _view(self) -> memoryview:  # type: ignore[override]
        """Raises LeaseReleased where the lease is over: its pool was closed, maybe by another thread."""
        return self._lease.view

    @property
    def nbytes(self) -> int:
        """Bytes written so far: what a reader will see."""
        return self._end

    def writable(self) -> bool:
        self._check_open()
        return True

    def write(self, data: Any, /) -> int:
        """Write a bytes-like object here; a gap behind the end becomes zeros."""
        source = memoryview(data)
        if source.ndim != 1 or source.format != "B":
            source = source.cast("B")
        self._check_open()
        end = self._at + len(source)
        if not source:
            return 0
        view = self._view
        if end > self._lease.nbytes:
            view = self._grow(end)
        if self._at > self._end:
            view[self._end : self._at] = bytes(self._at - self._end)
        try:
            view[self._at : end] = source
        except own_or_called(ValueError):
            self._view  # noqa: B018
            raise
        self._at, self._end = end, max(self._end, end)
        return len(source)

    def truncate(self, size: int | None = None, /) -> int:
        """End it at *size*, or here; the position stays."""
        self._check_open()
        size = self._at if size is None else index(size)
        if size < 0:
            raise ValueError(f"negative truncate position {size}")
        self._end = min(self._end, size)
        return size

    def close(self) -> None:
        """Publish what was written. Nothing happens the second time."""
        if not self.closed:
            try:
                super().close()
                self._lease.shorten(self._end)
                self.handle = self._lease.publish()
            except BaseException as error:
                self._lease._release_after(type(error))  # somebody may keep the exception, and with it this file
                frames.clear(error)
                raise

    def discard(self) -> None:
        """Close it and give the lease back unpublished."""
        if not self.closed:
            super().close()
            self._lease.release()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self.closed:
            super().close()
            self._lease._release_after(kind)

    def _grow(self, nbytes: int) -> memoryview:
        leased = self._lease.nbytes
        if not self._may_grow:
            raise OSError(errno.ENOSPC, f"{nbytes} bytes are more than the {leased} that were leased")
        larger = lease_by_any(self._pool, max(nbytes, 2 * leased), self._timeout)
        try:
            larger.view[: self._end] = self._view[: self._end]
        except BaseException:
            larger.release()  # somebody may keep the exception
            raise
        self._lease, smaller = larger, self._lease
        smaller.release()
        return larger.view

    def __repr__(self) -> str:
        return f"<shmpool.streams.LeaseFile of {self._end} bytes{', closed' if self.closed else ''}>"
