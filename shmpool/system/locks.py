"""Locks that the kernel frees when their holder dies: byte locks and file locks.

Byte locks (``F_OFD_SETLK``) guard the one place where two processes may race, the taking
of a ticket. They belong to the open file, so whoever wants exclusion opens the file
itself: a descriptor that was passed, duplicated or inherited shares its lock. A file lock
(``flock``) makes a broker the only one at its socket. Neither excludes threads of one
process that share an object from here.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ..protocol.frozen import NamedTuple
from .descriptors import Descriptor, open_owned
from .outside import own, real_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Final

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37

#: A lock file begins with the id of the pool that it is of, so many bytes, little-endian.
POOL_ID_BYTES: Final = 8

#: The length of a range that has no end.
TO_THE_END: Final = 0

#: struct flock: type, whence, start, length, pid (which must be 0 for these locks).
_FLOCK: Final = struct.Struct("hhqqi4x")


def lock_bytes(offset: int) -> bytes:
    """The struct that locks one byte exclusively."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)


def unlock_bytes(offset: int) -> bytes:
    """The struct that unlocks it."""
    return _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0)


def share_byte(fd: int, offset: int) -> None:
    """Lock a byte for reading: any number of open files may."""
    fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0))


def any_locked(fd: int, offset: int, length: int) -> int:
    """A locked byte of a range (`TO_THE_END` is a length too), the one that the kernel has noted
    first, -1 for none. Locks of this open file do not count."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
    kind, _, start, _, _ = _FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, asked))
    return -1 if kind == fcntl.F_UNLCK else max(start, offset)


#: The struct that unlocks all that an open file has locked. The kernel allocates nothing for
#: it, as it does where a part may be left: the pair takes a tenth less.
UNLOCK_ALL: Final = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


class FileId(NamedTuple):
    """Which file this is, whatever its path says."""

    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> FileId:
        """Of an open file."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino)


def open_beside(socket: str, path_of: Callable[[str], str], expected: Sequence[int], pool_id: int) -> Descriptor:
    """Open a lock file beside a broker's socket, links of its path resolved; the descriptor
    is close-on-exec. Raises OSError when it is not the one that the broker *expected* (device,
    inode), or not this pool's: locks in it would exclude nobody."""
    path = path_of(real_path(socket))
    fd = open_owned(os.open, path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    if (FileId.of(fd), pool_id_in(fd)) != (tuple(expected), pool_id):
        raise FileNotFoundError(
            f"{path} is not the file that the broker locks: connect by a path beside which the broker's own lock"
            " files lie (the directory that it made its socket in, or a bind mount of it)"
        )
    return fd


def pool_id_in(fd: int) -> int:
    """The pool whose lock file this is; 0 for an empty file."""
    return int.from_bytes(os.pread(fd, POOL_ID_BYTES, 0), "little")


class ByteLocks:
    """Locks on single bytes of a file, which need not be that long.

    Opens the file itself, close-on-exec. After a fork the child must make its own: an
    inherited one shares the parent's locks. Threads must exclude each other.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: str) -> None:
        self._fd = -1
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW)

    def fileno(self) -> int:
        """The open file's descriptor."""
        return self._fd

    @property
    def file_id(self) -> FileId:
        """Which file it is."""
        return FileId.of(self._fd)

    def try_lock(self, offset: int) -> bool:
        """Lock a byte; False when another open file holds it. Never waits."""
        try:
            fcntl.fcntl(self._fd, F_OFD_SETLK, lock_bytes(offset))
        except own(BlockingIOError, PermissionError):  # the kernel may say EAGAIN or EACCES
            return False
        return True

    def unlock(self, offset: int) -> None:
        """Unlock a byte; nothing happens when it was not locked."""
        fcntl.fcntl(self._fd, F_OFD_SETLK, unlock_bytes(offset))

    def close(self) -> None:
        """Give up all locks. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> ByteLocks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class FileLock:
    """An exclusive lock on a path, with a line of text in the file for whoever finds it.

    Not thread-safe. A forked child would share the lock.
    """

    #: The text is padded to so many bytes: one write replaces it whole.
    TEXT_BYTES: Final = 512

    __slots__ = ("_fd", "mode", "path")

    def __init__(self, path: str, mode: int = 0o600) -> None:
        self.path = path
        self.mode = mode
        self._fd = -1

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def fileno(self) -> int:
        """The descriptor of the file while the lock is held, else -1."""
        return self._fd

    def try_acquire(self) -> bool:
        """Take the lock, making the file if it is missing; False when another has it."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, self.mode)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(fd, self.path):
                    self._fd, fd = fd, -1
                    return True
            except own(BlockingIOError):
                return False
            finally:
                if fd >= 0:
                    os.close(fd)
            # The file was unlinked between open and lock: what was locked is nobody's any more.

    def read(self) -> str:
        """The text that its holder, or the last one, left. Needs no lock; "" without a file."""
        try:
            with open(self.path, "rb") as file:
                return file.read(self.TEXT_BYTES).decode("utf-8", "replace").strip()
        except own(FileNotFoundError):
            return ""

    def write(self, text: str) -> None:
        """Leave a text of at most 511 bytes, whole or not at all. Only while held."""
        raw = text.encode().ljust(self.TEXT_BYTES - 1) + b"\n"
        if not self.is_held or len(raw) > self.TEXT_BYTES:
            raise ValueError(f"the lock on {self.path} is not held" if not self.is_held else f"too long: {text!r}")
        os.pwrite(self._fd, raw, 0)

    def release(self, *, unlink: bool = False) -> None:
        """Give the lock up; *unlink* removes the file first, while it is still held.
        May be called twice."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if unlink and _is_at(fd, self.path):
                os.unlink(self.path)
        finally:
            os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    """Whether an open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except own(FileNotFoundError):
        return False
