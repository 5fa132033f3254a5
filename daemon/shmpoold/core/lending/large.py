"""Large operations: runs and direct segments, of which there may be a bound number at a time, from
their grant until their last reader is done. What is on its way counts."""

from __future__ import annotations

from shmpool.protocol.sizing import TierKind

from ..memory.inventory import Inventory
from .grants import Grants
from .requests import Request

#: More large operations than there can be: they are not bounded.
UNBOUNDED = 1 << 40


class LargeOperations:
    """How many there are, and may be."""

    def __init__(self, inventory: Inventory, grants: Grants) -> None:
        self._inventory = inventory
        self._grants = grants
        #: How many may be out at a time, 0 for any number.
        self.most = 0

    @property
    def left(self) -> int:
        """How many more may be granted."""
        if not self.most:
            return UNBOUNDED
        grants = self._grants
        warming = sum(len(one.holdings) for one in grants.unfinished_warmings() if one.holdings[0].is_large)
        return self.most - self._inventory.large - len(grants.creating) - len(grants.building) - warming

    def are_full_for(self, request: Request) -> bool:
        """Whether it waits for another large operation's end, whatever memory there is."""
        return request.tier.kind is not TierKind.POOLED and self.left <= 0
