"""What is timed of one process's use of a pool, and the program that times it for one source tree:
``PYTHONPATH=TREE:TREE/daemon python -P benchmarks/operations.py TREE``.

As that program it has a broker of its own, takes laps as lines of JSON on stdin and tells their seconds
as lines of JSON on stdout. It runs code of another age, so it imports the standard library and
shmpool's public names only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import shmpool

#: Objects that are leased, then published, opened and released together, to time a step apart.
BATCH = 16

#: Handles so many objects of so many bytes; the seconds by what was timed.
Operation = Callable[[shmpool.Pool, int, int], dict[str, float]]


def lease_and_release(pool: shmpool.Pool, nbytes: int, objects: int) -> dict[str, float]:
    lease = pool.lease
    started = perf_counter()
    for _ in range(objects):
        lease(nbytes).release()
    return {"lease + release": perf_counter() - started}


def whole_cycle(pool: shmpool.Pool, nbytes: int, objects: int) -> dict[str, float]:
    lease, open_ = pool.lease, pool.open
    started = perf_counter()
    for _ in range(objects):
        leased = lease(nbytes)
        leased.view[0] = 1
        buffer = open_(leased.publish())
        buffer.view[0]
        buffer.release()
    return {"whole cycle": perf_counter() - started}


def steps(pool: shmpool.Pool, nbytes: int, objects: int) -> dict[str, float]:
    """Each step apart. What a step's objects cost when they die is that step's."""
    lease, open_, clock = pool.lease, pool.open, perf_counter
    leasing = publishing = opening = releasing = 0.0
    for _ in range(0, objects, BATCH):
        started = clock()
        leases = [lease(nbytes) for _ in range(BATCH)]
        leased = clock()
        handles = [one.publish() for one in leases]
        del leases
        published = clock()
        buffers = [open_(handle) for handle in handles]
        opened = clock()
        for buffer in buffers:
            buffer.release()
        del buffers, buffer
        leasing += leased - started
        publishing += published - leased
        opening += opened - published
        releasing += clock() - opened
    return {"lease": leasing, "publish": publishing, "open": opening, "release": releasing}


OPERATIONS: dict[str, Operation] = {
    "lease_and_release": lease_and_release,
    "whole_cycle": whole_cycle,
    "steps": steps,
}


def main(tree: Path) -> None:
    for package in ("shmpool", "shmpoold"):
        spec = find_spec(package)
        if spec is None or spec.origin is None or not Path(spec.origin).resolve().is_relative_to(tree.resolve()):
            raise SystemExit(f"{package} would come from {spec and spec.origin}, not from {tree}")
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        # Both trees on one core, their brokers on any: which core was the faster one tells nothing of a tree.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps({"compiled": getattr(shmpool, "__compiled__", False)}), flush=True)
        for line in sys.stdin:
            lap = json.loads(line)
            seconds = OPERATIONS[lap["operation"]](pool, lap["nbytes"], lap["objects"])
            print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
