"""The memory manager: what is reserved in advance and kept, what is too old, and what follows from
memory pressure.

The floors are filled in slices, one after the other, so that the loop stays free; the shell is
ready once `is_ready` says so. What was cooled of them, for a request that needed the room or under
critical pressure, is filled again once nobody waits and memory is not short.
Pressure's levels only say how it is: what is done about them is done here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from shmpool.protocol.sizing import MIB, format_bytes

from ..actions import Log, Warm
from ..chores import NEVER, Chore, Chores, Lane
from ..connections.seats import Seats
from ..events import MemoryRead, Started, Warmed, WarmFailed
from ..lending.lending import Lending
from ..outbox import Outbox
from ..settings import Allocation, Floor, Settings, UnderPressure
from .cooling import Cooling
from .holding import Holding
from .inventory import Inventory
from .pressure import Level, Pressure
from .stock import UNBOUNDED

#: Bytes of the slices in which floors are filled (a slot at least, 1 to 2 ms each), and rows of one.
FILL_SLICE: Final = 4 * MIB
FILLED_ROWS: Final = 512
#: Seconds until floors are filled that could not be, or that somebody has used.
RETRY: Final = 1.0
#: How often progress is told: so many times for the whole.
TOLD: Final = 10


class Manager:
    """Acts on floors, ages and pressure. The cap and the account are `inventory`'s."""

    def __init__(
        self,
        inventory: Inventory,
        lending: Lending,
        cooling: Cooling,
        pressure: Pressure,
        seats: Seats,
        chores: Chores,
        outbox: Outbox,
        settings: Settings,
    ) -> None:
        self._inventory = inventory
        self._lending = lending
        self._cooling = cooling
        self._pressure = pressure
        self._seats = seats
        self._chores = chores
        self._outbox = outbox
        #: What is being warmed for a floor.
        self.filling: Holding | None = None
        #: Nothing has to be reserved before somebody is served.
        self.is_ready = settings.allocation is not Allocation.PREALLOCATE
        #: Why what had to be could not be.
        self.failure = ""
        self._next_fill = 0.0
        self._filled = self._told = 0
        self._to_fill = self._set_floors(settings.floors)
        self._is_recalling = False
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take over what may change."""
        self._inventory.max_age = NEVER if settings.max_buffer_age is None else settings.max_buffer_age
        self._pressure.thresholds = settings.thresholds
        self._under_pressure = settings.under_pressure
        if self._pressure.level is Level.CRITICAL:
            self._stop_growth()

    # --- floors ------------------------------------------------------------------------------------

    def _set_floors(self, floors: Iterable[Floor]) -> int:
        """Note the floors of the tiers that there are; returns their bytes."""
        wanted = {(floor.kind, floor.size): floor.slots for floor in floors}
        nbytes = 0
        for tier in self._inventory.tiers[:-1]:
            slots = min(wanted.get((tier.kind, tier.size), 0), tier.capacity)
            self._inventory.floors[tier.index] = slots
            nbytes += slots * tier.size
        self._inventory.is_below_floor = nbytes > 0
        return nbytes

    def on_started(self, event: Started, now: float) -> None:
        """The pool is there, as new or adopted: fill the floors."""
        if self._to_fill:
            self._outbox.add(Log(f"preallocating {format_bytes(self._to_fill)}"))
        self._fill(now)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        return self._next_fill if self._inventory.is_below_floor and self.filling is None else NEVER

    def tick(self, now: float) -> None:
        """Go on filling, if it is time."""
        if self.next_deadline <= now:
            self._fill(now)

    def _fill(self, now: float) -> None:
        """The next slice. Nothing is cooled for it, and who waits comes first."""
        if self.filling is not None:
            return
        self._next_fill = now + RETRY
        if (self._lending.line and self.is_ready) or self._pressure.level is not Level.NORMAL:
            return
        for slots, floor in zip(self._inventory.maps, self._inventory.floors, strict=True):
            missing = floor - slots.warm
            if missing <= 0:
                continue
            tier, inventory = slots.tier, self._inventory
            most = min(missing, max(1, FILL_SLICE // tier.size), FILLED_ROWS, max(0, inventory.room) // tier.size)
            extent = slots.find_cold(most) if most else None
            if extent is None:
                self._fail(f"no room for it under memory_limit, {format_bytes(inventory.limit)}")
                return
            row, count = extent
            slots.take(row, count)
            if not inventory.are_sound(tier, (extent,)):
                return  # somebody scribbled on them: others, the next time
            inventory.held += count * tier.size
            self.filling = Holding(row, tier, (extent,))
            self._outbox.add(Warm(tier.index, row, count))
            return
        self._inventory.is_below_floor = False
        self._finish()

    def on_warmed(self, event: Warmed, now: float) -> bool:
        """Whether it was ours: then go on."""
        holding = self._take_back(event)
        if holding is None:
            return False
        self._inventory.warmed(holding.tier, event.row, event.count, now)
        self._inventory.abandon(holding, now)
        self._lending.note_freed(now)
        self._tell(holding)
        self._fill(now)
        return True

    def on_warm_failed(self, event: WarmFailed, now: float) -> bool:
        """Whether it was ours: then try again later, unless it had to be."""
        holding = self._take_back(event)
        if holding is None:
            return False
        self._inventory.abandon(holding, now)
        self._next_fill = now + RETRY
        self._fail(event.reason)
        return True

    def _take_back(self, event: Warmed | WarmFailed) -> Holding | None:
        holding = self.filling
        if holding is None or (holding.tier.index, holding.row) != (event.tier, event.row):
            return None
        self.filling = None
        return holding

    def _tell(self, holding: Holding) -> None:
        """Progress, while it is the first time."""
        if self._to_fill:
            self._filled += holding.nbytes
            if self._filled * TOLD // self._to_fill > self._told:
                self._told = self._filled * TOLD // self._to_fill
                done, all_of_it = format_bytes(self._filled), format_bytes(self._to_fill)
                self._outbox.add(Log(f"preallocated {done} of {all_of_it}"))

    def _fail(self, reason: str) -> None:
        if self._to_fill and not self.failure:
            self._outbox.add(Log(f"preallocation stopped at {format_bytes(self._filled)}: {reason}", is_warning=True))
            self.failure = reason

    def _finish(self) -> None:
        self.is_ready, self._to_fill, self.failure = True, 0, ""

    # --- pressure ----------------------------------------------------------------------------------

    def on_memory_read(self, event: MemoryRead, now: float) -> bool:
        """Judge a reading and act on it. Whether the level has changed."""
        pressure, inventory = self._pressure, self._inventory
        has_changed = pressure.read(event.rooms, event.stalled, inventory.held, now)
        if has_changed:
            because = f": {pressure.why}" if pressure.why else ""
            text = f"memory pressure is {pressure.level.name.lower()}{because}"
            self._outbox.add(Log(text, is_warning=pressure.level > Level.NORMAL))
        if pressure.level > Level.NORMAL:
            self._cooling.cool_all(now, below_floors=pressure.level is Level.CRITICAL)
            self._recall(now)
        if pressure.level is Level.CRITICAL:
            self._stop_growth()
        elif inventory.ceiling != UNBOUNDED:
            inventory.ceiling, inventory.direct_may_grow = UNBOUNDED, False
            self._lending.refusals.growth_stopped, self._lending.is_refusing = "", False
            self._lending.note_freed(now)
        return has_changed

    def _stop_growth(self) -> None:
        """From now on no more is held than is held now."""
        self._inventory.ceiling = min(self._inventory.ceiling, self._inventory.held)
        self._inventory.direct_may_grow = self._under_pressure is UnderPressure.DIRECT
        why = f"the pool does not grow while the host is short of memory: {self._pressure.why}"
        self._lending.refusals.growth_stopped = why
        self._lending.is_refusing = self._under_pressure is UnderPressure.REFUSE

    @property
    def prefers_direct(self) -> bool:
        """Whether clients are to lease direct segments where they have the choice."""
        return self._pressure.level is Level.CRITICAL and self._under_pressure is UnderPressure.DIRECT

    def _recall(self, now: float) -> None:
        """Ask all clients for what is idle in their magazines."""
        if not self._is_recalling and self._seats.taken:
            self._is_recalling = True
            self._chores.begin(self._ask_all(), now, Lane.MEMORY)

    def _ask_all(self) -> Chore:
        try:
            for number in list(self._seats.taken):
                self._lending.recalls.ask(number, self._chores.now)
                yield 1
        finally:
            self._is_recalling = False

    # --- figures -----------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """For the stats, among the memory's."""
        return {
            "pressure": self._pressure.level.name.lower(),
            "pressure_changes": {level.name.lower(): self._pressure.changes[level] for level in Level},
            "retired": self._inventory.retired,
        }

    @property
    def level(self) -> Level:
        """Of memory pressure."""
        return self._pressure.level

    def alerts(self) -> Iterable[str]:
        """A sentence for each thing that is the matter with memory."""
        if self._pressure.level > Level.NORMAL:
            yield f"memory pressure is {self._pressure.level.name.lower()}: {self._pressure.why}"
        if shortfall := self._pressure.shortfall(self._inventory.limit, self._inventory.held):
            yield shortfall
