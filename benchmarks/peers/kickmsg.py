"""kickmsg: publish-subscribe over shared memory, slots written and read in place. The subscriber polls."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..plan import Plan
from ..units import KIB, MIB
from .base import Absent, Peer

try:
    import kickmsg
except ImportError as error:
    raise Absent(f"kickmsg is not installed ({error})") from error

MOST_IN_FLIGHT = 16
SPARE = 8
#: A topic's slots all have its largest size: one topic for what is small and one for what is not.
LARGEST = {"small": 256 * KIB, "large": 10 * MIB}


class Kickmsg(Peer):
    token_bytes = 0

    def __init__(self, **_: Any) -> None:
        self._name = f"shmpool-benchmarks-{os.getpid()}"

    def begin_producer(self) -> None:
        node = kickmsg.Node("producer", self._name)
        self._publishers = {}
        for topic, nbytes in LARGEST.items():
            config = kickmsg.Config()
            # What was read keeps its slot until its place in the ring is written again, so there are as many more.
            config.max_payload_size, config.pool_size = nbytes, 2 * MOST_IN_FLIGHT + SPARE
            config.max_subscribers, config.sub_ring_capacity = 1, MOST_IN_FLIGHT
            self._publishers[topic] = node.advertise(topic, config)
        self._node = node

    def begin_consumer(self) -> None:
        node = kickmsg.Node("consumer", self._name)
        self._subscribers = {topic: node.subscribe(topic) for topic in LARGEST}

    def producer(self, plan: Plan, source: bytes) -> Callable[[], None]:
        allocate, nbytes = self._publishers[_topic(plan)].allocate, plan.nbytes

        def fill() -> None:
            while (slot := allocate()) is None:
                pass
            memoryview(slot)[:nbytes] = source
            slot.publish(nbytes)

        def touch() -> None:
            while (slot := allocate()) is None:
                pass
            memoryview(slot)[0] = 1
            slot.publish(nbytes)

        return fill if plan.fills else touch

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[], None]:
        receive = self._subscribers[_topic(plan)].try_receive_view

        def drain() -> None:
            while (found := receive()) is None:
                pass
            with memoryview(found) as view:
                target[:] = view
            found.release()

        def touch() -> None:
            while (found := receive()) is None:
                pass
            with memoryview(found) as view:
                view[0]
            found.release()

        def touch_both() -> None:
            while (found := receive()) is None:
                pass
            with memoryview(found) as view:
                view[0]
                view[-1]
            found.release()

        return drain if plan.drains else touch_both if plan.fills else touch

    def end_producer(self) -> None:
        self._publishers.clear()
        for topic in LARGEST:
            self._node.unlink_topic(topic)


def _topic(plan: Plan) -> str:
    return next(topic for topic, largest in LARGEST.items() if plan.nbytes <= largest)
