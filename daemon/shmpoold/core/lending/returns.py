"""Returns: what was lent comes back, or is given up.

Whatever a client claims is read again in the ledger: a row is settled by what its words say
when it is looked at, not by who said what of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from shmpool.protocol.ledger import generation_of, seat_of, state_of
from shmpool.protocol.sizing import TierKind
from shmpool.protocol.states import State

from ..chores import Chores, Lane
from ..connections.seats import Seat
from ..looks import Looks
from ..memory.holding import Holding
from ..memory.inventory import RETIRING, Inventory
from ..objects.custody import Custody
from ..rows import InvalidTransition, Rows
from .lending import Lending


class Returns:
    """Settles rows that were granted; *looks* are those that somebody has named."""

    def __init__(self, rows: Rows, inventory: Inventory, custody: Custody, lending: Lending, chores: Chores) -> None:
        self._rows = rows
        self._inventory = inventory
        self._custody = custody
        self._lending = lending
        self._chores = chores
        self.looks = Looks(chores, self.settle)

    def on_return(self, seat: Seat, rows: Iterable[int], now: float) -> None:
        """A client says that it gives these back."""
        granted, number = self._inventory.granted, seat.number
        self.looks.begin([row for row in rows if row in granted and granted[row].publisher == number], now)

    def on_bell(self, rows: Iterable[int], now: float) -> None:
        """Somebody says that there is something to see."""
        granted = self._inventory.granted
        self.looks.begin([row for row in rows if row in granted], now)

    def settle(self, row: int, now: float) -> int:
        """Look at a granted row and do what its words ask for; nothing if they ask nothing.
        Returns what it cost, in units."""
        holding = self._inventory.granted.get(row)
        if holding is None:
            return 1
        try:
            return self._settle(holding, now)
        except Exception as error:
            if holding.owner is not None:
                self._inventory.quarantine(holding)
            if not isinstance(error, InvalidTransition):  # the word has changed since it was looked at
                raise
        return 1

    def _settle(self, holding: Holding, now: float) -> int:
        row = holding.row
        word = self._rows.grant(row)
        state, seat = state_of(word), seat_of(word)
        if state == State.RETURNED:
            # A direct segment's name must not come again: its generation must have grown.
            if generation_of(word) < holding.least + (holding.tier.kind is TierKind.DIRECT):
                self._inventory.quarantine(holding)
            else:
                return self.free(holding, now)
        elif state == State.PUBLISHED and seat == 0:
            return self._custody.accept(holding, now)
        elif state == State.PUBLISHED and self._lending.line and not self._rows.open_cells(row):
            self._lending.recalls.ask(seat, now)
        return 1

    def free(self, holding: Holding, now: float) -> int:
        """Nobody may use it any more. A long run's rows become nobody's one after the other.
        Returns what it cost, in units."""
        retired = self._inventory.retired
        rest = self._inventory.free(holding, now)
        self._lending.note_freed(now)
        if rest is None:
            return 1 + RETIRING * (self._inventory.retired - retired)
        cost = next(rest, 0)
        if holding in self._inventory.leaving:
            self._chores.begin(self._lending.watched(rest), now, Lane.RUNS)
        return 1 + cost
