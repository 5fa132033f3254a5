"""Evictions: caches that nobody holds are given up for a request, a few at once, many in turns.

Only where that helps: what it needs is there when enough of them have gone. A request for which many
have to go is under way meanwhile, like one that is being warmed, and goes on when they have.
"""

from __future__ import annotations

from collections.abc import Callable

from ..chores import Chore, Chores, Lane
from ..memory.inventory import Inventory
from .requests import Request, Rung

#: Caches that are given up within the event that needs it, and what each of the others costs, in units.
GIVEN_UP_AT_ONCE, GIVING_UP = 32, 8


class Evictions:
    """What is given up for whom. *done(request, now)* is called when many have gone."""

    def __init__(self, inventory: Inventory, chores: Chores, done: Callable[[Request, float], None]) -> None:
        self._inventory = inventory
        self._chores = chores
        self._done = done
        #: How many bytes of caches nobody holds, and how one is given up, of a tier or any: the shared
        #: publications' business. It returns its bytes, 0 when there is none.
        self.nbytes: Callable[[], int] = lambda: 0
        self.give_up: Callable[[int | None, float], int] = lambda tier, now: 0
        #: How many requests they are given up for in turns.
        self._under_way = 0

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def make_room(self, request: Request, nbytes: int, now: float) -> bool:
        """Give up so many bytes of caches as the room is short of, before anything idle is cooled; none,
        if all of them and what is idle are less. True when that takes several turns."""
        short = nbytes - self._inventory.room - request.given_up
        if short <= 0 or not self.nbytes() or self.nbytes() + self._inventory.idle < short:
            return False

        def is_enough() -> bool:
            return request.given_up >= short

        return self._begin(request, None, is_enough, now)

    def make_rows(self, request: Request, now: float) -> bool:
        """Give up caches of a request's tier until it has rows enough. True when that takes several turns."""
        slots = self._inventory.maps[request.tier.index]
        return self._begin(request, request.tier.index, lambda: slots.unused >= request.chunks, now)

    def _begin(self, request: Request, tier: int | None, is_enough: Callable[[], bool], now: float) -> bool:
        for _ in range(GIVEN_UP_AT_ONCE):
            if self._is_served(request, is_enough) or not self._give_up(request, tier, now):
                return False
        if self._is_served(request, is_enough):
            return False
        self._under_way += 1
        self._chores.begin(self._run(request, tier, is_enough), now, Lane.REQUESTS)
        return True

    def _run(self, request: Request, tier: int | None, is_enough: Callable[[], bool]) -> Chore:
        try:
            while not (request.is_gone or self._is_served(request, is_enough)):
                if not self._give_up(request, tier, self._chores.now):
                    break
                yield GIVING_UP
        finally:
            self._under_way -= 1
            self._done(request, self._chores.now)

    def _give_up(self, request: Request, tier: int | None, now: float) -> int:
        nbytes = self.give_up(tier, now)
        request.given_up += nbytes
        return nbytes

    def _is_served(self, request: Request, is_enough: Callable[[], bool]) -> bool:
        if not is_enough():
            return False
        if request.given_up:
            request.rung = Rung.EVICT
        return True
