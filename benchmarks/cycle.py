"""cycle: lease + release from a warm magazine, and the whole cycle, in one process."""

from __future__ import annotations

import time

import shmpool

from .measure import KIB, console, interleave, micros, show, size_name

SIZES = (KIB, 4 * KIB, 64 * KIB, 255 * KIB, 512 * KIB)
BAR_PAIR_US = 2.0


def run(sizes: tuple[int, ...] = SIZES, rounds: int = 7, objects: int = 20000) -> bool:
    rows, met = [], True
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for size in sizes:
            series = interleave({"pair": _pair(pool, size), "cycle": _cycle(pool, size)}, objects, rounds)
            pair = series["pair"]
            met &= pair.median * 1e6 <= BAR_PAIR_US
            rows.append([size_name(size), micros(pair.median), micros(pair.best), micros(series["cycle"].median)])
    show(
        "cycle: one process, a warm magazine",
        ["size", "lease + release", "best", "lease, touch, publish, open, touch, release"],
        rows,
    )
    console.print(f"bar: lease + release at most {BAR_PAIR_US} us: {'met' if met else 'MISSED'}")
    return met


def _pair(pool, size):
    def body(objects: int) -> float:
        lease = pool.lease
        started = time.perf_counter()
        for _ in range(objects):
            lease(size).release()
        return time.perf_counter() - started

    return body


def _cycle(pool, size):
    def body(objects: int) -> float:
        lease, open_ = pool.lease, pool.open
        started = time.perf_counter()
        for _ in range(objects):
            leased = lease(size)
            leased.view[0] = 1
            buffer = open_(leased.publish())
            buffer.view[0]
            buffer.release()
        return time.perf_counter() - started

    return body
