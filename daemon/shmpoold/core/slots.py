"""Which slots of one tier are used, and which are warm: the broker's free lists.

Two bytes a slot, searched with ``bytearray.find``: the lowest fitting place is found in
microseconds at 16,384 slots, runs need no coalescing, and the high end of a tier falls
idle first and can be cooled. What the ledger says of a row is checked by the caller at
every take and give.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from shmpool.protocol.ledger import MAX_EXTENTS
from shmpool.protocol.sizing import Tier

Span = tuple[int, int]
"""(first row, number of rows)"""


class SlotMap:
    """The slots of one tier, by ledger row. A slot is unused or used (granted, warming,
    quarantined); *ready* means unused and warm."""

    __slots__ = ("_freed_at", "_ready", "_unused", "_warm", "tier")

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self._unused = bytearray(b"\1" * tier.capacity)
        self._warm = bytearray(tier.capacity)
        self._ready = bytearray(tier.capacity)
        self._freed_at = array("d", bytes(8 * tier.capacity))

    @property
    def warm(self) -> int:
        """Slots whose pages are reserved."""
        return self._warm.count(1)

    @property
    def ready(self) -> int:
        """Slots that could be granted at once."""
        return self._ready.count(1)

    @property
    def unused(self) -> int:
        """Slots that are nobody's, warm or cold."""
        return self._unused.count(1)

    @property
    def has_ready(self) -> bool:
        """Whether any slot could be granted at once."""
        return self._ready.find(1) >= 0

    def is_unused(self, row: int) -> bool:
        """Whether a row is nobody's."""
        return self._unused[row - self.tier.base] == 1

    def is_warm(self, row: int) -> bool:
        """Whether a row's pages are reserved."""
        return self._warm[row - self.tier.base] == 1

    def find_unused(self, count: int) -> int | None:
        """The lowest row of *count* adjacent unused slots, warm or cold."""
        return self._find(self._unused, count)

    def scatter(self, count: int) -> list[Span] | None:
        """*count* unused slots in as few pieces as there are, None if there are too few
        or too many pieces."""
        pieces: list[Span] = []
        start = self._unused.find(1)
        while start >= 0:
            end = self._unused.find(0, start)
            end = self.tier.capacity if end < 0 else end
            pieces.append((start + self.tier.base, end - start))
            start = self._unused.find(1, end)
        pieces.sort(key=lambda piece: -piece[1])
        chosen: list[Span] = []
        for row, length in pieces[:MAX_EXTENTS]:
            chosen.append((row, min(length, count)))
            count -= chosen[-1][1]
            if count == 0:
                return chosen
        return None

    def take_ready(self, count: int) -> int | None:
        """Make the lowest *count* adjacent ready slots used; returns the first's row."""
        ready = b"\1" * count
        at = self._ready.find(ready)
        if at < 0:
            return None
        self._unused[at : at + count] = self._ready[at : at + count] = bytes(count)
        return at + self.tier.base

    def take(self, row: int, count: int) -> None:
        """Make unused slots used."""
        span = self._span(row, count)
        if self._unused.find(0, span.start, span.stop) >= 0:
            raise ValueError(f"rows {row} to {row + count - 1} of {self.tier.label()} are not all unused")
        self._unused[span] = self._ready[span] = bytes(count)

    def give(self, row: int, count: int, now: float) -> None:
        """Make used slots unused again; the warm ones are ready."""
        self._freed_at[self._put_back(row, count)] = array("d", [now] * count)

    def put_back(self, row: int, count: int) -> None:
        """Undo `take`: the slots were not used and are idle since when they were before."""
        self._put_back(row, count)

    def _put_back(self, row: int, count: int) -> slice:
        span = self._span(row, count)
        if self._unused.find(1, span.start, span.stop) >= 0:
            raise ValueError(f"rows {row} to {row + count - 1} of {self.tier.label()} are not all used")
        self._unused[span] = b"\1" * count
        self._ready[span] = self._warm[span]
        return span

    def set_warm(self, row: int, count: int) -> None:
        """Note that used slots have got their pages."""
        self._warm[self._span(row, count)] = b"\1" * count

    def set_cold(self, row: int, count: int) -> None:
        """Note that unused slots lose their pages."""
        span = self._span(row, count)
        self._warm[span] = self._ready[span] = bytes(count)

    def cold_spans(self, row: int, count: int) -> list[Span]:
        """The cold parts of a span."""
        spans: list[Span] = []
        at, end = row - self.tier.base, row - self.tier.base + count
        while (start := self._warm.find(0, at, end)) >= 0:
            at = self._warm.find(1, start, end)
            at = end if at < 0 else at
            spans.append((start + self.tier.base, at - start))
        return spans

    def coolable(self, most: int, idle_since: float) -> Iterator[Span]:
        """Ready slots unused since *idle_since*, from the high end, at most *most*."""
        end = self.tier.capacity
        while most > 0 and (last := self._ready.rfind(1, 0, end)) >= 0:
            count = 0
            while count < min(most, last + 1) and self._is_idle(last - count, idle_since):
                count += 1
            if count:
                yield last - count + 1 + self.tier.base, count
            most -= count
            end = last - count + 1 if count else last

    def _is_idle(self, index: int, since: float) -> bool:
        return self._ready[index] == 1 and self._freed_at[index] <= since

    def _find(self, marks: bytearray, count: int) -> int | None:
        at = marks.find(b"\1" * count)
        return None if at < 0 else at + self.tier.base

    def _span(self, row: int, count: int) -> slice:
        start = row - self.tier.base
        if not 0 <= start <= start + count <= self.tier.capacity:
            raise ValueError(f"rows {row} to {row + count - 1} are not all of {self.tier.label()}")
        return slice(start, start + count)
