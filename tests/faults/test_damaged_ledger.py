"""A kept pool that was damaged meanwhile: the next broker notices, says so, and never grants
what it cannot trust.

With whole daemons (`inprocess`): segments that are missing, cut off or changed, each word of
the header's geometry, rows of the ledger. With the core alone, on the simulated world of
tests/core: every single flipped bit in rows of every kind, and hundreds of random damages
with random work after them.

Not told, because nothing in a row could: a seat that has become another one that is taken,
and a reader's TAKEN cell that has become DONE.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inprocess
import pytest
from corners import sizes
from inprocess import CHUNKS, POOLED, Client, Daemon, run_daemon, segments_left, small_config

import shmpool
from shmpool.protocol.handle import Handle, pack_handle
from shmpool.protocol.header import (
    CRC,
    FIRST_TIER,
    POOL_ID,
    ROWS,
    SEATS,
    TIER_WORDS,
    TIERS,
    VERSION,
    header_crc,
)
from shmpool.protocol.ledger import EXTENT, FIRST_CELL, LINK, NBYTES_BITS, ROW_WORDS, grant_word, state_of
from shmpool.protocol.messages import HELLO_MAGIC, PROTOCOL_VERSION, Direct, Grant, Hello, Refill, Return, Role, encode
from shmpool.protocol.names import header_name, ledger_name, tier_name
from shmpool.protocol.sizing import TierKind
from shmpool.protocol.states import CellState, State
from shmpoold.core.actions import CloseTicket, CreateDirect, ProbeReaders, Send, Warm
from shmpoold.core.broker import Broker
from shmpoold.core.events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Peer,
    ProcessDied,
    ReadersGone,
    Received,
    Ticked,
    TicketClosed,
    Warmed,
    WarmFailed,
)
from shmpoold.core.recovery import invariants
from shmpoold.shell.leftovers import remove_names

sys.path.append(str(Path(__file__).parents[1] / "core"))

import harness
from simulation import Simulation

# --- whole daemons -----------------------------------------------------------------------------------


class Kept:
    """A pool that a broker left, with a living client in it, whose socket is gone."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client: Client
        self.pool_id = 0
        #: Something of every kind, by the name of its head's row.
        self.rows: dict[str, int] = {}
        self.handle = b""
        run_daemon(small_config(address, on_stop="keep", handle_ttl=60.0), self._fill)

    async def _fill(self, daemon: Daemon) -> None:
        self.client = client = Client(daemon)
        self.pool_id = (await client.connect(self.address)).pool_id
        for number, name in enumerate(("idle", "leased", "published"), 1):
            (self.rows[name],) = await client.refill(number, POOLED)
        (self.rows["run"],) = await client.refill(4, CHUNKS, 3)
        self.rows["follower"] = self.rows["run"] + 1
        (self.rows["direct"],) = await client.direct(5, 5000)
        ledger = daemon.ledger
        ledger[self.rows["leased"] * ROW_WORDS] += (State.LEASED - State.IDLE) << 16
        await client.publish(self.rows["published"], 100, client.seat)
        granted = ledger[self.rows["published"] * ROW_WORDS]
        self.handle = pack_handle(self.pool_id, granted, self.rows["published"] << NBYTES_BITS + 4 | 100)

    def path(self, what: str) -> Path:
        names = {
            "header": header_name(self.pool_id),
            "ledger": ledger_name(self.pool_id),
            "tier": tier_name(self.pool_id, POOLED),
        }
        return Path("/dev/shm") / names[what]

    def flip(self, what: str, word: int, bit: int) -> None:
        with open(self.path(what), "r+b", buffering=0) as file:
            raw = int.from_bytes(os.pread(file.fileno(), 8, word * 8), "little") ^ 1 << bit
            os.pwrite(file.fileno(), raw.to_bytes(8, "little"), word * 8)

    def change_header(self, **words: int) -> None:
        """Another header, with a checksum that fits."""
        at = {"version": VERSION, "pool_id": POOL_ID, "rows": ROWS, "tiers": TIERS, "seats": SEATS,
              "kind": FIRST_TIER, "size": FIRST_TIER + 1, "capacity": FIRST_TIER + 3}  # fmt: skip
        path = self.path("header")
        header = memoryview(bytearray(path.read_bytes())).cast("Q")
        for name, value in words.items():
            header[at[name]] = value
        header[CRC] = header_crc(header)
        path.write_bytes(header)

    def run_next(self, scenario: Callable[[Daemon], Any]) -> None:
        run_daemon(small_config(self.address, handle_ttl=60.0), scenario)


@pytest.fixture
def kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    inprocess.POOLS.clear()
    kept = Kept(str(tmp_path / "run" / "broker.sock"))
    caplog.clear()
    yield kept
    kept.client.close()
    assert segments_left() == set()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


GEOMETRY = [0, POOL_ID, ROWS, TIERS, SEATS, CRC, *range(FIRST_TIER, FIRST_TIER + 3 * TIER_WORDS)]
DAMAGES: dict[str, Callable[[Kept], Any]] = {
    **{f"no {what}": lambda kept, what=what: kept.path(what).unlink() for what in ("header", "ledger", "tier")},
    **{
        f"{what} of {size}": lambda kept, what=what, size=size: os.truncate(kept.path(what), size)
        for what, size in (("header", 0), ("header", 100), ("header", 2048 + 40), ("ledger", 0), ("ledger", 4096),
                           ("ledger", 1 << 30), ("tier", 0), ("tier", 4096))
    },
    **{f"header word {at}": lambda kept, at=at: kept.flip("header", at, at * 7 % 64) for at in GEOMETRY},
    "another pool's header": lambda kept: kept.change_header(pool_id=kept.pool_id ^ 1),
    "more rows than its ledger": lambda kept: kept.change_header(capacity=1 << 19),
    "a tier that is larger": lambda kept: kept.change_header(size=8192),
    "no such kind of tier": lambda kept: kept.change_header(kind=9),
    "more tiers than fit": lambda kept: kept.change_header(tiers=1 << 40),
    "more seats than fit": lambda kept: kept.change_header(seats=1 << 40),
    "fewer seats": lambda kept: kept.change_header(seats=1000),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_segments_mean_a_new_pool(kept: Kept, caplog: pytest.LogCaptureFixture, name: str) -> None:
    DAMAGES[name](kept)

    async def look(daemon: Daemon) -> None:
        assert daemon.pool.store.pool_id != kept.pool_id
        assert (daemon.pool.is_adopted, daemon.pool.core.epoch) == (False, 1)
        assert not {left for left in segments_left() if f"{kept.pool_id:016x}" in left}, "the old segments are removed"
        await asyncio.to_thread(open_old_handle)

    def open_old_handle() -> None:
        with shmpool.connect(kept.address) as pool:
            with pytest.raises(shmpool.StaleHandle, match=f"{kept.pool_id:016x}"):
                pool.open(Handle(kept.handle))
            lease = pool.lease(100)
            assert pool.open(lease.publish()).release() is None

    kept.run_next(look)
    (line,) = errors(caplog)
    assert f"pool {kept.pool_id:016x} cannot be adopted" in line


@pytest.mark.parametrize("version", [1, 3, 130])
def test_pool_of_another_version_is_left_as_it_is(kept: Kept, caplog: pytest.LogCaptureFixture, version: int) -> None:
    """Whoever lives in it goes on, and nobody of this version knows what its words mean."""
    kept.change_header(version=version)
    before = {name for name in segments_left() if f"{kept.pool_id:016x}" in name}

    async def look(daemon: Daemon) -> None:
        assert (daemon.pool.is_adopted, daemon.pool.core.epoch) == (False, 1)
        assert before <= segments_left()

    kept.run_next(look)
    (line,) = errors(caplog)
    assert f"pool {kept.pool_id:016x} is of another shmpool: its ledger's version is {version}" in line
    remove_names(before)


def test_what_may_change_in_a_header_is_no_damage(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.flip("header", 4, 3)  # the dead broker's pid

    async def look(daemon: Daemon) -> None:
        assert (daemon.pool.store.pool_id, daemon.pool.core.epoch) == (kept.pool_id, 2)

    kept.run_next(look)
    assert errors(caplog) == []


#: What is flipped in which row: a bit of the state, of a length, of a link.
ROW_DAMAGES = [
    ("idle", 0, 23), ("idle", 0, 17), ("idle", LINK, 5), ("leased", 0, 20), ("leased", 0, 0), ("published", 0, 18),
    ("published", EXTENT, 40), ("published", EXTENT, 44), ("run", 0, 22), ("run", EXTENT, 49), ("run", LINK, 24),
    ("run", LINK, 3), ("run", LINK, 60), ("follower", 0, 17), ("follower", 0, 21), ("follower", EXTENT, 0),
    ("follower", EXTENT, 30), ("direct", 0, 19), ("direct", EXTENT, 39), ("direct", LINK, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "word", "bit"),
    [pytest.param(*one, marks=() if at % 3 == 0 else pytest.mark.long) for at, one in enumerate(ROW_DAMAGES)],
)
def test_damaged_rows_of_the_living_are_quarantined_and_never_granted(
    kept: Kept, caplog: pytest.LogCaptureFixture, name: str, word: int, bit: int
) -> None:
    kept.flip("ledger", kept.rows[name] * ROW_WORDS + word, bit)
    run = set(range(kept.rows["run"], kept.rows["run"] + 3))
    mine = run | {kept.rows[name] for name in ("idle", "leased", "published", "direct")}

    async def look(daemon: Daemon) -> None:
        core = daemon.pool.core
        assert core.pool_id == kept.pool_id
        assert core.inventory.quarantined
        assert kept.rows[name] in core.inventory.quarantined
        assert core.inventory.quarantined <= mine, "what is sound stays whose it was"
        async with Client(daemon) as client:
            await client.connect(kept.address)
            granted = await take_everything(client)
            assert not granted & mine
            await client.goodbye()
            await daemon.until(lambda: client.seat not in core.seats.taken)
        invariants.check(core)

    kept.run_next(look)
    (line,) = errors(caplog)
    assert "damaged" in line and f"{kept.pool_id:016x}" in line


async def take_everything(client: Client) -> set[int]:
    """Every row that the broker still grants, followers too."""
    rows: set[int] = set()
    for number, tier in enumerate((POOLED, CHUNKS, 2) * 300, 1):
        try:
            rows.update(await (client.direct(number, 1) if tier == 2 else client.refill(number, tier, 1, 8)))
        except inprocess.Refused:
            pass
    return rows


# --- the core alone --------------------------------------------------------------------------------------


def make_scene() -> tuple[harness.World, dict[str, int]]:
    """Rows of every kind, by name."""
    world = harness.World(harness.small_settings(), check_every=0)
    writer, reader, leaver = world.client(), world.client(), world.client()
    idle, leased, published, shared, free = writer.get(count=5)
    writer.give_back(free)
    world.run()
    (left,) = leaver.get(harness.MEDIUM)
    (run,), (read_run,) = writer.get(harness.CHUNKS, 4), writer.get(harness.CHUNKS, 3)
    writer.lease(leased)
    direct, sent = writer.get_direct(8192), writer.get_direct(4096)
    tickets = [writer.publish(slot, 3)[0] for slot in (published, shared, read_run, sent)]
    tickets.append(leaver.publish(left, 2)[0])
    leaver.goodbye()
    world.run()
    for ticket in tickets[1:]:
        assert reader.open(ticket)
    rows = {
        "idle": idle.row, "leased": leased.row, "published": published.row, "shared": shared.row, "free": free.row,
        "left": left.row, "run": run.row, "follower": run.rows[2], "read run": read_run.row,
        "read follower": read_run.rows[1], "direct": direct.row, "sent": sent.row, "cold": world.tiers[0].end - 1,
    }  # fmt: skip
    assert len(set(rows.values())) == len(rows)
    return world, rows


def make_scattered_scene() -> tuple[harness.World, dict[str, int]]:
    """A run in several pieces among the slots of another."""
    world = harness.World(harness.small_settings(), check_every=0)
    hoarder, client = world.client(), world.client()
    while not hoarder.refusals:
        hoarder.refill(harness.CHUNKS, queue=False)
        world.run()
    hoarder.give_back(*hoarder.ready[2::3])
    world.run()
    (run,) = client.get(harness.CHUNKS, 8)
    assert len(run.extents) > 2
    client.publish(run, 2)
    return world, {"head": run.row, "piece": run.extents[1][0], "last piece": run.extents[-1][0], "member": run.rows[1]}


class Rewound:
    """A world whose words are put back before each trial."""

    def __init__(self, world: harness.World) -> None:
        self.world = world
        self._words = bytes(world.ledger), bytes(world.header)  # type: ignore[arg-type]
        self.in_use = set(world.owners) | {row for row, one in world.publications.items() if not one.is_over}

    def adopt(self, *flips: tuple[int, int, int]) -> Broker:
        """A new broker on a ledger with (row, word, bit) flipped."""
        world = self.world
        world.ledger[:], world.header[:] = (memoryview(raw).cast("Q") for raw in self._words)
        for row, word, bit in flips:
            world.ledger[row * ROW_WORDS + word] ^= 1 << bit
        world.kill_broker()
        broker = world._make_broker()
        broker.adopt(world.now)
        invariants.check(broker)
        return broker

    def lost(self, broker: Broker) -> set[int]:
        """Rows that somebody uses and that the broker takes for nobody's."""
        inventory = broker.inventory
        return {row for row in self.in_use if inventory.maps[inventory.tier_of(row).index].is_unused(row)}


@pytest.mark.parametrize("step", sizes(7, 2, 1))
@pytest.mark.parametrize("scene", [make_scene, make_scattered_scene])
def test_no_single_flipped_bit_makes_a_used_row_nobodys(
    scene: Callable[[], tuple[harness.World, dict[str, int]]], step: int
) -> None:
    world, rows = scene()
    rewound = Rewound(world)
    assert rewound.adopt().inventory.quarantined == set()
    trials = 0
    for name, row in rows.items():
        for word in (0, EXTENT, FIRST_CELL, FIRST_CELL + 1, FIRST_CELL + 3, LINK):
            for bit in range(random.randrange(step), 64, step):
                broker = rewound.adopt((row, word, bit))
                is_untold = (word >= FIRST_CELL and word != LINK) and state_of(1 << bit)
                assert is_untold or not rewound.lost(broker), f"bit {bit} of word {word} of {name} {row}"
                trials += 1
    print(f"{trials} flipped bits")


@pytest.mark.parametrize("seeds", sizes(range(5), range(5, 25), range(25, 100)), ids=["few", "more", "many"])
def test_random_damage_never_breaks_the_core(seeds: range) -> None:
    """Whatever a ledger says, it is adopted, and what is granted is granted once."""
    for seed in seeds:
        simulation = Simulation(seed, check_every=0)
        dice = random.Random(seed)
        while simulation.world.events < 60 + 4 * (seed % 100):
            for move in dice.choices(simulation._moves, simulation._weights, k=32):
                move()
        rewound = Rewound(simulation.world)
        for _ in range(5):
            flips = [
                (dice.randrange(1, simulation.world.tiers[-1].end), dice.choice((0, 0, 0, 1, 2, 3, 14, 15)),
                 dice.randrange(64))
                for _ in range(dice.choice((1, 2, 5, 50, 200)))
            ]  # fmt: skip
            try:
                broker = rewound.adopt(*flips)
                Aftermath(simulation.world, broker, dice).run()
            except BaseException as error:
                error.add_note(f"seed {seed}: {len(flips)} flips")
                raise


class Aftermath:
    """Random work with a broker, whose account is checked at every event."""

    def __init__(self, world: harness.World, broker: Broker, dice: random.Random) -> None:
        self.world, self.broker, self.dice = world, broker, dice
        self.now = world.now
        self.granted: dict[int, list[int]] = {}

    def run(self) -> None:
        broker, dice, tiers = self.broker, self.dice, self.world.tiers
        for seat in list(broker.seats.taken):
            if dice.random() < 0.5:
                self.handle(ProcessDied(seat))
        for connection in range(10_000, 10_003):
            self.granted[connection] = []
            self.handle(Connected(connection, Peer(7, 1, 1, connection, "newcomer")))
            self.handle(Received(connection, Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.WORKER, connection, 0, 0)))
        for number in range(1, 41):
            connection, tier = dice.choice(list(self.granted)), dice.choice(tiers)
            if tier.kind is TierKind.DIRECT:
                self.handle(Received(connection, Direct(number, dice.choice((1, 5000, 60_000)), number % 2 == 0)))
            else:
                chunks = dice.choice((1, 2, 5)) if tier.kind is TierKind.CHUNK else 1
                self.handle(Received(connection, Refill(number, tier.index, chunks, 3, number % 2 == 0)))
            if self.granted.get(connection) and dice.random() < 0.5:
                row = self.granted[connection].pop()
                generation = self.world.generation(row)
                self.world.store(row, grant_word(generation + 1, State.RETURNED, 0))
                self.handle(Received(connection, Return([row, dice.randrange(1, tiers[-1].end)])))
            if dice.random() < 0.2:
                self.tick()
        for seat in list(broker.seats.taken):
            self.handle(ProcessDied(seat))
        for _ in range(20):
            self.tick()
        assert broker.seats.taken == {}

    def tick(self) -> None:
        deadline = self.broker.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline) + 10
            self.handle(Ticked())

    def handle(self, event: Any) -> None:
        actions = deque(self.broker.handle(event, self.now))
        while actions:
            answer = self.answer(actions.popleft())
            if answer is not None:
                actions += self.broker.handle(answer, self.now)
        invariants.check(self.broker)  # no row is in two places

    def answer(self, action: Any) -> Any:
        works = self.dice.random() < 0.9
        if isinstance(action, Send):
            encode(action.message)
            if isinstance(action.message, Grant) and action.connection in self.granted:
                self.granted[action.connection] += action.message.rows
        elif isinstance(action, Warm):
            extent = (action.tier, action.row, action.count)
            return Warmed(*extent) if works else WarmFailed(*extent, "no room")
        elif isinstance(action, CreateDirect):
            return DirectCreated(action.row) if works else DirectFailed(action.row, "no room")
        elif isinstance(action, CloseTicket):
            at = action.row * ROW_WORDS + FIRST_CELL + action.cell
            if self.world.ledger[at] == action.granted:
                self.world.ledger[at] = grant_word(action.granted >> 24, CellState.DONE, 0)
            return TicketClosed(action.row)
        elif isinstance(action, ProbeReaders):
            return ReadersGone(action.seat) if works else None  # a child may still read, at this look
        return None
