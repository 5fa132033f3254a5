"""Which slots of one tier are used, and which are warm: the broker's free lists.

Two bytes a slot, searched with ``bytearray.find``: the lowest fitting place is found in
microseconds at 16,384 slots, runs need no coalescing, and the high end of a tier falls
idle first and can be cooled. What the ledger says of a row is checked by the caller at
every take and give.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from heapq import nlargest
from itertools import accumulate, islice
from typing import NamedTuple

from shmpool.protocol.ledger import MAX_EXTENTS
from shmpool.protocol.sizing import Tier, TierKind

Extent = tuple[int, int]
"""(first row, number of rows)"""

_RUNS = re.compile(b"\1+")
#: A lease of so few pieces has the largest there are, one of more those at the low end, and its rows are
#: looked at all at once: one by one that would take longer than a turn of the loop may.
FEW_PIECES = 64


class Mask(NamedTuple):
    """Some rows, the first of them and a byte for each from there to the last: 1 where it is one."""

    first: int
    marks: bytes | bytearray


def _number(marks: bytes | bytearray) -> int:
    return int.from_bytes(marks, "little")


def _length(extent: Extent) -> int:
    return extent[1]


class SlotMap:
    """The slots of one tier, by ledger row. A slot is unused or used (granted, warming,
    quarantined); *ready* means unused and warm. How many are *unused* (warm or cold), *warm* and
    *ready* is counted along: it is asked for with every request that has to wait."""

    __slots__ = ("_freed_at", "_ready", "_unused", "_warm", "_warmed_at", "ready", "tier", "unused", "warm")

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self._unused = bytearray(b"\1" * tier.capacity)
        self._warm = bytearray(tier.capacity)
        self._ready = bytearray(tier.capacity)
        self._freed_at = array("d", bytes(8 * tier.capacity))
        self._warmed_at = array("d", bytes(8 * tier.capacity))
        self.unused = tier.capacity
        self.warm = self.ready = 0

    @property
    def unit(self) -> str:
        """What people call a slot of this tier."""
        return "chunks" if self.tier.kind is TierKind.CHUNK else "slots"

    def counts(self) -> tuple[int, int, int]:
        """*unused*, *warm* and *ready*, counted anew."""
        return self._unused.count(1), self._warm.count(1), self._ready.count(1)

    def is_unused(self, row: int) -> bool:
        """Whether a row is nobody's."""
        return self._unused[row - self.tier.base] == 1

    def is_warm(self, row: int) -> bool:
        """Whether a row's pages are reserved."""
        return self._warm[row - self.tier.base] == 1

    def unused_marks(self, row: int, count: int) -> bytes:
        """A byte for each slot of an extent: 1 where it is nobody's."""
        return bytes(self._unused[self._extent(row, count)])

    def find_unused(self, count: int) -> int | None:
        """The lowest row of *count* adjacent unused slots, warm or cold."""
        return self._find(self._unused, count)

    def scatter(self, count: int) -> tuple[Extent, ...] | None:
        """*count* unused slots in few pieces: as few as there are, if that are not many. None if
        there are too few or too many pieces."""
        if count > self.unused:
            return None
        lengths = self._lengths()
        if sum(nlargest(FEW_PIECES, lengths)) < count:
            return self._lowest(lengths, count)
        chosen: list[Extent] = []
        pieces = [(match.start() + self.tier.base, len(match[0])) for match in _RUNS.finditer(self._unused)]
        for row, length in nlargest(FEW_PIECES, pieces, key=_length):
            chosen.append((row, min(length, count)))
            count -= chosen[-1][1]
            if count == 0:
                break
        return tuple(chosen)

    def _lowest(self, lengths: list[int], count: int) -> tuple[Extent, ...] | None:
        """All unused slots from the low end on."""
        pieces = bisect_left(list(accumulate(lengths)), count) + 1
        if pieces > MAX_EXTENTS:
            return None
        base = self.tier.base
        extents = [(match.start() + base, len(match[0])) for match in islice(_RUNS.finditer(self._unused), pieces)]
        row, length = extents[-1]
        extents[-1] = row, length - (sum(lengths[:pieces]) - count)
        return tuple(extents)

    @property
    def placeable(self) -> int:
        """Slots of the longest run that could be had, in as many pieces as a lease may have."""
        lengths = self._lengths()
        if len(lengths) <= MAX_EXTENTS:
            return self.unused
        return max(sum(nlargest(FEW_PIECES, lengths)), sum(lengths[:MAX_EXTENTS]))

    @property
    def largest_run(self) -> int:
        """The most unused slots side by side."""
        return max(self._lengths(), default=0)

    def _lengths(self) -> list[int]:
        return list(map(len, _RUNS.findall(self._unused)))

    # --- many pieces at once ---------------------------------------------------------------------

    def mask(self, extents: Sequence[Extent]) -> Mask:
        """The marks of extents."""
        first = min(row for row, _ in extents)
        marks = bytearray(max(row + count for row, count in extents) - first)
        for row, count in extents:
            marks[row - first : row - first + count] = b"\1" * count
        return Mask(first, marks)

    def take_all(self, mask: Mask) -> None:
        """Make unused slots used."""
        extent, taken = self._extent(mask.first, len(mask.marks)), _number(mask.marks)
        unused, ready = _number(self._unused[extent]), _number(self._ready[extent])
        if taken & ~unused:
            raise ValueError(f"{mask.marks.count(1)} rows of {self.tier.label()} are not all unused")
        self._set(extent, unused ^ taken, ready & ~taken)

    def put_back_all(self, mask: Mask) -> None:
        """Undo `take_all`: the slots were not used and are idle since when they were before."""
        extent, given = self._extent(mask.first, len(mask.marks)), _number(mask.marks)
        unused, ready = _number(self._unused[extent]), _number(self._ready[extent])
        if given & unused:
            raise ValueError(f"{mask.marks.count(1)} rows of {self.tier.label()} are not all used")
        self._set(extent, unused | given, ready | given & _number(self._warm[extent]))

    def count_cold(self, mask: Mask) -> int:
        """How many of the slots are cold."""
        warm = self._warm[self._extent(mask.first, len(mask.marks))]
        return (_number(mask.marks) & ~_number(warm)).bit_count()

    def _set(self, extent: slice, unused: int, ready: int) -> None:
        length = extent.stop - extent.start
        for marks, now in ((self._unused, unused), (self._ready, ready)):
            marks[extent] = now.to_bytes(length, "little")
        self.unused = self._unused.count(1)
        self.ready = self._ready.count(1)

    # --- side by side ----------------------------------------------------------------------------

    def take_ready(self, count: int) -> int | None:
        """Make the lowest *count* adjacent ready slots used; returns the first's row."""
        ready = b"\1" * count
        at = self._ready.find(ready)
        if at < 0:
            return None
        self._unused[at : at + count] = self._ready[at : at + count] = bytes(count)
        self.unused -= count
        self.ready -= count
        return at + self.tier.base

    def take_each(self, most: int) -> list[Extent]:
        """Make the lowest ready slots used, up to so many; side by side or not."""
        ready, unused, extents, at = self._ready, self._unused, list[Extent](), 0
        while most > 0 and (at := ready.find(1, at)) >= 0:
            end = ready.find(0, at, at + most)
            count = (min(at + most, len(ready)) if end < 0 else end) - at
            unused[at : at + count] = ready[at : at + count] = bytes(count)
            extents.append((at + self.tier.base, count))
            self.unused -= count
            self.ready -= count
            most -= count
            at += count
        return extents

    def take(self, row: int, count: int) -> None:
        """Make unused slots used."""
        extent = self._extent(row, count)
        if self._unused.find(0, extent.start, extent.stop) >= 0:
            raise ValueError(f"rows {row} to {row + count - 1} of {self.tier.label()} are not all unused")
        self.unused -= count
        self.ready -= self._ready.count(1, extent.start, extent.stop)
        self._unused[extent] = self._ready[extent] = bytes(count)

    def give(self, row: int, count: int, now: float) -> None:
        """Make used slots unused again; the warm ones are ready."""
        if count == 1 and 0 <= (at := row - self.tier.base) < self.tier.capacity and not self._unused[at]:
            self._unused[at] = 1
            self._ready[at] = is_warm = self._warm[at]
            self._freed_at[at] = now
            self.unused += 1
            self.ready += is_warm
            return
        self._freed_at[self._put_back(row, count)] = array("d", [now] * count)

    def put_back(self, row: int, count: int) -> None:
        """Undo `take`: the slots were not used and are idle since when they were before."""
        self._put_back(row, count)

    def _put_back(self, row: int, count: int) -> slice:
        extent = self._extent(row, count)
        if self._unused.find(1, extent.start, extent.stop) >= 0:
            raise ValueError(f"rows {row} to {row + count - 1} of {self.tier.label()} are not all used")
        self._unused[extent] = b"\1" * count
        self._ready[extent] = self._warm[extent]
        self.unused += count
        self.ready += self._warm.count(1, extent.start, extent.stop)
        return extent

    def set_warm(self, row: int, count: int, now: float) -> None:
        """Note that used slots have got their pages."""
        extent = self._extent(row, count)
        self.warm += count - self._warm.count(1, extent.start, extent.stop)
        self._warm[extent] = b"\1" * count
        self._warmed_at[extent] = array("d", [now]) * count

    def warmed_at(self, row: int) -> float:
        """When a warm slot has got its pages."""
        return self._warmed_at[row - self.tier.base]

    def find_cold(self, most: int) -> Extent | None:
        """The lowest unused cold slots, at most *most* of them, side by side."""
        at = -1
        while (at := self._warm.find(0, at + 1)) >= 0:
            if self._unused[at]:
                end = min(at + most, self.tier.capacity)
                stops = (self._warm.find(1, at, end), self._unused.find(0, at, end), end)
                return at + self.tier.base, min(stop for stop in stops if stop >= 0) - at
        return None

    def set_cold(self, row: int, count: int) -> None:
        """Note that unused slots lose their pages."""
        extent = self._extent(row, count)
        self.warm -= self._warm.count(1, extent.start, extent.stop)
        self.ready -= self._ready.count(1, extent.start, extent.stop)
        self._warm[extent] = self._ready[extent] = bytes(count)

    def marks(self, row: int, count: int) -> bytes:
        """A byte for each slot of a extent: 1 where it is warm."""
        return bytes(self._warm[self._extent(row, count)])

    def cold_extents(self, row: int, count: int) -> list[Extent]:
        """The cold parts of a extent."""
        return self._parts(row, count, is_warm=0)

    def warm_extents(self, row: int, count: int) -> list[Extent]:
        """The warm parts of a extent."""
        return self._parts(row, count, is_warm=1)

    def _parts(self, row: int, count: int, *, is_warm: int) -> list[Extent]:
        extents: list[Extent] = []
        at, end = row - self.tier.base, row - self.tier.base + count
        while (start := self._warm.find(is_warm, at, end)) >= 0:
            at = self._warm.find(1 - is_warm, start, end)
            at = end if at < 0 else at
            extents.append((start + self.tier.base, at - start))
        return extents

    def coolable(self, most: int) -> Extent | None:
        """Ready slots at the high end, at most *most* of them, side by side."""
        last = self._ready.rfind(1)
        if last < 0:
            return None
        first = max(self._ready.rfind(0, 0, last) + 1, last + 1 - most)
        return first + self.tier.base, last + 1 - first

    def idle_extents(self, end: int, most: int, since: float) -> tuple[list[Extent], int]:
        """Ready slots unused since then among the *most* below *end* (counted from the tier's
        first), from the high end, and where to go on, 0 for nowhere."""
        at = end = self._ready.rfind(1, 0, end) + 1
        low = max(0, end - most)
        extents: list[Extent] = []
        while (last := self._ready.rfind(1, low, at)) >= 0:
            at = last
            while at > low and self._is_idle(at - 1, since) and self._is_idle(at, since):
                at -= 1
            if self._is_idle(at, since):
                extents.append((at + self.tier.base, last + 1 - at))
        return extents, low

    def _is_idle(self, index: int, since: float) -> bool:
        return self._ready[index] == 1 and self._freed_at[index] <= since

    def _find(self, marks: bytearray, count: int) -> int | None:
        at = marks.find(b"\1" * count)
        return None if at < 0 else at + self.tier.base

    def _extent(self, row: int, count: int) -> slice:
        start = row - self.tier.base
        if not 0 <= start <= start + count <= self.tier.capacity:
            raise ValueError(f"rows {row} to {row + count - 1} are not all of {self.tier.label()}")
        return slice(start, start + count)
