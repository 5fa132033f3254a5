"""The pause that killed producers and consumers make: two of each, of which one at a time is killed at a random
moment and replaced, and the longest time in which nothing came out of the other end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import shmpool

KILLS = 100
#: Objects that come between two kills at the least.
_BETWEEN = 20


def longest_pause(pool: shmpool.Pool, kills: int, seed: int = 14) -> tuple[float, int]:
    """In seconds, and how many objects came. Raises RuntimeError for one that came twice."""
    chance = random.Random(seed)
    one, results = shmpool.Queue(32, pool=pool), shmpool.Queue(pool=pool)
    names = count()

    def produce(name: int) -> None:
        for number in count():
            one.put((name, number, b"x" * (6000 if number % 3 == 0 else 10)))

    def consume(_: int) -> None:
        while True:
            results.put(one.get()[:2])

    alive: dict[int, Callable[[int], None]] = {}

    def start(body: Callable[[int], None]) -> None:
        name = next(names)
        pid = os.fork()
        if not pid:
            with suppress(BaseException):
                body(name)
            os._exit(1)
        alive[pid] = body

    def end(pid: int) -> Callable[[int], None]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return alive.pop(pid)

    for body in (produce, produce, consume, consume):
        start(body)
    seen: set[Any] = set()
    longest, moment = 0.0, 0.0
    try:
        for _ in range(kills):
            until = time.monotonic() + chance.uniform(0.01, 0.06)
            came = 0
            while came < _BETWEEN or time.monotonic() < until:
                found = results.get(timeout=60)
                now = time.monotonic()
                if found in seen:
                    raise RuntimeError(f"{found} came twice")
                seen.add(found)
                longest, moment = max(longest, now - moment) if moment else 0.0, now
                came += 1
            start(end(chance.choice(list(alive))))
            moment = time.monotonic()  # to fork is no pause of the queue's
    finally:
        for pid in list(alive):
            end(pid)
        one.close()
        results.close()
    return longest, len(seen)
