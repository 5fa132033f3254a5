"""The census: who keeps what, by the words of the ledger alone.

For the broker's reports, and for whoever looks at a pool whose broker does not answer. A row
that is nobody's costs a byte of a search, so a large pool is read in slices. What is read may
be changing: the figures of one census may be a few leases apart.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from .ledger import (
    BROKER,
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    LINK,
    MAX_EXTENTS,
    MAX_TICKETS,
    ROW_BYTES,
    ROW_WORDS,
    SEAT_MASK,
    STATE_MASK,
    STATE_SHIFT,
    chunks_of,
    chunks_of_link,
    is_shared,
    nbytes_of,
    next_row_of,
    tickets_of,
)
from .sizing import Tier, TierKind, page_round
from .states import CellState, State

#: Rows of one slice.
SLICE: Final = 1024

_HELD: Final = re.compile(b"[%b]" % bytes((State.IDLE, State.LEASED, State.PUBLISHED, State.RETURNED)))
_STATE_FIELD: Final = STATE_MASK << STATE_SHIFT
_LEASED: Final = State.LEASED << STATE_SHIFT
_PUBLISHED: Final = State.PUBLISHED << STATE_SHIFT
_TAKEN: Final = CellState.TAKEN << STATE_SHIFT
_DONE: Final = CellState.DONE << STATE_SHIFT


class Use(StrEnum):
    """What somebody keeps a buffer for."""

    LEASED = "leased"
    """It may be written."""
    UNREAD = "unread"
    """Published; a ticket of it has not been opened."""
    OPEN = "open"
    """Open for reading."""
    SHARED = "shared"
    """A shared publication, for whoever holds it: counted once, for its maker."""
    HELD = "held"
    """A shared publication of somebody else's."""
    IDLE = "idle"
    """Ready in a client's magazine."""


class Kept(NamedTuple):
    """One slot, run or direct segment that is not the broker's to give."""

    row: int
    tier: Tier
    #: IDLE, LEASED or PUBLISHED. A publication whose tickets are all done is IDLE: its custodian
    #: has only not looked yet.
    state: State
    #: Who leased or published it; 0 when its publisher has gone.
    seat: int
    #: Memory, and of it what was asked for (of what is idle nothing is), in bytes.
    nbytes: int
    asked: int
    #: Tickets that nobody has opened.
    unread: int
    #: The seats that have it open for reading, one for each ticket.
    readers: tuple[int, ...]
    is_in_custody: bool

    @property
    def is_shared(self) -> bool:
        """Whether it is a shared publication."""
        return self.state is State.PUBLISHED and not self.unread and not self.readers


def slices(tiers: Sequence[Tier]) -> Iterator[tuple[Tier, int, int]]:
    """All rows of a pool, a slice at a time: the tier, the first row, the row behind the last."""
    for tier in tiers:
        for first in range(tier.base, tier.end, SLICE):
            yield tier, first, min(first + SLICE, tier.end)


def snapshot(words: Sequence[int], first: int, end: int) -> bytes:
    """The bytes of some rows, as they are now."""
    rows = words[first * ROW_WORDS : end * ROW_WORDS]
    return rows.tobytes() if isinstance(rows, memoryview) else array("Q", rows).tobytes()


def held_rows(raw: bytes) -> list[int]:
    """Which rows of a snapshot are somebody's, counted from its first."""
    return [found.start() for found in _HELD.finditer(raw[STATE_SHIFT // 8 :: ROW_BYTES])]


def read(
    words: Sequence[int],
    raw: bytes,
    tier: Tier,
    first: int,
    held: Iterable[int],
    granted: Container[int] | None = None,
) -> list[Kept]:
    """What the *held* rows of a snapshot say. *granted*, where it is known, are the rows that may
    be somebody's; others were scribbled on. *words* is the whole ledger: runs go on elsewhere."""
    row_words = memoryview(raw).cast("Q")
    is_pooled, is_direct = tier.kind is TierKind.POOLED, tier.kind is TierKind.DIRECT
    found = []
    for index in held:
        row, at = first + index, index * ROW_WORDS
        if granted is not None and row not in granted:
            continue
        word = row_words[at]
        seat, state = word & SEAT_MASK, word & _STATE_FIELD
        nbytes = tier.size if is_pooled else _memory(words, tier, row_words[at + EXTENT], row_words[at + LINK])
        if state == _PUBLISHED:
            extent = row_words[at + EXTENT]
            if is_shared(extent):
                asked = min(nbytes_of(extent), nbytes)
                found.append(Kept(row, tier, State.PUBLISHED, BROKER, nbytes, asked, 0, (), True))
                continue
            unread, readers = _cells(word, row_words, at + FIRST_CELL, tickets_of(extent))
            if unread or readers:
                is_in_custody = seat == BROKER
                if is_in_custody and is_direct:
                    seat = chunks_of(extent)
                asked = min(nbytes_of(extent), nbytes)
                found.append(Kept(row, tier, State.PUBLISHED, seat, nbytes, asked, unread, readers, is_in_custody))
                continue
        if state == _LEASED:
            asked = min(nbytes_of(row_words[at + EXTENT]), nbytes)
            found.append(Kept(row, tier, State.LEASED, seat, nbytes, asked, 0, (), False))
        else:
            found.append(Kept(row, tier, State.IDLE, seat, nbytes, 0, 0, (), False))
    return found


def _cells(granted: int, row_words: memoryview[int], at: int, tickets: int) -> tuple[int, tuple[int, ...]]:
    """How many tickets nobody has opened, and who has the others open. A cell that makes no
    sense for this generation is never freed, so it counts as not opened."""
    generation, unread = granted & GENERATION_FIELD, 0
    readers: tuple[int, ...] = ()
    for cell in row_words[at : at + min(tickets, MAX_TICKETS)]:
        mark = cell & ~SEAT_MASK
        if mark == generation | _TAKEN:
            readers = (*readers, cell & SEAT_MASK)
        elif mark != generation | _DONE:
            unread += 1
    return unread, readers


def _memory(words: Sequence[int], tier: Tier, extent: int, link: int) -> int:
    """Bytes of memory; what a peer scribbled may not claim more than there can be."""
    if tier.kind is TierKind.DIRECT:
        return page_round(max(1, nbytes_of(extent)))
    chunks, following = chunks_of(extent), next_row_of(link)
    for _ in range(MAX_EXTENTS):
        if not tier.base <= following < tier.end:
            break
        link = words[following * ROW_WORDS + LINK]
        chunks, following = chunks + chunks_of_link(link), next_row_of(link)
    return tier.size * min(chunks, tier.capacity)


@dataclass(slots=True)
class Tally:
    """What one seat keeps for one use. *since*: the oldest has been so at least since then."""

    buffers: int = 0
    nbytes: int = 0
    tickets: int = 0
    since: float | None = None
    #: Buffers by the index of their tier.
    by_tier: dict[int, int] = field(default_factory=dict)

    def add(self, tier: int, nbytes: int, tickets: int, since: float | None) -> None:
        """Count one more."""
        self.buffers += 1
        self.nbytes += nbytes
        self.tickets += tickets
        self.by_tier[tier] = self.by_tier.get(tier, 0) + 1
        if since is not None and (self.since is None or since < self.since):
            self.since = since

    def join(self, other: Tally) -> None:
        """Count all of another."""
        self.buffers += other.buffers
        self.nbytes += other.nbytes
        self.tickets += other.tickets
        for tier, buffers in other.by_tier.items():
            self.by_tier[tier] = self.by_tier.get(tier, 0) + buffers
        if other.since is not None and (self.since is None or other.since < self.since):
            self.since = other.since


@dataclass(slots=True)
class Census:
    """All that is somebody's. A buffer is *active* while it is leased, or published with a
    ticket that is not done: not yet given back. One that several read counts once in the totals,
    and for each of them among what they keep."""

    #: By (tier, state), in slots; by state, in bytes.
    slots: Counter[tuple[int, State]] = field(default_factory=Counter)
    nbytes: Counter[State] = field(default_factory=Counter)
    #: By (seat, use); seat 0 stands for publishers that have gone.
    kept: dict[tuple[int, Use], Tally] = field(default_factory=dict)
    active: int = 0
    active_bytes: int = 0
    payload: int = 0

    def add(
        self,
        found: Iterable[Kept],
        first: int = 0,
        since: Sequence[float] | None = None,
        changed: Sequence[float] | None = None,
    ) -> None:
        """Count some. Where it is known, each was leased or published at *since* or before, and none
        of its tickets has changed after *changed*; both by row, from the row *first* on."""
        slots, nbytes_of, of = self.slots, self.nbytes, self.of
        for kept in found:
            row, tier, state, seat, nbytes, asked, unread, readers, _ = kept
            slots[tier.index, state] += nbytes // tier.size if tier.size else 1
            nbytes_of[state] += nbytes
            at = row - first
            if state is not State.IDLE:
                self.active += 1
                self.active_bytes += nbytes
                self.payload += asked
            if state is not State.PUBLISHED:
                use = Use.LEASED if state is State.LEASED else Use.IDLE
                of(seat, use).add(tier.index, nbytes, 0, since[at] if since else None)
                continue
            if unread:
                of(seat, Use.UNREAD).add(tier.index, nbytes, unread, since[at] if since else None)
            elif not readers:
                of(seat, Use.SHARED).add(tier.index, nbytes, 0, since[at] if since else None)
            for reader in readers if len(readers) == 1 else set(readers):
                of(reader, Use.OPEN).add(tier.index, nbytes, 0, changed[at] if changed else None)

    def hold(self, kept: Kept, holders: Iterable[int]) -> None:
        """Count a shared publication for those who hold it and have not made it."""
        for holder in holders:
            self.of(holder, Use.HELD).add(kept.tier.index, kept.nbytes, 0, None)

    def of(self, seat: int, use: Use) -> Tally:
        """What a seat keeps for a use."""
        tally = self.kept.get((seat, use))
        if tally is None:
            tally = self.kept[seat, use] = Tally()
        return tally
