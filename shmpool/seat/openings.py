"""What a seat has open for reading: one **record** for each cell, whoever opens it.

A record is what this process knows of a cell, with the window that maps it; the cell's word
says whether it is open. Records are made, mapped anew and forgotten under a lock, and one that
is in use is never forgotten. A cell that is ours is released by its buffer. When nobody has the
buffer any more (it was collected, or an exception came while it was made or released) its
finalizer says so to `left`: a C callable, since what a signal handler raises in Python code
that a finalizer runs is thrown away. Plain code looks there (`seat.deferred`).
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from functools import partial
from sys import getrefcount

from ..protocol.ledger import EXTENT, GENERATION_FIELD, MAX_NBYTES, NBYTES_BITS, nbytes_of
from ..system.finalizers import ending
from ..system.here import HERE, OURS
from ..system.outside import own
from . import records, tickets
from .records import Reader, Record, Ticket
from .references import KNOWN_TO_NOBODY, KNOWN_TO_ONE, references

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

#: Idle records that are kept: each has a window, a map of the kernel's, of which a process has 65,530.
MAX_RECORDS: Final = 8192
#: So many are forgotten at once, and as many more may come before the next search.
FORGOTTEN_AT_ONCE: Final = 256


class Openings:
    """The records of one session. Thread-safe; `Pool.open` reads the table without the lock."""

    def __init__(self, session: Reader) -> None:
        self._session = session
        #: By row * 16 + cell.
        self.records: dict[int, Record] = {}
        #: Reentrant: a finalizer of the user's that runs while we map may open something.
        self.lock = threading.RLock()
        self._bound = MAX_RECORDS
        #: The records that map a direct segment.
        self._segments: set[int] = set()
        #: Cells of which a buffer was collected unreleased.
        self.left: deque[int] = deque()

    def find(self, granted: int, tail: int) -> Record:
        """The record of what a handle names, mapped. Raises StaleHandle and HandleUsed for a
        handle that names nothing that can be opened, OSError when it cannot be mapped; the
        ticket is untouched."""
        index, nbytes = tail >> NBYTES_BITS, tail & MAX_NBYTES
        with self.lock:
            record = self.records.get(index)
            if record is None:
                record = records.make_record(self._session, tail)
                record.left = self._finalizer(index)
            tickets.check(self._session, record, granted, nbytes)
            if record.window is None or not record.is_mapped_right:
                records.map_record(record, granted, nbytes)
                if record.is_direct:
                    self._segments.add(index)
            elif record.is_direct:  # the next object of another producer, where the last one lay
                record.shape = records.shape_of(record)
            if index not in self.records:
                self._make_room()
                if self.records.setdefault(index, record) is not record:  # a finalizer was faster
                    return self.find(granted, tail)
            if record.window is None or not record.is_mapped_right:  # the same
                return self.find(granted, tail)
        return record

    @property
    def maps_segments(self) -> bool:
        """Whether any record maps a direct segment: it may be over, and nobody's use."""
        return bool(self._segments)

    def forget_segments(self) -> None:
        """Forget the direct segments that are over, and so unmap them. (Their pages have gone before.)"""
        with self.lock:
            for index in list(self._segments):
                if index in self.records and not (self.records[index].is_over and self._forget(index)):
                    continue
                self._segments.discard(index)

    def _forget(self, index: int) -> bool:
        """Forget a record that nobody has; False when somebody has. For who has the lock.

        It is taken out before it is looked at for certain: whoever opens has it by then, or comes by no more. (That it
        was over tells nothing of who is just opening: its row may be served again.) Under the gate: who looks whether
        anything is in use does not miss it."""
        if references(self.records, index) != KNOWN_TO_NOBODY:
            return False
        session = self._session
        if session.is_nested:
            return False
        with session.ticket_gate, session.gate_use:
            record = self.records.pop(index)
            if getrefcount(record) == KNOWN_TO_ONE and not record.is_in_use:
                return True
            self.records.setdefault(index, record)  # a finalizer that opened it meanwhile has made another
        return False

    def _finalizer(self, index: int) -> Callable[[], object]:
        """What ends a buffer that is collected unreleased. Where warnings of it would be seen it
        has Python code go on, so that the warning comes at the right place."""
        return ending(self._tell, index) if _shows_warnings() else partial(self.left.append, index)

    def _tell(self, index: int) -> None:
        """Say that a buffer was collected unreleased."""
        session = self._session
        self.left.append(index)
        if session.is_over or session.is_at_exit or not HERE[OURS]:
            return
        record = self.records.get(index)
        if record is not None and record.is_taken:
            nbytes = nbytes_of(session.words[record.word + EXTENT])
            warnings.warn(f"a buffer of {nbytes} bytes was not released; it is now", ResourceWarning, stacklevel=3)

    def _make_room(self) -> None:
        """Forget the oldest records that are not in use, when there are too many."""
        records = self.records
        if len(records) < self._bound:
            return
        idle = 0
        for index in list(records):
            if self._forget(index):
                idle += 1
                if idle == FORGOTTEN_AT_ONCE:
                    break
        self._bound = max(MAX_RECORDS, len(records) + FORGOTTEN_AT_ONCE)

    def take_left(self) -> list[Ticket]:
        """The tickets of buffers that were collected unreleased."""
        found = []
        for _ in range(len(self.left)):
            try:
                index = self.left.popleft()
            except own(IndexError):  # another thread looks too
                break
            if (ticket := self._orphan(index)) is not None:
                found.append(ticket)
            elif not self._session.is_over and (record := self.records.get(index)) is not None and record.is_taken:
                self.left.append(index)  # another's, or a traceback has it yet
        return found

    def take_orphans(self) -> list[Ticket]:
        """The same by looking at all that is open: also what an exception lost on its way."""
        records = self.records.copy()
        indexes = [index for index, record in records.items() if record.is_taken]
        records.clear()
        return [ticket for index in indexes if (ticket := self._orphan(index)) is not None]

    def _orphan(self, index: int) -> Ticket | None:
        """The ticket of a cell that is open here and that no buffer and no thread knows.

        Under the gate: who opens has the record before he takes the ticket. What a finalizer or handler cannot look
        at, since it came in the middle of something there, is looked at again.
        """
        session, records = self._session, self.records
        if session.is_nested:
            return None
        with session.ticket_gate, session.gate_use:
            if references(records, index) != KNOWN_TO_NOBODY or not records[index].is_taken:
                return None
            record = records[index]
            words = session.words
            granted = words[record.cell] & GENERATION_FIELD | words[record.word] & ~GENERATION_FIELD
        return Ticket.of(record, granted)

    @property
    def in_use(self) -> bool:
        """Whether any ticket is taken, or any window looked through."""
        return any(record.is_in_use for record in self.records.copy().values())

    def abandon(self) -> None:
        """In a forked child: the parent's views are all that is left of it."""
        self.left.clear()
        self._segments.clear()
        for record in self.records.values():
            record.window = None
        self.records.clear()


def _shows_warnings() -> bool:
    """Whether a ResourceWarning would be seen, as the first filter that fits says."""
    for action, message, category, module, _ in warnings.filters:
        if message is None and module is None and issubclass(ResourceWarning, category):
            return action != "ignore"
    return True
