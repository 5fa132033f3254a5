"""Refusals: why there is nothing for a request, in words: tier, cap, what is missing, who keeps most."""

from __future__ import annotations

from collections.abc import Callable

from shmpool.protocol.ledger import MAX_EXTENTS
from shmpool.protocol.sizing import TierKind, format_bytes

from ..memory.inventory import Inventory
from .earmarks import Earmarks
from .large import LargeOperations
from .requests import Request


class Refusals:
    """What is said to those who get nothing."""

    def __init__(self, inventory: Inventory, earmarks: Earmarks, large: LargeOperations) -> None:
        self._inventory = inventory
        self._earmarks = earmarks
        self._large = large
        #: Why the pool does not grow now; empty while it may.
        self.growth_stopped = ""
        #: A sentence; the ledger tells it, which is the reports' to read.
        self.who_keeps_most: Callable[[float], str] = lambda now: ""

    def story(self, request: Request, now: float) -> str:
        """Why there is nothing: what is missing, and who keeps most."""
        text = f"no {request.tier.label()} for {format_bytes(request.wanted_bytes)}: {self._missing(request)}"
        if most := self.who_keeps_most(now):
            text += f"; {most}"
        failure = self.failure(request)
        return f"{text}; {failure}" if failure else text

    def failure(self, request: Request) -> str:
        """What of the host is in the way; empty while nothing is."""
        return request.failure or self.growth_stopped

    def _missing(self, request: Request) -> str:
        inventory, tier = self._inventory, request.tier
        slots = inventory.maps[tier.index]
        if self._large.are_full_for(request):
            return f"{self._large.most} large operations (max_concurrent_large_ops) are under way"
        held = f"{format_bytes(inventory.held)} of {format_bytes(inventory.limit)} (memory_limit) are held"
        if request.wanted_bytes > inventory.room + inventory.idle:
            return f"{held}, {format_bytes(inventory.idle)} of them idle" if inventory.idle else held
        if slots.unused < request.chunks:
            return f"{slots.unused} of its {tier.capacity} {slots.unit} are free, {request.chunks} are needed"
        if tier.kind is TierKind.CHUNK and slots.placeable < request.chunks:
            return (
                f"{slots.unused} chunks are free, but in too many pieces: {MAX_EXTENTS} of them, as many as a lease"
                f" may have, are {slots.placeable} chunks"
            )
        if self._earmarks.allow(request, tier, request.wanted_bytes):
            return held
        return f"what is free is kept for a request that has waited longer; {held}"
