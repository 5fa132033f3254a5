"""scale: What does an event cost the broker, with more clients and more leases?

The core handles events over a simulated ledger, in this process: only its CPU time counts, and
of each kind the best round. All the pools are of one size (135,169 rows) and alive at once; a round
measures each of them. A third of the leases are written, a third published, a third open for reading."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice

import click

from shmpool.protocol.messages import MAX_ROWS_PER_MESSAGE, Bell, Cancel, Direct, Refill, Return, Topic
from shmpool.protocol.sizing import MIB
from shmpoold.core.events import Event, Received, Ticked
from shmpoold.core.settings import Settings

from .options import Options
from .parameters import Counts
from .report import Bar, Column, Report, Table
from .shared_turns import MANY, longest_turns
from .simulated import SimulatedPool, collecting_as_the_daemon

CLIENTS = (1, 100, 1000)
LEASES = (1_000, 10_000, 100_000)
SETTINGS = Settings(memory_limit=32 * 1024 * MIB)
#: Tiers that the leases lie in, and the one that is measured: of the largest slots, none of them leased.
FILLED, MEASURED = (0, 1, 2, 3, 4, 6), 5
#: The tier of the longest run, and its chunks.
RUNS, LONGEST_RUN = 7, 16_000
ROUNDS = 5
#: How often each kind is timed in a round, and how many of it together.
EVENTS_PER_ROUND = 5
BATCH = 64
FLAT = 1.5
AWAY = 1.1
LONGEST_TURN = 0.005

PARAMETERS = [
    click.Option(["--clients"], type=Counts(), help="Numbers of clients.  [default: 1,100,1000]"),
    click.Option(["--leases"], type=Counts(), help="Numbers of leases.  [default: 1000,10000,100000]"),
]

Size = tuple[int, int]
Costs = dict[Size, float]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    rounds = options.rounds or ROUNDS
    clients, leases = options.more.get("clients") or CLIENTS, options.more.get("leases") or LEASES
    with collecting_as_the_daemon():
        pools = {(some, many): _pool(some, many) for some in clients for many in leases}
        _add_events(report, pools, rounds)
        _add_turns(report, pools, rounds)
        _add_away(report, pools, rounds)
        del pools
        _add_shared(report, max(clients), max(2, rounds // 2))
    return report


def _pool(clients: int, leases: int) -> SimulatedPool:
    pool = SimulatedPool(SETTINGS, clients)
    pool.fill(leases, FILLED)
    for client, row in _refills(pool, BATCH)[1]:  # what is measured is warm from now on
        pool.give_back(row)
        pool.handle(pool.saying(client, Return([row])))
    pool.turns()
    return pool


# --- one event ---------------------------------------------------------------------------------------


def _some(pool: SimulatedPool, count: int = BATCH) -> list[int]:
    """Clients, each of them as often as the others."""
    step = max(1, pool.clients // count)
    return list(islice(cycle(range(1, pool.clients + 1, step)), count))


def _refills(pool: SimulatedPool, count: int = BATCH) -> tuple[float, list[tuple[int, int]]]:
    took = pool.timed(*(pool.refilling(client, MEASURED) for client in _some(pool, count)))
    return took, pool.granted()


def _events(pool: SimulatedPool) -> Iterator[tuple[str, float]]:
    """Each kind once, in an order that leaves everything as it was."""
    pool.now += 0.01
    took, granted = _refills(pool)
    yield "Refill of a ready slot", took
    yield "Bell of a row with nothing to do", pool.timed(*(pool.saying(c, Bell([row])) for c, row in granted))
    for _, row in granted:
        pool.give_back(row)
    yield "Return of a slot", pool.timed(*(pool.saying(client, Return([row])) for client, row in granted))
    yield from _direct(pool)
    yield from _in_vain(pool)
    newcomers = [pool.newcomer() for _ in range(8)]
    yield "a new connection", pool.timed(*map(pool.connecting, newcomers))
    yield "Hello", pool.timed(*map(pool.hello, newcomers))
    yield "a lost connection", pool.timed(*map(pool.leaving, newcomers))
    yield "a tick with nothing to do", pool.timed(*[Ticked()] * BATCH)
    pool.handle(*map(pool.dying, newcomers))
    pool.turns()


def _direct(pool: SimulatedPool) -> Iterator[tuple[str, float]]:
    """Direct segments, asked for one by one, so that each has its answer before the next."""
    asked = done = 0.0
    clients = _some(pool, 16)
    for client in clients:
        asked += pool.timed(pool.saying(client, Direct(pool.next_number(), 2 * MIB, True)))
        ((_, row),) = pool.granted()
        pool.publish(row, is_direct=True)
        pool.finish(row)
        done += pool.timed(pool.saying(client, Bell([row])))
    yield "Direct", asked / len(clients)
    yield "Bell of a segment that is done", done / len(clients)


def _in_vain(pool: SimulatedPool) -> Iterator[tuple[str, float]]:
    """Requests that nothing serves. The first of each kind pays for what serves those after it: a
    round of recalls, a look at who keeps most (see `_add_turns`)."""
    clients, kinds = _some(pool, 16), {"a request that is refused": False, "a request that waits": True}
    for kind, queue in kinds.items():
        pool.handle(_vain(pool, 1, queue=queue))
        yield kind, pool.timed(*(_vain(pool, client, queue=queue) for client in clients))
    numbers = pool.waiting()
    pool.handle(pool.saying(1, Cancel(numbers[0])))
    yield "Cancel", pool.timed(*(pool.saying(c, Cancel(n)) for c, n in zip(clients, numbers[1:], strict=True)))
    pool.sent.clear()
    pool.turns()


def _vain(pool: SimulatedPool, client: int, *, queue: bool) -> Event:
    """Asks for all that the pool could ever hold."""
    nbytes = pool.core.inventory.limit - pool.core.inventory.overhead
    return pool.saying(client, Direct(pool.next_number(), nbytes, queue))


def _add_events(report: Report, pools: dict[Size, SimulatedPool], rounds: int) -> None:
    best: dict[str, Costs] = {}
    for _ in range(EVENTS_PER_ROUND * rounds):
        for size, pool in pools.items():
            for kind, took in _events(pool):
                _keep(best, kind, size, took)
    _add_table(report, "one event, CPU seconds by leases", best)
    for kind, costs in best.items():
        flat = max(costs.values()) / min(costs.values())
        report.bars.append(Bar(f"{kind}: dearest / cheapest", FLAT, flat, is_most=True))


def _add_table(report: Report, title: str, best: dict[str, Costs]) -> None:
    sizes = list(next(iter(best.values())))
    clients, leases = (sorted({size[which] for size in sizes}) for which in (0, 1))
    columns = [Column("event"), Column("clients", "count"), *(Column(f"{many:,}", "s") for many in leases)]
    table = Table(title, [*columns, Column("dearest / cheapest", "x")], is_grouped=True)
    for kind, costs in best.items():
        for some in clients:
            ratio = max(costs.values()) / min(costs.values()) if some == clients[-1] else None
            table.rows.append([kind, some, *(costs[some, many] for many in leases), ratio])
    report.tables.append(table)


# --- what takes several turns ---------------------------------------------------------------------


def _add_turns(report: Report, pools: dict[Size, SimulatedPool], rounds: int) -> None:
    """The longest turn of what is done in turns, or that the first event pays for; it must not grow
    with what there is to do."""
    best: dict[str, Costs] = {}
    for _ in range(max(2, rounds // 2)):
        for size, pool in pools.items():
            for topic in Topic:
                _keep(best, f"asked for {topic.name.lower()}", size, _longest(pool, pool.asking(topic)))
            pool.now += 100.0
            _keep(best, "a tick after a long pause", size, _longest(pool, Ticked()))
            _keep(best, "the first refusal", size, _longest(pool, _vain(pool, 1, queue=False)))
            _keep(best, "the first that waits", size, _longest(pool, _vain(pool, 1, queue=True)))
            for number in pool.waiting():
                pool.handle(pool.saying(1, Cancel(number)))
            pool.turns()
            for kind, took in _long_messages(pool):
                _keep(best, kind, size, took)
    for size, pool in pools.items():
        for client in range(1, min(pool.clients, rounds) + 1):
            _keep(best, "a client's death", size, _longest(pool, pool.dying(client)))
    _add_table(report, "the longest turn, CPU seconds by leases", best)
    report.bars += [
        Bar(f"{kind}: longest turn", LONGEST_TURN, max(costs.values()), "s", is_most=True)
        for kind, costs in best.items()
    ]


def _long_messages(pool: SimulatedPool) -> Iterator[tuple[str, float]]:
    """The longest that clients can say, and the longest run that there can be, with all that follows."""
    client, rows = 1, list(range(1, MAX_ROWS_PER_MESSAGE + 1))
    yield "a Bell of 1,024 rows", _longest(pool, pool.saying(client, Bell(rows)))
    held: list[int] = []
    while len(held) < MAX_ROWS_PER_MESSAGE:
        pool.handle(pool.refilling(client, MEASURED, 256))
        held += [row for _, row in pool.granted()]
    for row in held:
        pool.give_back(row)
    yield "a Return of 1,024 rows", _longest(pool, pool.saying(client, Return(held[:MAX_ROWS_PER_MESSAGE])))
    pool.handle(pool.saying(client, Return(held[MAX_ROWS_PER_MESSAGE:])))
    granting = [pool.timed(Received(client, Refill(pool.next_number(), RUNS, LONGEST_RUN, 1, True))), *pool.turns()]
    yield "a run of 16,000 chunks granted", max(granting)
    ((_, head),) = pool.granted()
    pool.give_back(head)
    yield "a run of 16,000 chunks freed", _longest(pool, pool.saying(client, Return([head])))


def _longest(pool: SimulatedPool, event: Event) -> float:
    pool.now += 0.1
    longest = max([pool.timed(event), *pool.turns()])
    pool.sent.clear()
    return longest


def _keep(best: dict[str, Costs], kind: str, size: Size, took: float) -> None:
    costs = best.setdefault(kind, {})
    costs[size] = min(took, costs.get(size, took))


# --- with everybody away -------------------------------------------------------------------------------


def _add_away(report: Report, pools: dict[Size, SimulatedPool], rounds: int) -> None:
    """Their processes live and have lost their connections, as after a restart. Nobody comes back
    from that here, so it comes last; both sides are measured one after the other, round by round."""
    clients, leases = max(pools, key=lambda size: (size[0], -size[1]))
    here, away, one = pools[clients, leases], _pool(clients, leases), clients  # who has not died above
    away.handle(*map(away.leaving, range(1, one)))
    best = {"here": float("inf"), "away": float("inf")}
    for _ in range(4 * rounds):
        for where, pool in (("here", here), ("away", away)):
            pool.now += 0.01
            pool.handle(Ticked())
            took = pool.timed(*(pool.refilling(one, MEASURED) for _ in range(BATCH)))
            best[where] = min(took, best[where])
            for client, row in pool.granted():
                pool.give_back(row)
                pool.handle(pool.saying(client, Return([row])))
            pool.turns()
    ratio = best["away"] / best["here"]
    table = Table(f"a Refill beside {clients - 1} clients that are away", [
        Column("all here", "s"), Column("others away", "s"), Column("away / here", "x"),
    ])  # fmt: skip
    table.rows.append([best["here"], best["away"], ratio])
    report.tables.append(table)
    report.bars.append(Bar("a Refill while others are away / here", AWAY, ratio, is_most=True))


# --- shared publications --------------------------------------------------------------------------------


def _add_shared(report: Report, clients: int, rounds: int) -> None:
    best: dict[str, float] = {}
    for _ in range(rounds):
        for kind, took in longest_turns(SETTINGS, clients):
            best[kind] = min(took, best.get(kind, took))
    table = Table(f"the longest turn beside {MANY:,} shared publications and {clients:,} clients", [
        Column("event"), Column("longest turn", "s"),
    ])  # fmt: skip
    table.rows += [[kind, took] for kind, took in best.items()]
    report.tables.append(table)
    report.bars += [Bar(f"{kind}: longest turn", LONGEST_TURN, took, "s", is_most=True) for kind, took in best.items()]
