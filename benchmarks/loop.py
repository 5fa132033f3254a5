"""The loop that drives every peer, so that what the harness costs is the same for all.

With one object in flight each is timed from before it is made until its acknowledgement
is there. With more, tokens travel in batches and a batch is acknowledged at once, so that
the producer is never more than `in_flight` objects ahead. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .channel import Channel
from .peers.base import Peer
from .plan import Plan, blank_target, payload

#: Makes so many objects and sends them on.
Give = Callable[[int], None]


class OtherSideGone(Exception):
    """The channel ended in the middle of a lap."""


def producing(peer: Peer, plan: Plan, there: Channel, back: Channel) -> Callable[[], tuple[float, list[float]]]:
    """Prepare a lap of the producer's. It hands the plan's objects over, and says how many
    seconds that took, and each of them where one is in flight."""
    put = peer.producer(plan, payload(plan.nbytes))
    give = _give_tokens(put, there) if peer.token_bytes else _give_alone(put)

    hand_over = _one_by_one if plan.in_flight == 1 else _streamed

    def run() -> tuple[float, list[float]]:
        if plan.prelude:
            hand_over(give, replace(plan, objects=plan.prelude), back)
        started = time.perf_counter()
        samples = hand_over(give, plan, back)
        return time.perf_counter() - started, samples

    return run


def consuming(peer: Peer, plan: Plan, there: Channel, back: Channel) -> Callable[[], bool]:
    """Prepare a lap of the consumer's. It takes the plan's objects, and says whether the
    bytes that were copied out are the producer's."""
    target = blank_target(plan.nbytes)
    take = peer.consumer(plan, target)
    whole = replace(plan, objects=plan.prelude + plan.objects)

    def run() -> bool:
        if peer.token_bytes:
            _take_tokens(take, peer.token_bytes, whole, there, back)
        else:
            _take_alone(take, whole, back)
        return not (plan.fills and plan.drains) or target == payload(plan.nbytes)

    return run


def _one_by_one(give: Give, plan: Plan, back: Channel) -> list[float]:
    clock, samples = time.perf_counter, []
    for _ in range(plan.objects):
        started = clock()
        give(1)
        if not back.receive(1):
            raise OtherSideGone
        samples.append(clock() - started)
    return samples


def _streamed(give: Give, plan: Plan, back: Channel) -> list[float]:
    credits, sent = plan.in_flight, 0
    while sent < plan.objects:
        count = min(credits, plan.batch, plan.objects - sent)
        give(count)
        sent += count
        credits -= count
        while credits < plan.batch:
            credits += _receive_some(back, plan.in_flight)
    while credits < plan.in_flight:
        credits += _receive_some(back, plan.in_flight)
    return []


def _receive_some(back: Channel, most: int) -> int:
    count = len(back.receive(most))
    if not count:
        raise OtherSideGone
    return count


def _give_tokens(put: Callable[[], bytes], there: Channel) -> Give:
    def give(count: int) -> None:
        there.send(put() if count == 1 else b"".join([put() for _ in range(count)]))

    return give


def _give_alone(put: Callable[[], Any]) -> Give:
    def give(count: int) -> None:
        for _ in range(count):
            put()

    return give


def _take_tokens(take: Callable[[bytes], None], width: int, plan: Plan, there: Channel, back: Channel) -> None:
    taken = 0
    while taken < plan.objects:
        tokens = there.receive(width * plan.in_flight)
        if not tokens:
            raise OtherSideGone
        for at in range(0, len(tokens), width):
            take(tokens[at : at + width])
        count = len(tokens) // width
        taken += count
        back.send(b"x" * count)


def _take_alone(take: Callable[[], None], plan: Plan, back: Channel) -> None:
    taken = 0
    while taken < plan.objects:
        count = min(plan.batch, plan.objects - taken)
        for _ in range(count):
            take()
        taken += count
        back.send(b"x" * count)
