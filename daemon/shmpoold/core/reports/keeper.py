"""Who keeps most, for the refusal that has to name somebody at once.

Readers take memory without a message, so only the ledger tells. While somebody waits a census
is taken every now and then, and its answer kept. Where little is granted it is looked at in
place; where much is and no census is at hand, a part of it tells who keeps most of the whole.
"""

from __future__ import annotations

from typing import Final

from shmpool.protocol.census import Census

from ..connections.seats import Seats
from ..memory.inventory import Inventory
from .census import Ledger
from .holders import Process, by_process

#: Rows that are looked at for one answer, at most.
LOOKED_AT: Final = 128
#: Seconds for which such an answer serves, and that of a census.
SERVES, CENSUS_SERVES = 0.05, 2.0
NEVER = float("-inf")


class Keeper:
    """The sentence about whoever keeps most."""

    def __init__(self, ledger: Ledger, inventory: Inventory, seats: Seats) -> None:
        self._ledger = ledger
        self._inventory = inventory
        self._seats = seats
        self._text = ""
        self._told_at = self._counted_at = NEVER

    def note(self, processes: list[Process], now: float) -> None:
        """A census was taken."""
        self._say(processes, 1)
        self._told_at = self._counted_at = now

    def text(self, now: float) -> str:
        """``pid 7 (reader.py) keeps most: 480 buffers open for reading, 15 MiB``; empty when
        nobody keeps anything. Costs a look at `LOOKED_AT` rows at most."""
        rows = self._inventory.granted
        is_counted = len(rows) > LOOKED_AT and now < self._counted_at + CENSUS_SERVES
        if not is_counted and now >= self._told_at + SERVES:
            step = -(-len(rows) // LOOKED_AT) or 1
            self._say(_by_process(self._ledger.sample(list(rows)[::step]), self._seats), step)
            self._told_at = now
        return self._text

    def _say(self, processes: list[Process], scale: int) -> None:
        self._text = processes[0].keeps_most(scale) if processes else ""


def _by_process(census: Census, seats: Seats) -> list[Process]:
    """At once: a sample has few parties."""
    steps = by_process(census, seats)
    try:
        while True:
            next(steps)
    except StopIteration as done:
        found: list[Process] = done.value
        return found
