"""The floor: one shared buffer mapped before, as many slots as are in flight, no broker.

What a token and two copies cost at least. Nobody could use it as it is: objects cannot be
kept, nor freed out of order, and a process that dies takes the rest down."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from itertools import cycle
from typing import Any

from ..plan import Plan
from .base import Peer


class Floor(Peer):
    def __init__(self, **_: Any) -> None:
        self._file = os.memfd_create("floor")
        self._memory: mmap.mmap | None = None

    def producer(self, plan: Plan, source: bytes) -> Callable[[], bytes]:
        slots = self._slots(plan)
        tokens = [index.to_bytes(self.token_bytes, "little") for index in range(len(slots))]
        next_slot = cycle(range(len(slots))).__next__

        def fill() -> bytes:
            index = next_slot()
            slots[index][:] = source
            return tokens[index]

        def touch() -> bytes:
            index = next_slot()
            slots[index][0] = 1
            return tokens[index]

        return fill if plan.fills else touch

    def consumer(self, plan: Plan, target: memoryview) -> Callable[[bytes], None]:
        slots = self._slots(plan)

        def drain(token: bytes) -> None:
            target[:] = slots[token[0]]

        def touch(token: bytes) -> None:
            slots[token[0]][0]

        def touch_both(token: bytes) -> None:
            view = slots[token[0]]
            view[0]
            view[-1]

        return drain if plan.drains else touch_both if plan.fills else touch

    def _slots(self, plan: Plan) -> list[memoryview]:
        """Side by side, each on pages of its own, all of them mapped."""
        stride = -(-plan.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        view = memoryview(self._mapped(stride * plan.in_flight))
        return [view[index * stride :][: plan.nbytes] for index in range(plan.in_flight)]

    def _mapped(self, nbytes: int) -> mmap.mmap:
        """At least so much of the file, which never shrinks: both sides may extend it."""
        if self._memory is None or len(self._memory) < nbytes:
            if os.fstat(self._file).st_size < nbytes:
                os.ftruncate(self._file, nbytes)
            self._memory = mmap.mmap(self._file, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        return self._memory
