"""Making a queue's memory, and finding that of one that has the name already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidSize, NameTaken, NotFound
from ..objects.sharing import find_present, publish_shared
from ..protocol import queues as layout
from ..protocol.header import SEATS as HEADER_SEATS
from ..protocol.ledger import QUEUE
from ..protocol.queues import ALL_FLAGS, FLAG_NAMES, Flag
from ..system import libc, semaphores
from ..system.outside import own

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..shared import Shared

#: What is longer goes into a lease. At 4 KiB a copy into the queue takes a tenth of what a lease does.
MOST_INLINE: Final = 4096
#: The memory of a queue without a maxsize, and the most that one with it may have: bytes, and part of the pool.
_USUAL_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 4 << 20
_SHARE: Final = 16
#: Granules that each item of a queue with a maxsize is given where that is not too much, and all queues have.
_USUAL_GRANULES: Final = 72
_LEAST_GRANULES: Final = 1024
#: Items of a queue that gives back that are in consumers' hands at the most.
HANDS: Final = 64


def make(pool: BasePool, maxsize: int, name: str | None, flags: int, keep: bool) -> Shared:
    """A new queue's memory, or that of the queue that has the name already. Raises NameTaken for a name of something
    else, ValueError for a queue that was made otherwise."""
    if name is None:
        return _publish(pool, maxsize, None, flags, keep)
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    while True:
        try:
            shared = find_present(pool, name)
        except own(NotFound):
            try:
                return _publish(pool, maxsize, name, flags, keep)
            except own(NameTaken):
                continue  # another was faster
        _check_same(shared, maxsize, name, flags)
        return shared


def _check_same(shared: Shared, maxsize: int, name: str, flags: int) -> None:
    with shared.open() as buffer:
        words = buffer.view[: len(buffer.view) & ~7].cast("Q")
        if buffer.nbytes != layout.PREFIX_BYTES or words[0] != layout.MAGIC:
            raise NameTaken(f"the name {name!r} is taken by something else than a queue")
        found = words[layout.MAXSIZE], words[layout.FLAGS] & ALL_FLAGS
        del words
    if found != (maxsize, flags):
        raise ValueError(
            f"the queue {name!r} is there already, with {_said(*found)}, not {_said(maxsize, flags)}:"
            " who opens it says the same as who made it"
        )


def _said(maxsize: int, flags: int) -> str:
    return f"maxsize={maxsize}" + "".join(f", {said}" for flag, said in FLAG_NAMES.items() if flag & flags)


def _publish(pool: BasePool, maxsize: int, name: str | None, flags: int, keep: bool) -> Shared:
    session = pool._live_session()
    granules, capacity = _geometry(session.memory_limit, maxsize)
    hands = HANDS if flags & Flag.REQUEUE else 0
    seats = session.header[HEADER_SEATS]
    first = layout.first_granule(seats, flags, hands, MOST_INLINE)
    lease: Any = pool.lease(first + granules * layout.GRANULE_BYTES)
    try:
        lease.view[:first] = bytes(first)
        words = lease.view[:first].cast("Q")
        words[layout.GRANULES], words[layout.CAPACITY], words[layout.MAXSIZE] = granules, capacity, maxsize
        words[layout.FLAGS], words[layout.HANDS], words[layout.SEATS] = flags, hands, seats
        words[layout.MOST_INLINE], words[0] = MOST_INLINE, layout.MAGIC
        del words
        address = libc.address_of(lease.view) + 8 * layout.LOCKS
        for end in range(2):
            semaphores.make(address + 8 * end * layout.VERSIONS * layout.SEMAPHORE_WORDS, 1)
        lease.shorten(layout.PREFIX_BYTES)
        return publish_shared(pool, lease, name, keep, None, mark=QUEUE)
    except BaseException:
        lease.release()
        raise


def _geometry(memory_limit: int, maxsize: int) -> tuple[int, int]:
    """Granules, and the most items. Items that fill half of the granules leave as many for handles, so there
    is room for as many as were asked for, however large they are. Raises InvalidSize for more items than a pool
    of this size has room for."""
    most = _power_below(min(_MOST_BYTES, memory_limit // _SHARE) // layout.GRANULE_BYTES)
    if not maxsize:
        granules = min(most, _USUAL_BYTES // layout.GRANULE_BYTES)
        return granules, granules
    if 2 * maxsize > most:
        raise InvalidSize(
            f"a queue of {maxsize} items is more than this pool has room for, {most // 2}:"
            " raise memory_limit, or ask for fewer"
        )
    wanted = max(_LEAST_GRANULES, 2 * maxsize, min(_USUAL_GRANULES * maxsize, most))
    return min(most, _power_below(2 * wanted - 1)), maxsize


def _power_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)
