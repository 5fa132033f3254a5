"""Filling memory, or a file, straight from a descriptor: no copy in between, a signal is answered
between two pieces."""

from __future__ import annotations

import errno
import os

from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

#: What the kernel is asked for at a time.
PIECE: Final = 64 << 20
#: What the kernel takes for a descriptor, and for a place in a file that a piece may follow.
MOST_DESCRIPTOR: Final = (1 << 31) - 1
MOST_OFFSET: Final = (1 << 63) - 1 - (1 << 40)
#: The kernel does not copy between these two; reading works.
_CANNOT: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EBADF, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EISDIR,
     errno.ESPIPE, errno.EOVERFLOW}
)  # fmt: skip


def check(fd: Any, offset: Any) -> None:
    """Raise TypeError and ValueError for what is no descriptor and no offset."""
    if type(fd) is not int:
        raise TypeError(f"a file descriptor is expected, an int as file.fileno() gives it, not {type(fd).__name__}")
    if not 0 <= fd <= MOST_DESCRIPTOR:
        raise ValueError(f"a file descriptor is 0 to {MOST_DESCRIPTOR}, this is {fd}")
    if offset is not None and (type(offset) is not int or not 0 <= offset <= MOST_OFFSET):
        raise ValueError(f"offset is a number of bytes from the file's start, or None, not {offset!r}")


def fill(view: memoryview, fd: int, offset: int | None, done: int = 0) -> int:
    """Read until *view* is full or there is no more now; returns how many bytes of it are filled.
    *done* are already. Raises OSError; BlockingIOError only where nothing was filled."""

    def read(at: int, count: int) -> int:
        with view[at : at + count] as piece:
            return os.readv(fd, [piece]) if offset is None else os.preadv(fd, [piece], offset + at)

    return _move_all(read, len(view), done)


def copy_range(target: int, nbytes: int, fd: int, offset: int | None) -> int | None:
    """The same into the beginning of a file, within the kernel; None, and nothing done, where that
    is not possible."""

    def move(at: int, count: int) -> int:
        return os.copy_file_range(fd, target, count, None if offset is None else offset + at, at)

    try:
        # A file of /proc says that it is empty; only reading it tells.
        return _move_all(move, nbytes, 0) or None
    except own(OSError) as error:
        if error.errno in _CANNOT:
            return None
        raise


def _move_all(move: Callable[[int, int], int], nbytes: int, done: int) -> int:
    while done < nbytes:
        try:
            moved = move(done, min(PIECE, nbytes - done))
        except own(BlockingIOError):
            if done:
                break
            raise
        if not moved:
            break
        done += moved
    return done
