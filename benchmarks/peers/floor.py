"""The floor: one shared buffer mapped before, as many slots as are in flight, no broker.

What a token and two copies cost at least. Nobody could use it as it is: objects cannot be
kept, nor freed out of order, and a process that dies takes the rest down."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from ..plan import Plan
from .base import Peer

MOST_IN_FLIGHT = 16


class Floor(Peer):
    def __init__(self, largest: int = 10 << 20, **_: Any) -> None:
        self._largest = largest
        self._memory = mmap.mmap(-1, largest * MOST_IN_FLIGHT, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)

    def producer(self, plan: Plan, source: bytes) -> Callable[[], bytes]:
        slots = self._slots(plan)
        next_slot = _cycle(len(slots))

        def fill() -> bytes:
            index = next_slot()
            slots[index][:] = source
            return tokens[index]

        def touch() -> bytes:
            index = next_slot()
            slots[index][0] = 1
            return tokens[index]

        tokens = [index.to_bytes(self.token_bytes, "little") for index in range(len(slots))]
        return fill if plan.fills else touch

    def consumer(self, plan: Plan, target: bytearray) -> Callable[[bytes], None]:
        slots = self._slots(plan)

        def drain(token: bytes) -> None:
            target[:] = slots[token[0]]

        def touch(token: bytes) -> None:
            slots[token[0]][0]

        return drain if plan.drains else touch

    def _slots(self, plan: Plan) -> list[memoryview]:
        """Side by side, each on pages of its own."""
        stride = -(-plan.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        view = memoryview(self._memory)
        return [view[index * stride :][: plan.nbytes] for index in range(plan.in_flight)]


def _cycle(count: int) -> Callable[[], int]:
    from itertools import cycle

    return cycle(range(count)).__next__
