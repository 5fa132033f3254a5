"""The bell of a queue: a FIFO that is readable when something was put, for event loops and `select`.

It lies among the pool's segments, where every member finds it, and is made by the first one that asks for its
descriptor. From then on each put writes a byte, until nobody has it open for reading. A hint, not a
level: whoever finds it readable tries to get, until there is nothing.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from ..protocol.names import ledger_name, queue_name
from ..system.descriptors import Descriptor, open_owned
from ..system.limits import refused
from ..system.outside import own

if TYPE_CHECKING:
    from .memory import Memory

_DIRECTORY: Final = "/dev/shm"


class Bell:
    """One queue's, in one process. Thread-safe."""

    __slots__ = ("_path", "_readers", "_ring", "_writer", "is_watching")

    def __init__(self, ring: Memory) -> None:
        self._ring = ring
        self._path = f"{_DIRECTORY}/{queue_name(ring.session.pool_id, ring.row, ring.generation)}"
        #: At most one, at 0.
        self._readers: dict[int, Descriptor] = {}
        self._writer: Descriptor | None = None
        #: Whether this process asked for the descriptor.
        self.is_watching = False

    def open(self) -> int:
        """The descriptor to watch. Raises ConfigError where there is none left."""
        reader = self._readers.get(0)
        if reader is None:
            self._make()
            reader = self._opened(os.O_RDONLY)
            # One to write to as well: else `select` tells for ever that the last process which rang has ended.
            self._writer = self._opened(os.O_WRONLY)
            reader = self._readers.setdefault(0, reader)  # threads may open it twice: one of them stays
            self.is_watching = True
        return reader

    def _make(self) -> None:
        status = os.stat(f"{_DIRECTORY}/{ledger_name(self._ring.session.pool_id)}")  # as who may use the pool
        try:
            os.mkfifo(self._path, 0o600)
        except own(FileExistsError):
            return
        try:
            os.chown(self._path, -1, status.st_gid)
        except own(PermissionError):
            pass  # it is our own group's, then
        os.chmod(self._path, status.st_mode & 0o666)

    def _opened(self, how: int) -> Descriptor:
        try:
            return open_owned(os.open, self._path, how | os.O_NONBLOCK | os.O_CLOEXEC)
        except own(OSError) as error:
            raise refused(error, "cannot open what says that something was put into the queue") from error

    def make_ready(self) -> bool:
        """Before anything is put that is to be rung for: whether anybody watches. Raises ConfigError without a
        descriptor to ring by."""
        try:
            if self._writer is None:
                self._writer = self._opened(os.O_WRONLY)
        except own(OSError) as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                return False
            raise
        return True

    def ring(self) -> None:
        """Something was put. Who has no descriptor to say so, though it was ready, had one: whoever watches now has
        come since, and looks by itself."""
        for _ in range(2):
            try:
                if not self.make_ready():
                    return
                os.write(self._writer, b"!")  # type: ignore[arg-type]
                return
            except own(BlockingIOError, ConfigError):
                return  # it rings
            except own(BrokenPipeError):
                self._writer = None  # its last watcher has gone, and maybe another has come

    def drain(self) -> None:
        """There is nothing to get: who watches may sleep."""
        reader = self._readers.get(0)
        if reader is None:
            return
        try:
            os.read(reader, 1 << 16)
        except own(BlockingIOError):
            pass  # another has drained it
        if self._ring.size:  # it came meanwhile
            self.ring()

    def close(self) -> None:
        """Watch no more."""
        self._readers.clear()
        self._writer = None
        self.is_watching = False
