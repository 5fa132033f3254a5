"""What the writers of streams have handed in and nobody has opened yet.

A reader that goes (it was closed, it died, the stream's handle was discarded) leaves tickets that
nobody will open. The writer closes them at its next call; for one that makes none, or that has been
closed already, the session's helper does.
"""

from __future__ import annotations

from collections import deque

from ..errors import ShmpoolError
from ..protocol.frozen import NamedTuple
from ..protocol.ledger import FIRST_CELL, GENERATION_FIELD, MAX_NBYTES, NBYTES_BITS, ROW_WORDS, STATE_SHIFT
from ..protocol.states import CellState
from ..system.outside import own
from . import tickets
from .records import Reader, make_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _weakref import ref
    from collections.abc import Callable
    from typing import Final, Protocol

    from .slot import Slot

    class Writer(Protocol):
        """Whose stream it is."""

        @property
        def closed(self) -> bool:
            """Whether it has ended."""

        def discard(self) -> None:
            """Its pool is being closed."""


_DONE: Final = CellState.DONE << STATE_SHIFT


def cell_of(tail: int) -> int:
    """The index of the cell that a handle's tail names, among the ledger's words."""
    index = tail >> NBYTES_BITS
    return (index >> 4) * ROW_WORDS + FIRST_CELL + (index & 15)


class Chunk(NamedTuple):
    """A chunk that was handed in: index of its cell, grant word, the handle's tail, what the
    cell says when its reader is done. Its slot stays with the
    stream, which leases it again when its reader is done, unless it is returned to its magazine. A direct
    segment serves once: *slot* is None. Who takes what *claim* has goes on with the slot, by a call or by a lease."""

    cell: int
    granted: int
    tail: int
    done: int
    slot: Slot | None
    claim: list[Callable[[], None]]

    def return_slot(self) -> None:
        """Return it to its magazine, now or when its reader is done. Twice is fine."""
        try:
            return_to_magazine = self.claim.pop()
        except own(IndexError):
            return
        return_to_magazine()


class Outgoing:
    """One stream, by its own ticket and those of the chunks that are on their way; *table* has it until
    all is settled. *cell* is the index of its own cell, *granted* its publication's grant word."""

    __slots__ = ("_table", "cell", "chunks", "granted", "has_lost", "is_settled", "session", "tail", "writer")

    def __init__(self, session: Reader, table: set[Outgoing], granted: int, tail: int, writer: ref[Writer]) -> None:
        self.session, self._table = session, table
        self.granted, self.tail, self.cell = granted, tail, cell_of(tail)
        #: The chunks that travel round, the oldest first.
        self.chunks: deque[Chunk] = deque()
        #: Chunks were closed that nobody had opened.
        self.has_lost = False
        self.writer = writer
        #: All that it had is given back, or in its reader's hands.
        self.is_settled = False

    def is_out(self, cell: int, granted: int) -> bool:
        """Whether a ticket can still be opened, or is open."""
        word = self.session.words[cell]
        return (word ^ granted) & GENERATION_FIELD == 0 and word & ~GENERATION_FIELD != _DONE

    @property
    def may_be_read(self) -> bool:
        """Whether somebody reads it, or may come to."""
        return not self.is_settled and self.is_out(self.cell, self.granted)

    @property
    def reader(self) -> int:
        """The seat that reads it, 0 while nobody has come."""
        word = self.session.words[self.cell]
        return word & 0xFFFF if word & ~GENERATION_FIELD != self.granted & ~GENERATION_FIELD else 0

    def take_done(self) -> Chunk | None:
        """The oldest chunk, if it has come back."""
        chunks = self.chunks
        try:
            if chunks and not self.is_out(chunks[0].cell, chunks[0].granted):
                chunk = chunks.popleft()
                if not self.is_out(chunk.cell, chunk.granted):
                    return chunk
                chunks.appendleft(chunk)  # the helper, or its owner, was faster with the one before
        except own(IndexError):
            pass
        return None

    def look(self) -> None:
        """For the helper: see to what a reader has left; what has come back is for who waits for memory."""
        if not self.may_be_read:
            self.settle()
            return
        chunks = self.chunks
        try:
            slot = chunks[0].slot if chunks else None
        except own(IndexError):
            return
        if slot is not None and self.session.header[slot.wanted]:
            while (chunk := self.take_done()) is not None:
                chunk.return_slot()

    def return_all(self) -> None:
        """Return what has come back and what will: the stream leases no more."""
        for chunk in self.chunks.copy():
            chunk.return_slot()

    def withdraw(self) -> None:
        """Take back what nobody has opened, the stream's own ticket first."""
        self._close(self.cell, self.granted, self.tail)
        self.settle()

    def settle(self) -> None:
        """Close the tickets that nobody will open, and know of the stream no more."""
        for chunk in self.chunks.copy():
            self.has_lost |= self._close(chunk.cell, chunk.granted, chunk.tail)
            chunk.return_slot()
        self.is_settled = True
        self._table.discard(self)

    def _close(self, cell: int, granted: int, tail: int) -> bool:
        """Whether there was a ticket to close."""
        session = self.session
        if session.words[cell] != granted or session.is_over:
            return False
        record = make_record(session, tail)
        try:
            tickets.discard(record, granted, tail & MAX_NBYTES)
        except own(ShmpoolError):  # it was opened just now
            return False
        tickets.ring(record, granted)
        return True
