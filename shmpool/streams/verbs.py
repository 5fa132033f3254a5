"""The verbs of streams: leases and buffers as files. What they need is imported when they are first
used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..pool import BasePool

if TYPE_CHECKING:
    from ..protocol.handle import Handle
    from .files import BufferFile, LeaseFile


class StreamVerbs(BasePool):
    """A pool of files."""

    def open_writer(self, nbytes: int | None = None, *, timeout: float | None = None) -> LeaseFile:
        """A lease of *nbytes* bytes as a binary file (`io.BufferedIOBase`); None: it grows. Leaving
        the ``with`` block publishes what was written, and its ``handle`` names it; an exception
        gives it back. Raises like `lease`."""
        from .files import LeaseFile

        return LeaseFile(self, nbytes, timeout)

    def open_reader(self, handle: Handle | bytes | bytearray | memoryview) -> BufferFile:
        """A published buffer as a binary file (`io.BufferedIOBase`), given back when it is closed.
        Raises like `open`."""
        from .files import BufferFile

        return BufferFile(self.open(handle))
