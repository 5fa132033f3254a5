"""footprint: the broker's resident memory with 64 clients, a worker's import and attach."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import psutil

import shmpool

from .measure import MIB, console

CLIENTS = 64
BAR_RSS = 60 * MIB
BAR_ATTACH_MS = 80.0

_WORKER = """
import sys, time
started = time.perf_counter()
import shmpool
imported = time.perf_counter()
pool = shmpool.connect(sys.argv[1])
with pool.lease(1000) as lease:
    lease.publish()
print((imported - started) * 1e3, (time.perf_counter() - imported) * 1e3)
pool.close()
"""


def run(rounds: int = 9) -> bool:
    with shmpool.Broker(memory_limit="256MiB") as broker:
        pools = [broker.connect() for _ in range(CLIENTS)]
        for pool in pools:
            pool.lease(1000).release()
            pool.lease(500_000).release()
        process = psutil.Process(broker.pid)
        memory = process.memory_full_info()
        for pool in pools:
            pool.close()
        attach = [_attach(broker.address) for _ in range(rounds)]
    total = statistics.median(sum(times) for times in attach)
    met = memory.rss <= BAR_RSS and total <= BAR_ATTACH_MS
    console.print(
        f"broker with {CLIENTS} clients: {memory.rss / MIB:.1f} MiB resident"
        f" (of that {memory.shared / MIB:.1f} MiB shared; {memory.uss / MIB:.1f} MiB its own); bar {BAR_RSS // MIB} MiB"
    )
    console.print(
        f"worker: import {statistics.median(t[0] for t in attach):.1f} ms, connect and first lease"
        f" {statistics.median(t[1] for t in attach):.1f} ms, together {total:.1f} ms; bar {BAR_ATTACH_MS:g} ms"
    )
    console.print(f"bars: {'met' if met else 'MISSED'}")
    return met


def _attach(address: str) -> tuple[float, float]:
    time.sleep(0.05)
    printed = subprocess.run([sys.executable, "-c", _WORKER, address], capture_output=True, text=True, check=True)
    imported, attached = printed.stdout.split()
    return float(imported), float(attached)
