"""The custody: the owner of publications of publishers that left, and of published direct segments.

They are freed when their last ticket is done. Readers ring when they store DONE; the
sweep finds what a lost bell would have told, and closes tickets that nobody opened
`handle_ttl` after the publisher was seen to be gone; those of a stream's chunks as soon as its reader
is gone, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shmpool.protocol.sizing import TierKind

from ..actions import CloseTicket
from ..chores import NEVER
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..outbox import Outbox
from ..owners import Owner
from ..rows import Rows, is_published
from .shared import Shared

#: How many publications one sweep looks at, and how many tickets it closes (each takes its
#: byte lock, two system calls), so that a turn of the loop stays short.
SWEPT_PER_TURN = 512
CLOSED_PER_TURN = 128
#: How many of the oldest are looked at when somebody asks for a direct segment.
LOOKED_AT_PER_REQUEST = 4
#: Seconds between sweeps: while somebody waits; at first; at the longest.
HURRY, FIRST, LONGEST = 0.005, 0.05, 1.0


class Custody(Owner):
    """Owns the rows whose custodian is the broker, in the order in which they are swept."""

    def __init__(
        self,
        rows: Rows,
        inventory: Inventory,
        ttl: float,
        outbox: Outbox,
        free: Callable[[Holding, float], int],
        is_hurried: Callable[[], bool],
        shared: Shared,
    ) -> None:
        super().__init__()
        #: Where those go that have no tickets.
        self.shared = shared
        self._rows = rows
        self._inventory = inventory
        self.ttl = ttl
        self._outbox = outbox
        self._free = free
        #: Whether somebody waits for what may be here.
        self._is_hurried = is_hurried
        self._queue: deque[Holding] = deque()
        #: By publisher that has not ended, the direct segments of its that are here.
        self._published: dict[int, set[int]] = {}
        self._interval = FIRST
        self._swept_at = 0.0

    def accept(self, holding: Holding, now: float) -> int:
        """Custody has passed to the broker; frees it at once when all is done. Returns what it cost, in units."""
        if holding.owner is self.shared or self._rows.is_shared(holding.row):
            self.shared.accept(holding, now)
            return 1
        if holding.owner is not self:
            self._inventory.hold(holding, self)
            if self._interval != FIRST or len(self._queue) == 1:
                self._interval, self._swept_at = FIRST, now
        return self.look(holding.row, now)

    def gain(self, holding: Holding) -> None:
        """It waits for its readers alone."""
        super().gain(holding)
        self._queue.append(holding)
        if holding.publisher:
            self._published.setdefault(holding.publisher, set()).add(holding.row)

    def lose(self, holding: Holding) -> None:
        """They are done with it. Its place in the queue goes at the next sweep."""
        super().lose(holding)
        self._forget_publisher(holding)

    def _forget_publisher(self, holding: Holding) -> None:
        rows = self._published.get(holding.publisher)
        if rows is not None:
            rows.discard(holding.row)
            if not rows:
                del self._published[holding.publisher]

    def published_by(self, seat: int) -> list[int]:
        """The rows here whose publisher has this seat."""
        return [*self._published.get(seat, ()), *self.shared.published_by(seat)]

    def take_over(self, holding: Holding, now: float) -> int:
        """Its publisher's seat ends: its number may soon be another's. Returns what it cost, in units."""
        if holding.owner is self.shared or self._rows.is_shared(holding.row):
            return self.shared.take_over(holding, now)
        if holding.owner is self:
            self._forget_publisher(holding)
        holding.publisher = 0
        self._rows.hand_over(holding.row)
        if holding.tier.kind is TierKind.DIRECT:
            self._rows.disown(holding.row)
        return self.accept(holding, now)

    def look(self, row: int, now: float) -> int:
        """Free a publication in custody whose tickets are all done. One that somebody has
        scribbled on stays: nothing tells any more who reads it. Returns what it cost, in units."""
        holding = self._inventory.granted.get(row)
        if holding is None or holding.owner is not self or not is_published(self._rows.grant(row), 0):
            return 1
        return 1 if self._rows.open_cells(row) else self._free(holding, now)

    def look_at_oldest(self, now: float) -> None:
        """Before more memory is asked for: readers ring only soon after they are done."""
        for _ in range(min(len(self._queue), LOOKED_AT_PER_REQUEST)):
            holding = self._queue.popleft()
            if holding.owner is self:
                self._queue.append(holding)
                self.look(holding.row, now)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        if not self._queue:
            return NEVER
        return self._swept_at + (HURRY if self._is_hurried() else self._interval)

    def tick(self, now: float) -> None:
        """Look at the next publications, if it is time."""
        self.sweep(now, hurry=self._is_hurried())

    def next_sweep(self, *, hurry: bool) -> float | None:
        """When the next sweep is due, None when there is nothing to sweep."""
        if not self._queue:
            return None
        return self._swept_at + (HURRY if hurry else self._interval)

    def sweep(self, now: float, *, hurry: bool) -> None:
        """Look at the next publications, if it is time."""
        due = self.next_sweep(hurry=hurry)
        if due is None or due > now:
            return
        self._swept_at = now
        self._interval = min(2 * self._interval, LONGEST)
        closed = cost = 0
        for _ in range(min(len(self._queue), SWEPT_PER_TURN)):
            if closed >= CLOSED_PER_TURN or cost >= SWEPT_PER_TURN:
                self._interval = HURRY  # there are more
                return
            holding = self._queue.popleft()
            if holding.owner is self:
                self._queue.append(holding)
                closed += self._close_expired(holding, now)
                cost += self.look(holding.row, now)

    def _close_expired(self, holding: Holding, now: float) -> int:
        """Close what nobody opened in time, or can come to open; returns how many tickets that is."""
        rows, row = self._rows, holding.row
        if holding.orphaned_at is None or (now - holding.orphaned_at < self.ttl and not rows.is_stranded(row)):
            return 0
        if not is_published(rows.grant(row), 0) or rows.is_in_queue(row):
            return 0
        unopened = rows.pending_cells(row)
        for cell, word in unopened:
            self._outbox.add(CloseTicket(row, cell, word))
        return len(unopened)
