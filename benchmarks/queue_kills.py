"""The pause that killed producers and consumers make: two of each, of which one at a time is killed at a random
moment and replaced, and the longest time in which nothing came out of the other end; and what became of the objects."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from queue import Empty
from typing import NamedTuple

import shmpool

KILLS = 100
#: Objects that come between two kills at the least.
_BETWEEN = 20


class Storm(NamedTuple):
    """*pause* is the longest, in seconds; *objects* came; *lost* are those that did not, though later ones of their
    producer did, and *consumers* were killed, each of which may lose what it has in its hands."""

    pause: float
    objects: int
    lost: int
    consumers: int


class _Seen:
    """What came, and in which order."""

    def __init__(self) -> None:
        self._numbers: dict[int, set[int]] = {}
        self._last: dict[tuple[int, int], int] = {}

    def add(self, consumer: int, producer: int, number: int) -> None:
        """Raises RuntimeError for one that came twice, or behind a later one of its producer by the same way."""
        numbers = self._numbers.setdefault(producer, set())
        if number in numbers:
            raise RuntimeError(f"object {number} of producer {producer} came twice")
        if number < self._last.get((consumer, producer), 0):
            raise RuntimeError(f"object {number} of producer {producer} came out of order by consumer {consumer}")
        numbers.add(number)
        self._last[consumer, producer] = number

    @property
    def objects(self) -> int:
        return sum(map(len, self._numbers.values()))

    @property
    def lost(self) -> int:
        return sum(max(numbers) + 1 - len(numbers) for numbers in self._numbers.values())


def storm(pool: shmpool.Pool, kills: int, seed: int = 14) -> Storm:
    """Raises RuntimeError for an object that came twice or out of order, Empty when none came for a minute."""
    chance = random.Random(seed)
    one, results = shmpool.Queue(32, pool=pool), shmpool.Queue(pool=pool)
    names = count()

    def produce(name: int) -> None:
        for number in count():
            one.put((name, number, b"x" * (6000 if number % 3 == 0 else 10)))

    def consume(name: int) -> None:
        while True:
            results.put((name, *one.get()[:2]))

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
    seen, consumers = _Seen(), 2
    longest, moment = 0.0, 0.0
    try:
        for _ in range(kills):
            until = time.monotonic() + chance.uniform(0.01, 0.06)
            came = 0
            while came < _BETWEEN or time.monotonic() < until:
                found = results.get(timeout=60)
                now = time.monotonic()
                seen.add(*found)
                longest, moment = max(longest, now - moment) if moment else 0.0, now
                came += 1
            body = end(chance.choice(list(alive)))
            consumers += body is consume
            start(body)
            moment = time.monotonic()  # to fork is no pause of the queue's
        for pid in list(alive):
            end(pid)
        with suppress(Empty):  # what they had passed on, and then what they had left
            while True:
                seen.add(*results.get(timeout=0))
        with suppress(Empty):
            while True:
                seen.add(next(names), *one.get(timeout=0)[:2])
    finally:
        for pid in list(alive):
            end(pid)
        one.close()
        results.close()
    return Storm(longest, seen.objects, seen.lost, consumers)
