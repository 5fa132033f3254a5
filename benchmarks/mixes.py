"""Mixes of object sizes: what a pool meets, drawn from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable

from .units import KIB, MIB

SMALLEST = 64
#: The largest object of a mix with a long tail.
LARGEST = 4 * MIB

#: Draws one size in bytes.
Mix = Callable[[random.Random], int]


def log_normal(median: int, sigma: float) -> Mix:
    """Many about *median*, few very large: files, messages and images are like that."""

    def draw(source: random.Random) -> int:
        return min(LARGEST, max(SMALLEST, int(median * source.lognormvariate(0.0, sigma))))

    return draw


def _web(source: random.Random) -> int:
    """Three kinds of traffic: many records, some pages, a few pictures."""
    kind = source.random()
    if kind < 0.7:
        return source.randint(200, 2 * KIB)
    return log_normal(30 * KIB, 0.8)(source) if kind < 0.95 else log_normal(400 * KIB, 0.6)(source)


#: The mix of `latency` and `soak`: all four categories occur, 2 % of it is very large.
REALISTIC = log_normal(24 * KIB, 1.8)

MIXES: dict[str, Mix] = {
    "log-normal, median 24 KiB": REALISTIC,
    "log-normal, median 200 KiB": log_normal(200 * KIB, 0.9),
    "records, pages, pictures": _web,
    "uniform to 256 KiB": lambda source: source.randint(1, 256 * KIB - 1),
    "uniform 256 KiB to 1 MiB": lambda source: source.randint(256 * KIB, MIB - 1),
    "powers of two to 1 MiB": lambda source: KIB << source.randint(0, 10),
    "frames, 640 x 480 x 3": lambda source: 640 * 480 * 3,
    "a byte above a slot": lambda source: source.choice((4, 16, 32, 64, 128)) * KIB + 1,
}


def sizes_of(mix: Mix, count: int, seed: int = 1) -> list[int]:
    """*count* sizes, the same for every caller."""
    source = random.Random(seed)
    return [mix(source) for _ in range(count)]
