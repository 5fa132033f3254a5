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

import time
from fcntl import fcntl

from ..errors import (
    HandleUsed,
    PoolClosed,
    ShmpoolError,
    StaleHandle,
)
from ..protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    MAX_NBYTES,
    MAX_TICKETS,
    NBYTES_BITS,
    QUEUED_CELL,
    ROW_WORDS,
    SEAT_MASK,
    STATE_SHIFT,
    chunks_of,
    generation_of,
    is_shared,
    nbytes_of,
    queued_word,
    seat_of,
    state_of,
    tickets_of,
)
from ..protocol.names import tickets_path
from ..protocol.sizing import TierKind
from ..protocol.states import CellState, State
from ..system.descriptors import Closed, Descriptor
from ..system.locks import (
    F_OFD_SETLK,
    UNLOCK_ALL,
    FileId,
    open_beside,
)
from ..system.outside import own
from .records import Reader, Record, Ticket, make_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: So long a ticket's lock is waited for that somebody else is opening just now; where it is still to be had, so long:
#: who has the lock may be stopped while he opens, or closes, what was published there before.
BUSY_SECONDS: Final = 0.01
STOPPED_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.0002
_DONE: Final = CellState.DONE << STATE_SHIFT


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
    else:
        check(session, record, granted, nbytes)
        session.close_soon(granted, record.cell - FIRST_CELL << NBYTES_BITS | nbytes)


def discard_handle(session: Reader, granted: int, tail: int, *, waits: bool = False) -> None:
    """Discard the ticket of a handle of this pool, and ring where somebody has to look."""
    record = make_record(session, tail)
    discard(record, granted, tail & MAX_NBYTES, waits=waits)
    if session.words[record.word] != granted or session.header[record.wanted] or granted & SEAT_MASK == 0:
        session.ring(record.row)


def pending_word(session: Reader, granted: int, tail: int) -> int:
    """What the ticket of a handle says that can be taken. Raises why it cannot."""
    return _pending(session, make_record(session, tail), granted, tail & MAX_NBYTES)


def is_pending(session: Reader, granted: int, tail: int) -> bool:
    """Whether the ticket of a handle can be taken: what was refused all the same was only busy."""
    try:
        pending_word(session, granted, tail)
    except own(ShmpoolError):
        return False
    return True


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
                except own(HandleUsed, StaleHandle):  # somebody was faster
                    pass
    return count


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
    session = record.session
    if session.swap is None:
        if session.is_nested:
            _locked_within(record, granted, nbytes, mark)
        else:
            _locked(record, granted, nbytes, mark)
    elif session.is_nested:  # the gate stays in use until the interrupted call is done: else the seat might end before
        _swapped(record, granted, nbytes, mark)
    else:
        with session.ticket_gate, session.gate_use:
            _swapped(record, granted, nbytes, mark)


def _swapped(record: Record, granted: int, nbytes: int, mark: int) -> None:
    """For who has the gate."""
    session, swap = record.session, record.session.swap
    assert swap is not None
    while True:  # another turn only where the ticket was taken and given back in between
        pending = _pending(session, record, granted, nbytes)
        if swap(record.cell, pending, granted & GENERATION_FIELD | mark):
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
        while True:
            if session.words[cell] == taken:
                break
            # Another turn only where it was taken and given back in between.
            session.ask_for_ticket(cell - FIRST_CELL, pending)
            if session.words[cell] == taken:
                continue
            pending = _pending(session, record, granted, nbytes)
        if mark != session.taken:
            session.words[cell] = granted & GENERATION_FIELD | mark
    finally:
        session.asked_for.discard(cell)


def _pending(session: Reader, record: Record, granted: int, nbytes: int) -> int:
    """What the cell says of a ticket that can be taken. Raises why it cannot."""
    if session.is_over:
        raise PoolClosed("the pool was closed, or its broker came back with another one")
    check(session, record, granted, nbytes)
    cell = session.words[record.cell]
    return cell if cell == granted & ~SEAT_MASK else granted


def _locked(record: Record, granted: int, nbytes: int, mark: int) -> None:
    session = record.session
    with session.ticket_gate, session.gate_use:
        try:
            _under_lock(session.tickets_fd, record, granted, nbytes, mark)
        finally:
            session.settled = -1


def _locked_within(record: Record, granted: int, nbytes: int, mark: int) -> None:
    """In the middle of what this thread does behind the gate: the interrupted call may have a byte locked, so this one
    locks through an open file of its own, and the kernel keeps the two apart as it does processes. Where nothing is
    left of that call but the lock, its row may have been leased and published anew, so its byte is wanted here: it
    is locked once more through the same file. The seat does not end meanwhile: who ends it wants the gate."""
    session = record.session
    if session.is_over:
        raise PoolClosed("the pool was closed, or its broker came back with another one")
    fd = session.tickets_fd
    if session.settled != record.cell:
        fd = open_beside(session.address, tickets_path, FileId.of(fd), session.pool_id)  # type: ignore[arg-type]
    _under_lock(fd, record, granted, nbytes, mark)


def _under_lock(fd: Descriptor | Closed, record: Record, granted: int, nbytes: int, mark: int) -> None:
    session = record.session
    try:
        _wait_for_lock(fd, record, granted, nbytes)
        check(session, record, granted, nbytes)
        settled = record.cell if fd is session.tickets_fd else session.settled
        session.words[record.cell], session.settled = granted & GENERATION_FIELD | mark, settled  # in one step
    finally:  # all of this descriptor's, which are one byte. (What is raised keeps this frame, and with it that.)
        fcntl(fd, F_OFD_SETLK, UNLOCK_ALL)


def _wait_for_lock(fd: Descriptor | Closed, record: Record, granted: int, nbytes: int) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl(fd, F_OFD_SETLK, record.lock)
            return
        except own(BlockingIOError, PermissionError) as error:
            waited = time.monotonic() - began
            if waited > STOPPED_SECONDS:
                raise HandleUsed("the handle's ticket is being opened elsewhere") from error
        if waited > BUSY_SECONDS:
            check(record.session, record, granted, nbytes)
        time.sleep(_RETRY_SECONDS)


def check(session: Reader, record: Record, granted: int, nbytes: int) -> None:
    """Raise why this ticket cannot be taken, if so. Certain only under the lock."""
    explanation = why_not(session, record, granted, nbytes)
    if explanation is not None:
        try:
            raise explanation
        finally:
            del explanation  # or it and this frame keep one another, and with them the views of all who have called


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
    except own(ValueError):
        return f"state {state_of(word)}"
