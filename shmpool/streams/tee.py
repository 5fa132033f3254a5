"""A reader that also writes what passes by: a checksum, a second copy, while a file is uploaded."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import InvalidSize, TeeError
from ..protocol.sizing import optimal_chunk_size
from ..system.outside import own_or_called
from ..uncopied import Uncopied
from .copying import check_roles, rest_written
from .room import OwnRoom, take_room

if TYPE_CHECKING:
    from ..lease import Lease
    from ..pool import BasePool


class ChunkedTeeReader(Uncopied, io.RawIOBase):
    """Reads from *reader*, and writes everything that was read to *writer*, byte for byte.

    An `io.RawIOBase`: wrap it in `io.BufferedReader` for lines. ``readinto`` fills the caller's
    memory; ``read`` goes through one chunk leased from *pool*, given back by `close`, which closes
    neither *reader* nor *writer*. *size* is how many bytes the reader has, if that is known: ending
    earlier raises EOFError, having more `InvalidSize`, both with both numbers.

    A writer that fails raises `TeeError` at once, whose cause is its exception, and which says how
    many bytes were read and how many of them written. For one thread at a time.
    """

    #: Beside the dictionary that every file has: for the shortest way through `readinto`.
    __slots__ = (
        "_chunk", "_ended", "_passed", "_pool", "_read", "_reader", "_readinto", "_size", "_started", "_write",
        "_writer", "_written", "chunks_used",
    )  # fmt: skip

    _why = "it has a chunk of its pool, and what was read is read: make one where the reader is"

    def __init__(self, reader: Any, writer: Any, pool: BasePool, size: int | None = None) -> None:
        super().__init__()
        if size is not None and (type(size) is not int or size < 0):
            raise InvalidSize(f"size is a number of bytes or None, not {size!r}")
        check_roles(reader, writer, pool)
        self._reader, self._writer, self._pool, self._size = reader, writer, pool, size
        self._readinto: Callable[[Any], int | None] = getattr(reader, "readinto", None) or self._fill
        self._write = writer.write
        self._chunk: Lease | OwnRoom | None = None
        self._started = time.perf_counter()
        self._ended: float | None = None
        #: Bytes that were read and written whole, by the short way; and what came by the other.
        self._passed = self._read = self._written = 0
        #: How often a leased chunk was filled.
        self.chunks_used = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the reader."""
        return self._passed + self._read

    @property
    def bytes_written(self) -> int:
        """Those of them that the writer has."""
        return self._passed + self._written

    @property
    def elapsed(self) -> float:
        """Seconds since it was made, until it was closed."""
        return (self._ended or time.perf_counter()) - self._started

    def readable(self) -> bool:
        self._check_open()
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        """Fill *buffer*, a writable one, as far as the reader gives in one go; 0 at its end, None
        where it would block."""
        filled = self._readinto(buffer)
        if filled and type(buffer) is memoryview and len(buffer) == filled == buffer.nbytes and self._size is None:
            try:
                written = self._write(buffer)
            except own_or_called(Exception) as error:
                self._read += filled
                raise self._failure(error) from error
            if written == filled:  # nearly always
                self._passed += filled
            else:
                self._read += filled
                self._write_rest(buffer, written)
        elif filled:
            # Each view is released at once: an exception's traceback would keep it, and the chunk with it.
            with memoryview(buffer) as view, view.cast("B") as flat, flat[:filled] as piece:
                self._write_on(piece)
        elif filled == 0 and len(buffer):
            self._check_end()
        return filled

    def read(self, size: int | None = -1, /) -> bytes | None:
        """Up to *size* bytes in one read of the reader, all that is left for None or -1."""
        self._check_open()
        if size is None or size < 0:
            return self.readall()
        chunk = self._leased()
        with chunk.view[: min(size, chunk.nbytes)] as room:
            filled = self.readinto(room)
            self.chunks_used += bool(filled)
            return None if filled is None else bytes(room[:filled])

    def readall(self) -> bytes:
        """All that is left, a chunk at a time."""
        pieces = []
        while piece := self.read(self._leased().nbytes):
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Give the chunk back. Reader and writer stay open; nothing happens the second time."""
        if not self.closed:
            self._ended = time.perf_counter()
            # None, too, where its making was refused: Python closes what is collected, and prints what that raises.
            chunk, self._chunk = getattr(self, "_chunk", None), None
            self._readinto = self._is_closed
            super().close()
            if chunk is not None:
                chunk.release()

    def _leased(self) -> Lease | OwnRoom:
        if self._chunk is None:
            pool, size = self._pool, self._size
            self._chunk = take_room(
                pool, pool.default_buffer_size if size is None else optimal_chunk_size(size, pool.sizing)
            )
        return self._chunk

    def _fill(self, buffer: Any) -> int | None:
        """Like ``readinto``, from a reader that only has ``read``."""
        with memoryview(buffer) as view, view.cast("B") as flat:
            piece = self._reader.read(len(flat))
            if piece is None:
                return None
            flat[: len(piece)] = piece
            return len(piece)

    def _write_on(self, piece: memoryview) -> None:
        self._read += len(piece)
        if self._size is not None and self.bytes_read > self._size:
            raise InvalidSize(f"{self._size} bytes were announced, the reader has {self.bytes_read} or more")
        try:
            written = self._write(piece)
        except own_or_called(Exception) as error:
            raise self._failure(error) from error
        self._write_rest(piece, written)

    def _write_rest(self, piece: memoryview, written: int | None) -> None:
        """After a write that said that it took *written*."""
        try:
            for took in rest_written(self._writer, piece, written, self.bytes_written):
                self._written += took
        except own_or_called(Exception) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> TeeError:
        return TeeError(
            f"the writer failed: {self.bytes_read} bytes were read, {self.bytes_written} of them written:"
            f" {type(error).__name__}: {error}"
        )

    def _is_closed(self, buffer: Any) -> NoReturn:
        raise ValueError("I/O operation on closed file")

    def _check_end(self) -> None:
        if self._size is not None and self.bytes_read < self._size:
            raise EOFError(f"the reader ended after {self.bytes_read} bytes, {self._size} were announced")

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
