"""Copying from one file to another, like `shutil.copyfileobj`, through leased memory or past it.

| what | how |
|---|---|
| both are plain files, pipes or sockets | in the kernel: ``copy_file_range``, ``splice``, ``sendfile``: no memory |
| up to the very-large threshold, or of unknown size, from ``readinto`` | one leased buffer or chunk, again and again |
| very large, or from a source that only has ``read`` | its own pieces, handed on: nothing is leased |
| from `io.BytesIO` | written from where it lies |
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..errors import InvalidSize
from ..pool import BasePool
from ..protocol.sizing import KIB, MIB, SizeCategory, categorize, optimal_chunk_size
from ..system.outside import own, own_or_called
from .room import take_room

#: What the kernel is asked to move at a time: a signal is answered between two.
_KERNEL_PIECE: Final = 64 * MIB
#: How much is read and written at a time.
_PIECE: Final = 64 * KIB
#: And of what lies in memory.
_MEMORY_PIECE: Final = MIB
#: The kernel cannot do it between these two; there is another way.
_CANNOT: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EBADF, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EISDIR}
)
#: The only kinds of file object whose descriptor has just the bytes that they give: a gzip file has
#: one too, of the compressed file.
_PLAIN: Final = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom)


def copy(src: Any, dst: Any, pool: BasePool, size: int | None = None) -> int:
    """Copy from *src*, from where it is, to *dst*; returns how many bytes that were.

    *src* is a binary file object with ``readinto`` or ``read``, *dst* one with ``write``. *size* is
    how many bytes are to be copied; None: until the source ends. A source that is known to have
    another number of bytes left is refused with `InvalidSize` before anything is copied, and one
    that ends early raises EOFError; both say both numbers. What the source or the writer raises
    comes through; what was copied until then has been written. One that cannot go on without
    waiting is waited for where it has a descriptor, and else raises BlockingIOError.

    At most one lease is held, of at most one chunk, and none where the kernel copies by itself. Where
    the pool has no memory just now, the copy goes through memory of its own.
    """
    check_roles(src, dst, pool)
    if size is not None:
        if type(size) is not int or size < 0:
            raise InvalidSize(f"size is a number of bytes or None, not {size!r}")
        _check_announced(src, size)
    copied = _in_the_kernel(src, dst, size)
    if copied is None:
        copied = _through_memory(src, dst, pool, size)
    if size is not None and copied < size:
        raise EOFError(f"the source ended after {copied} bytes, {size} were announced")
    return copied


def check_roles(src: Any, dst: Any, pool: Any) -> None:
    """Raises TypeError for what cannot be read from, written to or leased of, before anything is read."""
    if not hasattr(src, "readinto") and not hasattr(src, "read"):
        raise TypeError(f"what is read from is a binary file object, with readinto or read, not {src!r:.80}")
    if not hasattr(dst, "write"):
        raise TypeError(f"what is written to is a binary file object, with write, not {dst!r:.80}")
    if not isinstance(pool, BasePool):
        raise TypeError(f"pool is a shmpool.Pool, not {pool!r:.80}")


def _check_announced(src: Any, size: int) -> None:
    left = _bytes_left(src)
    if left is not None and left != size:
        raise InvalidSize(f"{size} bytes were announced, the source has {left} left")


def _bytes_left(src: Any) -> int | None:
    """How many bytes a source still has; None where that cannot be told without reading."""
    if isinstance(src, _PLAIN):
        try:
            status = os.fstat(src.fileno())
            return max(0, status.st_size - src.tell()) if stat.S_ISREG(status.st_mode) else None
        except own(OSError):
            return None
    if isinstance(src, io.BytesIO):
        return max(0, src.getbuffer().nbytes - src.tell())
    return None


# --- in the kernel ----------------------------------------------------------------------------------


def _in_the_kernel(src: Any, dst: Any, size: int | None) -> int | None:
    """Copy between two descriptors; None, and nothing copied, where that is not possible."""
    source, target = _descriptor(src), _descriptor(dst)
    if source is None or target is None:
        return None
    if (at := _position(src)) is None and isinstance(src, io.BufferedIOBase):
        return None  # its buffer may have read ahead, and nobody can tell how much
    dst_at = _position(dst)
    if isinstance(dst, io.IOBase):
        dst.flush()
    for move in _moves(source, target, at, dst_at):
        copied = _move_all(move, size, source, target)
        if copied is not None:
            if at is not None:
                src.seek(at + copied)
            if dst_at is not None:
                dst.seek(dst_at + copied)
            return copied
    return None


def _descriptor(file: Any) -> int | None:
    """The descriptor of a file object that adds nothing to it."""
    raw = file.raw if isinstance(file, io.BufferedReader | io.BufferedWriter | io.BufferedRandom) else file
    if type(file) not in (*_PLAIN, socket.SocketIO) or type(raw) not in (io.FileIO, socket.SocketIO):
        return None
    try:
        return int(file.fileno())
    except own(OSError, ValueError):
        return None


def _position(file: Any) -> int | None:
    """Where a seekable file is; None for a pipe."""
    try:
        return int(file.tell()) if file.seekable() else None
    except own_or_called(AttributeError, OSError, ValueError):
        return None


Move = Callable[[int, int], int]


def _moves(source: int, target: int, at: int | None, dst_at: int | None) -> Iterator[Move]:
    """Ways to move *count* bytes when *done* are; each either works or fails at its first call."""
    if at is not None and dst_at is not None:
        yield lambda done, count: os.copy_file_range(source, target, count, at + done, dst_at + done)
    if (at is None or dst_at is None) and (_is_pipe(source) or _is_pipe(target)):
        yield lambda done, count: os.splice(
            source, target, count, None if at is None else at + done, None if dst_at is None else dst_at + done
        )
    if at is not None and dst_at is None:
        yield lambda done, count: os.sendfile(target, source, at + done, count)


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def _move_all(move: Move, size: int | None, source: int, target: int) -> int | None:
    done = 0
    while size is None or done < size:
        try:
            moved = move(done, _KERNEL_PIECE if size is None else min(_KERNEL_PIECE, size - done))
        except own(BlockingIOError):
            _wait(source, select.POLLIN)
            _wait(target, select.POLLOUT)
            continue
        except own(OSError) as error:
            if done == 0 and error.errno in _CANNOT:
                return None
            raise
        if moved == 0:
            # A file of /proc says that it is empty; only reading it tells.
            return None if done == 0 and size != 0 else done
        done += moved
    return done


# --- through memory -----------------------------------------------------------------------------------


def _through_memory(src: Any, dst: Any, pool: BasePool, size: int | None) -> int:
    readinto = getattr(src, "readinto", None)
    if type(src) is io.BytesIO:
        return _from_memory(src, dst)
    sizing = pool.sizing
    is_very_large = size is not None and categorize(size, sizing) is SizeCategory.VERY_LARGE
    if readinto is None or (is_very_large and hasattr(src, "read")):
        return _hand_on(src, dst, size)
    if size is None or size >= sizing.large_object_threshold:
        nbytes = pool.default_buffer_size if size is None else optimal_chunk_size(size, sizing)
    else:
        nbytes = max(size, 1)
    room = take_room(pool, nbytes)
    try:
        return _fill_and_write(src, dst, room.view, size)
    finally:
        room.release()


def _from_memory(src: io.BytesIO, dst: Any) -> int:
    """What lies in memory already is written from there. (A size that was announced is all of it.)"""
    copied, start = 0, src.tell()
    whole = src.getbuffer()
    try:
        length = len(whole)
        while True:
            if start + copied >= length:
                break
            with whole[start + copied : start + copied + _MEMORY_PIECE] as piece:
                write_all(dst, piece, copied)
                copied += len(piece)
            src.seek(start + copied)
    finally:
        whole.release()
    return copied


def _fill_and_write(src: Any, dst: Any, whole: memoryview, size: int | None) -> int:
    """A piece at a time, so that what is written is still in the processor's cache."""
    copied, readinto = 0, src.readinto
    with whole[:_PIECE] as view:
        while True:
            if size is not None and copied >= size:
                break
            if size is None or size - copied >= len(view):
                filled = readinto(view)
            else:
                with view[: size - copied] as room:
                    filled = readinto(room)
            if filled is None:
                wait_for(src, select.POLLIN, copied)
            elif not filled:
                break
            elif filled == len(view):
                write_all(dst, view, copied)
                copied += filled
            else:
                with view[:filled] as piece:
                    write_all(dst, piece, copied)
                copied += filled
    return copied


def _hand_on(src: Any, dst: Any, size: int | None) -> int:
    copied = 0
    while size is None or copied < size:
        piece = src.read(_PIECE if size is None else min(_PIECE, size - copied))
        if piece is None:
            wait_for(src, select.POLLIN, copied)
        elif not piece:
            break
        else:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"the source must be binary, its read() gave {type(piece).__name__}")
            write_all(dst, piece, copied)
            copied += len(piece)
    return copied


def write_all(dst: Any, piece: Any, copied: int) -> None:
    """Write all of *piece*, to a writer that may accept a part; *copied* bytes were written before."""
    written = dst.write(piece)
    if written != len(piece):
        for _ in rest_written(dst, piece, written, copied):
            pass


def rest_written(dst: Any, piece: Any, written: int | None, copied: int) -> Iterator[int]:
    """After a write of *piece* said that it took *written*: go on until all of it is; yields what
    each write took. None from a raw file means that it would block, from anything else (a hash, a
    user's own class) that all was taken."""
    done = 0
    with memoryview(piece) as rest:
        while True:
            if written is None and isinstance(dst, io.RawIOBase):
                wait_for(dst, select.POLLOUT, copied + done)
            else:
                took = len(rest) - done if written is None else written
                done += took
                yield took
            if done >= len(rest):
                return
            with rest[done:] as left:
                written = dst.write(left)


def wait_for(file: Any, event: int, copied: int) -> None:
    """Wait until a file that would block goes on. Raises BlockingIOError for one without a
    descriptor, with the bytes that were copied."""
    try:
        fd = file.fileno()
    except own_or_called(AttributeError, OSError, ValueError):
        raise BlockingIOError(errno.EAGAIN, f"it would block, and cannot be waited for: {file!r}", copied) from None
    _wait(fd, event)


def _wait(fd: int, event: int) -> None:
    poll = select.poll()
    poll.register(fd, event)
    poll.poll()
