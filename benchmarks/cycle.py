"""cycle: What do lease + release, and the whole cycle, cost in one process?"""

from __future__ import annotations

import shmpool

from .measure import Contestant, interleave, timed
from .options import Options
from .report import Bar, Column, Report, Table
from .units import KIB, size_name

SIZES = (KIB, 4 * KIB, 64 * KIB, 255 * KIB, 512 * KIB)
ROUNDS = 7
SECONDS = 0.05
MOST_FOR_A_PAIR = 2e-6


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    table = Table(
        "one process, a warm magazine; the whole cycle is lease, touch, publish, open, touch, release",
        [Column("size", "B"), Column("lease + release", "s"), Column("best", "s"), Column("whole cycle", "s")],
    )
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for size in options.sizes or SIZES:
            contestants = {"pair": _pair(pool, size), "cycle": _cycle(pool, size)}
            series = interleave(
                contestants, rounds=options.rounds or ROUNDS, seconds=options.seconds or SECONDS, least=1000
            )
            pair, cycle = series["pair"], series["cycle"]
            table.rows.append([size, pair.median, pair.best, cycle.median])
            name = f"lease + release, {size_name(size)}"
            report.bars.append(Bar(name, MOST_FOR_A_PAIR, pair.median, "s", is_most=True))
    report.tables.append(table)
    return report


def _pair(pool: shmpool.Pool, size: int) -> Contestant:
    def body(objects: int) -> None:
        lease = pool.lease
        for _ in range(objects):
            lease(size).release()

    return timed(body)


def _cycle(pool: shmpool.Pool, size: int) -> Contestant:
    def body(objects: int) -> None:
        lease, open_ = pool.lease, pool.open
        for _ in range(objects):
            leased = lease(size)
            leased.view[0] = 1
            buffer = open_(leased.publish())
            buffer.view[0]
            buffer.release()

    return timed(body)
