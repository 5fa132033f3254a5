"""What an exception left behind: slots that this client owns and that nothing knows any more.

A signal handler may raise between any two instructions of a lease, a publish or an open
(KeyboardInterrupt does). The slot is then owned by the session alone: no magazine has it, no
lease, no thread that is just working with it. Reference counts tell that for certain: nobody
can come by a slot that only the session knows. Lost tickets: `seat.openings`.
"""

from __future__ import annotations

from ..errors import ShmpoolError
from ..protocol.ledger import (
    EXTENT,
    NBYTES_BITS,
    ROW_WORDS,
    is_shared,
    nbytes_of,
    seat_of,
    state_of,
    tickets_of,
)
from ..protocol.states import State
from ..system.outside import own
from . import tickets
from .records import Reader, make_record
from .references import KNOWN_TO_NOBODY, references
from .slot import Slot


def left_slots(session: Reader, owned: dict[int, Slot]) -> list[Slot]:
    """The slots to be given back. Those of which the broker is the custodian already are
    settled here: their handles were never delivered. A publication whose handles may have been
    goes on: the exception came when it was looked at, or was to be handed over."""
    found = []
    for row in list(owned):
        if references(owned, row) == KNOWN_TO_NOBODY:
            slot = owned[row]  # nobody but us can come by it
            word = session.words[slot.word]
            if slot.has_views or session.guards.awaits_copy(row):
                continue  # its user has one, or a child; when that is gone it is found again
            if state_of(word) == State.PUBLISHED and seat_of(word) == 0:
                owned.pop(row)
                _discard(session, slot.row, word)
            elif word == slot.base | slot.session.published and slot.is_noted:
                if slot.magazine is not None:
                    slot.magazine.published.append(slot)
                else:
                    slot.session.return_soon(slot, State.PUBLISHED)
            else:
                found.append(slot)
    return found


def _discard(session: Reader, row: int, granted: int) -> None:
    """Close the tickets of a publication whose handles nobody got. A shared one has none, and is discarded where
    it was made."""
    extent = session.words[row * ROW_WORDS + EXTENT]
    if is_shared(extent):
        return
    for cell in range(tickets_of(extent)):
        try:
            ticket = make_record(session, (row << 4 | cell) << NBYTES_BITS)
            tickets.discard(ticket, granted, nbytes_of(extent))
        except own(ShmpoolError):
            pass
    session.ring(row)
