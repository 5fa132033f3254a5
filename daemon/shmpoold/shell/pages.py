"""Pages and segments, one piece in each turn of the loop: others come between.

What somebody waits for (warming, making a direct segment) overtakes what only gives memory back
(cooling, removing), as long as the pages that are still to be given back fit under the limit
besides what is held; else it comes in the order that the core gave, and finds its room. Where the
host has no room, it is tried again once everything before it was given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from shmpool.protocol.sizing import MIB

from ..core.actions import Cool, CreateDirect, RemoveDirect, Warm
from ..core.events import DirectCreated, DirectFailed, Event, Warmed, WarmFailed
from ..core.memory.inventory import Inventory
from .repeats import Repeats
from .segments import SegmentStore

#: Pages are given back in slices of at most so many bytes (0.5 ms each).
COOL_SLICE: Final = 4 * MIB

#: What takes time by the byte: what gives memory back, and what takes some.
Giving = Cool | RemoveDirect
Taking = Warm | CreateDirect

log = logging.getLogger(__name__)


class Pages:
    """Carries out what the core wants done with memory; *dispatch* is told how it went."""

    def __init__(self, store: SegmentStore, inventory: Inventory, dispatch: Callable[[Event], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._store = store
        self._inventory = inventory
        self._dispatch = dispatch
        self._repeats = Repeats(log)
        self._giving: deque[Giving] = deque()
        self._taking: deque[Taking] = deque()
        #: How many of *giving* remove a segment, and the bytes of those that cool pages.
        self._removals = 0
        self._uncooled = 0
        #: The host had no room for the first of *taking*: it waits for all of *giving*.
        self._must_wait = False
        self._is_scheduled = False
        self._is_stopped = False

    def stop(self) -> None:
        """Do no more: the next broker cools what the ledger says is cold."""
        self._is_stopped = True
        self._repeats.close()

    # --- what the core asks for -------------------------------------------------------------------

    def cool(self, action: Cool) -> None:
        """Give pages back, in slices."""
        size = self._inventory.tiers[action.tier].size
        step = max(1, COOL_SLICE // size)
        for row in range(action.row, action.row + action.count, step):
            count = min(step, action.row + action.count - row)
            self._giving.append(Cool(action.tier, row, count, had_pages=action.had_pages))
        if action.had_pages:
            self._uncooled += action.count * size
        self._schedule()

    def remove(self, action: RemoveDirect) -> None:
        """Remove a segment, a large one in slices."""
        self._giving.append(action)
        self._removals += 1
        self._schedule()

    def warm(self, action: Warm) -> None:
        """Reserve pages, in a later turn."""
        self._taking.append(action)
        self._schedule()

    def create(self, action: CreateDirect) -> None:
        """Make a direct segment: at once, unless pages that it may need are still to be given back."""
        if not self._may_overtake():
            self._taking.append(action)
            self._schedule()
        else:
            self._create(action)

    # --- turns ------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._is_scheduled and (self._giving or self._taking):
            self._is_scheduled = True
            self._loop.call_soon(self._do_one)

    def _may_overtake(self) -> bool:
        if not self._giving:
            self._must_wait = False
            return True
        inventory = self._inventory
        return not (self._must_wait or self._removals or inventory.held + self._uncooled > inventory.limit)

    def _do_one(self) -> None:
        self._is_scheduled = False
        if self._is_stopped:
            return
        if self._taking and self._may_overtake():
            self._take(self._taking[0])
        else:
            self._give(self._giving[0])
        self._schedule()

    def _give(self, action: Giving) -> None:
        if isinstance(action, Cool):
            self._carry_out_cooling(action)
        elif self._remove_some(action):
            return  # it stays the first: what waits needs its room
        else:
            self._removals -= 1
        self._giving.popleft()

    def _take(self, action: Taking) -> None:
        if isinstance(action, CreateDirect):
            self._taking.popleft()
            self._create(action)
            return
        self._cool_first(action)
        try:
            self._store.warm(action.tier, action.row, action.count)
        except Exception as error:
            if self._giving:
                self._must_wait = True
                return
            self._repeats.warning("warming failed: %s", error)
            event: Event = WarmFailed(action.tier, action.row, action.count, reason_of(error))
        else:
            event = Warmed(action.tier, action.row, action.count)
        self._taking.popleft()
        self._dispatch(event)

    def _cool_first(self, action: Warm) -> None:
        """What is still to be cooled of the rows that are to be warmed: their next user must not
        read what the last one wrote."""
        end = action.row + action.count
        late = [
            other
            for other in self._giving
            if isinstance(other, Cool) and other.tier == action.tier and other.row < end
            and action.row < other.row + other.count
        ]  # fmt: skip
        for other in late:
            self._carry_out_cooling(other)
            self._giving.remove(other)

    def _carry_out_cooling(self, action: Cool) -> None:
        if action.had_pages:
            self._uncooled -= action.count * self._inventory.tiers[action.tier].size
        try:
            self._store.cool(action.tier, action.row, action.count)
        except OSError as error:
            self._repeats.warning("cooling failed, and is tried again: %s", error)

    def _create(self, action: CreateDirect) -> None:
        try:
            self._store.create_direct(action.row, action.generation, action.nbytes, action.spare)
        except Exception as error:
            self._repeats.warning("making a direct segment failed: %s", error)
            self._dispatch(DirectFailed(action.row, reason_of(error)))
        else:
            self._dispatch(DirectCreated(action.row))

    def _remove_some(self, action: RemoveDirect) -> bool:
        """Remove a segment, or a slice of a large one; whether more of it is left."""
        row, generation = action.row, action.generation
        try:
            if not action.may_be_mapped and self._store.empty_direct(row, generation, COOL_SLICE):
                return True
            self._store.remove_direct(row, generation)
        except OSError as error:
            self._repeats.warning("a direct segment stays until the pool is removed: %s", error)
        return False


def reason_of(error: Exception) -> str:
    """For people, without the errno's number."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
