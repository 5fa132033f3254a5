"""Direct segments: very large objects get a segment of their own.

The broker names and registers it and counts it towards the cap; its pages are reserved here,
when it is leased, by the process that writes it and is charged for them. A host without room
answers with ENOSPC, never with SIGBUS, and a lease waits for room until its deadline
(`seat.supply`). What cannot be reserved is nobody's: no lease fails later. It is used once, unless
its producer keeps it (`seat.segments`).
"""

from __future__ import annotations

import errno
import os

from ..errors import SharedMemoryFull
from ..protocol.ledger import LINK, birth_of
from ..protocol.names import direct_name
from ..protocol.sizing import format_bytes
from ..system import memory
from ..system.descriptors import Descriptor
from ..system.segments import open_segment
from .magazine import Slot
from .windows import WRITE, Piece, Window


class DirectSlot(Slot):
    """The record of a direct segment that this client writes; *fd* is open until it is mapped,
    written or published. *claim* has one item until somebody publishes or releases: the view may not
    exist yet. One that *is_kept* serves its producer's next object too."""

    __slots__ = ("claim", "fd", "is_kept")

    is_kept: bool

    claim: list[None]

    fd: Descriptor | None

    def open(self) -> Descriptor:
        """The descriptor of the segment that was granted. Raises StaleHandle, ConfigError."""
        fd: Descriptor | None = getattr(self, "fd", None)
        if fd is None:
            name = direct_name(self.session.pool_id, self.row, birth_of(self.session.words[self.word + LINK]))
            fd = self.fd = open_segment(name, writable=True)
        return fd

    def map(self, protection: int = WRITE) -> Window:
        """The window over it, made once. Raises SharedMemoryFull when the kernel has no map."""
        if self.window is None:
            self.window = self.session.windows.make([Piece(self.open(), 0, self.size)], protection)
            self.close()
        return self.window

    def reserve(self, groups: list[memory.MemoryGroup]) -> None:
        """Reserve the pages that it has not; *groups* limit the memory of this process. Raises
        SharedMemoryFull when there are none."""
        missing = self.size - 512 * os.fstat(self.open()).st_blocks
        if missing <= 0:  # it was a spare
            return
        try:
            memory.require(missing, groups)
            os.posix_fallocate(self.open(), 0, self.size)  # Python tries it again after a signal
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = error.strerror if error.strerror != os.strerror(errno.ENOSPC) else f"{memory.SHM_DIR} is full"
            raise SharedMemoryFull(f"a direct segment of {format_bytes(self.size)}: {text}") from None

    @property
    def first_chunks(self) -> int:
        """In the place of the chunks: the publisher's seat. Custody passes at publish, and a
        broker that starts anew must still know whose publication it is."""
        return self.session.seat

    def close(self) -> None:
        """Close its descriptor, if it is open."""
        self.fd = None
