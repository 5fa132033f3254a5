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
from ..protocol.ledger import CHUNKS_SHIFT, LINK, TICKETS_SHIFT, birth_of
from ..protocol.names import SHM_DIR, direct_name
from ..protocol.sizing import Tier, format_bytes
from ..system import memory
from ..system.descriptors import Descriptor
from ..system.outside import own
from ..system.segments import open_segment
from .slot import Keeper, Slot
from .windows import WRITE, Piece, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from ..system.memory import MemoryGroup

    class Stock(Protocol):
        """Who keeps segments (`seat.segments`)."""

        def keeps(self, slot: DirectSlot, /) -> bool:
            """Whether one that is just published or released stays with its producer. Takes no lock that a
            finalizer could meet."""

        def watch(self) -> None:
            """Something is kept: it is to be looked at. Takes no lock."""


class DirectSlot(Slot):
    """The record of a direct segment that this client writes; *fd* is open until it is mapped,
    written or published. *claim* has one item until somebody publishes or releases: the view may not
    exist yet. One that *is_kept* by its *stock* serves its producer's next object too, as any slot. One that
    *is_passed_on* is the broker's since it was published."""

    __slots__ = ("claim", "fd", "is_kept", "is_passed_on", "stock")

    is_kept: bool
    is_passed_on: bool
    stock: Stock

    claim: list[None]

    fd: Descriptor | None

    def __init__(self, session: Keeper, tier: Tier, row: int, size: int, base: int, stock: Stock) -> None:
        super().__init__(session, tier, ((row, 1),), size, base)
        self.extent_word = 1 << TICKETS_SHIFT | session.seat << CHUNKS_SHIFT
        self.stock, self.is_kept, self.is_passed_on = stock, False, False

    def open(self) -> Descriptor:
        """The descriptor of the segment that was granted. Raises SegmentGone, ConfigError."""
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

    def reserve(self, groups: list[MemoryGroup]) -> None:
        """Reserve the pages that it has not; *groups* limit the memory of this process. Raises
        SharedMemoryFull when there are none."""
        missing = self.size - 512 * os.fstat(self.open()).st_blocks
        if missing <= 0:  # it was a spare
            return
        try:
            memory.require(missing, groups)
            os.posix_fallocate(self.open(), 0, self.size)  # Python tries it again after a signal
        except own(OSError) as error:
            if error.errno != errno.ENOSPC:
                raise
            text = error.strerror if error.strerror != os.strerror(errno.ENOSPC) else f"{SHM_DIR} is full"
            raise SharedMemoryFull(f"a direct segment of {format_bytes(self.size)}: {text}") from None

    @property
    def first_chunks(self) -> int:
        """In the place of the chunks: the publisher's seat. Custody passes at publish, and a
        broker that starts anew must still know whose publication it is."""
        return self.session.seat

    def prepare_return(self) -> None:
        """Before another is the custodian: its memory would stay with our map."""
        self.close()
        if not self.has_views:
            self.window = None

    def close(self) -> None:
        """Close its descriptor, if it is open."""
        self.fd = None
