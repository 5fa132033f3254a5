"""The sweep: the broker's own look at what living clients have given back, in case a bell was lost.

Who gives a row back stores that in it, and then tells. Between the two a client may be stopped, an exception may
come, a message may be dropped: nobody would look at the row before its client tells something else of it or ends. The
words of all that seats own are searched for it, some rows at a time; what is found is looked at as if it had been
named. That its client tells of it later does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..chores import NEVER, Chore, Chores, Lane
from ..looks import Looks
from ..memory.inventory import Inventory
from ..owners import Owner
from ..rows import Rows

#: Rows that are searched in one step, what that costs, in units, and how many that it finds cost one more: what is the
#: broker's anyway says the same.
SWEPT_PER_STEP, SWEEPING, FOUND_PER_UNIT = 256, 4, 5
#: Seconds from the end of one sweep to the next: while somebody waits; at first, and at the longest, while nobody does.
#: It rests at least so many times as long as the last one took.
HURRY, FIRST, LONGEST, REST = 0.5, 4.0, 32.0, 50
#: Seconds of a unit of chores.
UNIT: Final = 2e-6


class Sweep:
    """Finds what seats own by the broker's account and no longer by the ledger. *others* own what has no custodian but
    the broker."""

    def __init__(
        self,
        rows: Rows,
        inventory: Inventory,
        others: tuple[Owner, ...],
        looks: Looks,
        chores: Chores,
        is_hurried: Callable[[], bool],
    ) -> None:
        self._rows = rows
        self._inventory = inventory
        self._others = others
        self._looks = looks
        self._chores = chores
        #: Whether somebody waits for what may be there.
        self._is_hurried = is_hurried
        self._is_under_way = False
        #: When the last one ended, and had rested.
        self._rested_at = float("-inf")
        self._interval = FIRST
        #: How many were granted then, and how many had been before.
        self._seen = (0, 0)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due; not while no seat owns anything."""
        granted = self._inventory.granted
        if self._is_under_way or len(granted) == sum(len(other.rows) for other in self._others):
            return NEVER
        began = max(self._rested_at, next(iter(granted.values())).granted_at)
        return began + (HURRY if self._is_hurried() else self._interval)

    def tick(self, now: float) -> None:
        """Begin, if it is time."""
        if self.next_deadline <= now:
            self._is_under_way = True
            self._chores.begin(self._run(), now, Lane.LOOKS)

    def _run(self) -> Chore:
        cost = 0
        try:
            for begin, end in self._inventory.where_tickets_may_be():
                for first in range(begin, end, SWEPT_PER_STEP):
                    found = self._rows.given_back(first, min(first + SWEPT_PER_STEP, end))
                    if found and (rows := [row for row in found if self._is_a_seat_s(row)]):
                        self._looks.soon(rows, self._chores.now)
                    units = SWEEPING + len(found) // FOUND_PER_UNIT
                    cost += units
                    yield units
        finally:
            self._is_under_way = False
            seen, self._seen = self._seen, (len(self._inventory.granted), self._inventory.over)
            self._interval = min(2 * self._interval, LONGEST) if self._seen == seen else FIRST
            self._rested_at = self._chores.now + REST * UNIT * cost

    def _is_a_seat_s(self, row: int) -> bool:
        holding = self._inventory.granted.get(row)
        return holding is not None and holding.owner not in self._others
