"""footprint: How much memory has the broker with 64 clients, and how long does a worker take
to import and attach?"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import psutil

import shmpool

from .options import Options
from .report import Bar, Column, Report, Table
from .units import MIB

CLIENTS = 64
ROUNDS = 9
MOST_RESIDENT = 60 * MIB
MOST_TO_ATTACH = 0.080

_WORKER = """
import sys, time
started = time.perf_counter()
import shmpool
imported = time.perf_counter()
pool = shmpool.connect(sys.argv[1])
with pool.lease(1000) as lease:
    lease.publish()
print(imported - started, time.perf_counter() - imported)
pool.close()
"""


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    with shmpool.Broker(memory_limit="256MiB") as broker:
        memory = _memory_with_clients(broker)
        attach = [_attach(broker.address) for _ in range(options.rounds or ROUNDS)]
    imports, leases = (statistics.median(times) for times in zip(*attach, strict=True))
    total = statistics.median(sum(times) for times in attach)
    report.tables = [
        Table(
            f"broker with {CLIENTS} clients",
            [Column("resident", "B"), Column("of that shared", "B"), Column("its own", "B")],
            [[memory.rss, memory.shared, memory.uss]],
        ),
        Table(
            "a worker's start",
            [Column("import", "s"), Column("connect and first lease", "s"), Column("together", "s")],
            [[imports, leases, total]],
        ),
    ]
    report.bars = [
        Bar("broker resident", MOST_RESIDENT, memory.rss, "B", is_most=True),
        Bar("import, connect and first lease", MOST_TO_ATTACH, total, "s", is_most=True),
    ]
    return report


def _memory_with_clients(broker: shmpool.Broker) -> psutil.pfullmem:
    pools = [broker.connect() for _ in range(CLIENTS)]
    for pool in pools:
        pool.lease(1000).release()
        pool.lease(500_000).release()
    memory = psutil.Process(broker.pid).memory_full_info()
    for pool in pools:
        pool.close()
    return memory


def _attach(address: str) -> tuple[float, float]:
    time.sleep(0.05)
    printed = subprocess.run([sys.executable, "-c", _WORKER, address], capture_output=True, text=True, check=True)
    imported, attached = printed.stdout.split()
    return float(imported), float(attached)
