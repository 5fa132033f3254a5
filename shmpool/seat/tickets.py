"""Tickets: the one place where two may race, and so the one with a lock, or a swap.

The pool says for its life how they are taken. Under a byte lock of the tickets' file (``F_OFD_SETLK``):
the kernel frees a dead holder's. Under it the opener requires the handle's grant word in row and
cell, and stores TAKEN. Threads of one process share the descriptor, and so exclude each
other by the session's gate: at most one byte is locked through it at a time.

Or by compare-and-swap of the cell, from the handle's grant word to TAKEN: a cell that is PENDING holds its row as it
is, so what was looked at before the swap is still so behind it. Nothing is held in between, so nobody is waited
for, and who dies has taken the ticket or has not. A process that cannot swap has the broker do it (`_ask`), and looks
at the word, not at the answer. The gate stays: it tells whose a ticket of this seat is (`Openings`).
"""

from __future__ import annotations

import os
import time
from fcntl import fcntl
from sys import getrefcount

from ..errors import (
    HandleUsed,
    PoolClosed,
    ShmpoolError,
    StaleHandle,
)
from ..protocol.header import WANTED
from ..protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    LINK,
    MAX_NBYTES,
    MAX_TICKETS,
    NBYTES_BITS,
    QUEUED_CELL,
    ROW_WORDS,
    SEAT_MASK,
    SHAPE_MASK,
    STATE_SHIFT,
    birth_of,
    chunks_of,
    generation_of,
    is_shared,
    nbytes_of,
    queued_word,
    seat_of,
    state_of,
    tickets_of,
)
from ..protocol.names import direct_name, tickets_path
from ..protocol.sizing import TierKind, page_round
from ..protocol.states import CellState, State
from ..system.descriptors import Closed, Descriptor
from ..system.locks import (
    F_OFD_SETLK,
    UNLOCK_ALL,
    FileId,
    lock_bytes,
    open_beside,
)
from ..system.segments import open_segment
from .guards import Guards
from .seat import Seat
from .windows import AT_REST, READ, Piece, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol, Self

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


#: A ticket that somebody else is opening just now is waited for so long.
BUSY_SECONDS: Final = 0.01
_RETRY_SECONDS: Final = 0.0002
_DONE: Final = CellState.DONE << STATE_SHIFT


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
    the header, *left* is called when a buffer is collected unreleased."""

    __slots__ = (
        "cell", "is_direct", "left", "links", "lock", "row", "session", "shape", "sizes", "wanted", "window", "word",
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
    def of(cls, record: Record, granted: int) -> Self:
        """The ticket of a cell whose buffer is no more, opened before or after any fork."""
        ticket = cls()
        ticket._record, ticket._granted, ticket._fork, ticket._last_fork = record, granted, -1, None
        return ticket


class GivenBack(Ticket):
    """A ticket that is open again once nobody looks through its record any more."""

    __slots__ = ()

    is_given_back = True


def make_ticket(session: Reader, tail: int) -> Record:
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
        except ValueError as error:
            raise StaleHandle(f"the publication was reused while it was being opened: {error}") from error
        if sum(count for _, count in extents) * tier.size < nbytes:
            raise StaleHandle(f"the handle's {nbytes} bytes are more than its slot holds")
        if tier.kind is TierKind.CHUNK:
            links = tuple((at := row * ROW_WORDS + LINK, words[at]) for row, _ in extents)
        sizes = tuple(count * tier.size for _, count in extents)
        window = session.windows.make([session.piece(row, count, writable=False) for row, count in extents], READ)
    if record.window is None:  # nothing is called from here on; else a finalizer has mapped it, and maybe looks through
        record.shape, record.is_direct = shape, is_direct
        record.sizes, record.links = sizes, links
        record.window = window


def _map_direct(session: Reader, row: int, birth: int, nbytes: int) -> Window:
    try:
        fd = open_segment(direct_name(session.pool_id, row, birth), writable=False)
    except FileNotFoundError as error:
        raise StaleHandle("the handle's direct segment is gone: it was read or expired") from error
    length = os.fstat(fd).st_size  # all of it: the next object here may be longer
    if length < page_round(max(nbytes, 1)):
        raise StaleHandle(f"the direct segment is shorter than the handle's {nbytes} bytes")
    # Maybe read once, so as much as is read is faulted in, sixteen pages at a time.
    return session.windows.make([Piece(fd, 0, length)], READ, populate=False)


def shape_of(record: Record) -> int:
    """What its row says now, but for length and tickets."""
    return record.session.words[record.word + EXTENT] & SHAPE_MASK & ~MAX_NBYTES


def take(record: Record, granted: int, nbytes: int) -> None:
    """Take the ticket, or raise HandleUsed or StaleHandle. For what `Pool.open` does not
    do in place: a changed custodian, a run, a busy lock, and all refusals."""
    if record.session.asks_for_tickets:
        _ask(record, granted, nbytes, record.session.taken)
    else:
        _change(record, granted, nbytes, record.session.taken)


def discard(record: Record, granted: int, nbytes: int, *, waits: bool = False) -> None:
    """Close a ticket that nobody will open: the same move, with DONE. Where the broker makes it, it is made soon, and
    somebody may be faster yet; who *waits* for the broker knows that nobody was."""
    session = record.session
    if not session.asks_for_tickets:
        _change(record, granted, nbytes, _DONE)
    elif waits:
        _ask(record, granted, nbytes, _DONE)
    elif explanation := why_not(session, record, granted, nbytes):
        raise explanation
    else:
        session.close_soon(granted, record.cell - FIRST_CELL << NBYTES_BITS | nbytes)


def discard_handle(session: Reader, granted: int, tail: int, *, waits: bool = False) -> None:
    """Discard the ticket of a handle of this pool, and ring where somebody has to look."""
    record = make_ticket(session, tail)
    discard(record, granted, tail & MAX_NBYTES, waits=waits)
    if session.words[record.word] != granted or session.header[record.wanted] or granted & SEAT_MASK == 0:
        session.ring(record.row)


def pending_word(session: Reader, granted: int, tail: int) -> int:
    """What the ticket of a handle says that can be taken. Raises why it cannot."""
    return _pending(session, make_ticket(session, tail), granted, tail & MAX_NBYTES)


def discard_unopened(session: Reader) -> int:
    """Discard the tickets that nobody has opened of all that this seat has published: what it is the
    custodian of, and its direct segments, whose custodian is the broker. Returns how many."""
    words, rows, direct = session.words, session.rows, session.tiers[-1]
    count = 0
    for row, granted in enumerate(words[: rows * ROW_WORDS : ROW_WORDS].tolist()):
        if state_of(granted) != State.PUBLISHED:
            continue
        extent = words[row * ROW_WORDS + EXTENT]
        is_returned = row >= direct.base and seat_of(granted) == 0 and chunks_of(extent) == session.seat
        if is_shared(extent) or not (seat_of(granted) == session.seat or is_returned):
            continue
        if words[row * ROW_WORDS + QUEUED_CELL] == queued_word(generation_of(granted)):
            continue  # it is the queue's
        for cell in range(min(tickets_of(extent), MAX_TICKETS)):
            pending = words[row * ROW_WORDS + FIRST_CELL + cell]
            if state_of(pending) == State.PUBLISHED and generation_of(pending) == generation_of(granted):
                try:
                    tail = (row << 4 | cell) << NBYTES_BITS | nbytes_of(extent)
                    discard_handle(session, pending, tail, waits=True)
                    count += 1
                except (HandleUsed, StaleHandle):  # somebody was faster
                    pass
    return count


def is_open(session: Reader, granted: int, index: int) -> bool:
    """Whether a ticket of this publication is taken just now."""
    words, row = session.words, index >> 4
    cell = words[row * ROW_WORDS + FIRST_CELL + (index & 15)]
    is_same = generation_of(cell) == generation_of(words[row * ROW_WORDS]) == generation_of(granted)
    return is_same and state_of(cell) == CellState.TAKEN


def is_done(session: Reader, granted: int, index: int) -> bool:
    """Whether a ticket of this publication will not be open any more, nor be opened."""
    words, row = session.words, index >> 4
    cell = words[row * ROW_WORDS + FIRST_CELL + (index & 15)]
    is_same = generation_of(cell) == generation_of(words[row * ROW_WORDS]) == generation_of(granted)
    return not is_same or state_of(cell) == CellState.DONE


def release(ticket: Ticket) -> bool:
    """Store DONE in a cell that is open here and through which nobody looks any more (PENDING, if it is
    given back), and ring where somebody has to look. Once: who comes second finds it done. False, and nothing is
    done, in the middle of what this thread does behind the gate: the next who looks does it."""
    record, granted = ticket._record, ticket._granted
    session, words = record.session, record.session.words
    taken = granted & GENERATION_FIELD | session.taken
    if session.is_nested:
        return False
    with session.ticket_gate, session.gate_use:
        if session.barrier:
            session.barrier()
        if words[record.cell] != taken:
            return True
        words[record.cell] = granted if ticket.is_given_back else granted & GENERATION_FIELD | _DONE
    if words[record.word] != granted or session.header[record.wanted]:
        ring(record, granted)
    return True


def ring(record: Record, granted: int) -> None:
    """After DONE: have the broker look, soon if it is the custodian, at once if somebody waits.
    A row of another generation was reaped already."""
    session = record.session
    if session.header[record.wanted]:
        session.ring(record.row)
    elif session.words[record.word] == granted & ~SEAT_MASK:
        session.ring_soon(record.row)


def _change(record: Record, granted: int, nbytes: int, mark: int) -> None:
    session, wanted = record.session, granted & GENERATION_FIELD | mark
    if session.swap is None:
        if session.is_nested:
            _locked_within(record, granted, nbytes, mark)
        else:
            _locked(record, granted, nbytes, mark)
        return
    with session.ticket_gate, session.gate_use:
        while True:  # another turn only where the ticket was taken and given back in between
            pending = _pending(session, record, granted, nbytes)
            if session.swap(record.cell, pending, wanted):
                return


def _ask(record: Record, granted: int, nbytes: int, mark: int) -> None:
    """Have the broker take a ticket, and mark it. What it has done, the word says; one thread at a time asks for a
    ticket, so one that is this seat's then is the thread's. The seat does not end before it is marked."""
    session, cell, taken = record.session, record.cell, granted & GENERATION_FIELD | record.session.taken
    with session.ticket_gate:  # to ask does no harm in the middle of anything: so it does not say that it is here
        if cell in session.asked_for:
            raise HandleUsed("the handle's ticket is being opened by another thread")
        session.asked_for.add(cell)
    try:
        pending = _pending(session, record, granted, nbytes)  # behind the claim: what is TAKEN from here on is ours
        while session.words[cell] != taken:
            # Another turn only where it was taken and given back in between.
            session.ask_for_ticket(cell - FIRST_CELL, pending)
            if session.words[cell] != taken:
                pending = _pending(session, record, granted, nbytes)
        if mark != session.taken:
            session.words[cell] = granted & GENERATION_FIELD | mark
    finally:
        session.asked_for.discard(cell)


def _pending(session: Reader, record: Record, granted: int, nbytes: int) -> int:
    """What the cell says of a ticket that can be taken. Raises why it cannot."""
    if session.is_over:
        raise PoolClosed("the pool was closed, or its broker came back with another one")
    if explanation := why_not(session, record, granted, nbytes):
        raise explanation
    cell = session.words[record.cell]
    return cell if cell == granted & ~SEAT_MASK else granted


def _locked(record: Record, granted: int, nbytes: int, mark: int) -> None:
    session = record.session
    with session.ticket_gate, session.gate_use:
        try:
            _wait_for_lock(session.tickets_fd, record)
            if explanation := why_not(session, record, granted, nbytes):
                raise explanation
            session.words[record.cell] = granted & GENERATION_FIELD | mark
        finally:  # all of this descriptor's: one byte, since we have the gate
            fcntl(session.tickets_fd, F_OFD_SETLK, UNLOCK_ALL)


def _locked_within(record: Record, granted: int, nbytes: int, mark: int) -> None:
    """In the middle of what this thread does behind the gate: the interrupted call may have a byte locked, so this one
    locks through an open file of its own, and the kernel keeps the two apart as it does processes. The seat does not
    end meanwhile: who ends it wants the gate."""
    session = record.session
    if session.is_over:
        raise PoolClosed("the pool was closed, or its broker came back with another one")
    fd = open_beside(session.address, tickets_path, FileId.of(session.tickets_fd), session.pool_id)  # type: ignore[arg-type]
    _wait_for_lock(fd, record)  # it goes with the descriptor
    if explanation := why_not(session, record, granted, nbytes):
        raise explanation
    session.words[record.cell] = granted & GENERATION_FIELD | mark
    fcntl(fd, F_OFD_SETLK, UNLOCK_ALL)


def _wait_for_lock(fd: Descriptor | Closed, record: Record) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            fcntl(fd, F_OFD_SETLK, record.lock)
            return
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                raise HandleUsed("the handle's ticket is being opened elsewhere") from error
        time.sleep(_RETRY_SECONDS)


def why_not(session: Reader, record: Record, granted: int, nbytes: int) -> ShmpoolError | None:
    """Why this ticket cannot be taken, None if it can. Certain only under the lock."""
    words = session.words
    row, cell, extent = words[record.word], words[record.cell], words[record.word + EXTENT]
    if state_of(granted) != State.PUBLISHED or not _is_same_publication(row, granted):
        return StaleHandle(
            f"the handle is stale: row {record.row} is at generation {generation_of(row)}"
            f" ({_state_name(row)}), the handle names generation {generation_of(granted)}"
        )
    # A cell of the broker's own seat: as the custodian it has given the ticket of a dead reader back.
    if cell == granted or (cell == granted & ~SEAT_MASK and row == cell and not _is_direct(record)):
        if nbytes != nbytes_of(extent):
            return StaleHandle(f"the handle says {nbytes} bytes, the publication has {nbytes_of(extent)}")
        return None
    if generation_of(cell) == generation_of(granted) and state_of(cell) in (CellState.TAKEN, CellState.DONE):
        what = "is open" if state_of(cell) == CellState.TAKEN else "was opened and released, discarded or expired"
        return HandleUsed(f"the handle was used: its ticket {what}")
    return StaleHandle("the handle names a ticket that its publication does not have")


def _is_direct(record: Record) -> bool:
    """A direct segment is the broker's from the first."""
    return record.session.tier_of(record.row).kind is TierKind.DIRECT


def _is_same_publication(word: int, granted: int) -> bool:
    """Equal but for a custodian that may have become the broker."""
    return word == granted or (word == granted & ~0xFFFF and seat_of(word) == 0)


def _state_name(word: int) -> str:
    try:
        return State(state_of(word)).name
    except ValueError:
        return f"state {state_of(word)}"
