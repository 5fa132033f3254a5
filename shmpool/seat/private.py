"""A writable view of what was opened: copied page by page as it is written, seen by nobody else.

The map is this process's own. It keeps the reader's view that it shows, so the ticket stays
taken, and the memory as it is, until the last view of the private one is gone.
"""

from __future__ import annotations

import mmap

from ..protocol.ledger import LINK, birth_of
from ..protocol.names import direct_name
from ..protocol.sizing import TierKind, page_round
from ..system import libc
from ..system.limits import refused
from ..system.outside import own
from ..system.segments import open_segment
from .records import Ticket
from .windows import WRITE


class PrivateWindow(mmap.mmap):
    """One map; *shared* is the view that it shows where nothing was written."""

    __slots__ = ("shared",)
    shared: memoryview


def reserve(nbytes: int) -> PrivateWindow:
    """Room for a private view of *nbytes* bytes, before the ticket is taken: a failure here costs
    nothing. Raises SharedMemoryFull."""
    length = page_round(max(nbytes, 1))
    try:
        return PrivateWindow(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=WRITE)
    except own(OSError) as error:
        raise refused(error, f"cannot map {length} bytes of memory to write to") from error


def show(window: PrivateWindow, ticket: Ticket, shared: memoryview) -> memoryview:
    """The writable view of what a ticket was just taken for, in the place of *shared*, the reader's."""
    record, at, left = ticket._record, libc.address_of(window), len(window)
    session, row = record.session, record.row
    window.shared = shared
    tier = session.tier_of(row)
    if tier.kind is TierKind.DIRECT:
        birth = birth_of(session.words[record.word + LINK])
        fd = open_segment(direct_name(session.pool_id, row, birth), writable=False)
        libc.map_over(at, left, WRITE, fd, 0, private=True)
    else:
        for first, count in ((row, 1),) if tier.kind is TierKind.POOLED else session.extents_of(row):
            piece = session.piece(first, count, writable=False)
            length = min(piece.length, left)
            if length:
                libc.map_over(at, length, WRITE, piece.fd, piece.offset, private=True)
            at, left = at + length, left - length
    return memoryview(window)[: shared.nbytes]
