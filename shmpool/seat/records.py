"""Records: what a reader knows of a cell, with the window that maps it, and of the ticket that it has taken there.

One for each cell in a process, whoever opens it (`seat.openings`); how tickets are taken and given back: `tickets`.
"""

from __future__ import annotations

import os
from sys import getrefcount

from ..errors import StaleHandle
from ..protocol.header import WANTED
from ..protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    LINK,
    MAX_NBYTES,
    MAX_TICKETS,
    NBYTES_BITS,
    ROW_WORDS,
    SHAPE_MASK,
    birth_of,
    state_of,
)
from ..protocol.names import direct_name
from ..protocol.sizing import TierKind, page_round
from ..protocol.states import State
from ..system.locks import lock_bytes
from ..system.outside import own
from ..system.segments import SegmentGone, open_segment
from .guards import Guards
from .seat import Seat
from .windows import AT_REST, READ, Piece, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, Self

    class Deferral(Protocol):
        """Where tickets wait until their readers' views are gone (`seat.deferred`)."""

        def look(self) -> None:
            """Settle those of the youngest whose views are gone."""

        def add(self, ticket: Ticket, /) -> None:
            """A ticket whose buffer was released while a view of it lives, or may live."""

        def has(self, ticket: Ticket, /) -> bool:
            """Whether it was added."""

        def tell(self) -> None:
            """Say what waits; the last step of who adds."""


class Reader(Seat):
    """A seat as its tickets and their buffers see it."""

    deferred: Deferral
    guards: Guards

    def ask_for_ticket(self, index: int, pending: int) -> None:
        """Have the broker take a ticket for this seat, if it is PENDING as this word says, and wait until it has
        looked. Raises BrokerUnavailable, and the ticket may be this seat's yet."""
        raise NotImplementedError

    def owns(self, row: int) -> bool:
        """Whether this seat is the custodian of what a row heads, or is just passing it on."""
        raise NotImplementedError

    def close_soon(self, granted: int, tail: int) -> None:
        """Have the broker close the ticket of a handle, and see to it that it does. For finalizers, too."""
        raise NotImplementedError


class Record:
    """What a reader knows of one cell: *word* and *cell* index the ledger, *shape* is the
    extent word without length and tickets, *sizes* are the bytes of its extents, *links* are
    (word, value) pairs that hold while the run is the one that *window* maps, *wanted* indexes
    the header, *left* is called when a buffer is collected unreleased; *ended* is what a buffer that is
    over knows of it."""

    __slots__ = (
        "cell", "ended", "is_direct", "left", "links", "lock", "row", "session", "shape", "sizes", "wanted", "window",
        "word",
    )  # fmt: skip

    session: Reader
    window: Window | None
    row: int
    word: int
    cell: int
    shape: int
    sizes: tuple[int, ...]
    links: tuple[tuple[int, int], ...]
    lock: bytes
    wanted: int
    is_direct: bool
    left: Callable[[], object]
    ended: Record

    @property
    def is_taken(self) -> bool:
        """Whether its ticket is this seat's."""
        return self.session.words[self.cell] & ~GENERATION_FIELD == self.session.taken

    @property
    def is_looked_through(self) -> bool:
        """Whether a view of its window lives."""
        return self.window is not None and getrefcount(self.window) != AT_REST

    @property
    def is_in_use(self) -> bool:
        """Whether its ticket is ours, or would be if the seat were not over."""
        return self.is_looked_through or (self.is_taken and not self.session.is_over)

    @property
    def is_over(self) -> bool:
        """Whether the segment or run that its window maps is nobody's any more."""
        word = self.session.words[self.word]
        return not self.is_mapped_right or state_of(word) in (State.COLD, State.FREE, State.RETURNED)

    @property
    def is_mapped_right(self) -> bool:
        """Whether its window maps the run that the row heads now."""
        words = self.session.words
        for at, value in self.links:
            if words[at] != value:
                return False
        if self.is_direct:  # the link names it; its shape only says whose it was
            return True
        return words[self.word + EXTENT] & SHAPE_MASK & ~MAX_NBYTES == self.shape


class EndedRecord(Record):
    """The same cell, without a window. Somebody may keep a buffer that is over for long, and a ticket whose record
    anybody knows is not found when an exception loses it (`seat.openings`)."""

    __slots__ = ()

    def __init__(self, record: Record) -> None:
        self.session, self.row, self.window = record.session, record.row, None
        self.word, self.cell, self.lock, self.wanted = record.word, record.cell, record.lock, record.wanted
        self.shape, self.sizes, self.links, self.is_direct = 0, (), (), False

    @property
    def ended(self) -> Record:  # type: ignore[override]
        return self


class Ticket:
    """A ticket that was taken: its record, the grant word of the publication, and the last forks
    that had ended before it was taken and begun before its views were gone: children of those
    between them may have inherited a view."""

    __slots__ = ("_fork", "_granted", "_last_fork", "_record")

    _record: Record
    _granted: int
    _fork: int
    _last_fork: int | None

    #: Its cell says DONE in the end; PENDING, if it is given back.
    is_given_back = False

    @classmethod
    def of(cls, record: Record, granted: int, fork: int = -1) -> Self:
        """The ticket of a cell whose buffer is no more, opened before or after any fork, or behind a certain one."""
        ticket = cls()
        ticket._record, ticket._granted, ticket._fork, ticket._last_fork = record, granted, fork, None
        return ticket


class GivenBack(Ticket):
    """A ticket that is open again once nobody looks through its record any more."""

    __slots__ = ()

    is_given_back = True


def make_record(session: Reader, tail: int) -> Record:
    """A record without a window: enough to close a ticket. Raises StaleHandle for a row or
    a cell that the pool does not have."""
    index = tail >> NBYTES_BITS
    row, cell = index >> 4, index & 15
    if not 0 < row < session.rows or cell >= MAX_TICKETS:
        raise StaleHandle(f"the handle names row {row}, cell {cell}, which this pool does not have")
    record = Record()
    record.session, record.row, record.window = session, row, None
    record.word, record.cell = row * ROW_WORDS, row * ROW_WORDS + FIRST_CELL + cell
    record.lock = lock_bytes(index)
    record.wanted = WANTED + session.tier_of(row).index
    record.ended = EndedRecord(record)
    return record


def map_record(record: Record, granted: int, nbytes: int) -> None:
    """Map what a handle names, before its ticket is taken: a failure here costs nothing. Raises
    StaleHandle, OSError when it cannot be mapped."""
    session, words, tier = record.session, record.session.words, record.session.tier_of(record.row)
    # First the old map goes, last the new one comes: `Pool.open`, which reads a record without the
    # lock, sees either that it is not mapped right, or no map, or the right one.
    record.window = None
    shape, is_direct = shape_of(record), tier.kind is TierKind.DIRECT
    links: tuple[tuple[int, int], ...] = ()
    sizes: tuple[int, ...]
    if is_direct:
        # The link word stays as it is until the segment is done for good, so who sees the publication
        # that the handle names sees the link of its segment, or the ticket is refused.
        link = words[record.word + LINK]
        window = _map_direct(session, record.row, birth_of(link), nbytes)
        sizes, links = (len(window),), ((record.word + LINK, link),)
    else:
        try:
            extents = ((record.row, 1),) if tier.kind is TierKind.POOLED else session.extents_of(record.row)
        except own(ValueError) as error:
            raise StaleHandle(f"the publication was reused while it was being opened: {error}") from error
        if sum(count for _, count in extents) * tier.size < nbytes:
            raise StaleHandle(f"the handle's {nbytes} bytes are more than its slot holds")
        if tier.kind is TierKind.CHUNK:
            links = tuple((at := row * ROW_WORDS + LINK, words[at]) for row, _ in extents)
        sizes = tuple(count * tier.size for _, count in extents)
        try:
            window = session.windows.make([session.piece(row, count, writable=False) for row, count in extents], READ)
        except own(SegmentGone) as error:  # a tier that nothing was opened in before
            raise StaleHandle("the handle's publication is gone: its pool was removed") from error
    if record.window is None:  # nothing is called from here on; else a finalizer has mapped it, and maybe looks through
        record.shape, record.is_direct = shape, is_direct
        record.sizes, record.links = sizes, links
        record.window = window


def _map_direct(session: Reader, row: int, birth: int, nbytes: int) -> Window:
    try:
        fd = open_segment(direct_name(session.pool_id, row, birth), writable=False)
    except own(SegmentGone) as error:
        raise StaleHandle("the handle's direct segment is gone: it was read or expired") from error
    length = os.fstat(fd).st_size  # all of it: the next object here may be longer
    if length < page_round(max(nbytes, 1)):
        raise StaleHandle(f"the direct segment is shorter than the handle's {nbytes} bytes")
    # Maybe read once, so as much as is read is faulted in, sixteen pages at a time.
    return session.windows.make([Piece(fd, 0, length)], READ, populate=False)


def shape_of(record: Record) -> int:
    """What its row says now, but for length and tickets."""
    return record.session.words[record.word + EXTENT] & SHAPE_MASK & ~MAX_NBYTES
