"""A lock that a program holds until it ends: by exit, by death or by exec.

A pidfd tells the end of a process; a process that calls exec lives on as another program,
and what the old one had started is nobody's. The lock belongs to an open file, and a mapped
page keeps that file open whatever becomes of descriptors: it goes with the program's memory.
The page is left out of forked children, so that none of them holds the lock on.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from ..protocol.names import SHM_DIR
from . import libc

_MADV_DONTFORK: Final = mmap.MADV_DONTFORK


class Lifeline:
    """Held from its making on. *fd* is for whoever waits for the end, and is closed by the caller:
    an open file of its own, inherited by nobody who is not meant to. Raises OSError."""

    def __init__(self) -> None:
        path = f"{SHM_DIR}/shmpool-life-{os.urandom(8).hex()}"
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                self._owner = os.getpid()
                self._address = libc.map_anywhere(mmap.PAGESIZE, libc.PROT_NONE, held)
                libc.advise(self._address, mmap.PAGESIZE, _MADV_DONTFORK)
            except BaseException:
                os.close(self.fd)
                raise
        finally:
            os.close(held)
            os.unlink(path)

    def cut(self) -> None:
        """Let go. Nothing happens the second time, or in a forked child, which has no such page."""
        address, self._address = self._address, 0
        if address and os.getpid() == self._owner:
            libc.unmap(address, mmap.PAGESIZE)


def wait(fd: int) -> None:
    """Return when the program that holds the lock has ended. Blocks the calling thread."""
    fcntl.flock(fd, fcntl.LOCK_EX)
