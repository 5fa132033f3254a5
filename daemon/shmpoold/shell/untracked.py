"""`SharedMemory` that no resource tracker knows of. The one place with that workaround.

A tracked block is unlinked when any process that had to do with it exits, the broker
included: nothing would be left for the next broker to adopt. So this class opens the block
itself and never registers it; it does not patch the tracker, which is process-global and
racy. Nor does it use ``track=False``, which Python 3.13 has: that follows symbolic links, and
keeps the descriptor of what it fails to map until it is collected.
"""

from __future__ import annotations

import mmap
import os
import stat
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING

from shmpool.protocol.names import SHM_DIR


class UntrackedSharedMemory(SharedMemory):
    """A named block that lives until somebody unlinks it.

    Made with *nbytes* (a name in use is FileExistsError: never attached to by accident),
    or attached to without. Made with mode 0600; widening it is the owner's business.
    The pages are untouched and not reserved. A failure leaves nothing behind that was
    not there before.
    """

    #: What `close` and `unlink` of Python 3.13 look at.
    _track = False

    if TYPE_CHECKING:
        _name: str
        _fd: int
        _mmap: mmap.mmap | None
        _buf: memoryview | None
        _size: int

    def __init__(self, name: str, nbytes: int | None = None) -> None:
        self._may_unlink = nbytes is not None  # not what it fails to map, if it only attached to it
        create = 0 if nbytes is None else os.O_CREAT | os.O_EXCL
        self._fd = os.open(f"{SHM_DIR}/{name}", create | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._name = "/" + name
        try:
            if nbytes is not None:
                os.ftruncate(self._fd, nbytes)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
            self._buf = memoryview(self._mmap)
        except BaseException:
            self.close()
            self.unlink()
            raise
        self._may_unlink = True

    def fileno(self) -> int:
        """The block's descriptor."""
        return self._fd

    def words(self) -> memoryview[int]:
        """The block as 64-bit words, to be released before `close`."""
        assert self._buf is not None
        return self._buf.cast("Q")

    def secure(self, mode: int, gid: int | None) -> None:
        """Set owner group and mode exactly, whatever the umask is."""
        if gid is not None:
            os.fchown(self._fd, -1, gid)
        os.fchmod(self._fd, mode)

    def is_own(self, nbytes: int) -> bool:
        """Whether it is a plain file of this user's and has exactly *nbytes* bytes."""
        return is_own(os.fstat(self._fd), nbytes)

    def cool(self, offset: int, nbytes: int) -> None:
        """Give the pages of a range back to the host; they read as zeros from then on."""
        assert self._mmap is not None
        self._mmap.madvise(mmap.MADV_REMOVE, offset, nbytes)

    def unlink(self) -> None:
        """Remove the name; fine when it is missing already."""
        if self._may_unlink:
            unlink_segment(self._name.lstrip("/"))


def is_own(status: os.stat_result, nbytes: int) -> bool:
    """Whether it is of a plain file of this user's with exactly *nbytes* bytes."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == nbytes


def unlink_segment(name: str) -> bool:
    """Remove a segment by its name; False when there was none."""
    try:
        os.unlink(f"{SHM_DIR}/{name}")
    except FileNotFoundError:
        return False
    return True
