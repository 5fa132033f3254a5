"""The verbs of streams: leases and buffers as files, streams to other processes. What they need is
imported when they are first used."""

from __future__ import annotations

from ..pool import BasePool
from ..system import frames
from ..system.importing import door, explained

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..protocol.handle import Handle
    from .files import BufferFile, LeaseFile
    from .reading import StreamReader
    from .writing import StreamWriter


class StreamVerbs(BasePool):
    """A pool of files."""

    def open_writer(self, nbytes: int | None = None, *, timeout: float | None = None) -> LeaseFile:
        """A lease of *nbytes* bytes as a binary file (`io.BufferedIOBase`); None: it grows. Leaving
        the ``with`` block publishes what was written, and its ``handle`` names it; an exception
        gives it back. Raises like `lease`."""
        with door, explained:
            from .files import LeaseFile

        try:
            return LeaseFile(self, nbytes, timeout)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def open_reader(
        self, handle: Handle | bytes | bytearray | memoryview, *, timeout: float | None = None
    ) -> BufferFile | StreamReader:
        """A published buffer as a binary file (`io.BufferedIOBase`), given back when it is closed; of
        the handle of a `stream` its reading end, whose calls wait for the writer, *timeout* seconds
        each at the longest. Raises like `open`."""
        with door, explained:
            from .reading import open_reader

        try:
            return open_reader(self, handle, timeout)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise

    def stream(self, nbytes: int | None = None, *, timeout: float | None = None) -> StreamWriter:
        """A stream to another process as a binary file to write: its ``handle`` may be opened, by
        `open_reader`, while it is written. A few chunks travel round, whatever passes through, and the
        writer waits while the reader is behind, *timeout* seconds in each call at the longest (None: as
        long as somebody may read). *nbytes* are announced, and must be written then. Raises like `lease`.
        """
        with door, explained:
            from .writing import StreamWriter

        try:
            return StreamWriter(self, nbytes, timeout)
        except BaseException as error:
            frames.clear(error)  # somebody may keep it
            raise
