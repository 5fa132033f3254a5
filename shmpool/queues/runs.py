"""Runs of small items, as `put_many` and `get_many` see them: each in a granule of its own, side by side, stored and
loaded by one call in C."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from mmap import mmap
from struct import Struct
from typing import Final

from ..protocol.queues import GRANULE_BYTES, ITEM_HEAD, KIND_SHIFT, LENGTH_MASK, LENGTH_SHIFT, LOW

#: Bytes of an item that fits into one granule, and the most items that one call moves.
MOST_BYTES: Final = GRANULE_BYTES - ITEM_HEAD
MOST_ITEMS: Final = 64


@lru_cache(maxsize=4 * MOST_ITEMS)
def _cells(count: int) -> Struct:
    return Struct("=" + f"Q{MOST_BYTES}s" * count)


@lru_cache(maxsize=4 * MOST_ITEMS)
def _contents(count: int, length: int) -> Struct:
    return Struct("=" + f"{ITEM_HEAD}x{length}s{MOST_BYTES - length}x" * count)


def store(raw: mmap, start: int, granule: int, kind: int, items: Sequence[bytes]) -> None:
    """Store items of at most `MOST_BYTES` from a granule on, which has no wrap behind it among them."""
    cells: list[int | bytes] = [0] * (2 * len(items))
    cells[1::2] = items
    first, lengths = granule | kind << KIND_SHIFT, set(map(len, items))
    if len(lengths) == 1:
        first |= lengths.pop() << LENGTH_SHIFT
        cells[::2] = range(first, first + len(items))
    else:
        cells[::2] = [first + number | len(item) << LENGTH_SHIFT for number, item in enumerate(items)]
    _cells(len(items)).pack_into(raw, start, *cells)


def load(raw: mmap, words: memoryview[int], start: int, granule: int, most: int) -> tuple[int, Sequence[bytes]]:
    """The kind and the contents of the items of one kind that lie from a granule on, each in one: at most so
    many. (0, ()) where there is none, or something else."""
    heads = words[start >> 3 : (start >> 3) + 4 * most : 4].tolist()
    first = heads[0]
    kind, length = first >> KIND_SHIFT, first >> LENGTH_SHIFT & LENGTH_MASK
    if first & LOW != granule or length > MOST_BYTES:
        return 0, ()
    if heads == list(range(first, first + most)):
        return kind, _contents(most, length).unpack_from(raw, start)
    found: list[bytes] = []
    for number, head in enumerate(heads):
        length = head >> LENGTH_SHIFT & LENGTH_MASK
        if head & LOW != granule + number or head >> KIND_SHIFT != kind or length > MOST_BYTES:
            break
        at = start + number * GRANULE_BYTES + ITEM_HEAD
        found.append(raw[at : at + length])
    return kind, found
