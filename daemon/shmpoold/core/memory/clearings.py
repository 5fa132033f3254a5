"""Clearings: room is made for one request by cooling idle slots, a slice at a time.

Begun only where what is idle suffices. What the request needs is kept out of everybody else's
reach meanwhile: the room that there is, and every slot as it is cooled, count as held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..chores import Chore, Chores, Lane
from ..lending.earmarks import Earmarks
from ..lending.requests import Request
from .cooling import COOLED_PER_STEP, cost_of
from .inventory import Inventory

#: How many slots are cooled in one step at most.
SLOTS_PER_STEP = 64


@dataclass(slots=True, eq=False)
class Clearing:
    """*aside* bytes are there for a request, *left* are still to be cooled."""

    request: Request
    aside: int
    left: int


class Clearings:
    """What is being cooled for whom. *cleared(request, now)* is called when it is done, or when
    nothing is left to cool; not for a request that has gone."""

    def __init__(
        self,
        inventory: Inventory,
        earmarks: Earmarks,
        chores: Chores,
        cleared: Callable[[Request, float], None],
    ) -> None:
        self._inventory = inventory
        self._earmarks = earmarks
        self._chores = chores
        self._cleared = cleared
        self._under_way: list[Clearing] = []

    def __bool__(self) -> bool:
        return bool(self._under_way)

    @property
    def aside(self) -> int:
        """Bytes that are held and nobody's: for requests."""
        return sum(clearing.aside for clearing in self._under_way)

    @property
    def left(self) -> int:
        """Bytes that are still to be cooled."""
        return sum(clearing.left for clearing in self._under_way)

    def begin(self, request: Request, nbytes: int, now: float) -> None:
        """Make room for *nbytes* bytes."""
        aside = min(max(0, self._inventory.room), nbytes)
        clearing = Clearing(request, aside, nbytes - aside)
        self._inventory.held += aside
        self._earmarks.promised += clearing.left
        self._under_way.append(clearing)
        self._chores.begin(self._run(clearing), now, Lane.REQUESTS)

    def _run(self, clearing: Clearing) -> Chore:
        try:
            yield from self._cool(clearing)
        except Exception:
            self._finish(clearing)
            raise
        self._finish(clearing)

    def _cool(self, clearing: Clearing) -> Chore:
        inventory = self._inventory
        while clearing.left > 0 and not clearing.request.is_gone:
            cooled = inventory.cool(min(clearing.left, COOLED_PER_STEP), SLOTS_PER_STEP)
            if not cooled:
                return
            gained = min(cooled, clearing.left)
            inventory.held += gained
            clearing.aside += gained
            clearing.left -= gained
            self._earmarks.promised -= gained
            yield cost_of(cooled, SLOTS_PER_STEP)

    def _finish(self, clearing: Clearing) -> None:
        self._under_way.remove(clearing)
        self._inventory.held -= clearing.aside
        self._earmarks.promised -= clearing.left
        self._cleared(clearing.request, self._chores.now)
