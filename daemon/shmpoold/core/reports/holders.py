"""Who holds what: by process and use for people, by buffer for those who look closely, and who
keeps most for a message that has to name somebody."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from shmpool.protocol.census import Census, Kept, Tally, Use
from shmpool.protocol.ledger import CACHED, KEPT
from shmpool.protocol.sizing import STRATEGY_OF_KIND, Tier, format_bytes
from shmpool.protocol.states import State

from ..connections.seats import Seat, Seats
from ..memory.inventory import Inventory
from ..objects.shared import Shared
from .census import HELD_ROW, HOLDERS_PER_UNIT, Found, Ledger

#: Lines of one answer at most; how many there are in all is said beside them.
MOST_LINES: Final = 50_000
#: A line by process, and one by buffer, in units.
LINE, BUFFER = 4, 6

_USES: Final = tuple(Use)
_NAMES: Final = {
    Use.LEASED: "leased",
    Use.UNREAD: "published and not opened",
    Use.OPEN: "open for reading",
    Use.SHARED: "shared",
    Use.HELD: "held of what others share",
    Use.IDLE: "idle in its magazines",
}


@dataclass(slots=True)
class Process:
    """What one process keeps for one use, over all of its seats; without a seat: what is left
    of publishers that have gone."""

    use: Use
    seats: list[Seat] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    #: Pids of forked processes that read on; only what is open or held is theirs.
    children: list[int] = field(default_factory=list)

    def keeps_most(self, scale: int = 1) -> str:
        """A sentence; *scale* times what was counted, where that was a part of the whole."""
        if self.seats:
            peer = self.seats[0].peer
            who = f"pid {peer.pid} ({peer.command})" if peer.command else f"pid {peer.pid}"
            if self.children:
                who += f", read on by its forked pid {', '.join(map(str, self.children))},"
        else:
            who = "a publisher that has gone"
        buffers, nbytes = self.tally.buffers * scale, format_bytes(self.tally.nbytes * scale)
        about = "about " if scale > 1 else ""
        return f"{who} keeps most: {about}{buffers:,} buffer{'s' * (buffers != 1)} {_NAMES[self.use]}, {nbytes}"


def by_process(census: Census, seats: Seats) -> Generator[int, None, list[Process]]:
    """A chore: what each process keeps, most memory first."""
    found: dict[tuple[Any, Use], Process] = {}
    for (number, use), tally in census.kept.items():
        seat = seats.taken.get(number)
        # A pid of another namespace may be 0, or nobody's: then each seat stands for itself.
        key = None if seat is None else (seat.peer.pid, seat.peer.start_time) if seat.peer.pid else number
        process = found.setdefault((key, use), Process(use))
        if seat is not None:
            process.seats.append(seat)
            if use in (Use.OPEN, Use.HELD):
                process.children += seats.children_of(number)
        process.tally.join(tally)
        yield HELD_ROW
    return sorted(found.values(), key=lambda process: (-process.tally.nbytes, _USES.index(process.use)))


def lines(
    ledger: Ledger, tiers: tuple[Tier, ...], seats: Seats, clock: Callable[[], float]
) -> Generator[int, None, dict[str, Any]]:
    """A report: a line for each process and use, most memory first."""
    census = yield from ledger.take_census()
    processes = yield from by_process(census, seats)
    shown = []
    for process in islice(processes, MOST_LINES):
        shown.append(_line(process, tiers, clock()))
        yield LINE
    return {"total": len(processes), "shown": len(shown), "leases": shown}


def _line(process: Process, tiers: tuple[Tier, ...], now: float) -> dict[str, Any]:
    tally, seat = process.tally, process.seats[0] if process.seats else None
    return {
        "pid": seat.peer.pid if seat else None,
        "uid": seat.peer.uid if seat else None,
        "seats": [seat.number for seat in process.seats],
        "command": seat.peer.command if seat else "",
        "connected": any(seat.connection is not None for seat in process.seats),
        "children": process.children,
        "state": process.use.value,
        "buffers": tally.buffers,
        "bytes": tally.nbytes,
        "tickets": tally.tickets,
        "age_seconds": _age(tally.since, now),
        "tiers": {tiers[index].label(): count for index, count in sorted(tally.by_tier.items())},
    }


def each(
    ledger: Ledger, inventory: Inventory, shared: Shared, seats: Seats, clock: Callable[[], float]
) -> Generator[int, None, dict[str, Any]]:
    """A report: a line for each buffer, in the order of the ledger. Who holds what is shared stands
    among its readers. Of these each has the pids of its forked children that read on."""
    total = 0
    shown: list[bytes] = []
    readers: set[int] = set()
    for found in ledger.find():
        if isinstance(found, int):
            yield found
            continue
        for kept in found.kept:
            total += 1
            if len(shown) < MOST_LINES:
                holders = shared.holders_of(kept.row)
                readers.update(kept.readers if holders is None else holders)
                shown.append(_buffer(kept, found, clock(), holders))
        yield len(found.kept) * BUFFER
    peers = {}
    for number, seat in list(seats.taken.items()):
        children = list(seats.children_of(number)) if number in readers else []
        peers[str(number)] = [seat.peer.pid, seat.peer.command, children]
        yield 1
    tiers = [[tier.label(), STRATEGY_OF_KIND[tier.kind].value] for tier in inventory.tiers]
    return {"total": total, "shown": len(shown), "tiers": tiers, "seats": peers, "leases": shown}


def _buffer(kept: Kept, found: Found, now: float, holders: tuple[int, ...] | None) -> bytes:
    """An array in JSON, which `shmpool.stats` unfolds: there may be many, and bytes are nothing
    that the garbage collector has to look at."""
    use = Use.LEASED if kept.state is State.LEASED else Use.IDLE
    if kept.state is State.PUBLISHED:
        use = Use.SHARED if holders is not None else Use.OPEN if kept.readers else Use.UNREAD
    readers = kept.readers if holders is None else holders
    age = _age((found.changed if use is Use.OPEN else found.since)[kept.row - found.first], now)
    line = (kept.row, kept.tier.index, use, kept.seat, kept.nbytes, kept.unread, readers, age, kept.is_in_custody)
    return json.dumps(line, separators=(",", ":")).encode()


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else round(max(0.0, now - since), 3)


def names(shared: Shared, seats: Seats) -> Generator[int, None, dict[str, Any]]:
    """A report: each shared publication that has a name, who may drop it and which processes hold it.
    Whoever asked sorts them."""
    lines = []
    for name, publication in shared.names.items():
        pids = {seat.peer.pid for number, _ in publication.holders if (seat := seats.taken.get(number)) is not None}
        line = {
            "name": name,
            "row": publication.row,
            "bytes": publication.holding.nbytes,
            "uid": publication.uid,
            "keep": {KEPT: "kept", CACHED: "cache"}.get(publication.keep, ""),
            "held_by": sorted(pids),
        }
        lines.append(json.dumps(line, separators=(",", ":")).encode())
        yield LINE + len(publication.holders) // HOLDERS_PER_UNIT
    return {"total": len(lines), "shown": len(lines), "names": lines}
