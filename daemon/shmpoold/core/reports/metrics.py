"""The figures of the stats: counters summed over the seats, memory and tiers as they are now."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from shmpool.protocol.census import Census
from shmpool.protocol.figures import HELD_BY_VIEWS, USED_COUNTERS
from shmpool.protocol.header import counters_at
from shmpool.protocol.messages import U64
from shmpool.protocol.sizing import Tier, TierKind
from shmpool.protocol.states import State
from shmpool.protocol.totals import counted, kept_by

from ..connections.seats import Seat, Seats
from ..memory.inventory import Inventory
from ..rows import Rows

#: What the figures besides the census cost; what a client's counters and its line do, and its
#: counters alone; in units.
FIGURES, CLIENT, BLOCK = 32, 10, 4


def fold_counters(rows: Rows, seat: int) -> None:
    """Add a seat's counters to the broker's own block and clear them for the next. Gauges end
    with it."""
    source, target = counters_at(rows.count, seat), counters_at(rows.count, 0)
    rows.words[source + HELD_BY_VIEWS] = 0
    for word, value in enumerate(_block(rows, seat)):
        if value:
            rows.words[target + word] = (rows.words[target + word] + value) & U64
            rows.words[source + word] = 0


class Steady:
    """Counters that are told as the difference of two, which are not of the same moment: what was
    told once is never taken back."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def at_least(self, name: str, value: int) -> int:
        """*value*, or what was told before if that is more."""
        self._told[name] = told = max(self._told.get(name, 0), value)
        return told


def count(rows: Rows, seats: Seats, census: Census, steady: Steady) -> Generator[int, None, dict[str, Any]]:
    """A chore: what was counted since the pool was made, and the clients with what they hold."""
    totals = _block(rows, 0)
    clients = []
    for number in sorted(seats.taken):
        if (seat := seats.taken.get(number)) is not None:
            block = _block(rows, number)
            totals = list(map(int.__add__, totals, block))
            clients.append(_client(seat, block, census, seats))
        yield CLIENT
    return {"clients": clients, **counted(totals, census, steady.at_least)}


def totals(rows: Rows, seats: Seats) -> Generator[int, None, list[int]]:
    """A chore: the counters alone, since the pool was made."""
    found = _block(rows, 0)
    for number in sorted(seats.taken):
        if number in seats.taken:
            found = list(map(int.__add__, found, _block(rows, number)))
        yield BLOCK
    return found


def _block(rows: Rows, seat: int) -> list[int]:
    at = counters_at(rows.count, seat)
    return list(rows.words[at : at + USED_COUNTERS])


def _client(seat: Seat, block: list[int], census: Census, seats: Seats) -> dict[str, Any]:
    kept = kept_by(seat.number, census, block[HELD_BY_VIEWS])
    return {
        "seat": seat.number,
        "pid": seat.peer.pid,
        "uid": seat.peer.uid,
        "command": seat.peer.command,
        "connected": seat.connection is not None,
        "seen": seat.is_seen,
        **kept,
        "children": list(seats.children_of(seat.number)) if kept["reads"] else [],
    }


def memory(inventory: Inventory, census: Census) -> dict[str, Any]:
    """What is held, in bytes."""
    free = inventory.spares.nbytes + sum(slots.ready * slots.tier.size for slots in inventory.maps)
    return {
        "limit": inventory.limit,
        "held": inventory.held,
        "overhead": inventory.overhead,
        "payload": census.payload,
        "by_state": {
            "free": free,
            **{state.name.lower(): census.nbytes[state] for state in (State.IDLE, State.LEASED, State.PUBLISHED)},
        },
    }


def tier(inventory: Inventory, which: Tier, census: Census) -> dict[str, Any]:
    """One tier, in slots."""
    slots = inventory.maps[which.index]
    free = slots.ready if which.size else len(inventory.spares)
    idle, leased, published = (census.slots[which.index, s] for s in (State.IDLE, State.LEASED, State.PUBLISHED))
    return {
        "size": which.size,
        "kind": which.kind.name.lower(),
        "capacity": which.capacity,
        "warm": slots.warm if which.size else idle + leased + published + free,
        "free": free,
        "idle": idle,
        "leased": leased,
        "published": published,
        "largest_run": slots.largest_run if which.kind is TierKind.CHUNK else 0,
        "scattered": inventory.scattered[which.index],
    }
