"""footprint: How much memory has the broker with 64 clients, and how long does a worker take
to import and attach?

A worker imports what its users have: the wheel, installed and byte-compiled (a source tree under
PYTHONDONTWRITEBYTECODE is compiled anew by every import, which takes longer than all else). By turns
another process imports msgpack, posix_ipc, socket and threading alone, which is what shmpool cannot do
without: how many times its processor time a worker's start takes does not depend on the machine. It is counted
in two ways: from the start of the interpreter, as whoever starts workers has it, and from behind it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping

import psutil

import shmpool

from .installed import installed
from .options import Options
from .report import Bar, Column, Report, Table
from .units import MIB

CLIENTS = 64
ROUNDS = 15
MOST_RESIDENT = 60 * MIB
MOST_TO_ATTACH = 0.080
#: Of the processor time of a process that only imports the packages that it needs, each from its start.
MOST_OF_NEEDED = 1.3
#: The same without the start of the interpreter: what it is today and a tenth.
MOST_BEHIND_THE_START = 3.5

_NEEDED = """
import time
started = time.process_time()
import msgpack, posix_ipc, socket, threading
print(time.process_time() - started, time.process_time())
"""

_WORKER = """
import sys, time
started = time.perf_counter()
idle = time.process_time()
import shmpool
imported = time.process_time() - idle
pool = shmpool.connect(sys.argv[1])
with pool.lease(1000) as lease:
    lease.publish()
attached = time.process_time()
print(imported, attached - idle, attached, time.perf_counter() - started)
pool.close()
"""


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    needed: list[list[float]] = []
    workers: list[list[float]] = []
    with installed() as environment, shmpool.Broker(memory_limit="256MiB") as broker:
        memory = _memory_with_clients(broker)
        _seconds_of(_NEEDED, broker.address, environment)  # whatever must be read from disk
        for _ in range(options.rounds or ROUNDS):
            needed.append(_seconds_of(_NEEDED, broker.address, environment))
            workers.append(_seconds_of(_WORKER, broker.address, environment))
    (needs, needs_with_start), (imported, attached, with_start, by_the_clock) = (
        zip(*laps, strict=True) for laps in (needed, workers)
    )
    of_needed, behind_the_start = min(with_start) / min(needs_with_start), min(attached) / min(needs)
    together = statistics.median(by_the_clock)
    report.tables = [
        Table(
            f"broker with {CLIENTS} clients",
            [Column("resident", "B"), Column("of that shared", "B"), Column("its own", "B")],
            [[memory.rss, memory.shared, memory.uss]],
        ),
        Table(
            "a worker's start: the least processor time, and the time by the clock",
            [Column("counted"), Column("what it needs", "s"), Column("import shmpool", "s"), Column("and attach", "s"),
             Column("to what it needs", "x"), Column("by the clock", "s"), Column("at best", "s")],
            [["from the interpreter's start", min(needs_with_start), None, min(with_start), of_needed, None, None],
             ["from behind it", min(needs), min(imported), min(attached), behind_the_start, together,
              min(by_the_clock)]],
        ),
    ]  # fmt: skip
    report.bars = [
        Bar("broker resident", MOST_RESIDENT, memory.rss, "B", is_most=True),
        Bar(
            "a process that imports and attaches, times one that imports what it needs",
            MOST_OF_NEEDED,
            of_needed,
            is_most=True,
        ),
        Bar("the same without the start of the interpreter", MOST_BEHIND_THE_START, behind_the_start, is_most=True),
        Bar("import, connect and first lease", MOST_TO_ATTACH, together, "s", is_most=True),
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


def _seconds_of(program: str, address: str, environment: Mapping[str, str]) -> list[float]:
    """What a fresh process prints."""
    command = [sys.executable, "-P", "-c", program, address]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=os.sep)
    return [float(seconds) for seconds in printed.stdout.split()]
