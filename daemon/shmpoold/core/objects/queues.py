"""Queues, as far as they are the broker's: what lay in one that is gone.

A queue is a shared publication, and what is in it are publications that say so in their rows: the broker
never reads a queue's own memory. Those of a living queue are not closed by time, however long their
publisher is gone. When nobody has the queue any more, their tickets are closed at once.
"""

from __future__ import annotations

from ..actions import CloseTicket, RemoveBell
from ..chores import Chore, Chores, Lane
from ..outbox import Outbox
from ..rows import Rows

#: Rows that are searched in one step, what that costs, and what closing a ticket does, in units.
SEARCHED_PER_STEP, SEARCHING, CLOSING = 256, 16, 8


class Queues:
    """What is left of those that are gone."""

    def __init__(self, rows: Rows, chores: Chores, outbox: Outbox) -> None:
        self._rows = rows
        self._chores = chores
        self._outbox = outbox
        self._is_under_way = False
        self._again = False

    def on_gone(self, row: int, generation: int, now: float) -> None:
        """The memory of one is being freed."""
        self._outbox.add(RemoveBell(row, generation))
        self.clear(now)

    def clear(self, now: float) -> None:
        """Close what lies in queues that are gone."""
        if self._is_under_way:
            self._again = True
            return
        self._is_under_way = True
        self._chores.begin(self._run(), now, Lane.SHARED)

    def _run(self) -> Chore:
        try:
            yield 1  # first its memory is free
            while True:
                self._again = False
                for first in range(0, self._rows.count, SEARCHED_PER_STEP):
                    closed = 0
                    for row in self._rows.queued(first, first + SEARCHED_PER_STEP):
                        for cell, granted in self._lost(row):
                            self._outbox.add(CloseTicket(row, cell, granted))
                            closed += 1
                    yield SEARCHING + CLOSING * closed
                if not self._again:
                    return
        finally:
            self._is_under_way = False

    def _lost(self, row: int) -> list[tuple[int, int]]:
        """(cell, word) of the tickets of a publication that lies in a queue which is gone. Its publisher works on: what
        has been read is published anew, into another queue or none, between any two looks at a row. A ticket that
        nobody has opened before and behind all the others is of one publication, and so is what they saw."""
        rows = self._rows
        pending = rows.pending_cells(row)
        if pending and rows.is_queued(row) and not rows.is_in_queue(row) and rows.pending_cells(row) == pending:
            return pending
        return []
