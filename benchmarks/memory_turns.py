"""What the memory manager costs the core, over a simulated ledger: the longest turn of what is reserved in
advance, comes back too old, is idle for long or has to go under pressure. For `held`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from shmpool.protocol.messages import MAX_ROWS_PER_MESSAGE, Bell, Return
from shmpool.protocol.sizing import KIB, MIB, TierKind
from shmpoold.core.events import Event, MemoryRead, Started, Ticked
from shmpoold.core.memory.pressure import Room
from shmpoold.core.settings import Allocation, Floor, Settings

from .simulated import SimulatedPool

CLIENTS = 100
#: Seconds after which pages are too old, and slots idle for too long.
AGE, LIFETIME = 1.0, 5.0
#: Seconds for which an event is followed.
FOLLOWED = 4.0
#: Slots of the tiers that are reserved in advance, and of how long a run.
SMALL, MEDIUM, RUN = 0, 3, 8_000
SETTINGS = Settings(
    memory_limit=8 * 1024 * MIB, max_buffer_age=AGE, buffer_lifetime=LIFETIME, allocation=Allocation.PREALLOCATE,
    floors=(Floor(TierKind.POOLED, 4 * KIB, 16_384), Floor(TierKind.POOLED, 64 * KIB, 8_192)),
)  # fmt: skip


def longest_turns() -> Iterator[tuple[str, float]]:
    """Each kind with the CPU seconds of its longest turn."""
    turns = _Turns(SimulatedPool(SETTINGS, CLIENTS))
    pool = turns.pool
    yield "preallocation", turns.longest(Started())
    rows = turns.lease(1, SMALL, MAX_ROWS_PER_MESSAGE)
    pool.now += 2 * AGE
    yield "a Return of 1,024 rows too old", turns.longest(turns.giving_back(1, rows))
    held = {client: turns.lease(client, MEDIUM, 64) for client in range(2, CLIENTS + 1)}
    pool.now += 2 * AGE
    yield "Returns of all clients, too old", turns.longest(*(turns.giving_back(*each) for each in held.items()))
    chunks = next(tier.index for tier in pool.tiers if tier.kind is TierKind.CHUNK)
    head = turns.lease(1, chunks, 1, chunks=RUN)
    pool.now += 2 * AGE
    yield f"a run of {RUN:,} chunks too old", turns.longest(turns.giving_back(1, head))
    held = {client: turns.lease(client, SMALL, 64) for client in range(2, CLIENTS)}
    pool.now += 2 * AGE
    yield "the death of who has 64 too old", turns.longest(pool.dying(2))
    for row in (unread := list(chain(*list(held.values())[1:]))):
        pool.publish(row, is_direct=True)  # its publisher has gone from it
        pool.finish(row)
    yield "a Bell of 1,024 done rows too old", turns.longest(pool.saying(1, Bell(unread[:MAX_ROWS_PER_MESSAGE])))
    for client in range(3, CLIENTS + 1):
        turns.longest(turns.giving_back(client, turns.lease(client, MEDIUM, 64)))
    pool.now += 2 * LIFETIME
    yield "idle slots cooled", turns.longest(Ticked())
    short = Room("the host's memory", 1000, 1, bounds_pool=False)
    yield "critical pressure", turns.longest(MemoryRead((short,), None))
    pool.handle(MemoryRead((short._replace(free=900),), None))
    pool.now += 100.0
    yield "the floors filled again", turns.longest(MemoryRead((short._replace(free=900),), None), Ticked())


class _Turns:
    """A pool, each event of which is timed, whatever brought it about."""

    def __init__(self, pool: SimulatedPool) -> None:
        self.pool = pool

    def lease(self, client: int, tier: int, count: int, *, chunks: int = 1) -> list[int]:
        """The rows that a client is granted."""
        rows: list[int] = []
        while len(rows) < count:
            self.pool.handle(self.pool.refilling(client, tier, min(64, count - len(rows)), chunks=chunks))
            self.pool.turns()
            rows += [row for _, row in self.pool.granted()]
        return rows

    def giving_back(self, client: int, rows: list[int]) -> Event:
        for row in rows:
            self.pool.give_back(row)
        return self.pool.saying(client, Return(rows))

    def longest(self, *events: Event) -> float:
        """The longest turn of these, and of all that follows within some seconds."""
        pool, took, ends = self.pool, 0.0, self.pool.now + FOLLOWED
        for event in events:
            took = max(took, pool.timed_each(event))
        while (due := pool.core.next_deadline()) is not None and due < ends:
            pool.now = max(pool.now + 0.001, due)
            took = max(took, pool.timed_each(Ticked()))
        pool.sent.clear()
        return took
