"""What many shared publications, holds and names cost the core, over a simulated ledger: the longest turn of
what ends, expires, is told or is given up at once. For `scale`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shmpool.protocol.ledger import CACHED, KEPT, ROW_WORDS, generation_of
from shmpool.protocol.messages import (
    MAX_ROWS_PER_MESSAGE,
    Direct,
    Find,
    Hold,
    Holds,
    LetGo,
    Purpose,
    Share,
    Topic,
)
from shmpoold.core.events import Event, Reconfigured, StopAsked, Ticked
from shmpoold.core.settings import Settings

from .simulated import SimulatedPool

#: Shared publications, of small slots.
MANY = 16_000
TIER = 0


def longest_turns(settings: Settings, clients: int) -> Iterator[tuple[str, float]]:
    """Each kind with the CPU seconds of its longest turn."""
    pool = SimulatedPool(settings, clients)
    numbers = _share(pool, MANY, clients)
    yield "asked for the names of all", _longest(pool, pool.asking(Topic.NAMES))
    yield "asked for buffers that are shared", _longest(pool, pool.asking(Topic.BUFFERS))
    some = [number for number, _ in numbers[1][:MAX_ROWS_PER_MESSAGE]]
    yield "a LetGo of 1,024 holds, the last ones", _longest(pool, pool.saying(1, LetGo(some)))
    dead = 2
    held = _hold_all(pool, dead)
    yield f"the death of a client that holds {held:,}", _longest(pool, pool.dying(dead))
    yield "a name that everybody waits for", _told(pool, clients)
    yield "the telling of 1,024 holds", _longest(pool, _telling(pool, 3))
    pool = SimulatedPool(settings, clients)
    _share(pool, MANY, clients, ttl=10)
    pool.now += 11
    yield f"{MANY:,} whose ttl is over", _longest(pool, Ticked())
    pool = SimulatedPool(settings, clients)
    for client, pairs in _share(pool, MANY, clients, keep=CACHED).items():
        for at in range(0, len(pairs), MAX_ROWS_PER_MESSAGE):
            pool.handle(pool.saying(client, LetGo([number for number, _ in pairs[at : at + MAX_ROWS_PER_MESSAGE]])))
    needed = pool.core.inventory.room + pool.core.shared.caches.nbytes // 2
    yield (
        "caches given up for a direct segment",
        _longest(pool, pool.saying(1, Direct(pool.next_number(), needed, True))),
    )
    changed = replace(settings, max_clients=clients + 64, lease_timeout=settings.lease_timeout + 1)
    yield "changed settings told to everybody", _longest(pool, Reconfigured(changed))
    yield "the begin of a stop", _longest(pool, StopAsked())


def _share(
    pool: SimulatedPool, count: int, clients: int, *, keep: int = KEPT, ttl: int = 0
) -> dict[int, list[tuple[int, int]]]:
    """By client, the number and row of each that it has made and holds."""
    made: dict[int, list[tuple[int, int]]] = {client: [] for client in range(1, clients + 1)}
    first = 0
    while first < count:
        client = 1 if first < 2 * MAX_ROWS_PER_MESSAGE else first % clients + 1
        pool.handle(pool.refilling(client, TIER, min(64, count - first), queue=False))
        rows = [row for _, row in pool.granted()]
        for row in rows:
            number = pool.next_number()
            pool.share(row, f"name {row}" if client != 1 else "", keep if client != 1 else keep & CACHED, ttl)
            pool.handle(pool.saying(client, Share(number, row, 0, ttl * 1000)))
            made[client].append((number, row))
        first += len(rows)
        pool.sent.clear()
    pool.turns()
    return made


def _generation(pool: SimulatedPool, row: int) -> int:
    return generation_of(pool.ledger[row * ROW_WORDS])


def _hold_all(pool: SimulatedPool, client: int) -> int:
    rows = list(pool.core.shared.publications)
    for row in rows:
        pool.handle(pool.saying(client, Hold(pool.next_number(), row, _generation(pool, row))))
    pool.sent.clear()
    return len(rows)


def _told(pool: SimulatedPool, clients: int) -> float:
    waiting = [client for client in range(1, clients + 1) if client != 2]
    for client in waiting:
        pool.handle(pool.saying(client, Find(pool.next_number(), "awaited", Purpose.OPEN, True)))
    pool.handle(pool.refilling(1, TIER, queue=False))
    ((_, row),) = pool.granted()
    pool.share(row, "awaited", KEPT)
    return _longest(pool, pool.saying(1, Share(pool.next_number(), row, 0, 0)))


def _telling(pool: SimulatedPool, client: int) -> Event:
    rows = list(pool.core.shared.publications)[:MAX_ROWS_PER_MESSAGE]
    return pool.saying(client, Holds([[pool.next_number(), row, _generation(pool, row)] for row in rows], True))


def _longest(pool: SimulatedPool, event: Event) -> float:
    """With all that follows."""
    pool.now += 0.1
    longest = max([pool.timed(event), *pool.turns()])
    for _ in range(1000):
        due = pool.core.next_deadline()
        if due is None or due > pool.now + 0.02:
            break
        pool.now = max(pool.now + 0.001, due)
        longest = max(longest, pool.timed(Ticked()))
    pool.sent.clear()
    return longest
