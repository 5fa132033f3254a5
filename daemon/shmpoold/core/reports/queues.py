"""The queues, as operators see them: how much is in each, who has it, who waits.

What a queue's members write is looked at by the shell, and only the beginning of it: nothing here believes more of it
than a number.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

from shmpool.protocol import queues
from shmpool.protocol.queues import Flag

from ..connections.seats import Seats
from ..memory.holding import Holding
from ..objects.holds import Publication
from ..objects.shared import Shared

#: Queues of one answer at most; how many there are in all is said among what is shared.
MOST_QUEUES: Final = 1000
#: One queue, and the bytes of its memory that cost one more, in units.
QUEUE, BYTES_PER_UNIT = 16, 8192

#: By what a queue lies in, and how many bytes from its beginning: those bytes; fewer when they cannot be had.
Read = Callable[[Holding, int], bytes]


def lines(
    shared: Shared, seats: Seats, read: Read, clock: Callable[[], float]
) -> Generator[int, None, list[dict[str, Any]]]:
    """A report: a line for each queue, in the order in which they were made."""
    found: list[dict[str, Any]] = []
    publications = (one for one in list(shared.publications.values()) if one.queue is not None)
    for publication in publications:
        if len(found) == MOST_QUEUES:
            break
        nbytes = queues.looked_at_bytes(seats.count)
        raw = read(publication.holding, nbytes)
        yield QUEUE + nbytes // BYTES_PER_UNIT
        look = queues.look(array("Q", raw[: len(raw) & ~7]), seats.count, int(1000 * clock()))
        if look is not None:
            found.append(_line(publication, look, seats))
    return found


def _line(publication: Publication, look: queues.Look, seats: Seats) -> dict[str, Any]:
    flags = look.flags
    return {
        "name": publication.name,
        "row": publication.row,
        "bytes": publication.holding.nbytes,
        "items": look.items,
        "capacity": look.capacity,
        "maxsize": look.maxsize,
        "used_bytes": look.used_bytes,
        "dropped": look.dropped,
        "joinable": bool(flags & Flag.JOINABLE),
        "overflow": (
            "drop_oldest" if flags & Flag.DROP_OLDEST else "drop_newest" if flags & Flag.DROP_NEWEST else "block"
        ),
        "on_dead_consumer": "requeue" if flags & Flag.REQUEUE else "drop",
        "shut": look.is_shut,
        "members": _pids((seat for seat, _ in publication.holders), seats),
        "waiting_putters": look.waiting[0],
        "waiting_getters": look.waiting[1],
        "putting": _pids(look.inside[0], seats),
        "getting": _pids(look.inside[1], seats),
    }


def _pids(numbers: Iterable[int], seats: Seats) -> list[int]:
    """Of the living."""
    return sorted({seat.peer.pid for number in numbers if (seat := seats.taken.get(number)) is not None})
