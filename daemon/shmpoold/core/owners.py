"""Owners: whom what was granted belongs to. Each holding has one at any moment, and one record of it.

A seat owns what was granted to it; the custody owns what waits for its readers alone. Whatever else
is to keep memory for longer than a message (a shared publication, a stream, a queue) is an owner
too, and counts with `Broker.owners`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .memory.holding import Holding


@dataclass(slots=True, eq=False)
class Owner:
    """The account of one owner. Only `Inventory` calls these: see its `hold`."""

    #: The heads of what it owns.
    rows: set[int] = field(default_factory=set, init=False)
    #: The memory that they hold, in bytes; how many of them are runs or direct segments.
    nbytes: int = field(default=0, init=False)
    large: int = field(default=0, init=False)
    #: By tier that it has anything of, how many.
    tiers: dict[int, int] = field(default_factory=dict, init=False)

    def gain(self, holding: Holding) -> None:
        """This is its own from now on."""
        self.rows.add(holding.row)
        self.nbytes += holding.nbytes
        self.large += holding.is_large
        tier = holding.tier.index
        self.tiers[tier] = self.tiers.get(tier, 0) + 1

    def gain_alike(self, holding: Holding, rows: Collection[int]) -> None:
        """The same of all that have these *rows*, each like *holding*."""
        self.rows.update(rows)
        self.nbytes += holding.nbytes * len(rows)
        self.large += holding.is_large * len(rows)
        tier = holding.tier.index
        self.tiers[tier] = self.tiers.get(tier, 0) + len(rows)

    def lose(self, holding: Holding) -> None:
        """It is another's now, or nobody's."""
        self.rows.remove(holding.row)
        self.nbytes -= holding.nbytes
        self.large -= holding.is_large
        tier = holding.tier.index
        if self.tiers[tier] == 1:
            del self.tiers[tier]
        else:
            self.tiers[tier] -= 1
