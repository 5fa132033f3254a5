"""Page faults of a hand-off, counted by the kernel in the producer and in the consumer."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .bothsides import count_on_both_sides
from .peers.base import Peer
from .plan import Plan


def faults_of(peer: Peer, nbytes: int, objects: int) -> tuple[float, float]:
    """Minor page faults for each of *objects* objects, by producer and consumer: one in
    flight, copied in and out, when half as many before have made warm what stays. Ends the peer."""
    plans = [Plan(nbytes, objects=objects // 2), Plan(nbytes, objects=objects)]
    by_producer, by_consumer = count_on_both_sides(peer, plans, _counting)
    return by_producer / objects, by_consumer / objects


@contextmanager
def _counting() -> Iterator[Callable[[], int]]:
    before = _so_far()
    yield lambda: _so_far() - before


def _so_far() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
