"""What an operator should look at, a sentence each."""

from __future__ import annotations

from collections.abc import Generator

from ..connections.seats import Seats
from ..lending.requests import WaitingLine
from ..memory.inventory import Inventory
from .holders import Process

#: A seat that is looked at, in units, is a part of one; so many are one.
SEATS_PER_UNIT = 16


def alerts(
    inventory: Inventory, seats: Seats, line: WaitingLine, processes: list[Process]
) -> Generator[int, None, list[str]]:
    """A chore: what is the matter now. *processes*: who keeps what, the most first."""
    found = []
    waiting = line.all()
    if waiting:
        found.append(f"{len(waiting)} requests wait for memory")
        found += [process.keeps_most() for process in processes[:1]]
    for index, seat in enumerate(list(seats.taken.values())):
        if seat.connection is None and seat.rows:
            found.append(f"pid {seat.peer.pid} (seat {seat.number}) is away and keeps {len(seat.rows)} slots")
        yield index % SEATS_PER_UNIT == 0
    if inventory.quarantined:
        found.append(f"{len(inventory.quarantined)} rows are quarantined")
    return found
