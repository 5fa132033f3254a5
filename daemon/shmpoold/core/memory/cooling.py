"""Cooling: warm slots that nobody used for their lifetime give their pages back to the host.

A chore: in a large pool it takes long to find out which slots these are, and long to cool them.
Slots are cooled from the high end of each tier, where least is going on. What is cooled because
somebody needs the room is `inventory`'s and `lending`'s.
"""

from __future__ import annotations

from shmpool.protocol.sizing import KIB, MIB

from ..chores import NEVER, Chore, Chores, Lane
from .inventory import Inventory
from .slots import SlotMap

#: Slots that are looked at in one step; what looking costs, in units, and what dropping a spare does.
SCANNED_PER_STEP, SCANNING, DROPPING = 128, 8, 8
#: Bytes that are cooled in one step (a slot at least), and how many of them cost a unit.
COOLED_PER_STEP, COOLED_PER_UNIT = MIB, 16 * KIB


def cost_of(nbytes: int, slots: int) -> int:
    """What cooling so many slots of so many bytes together costs, here and in the kernel, in units."""
    return slots + nbytes // COOLED_PER_UNIT


class Cooling:
    """Looks at what is idle some time after something has become so."""

    def __init__(self, inventory: Inventory, chores: Chores, lifetime: float) -> None:
        self._inventory = inventory
        self._chores = chores
        self.lifetime = lifetime
        self._is_under_way = self._is_pressed = False
        #: When `tick` is due; `NEVER` while nothing is idle.
        self.next_deadline = NEVER

    def note_idle(self, now: float) -> None:
        """Something has become idle."""
        self.next_deadline = min(self.next_deadline, now + self.lifetime)

    def tick(self, now: float) -> None:
        """Begin to look, if it is time."""
        if self.next_deadline <= now:
            self.next_deadline = now + max(self.lifetime / 8, 0.1)
            if not self._is_under_way:
                self._is_under_way = True
                self._chores.begin(self._run(now - self.lifetime), now, Lane.MEMORY)

    def _run(self, since: float) -> Chore:
        inventory = self._inventory
        try:
            for spare in inventory.spares.idle_since(since):
                inventory.drop(spare)
                yield DROPPING
            for slots in inventory.maps[:-1]:
                yield from self._cool_tier(slots, since, inventory.floors[slots.tier.index])
            if not inventory.has_ready:
                self.next_deadline = NEVER
        finally:
            self._is_under_way = False

    def _cool_tier(self, slots: SlotMap, since: float, floor: int) -> Chore:
        end = slots.tier.capacity
        step = max(1, min(SCANNED_PER_STEP, COOLED_PER_STEP // slots.tier.size))
        while end > 0 and slots.ready and slots.warm > floor:
            extents, end = slots.idle_extents(end, step, since)
            cooled = 0
            for row, count in extents:
                some = min(count, slots.warm - floor)
                if some > 0:
                    cooled += some
                    self._inventory.cool_extent(slots, row + count - some, some)
            yield SCANNING + cost_of(cooled * slots.tier.size, cooled)

    def cool_all(self, now: float, *, below_floors: bool) -> None:
        """Cool all that is idle, and drop the spares; *below_floors*: also what is kept for demand."""
        if not self._is_pressed:
            self._is_pressed = True
            self._chores.begin(self._cool_all(below_floors=below_floors), now, Lane.MEMORY)

    def _cool_all(self, *, below_floors: bool) -> Chore:
        inventory = self._inventory
        try:
            for spare in inventory.spares.idle_since(NEVER):
                inventory.drop(spare)
                yield DROPPING
            for slots in inventory.maps[:-1]:
                yield from self._cool_tier(slots, NEVER, 0 if below_floors else inventory.floors[slots.tier.index])
        finally:
            self._is_pressed = False
