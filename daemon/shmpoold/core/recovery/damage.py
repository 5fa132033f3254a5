"""What a restart scan must not trust: rows that say what neither broker nor client writes.

A flipped bit, or a peer that scribbled on the ledger. Such rows are quarantined with all
that hangs together with them: giving one out could give somebody else's memory twice. Not
every damage can be told: a seat or a length that has become another one that might be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from shmpool.protocol.ledger import (
    BROKER,
    CACHED,
    EXTENT,
    FIRST_CELL,
    KEPT,
    LINK,
    MAX_EXTENTS,
    MAX_TICKETS,
    QUEUE,
    ROW_WORDS,
    SHARED,
    chunks_of,
    chunks_of_link,
    generation_of,
    head_of,
    is_shared,
    nbytes_of,
    next_row_of,
    seat_of,
    state_of,
    tickets_of,
)
from shmpool.protocol.sizing import Tier, TierKind
from shmpool.protocol.states import CellState, State

if TYPE_CHECKING:
    from ..rows import Rows

_HELD: Final = frozenset((State.IDLE, State.LEASED, State.PUBLISHED))
_NOBODYS: Final = frozenset((State.COLD, State.FREE, State.RETURNED))
_SHARED: Final = (SHARED, SHARED | KEPT, SHARED | CACHED, SHARED | QUEUE, SHARED | QUEUE | KEPT)
_MARKS: Final = frozenset((State.PUBLISHED, CellState.TAKEN, CellState.DONE))


def damaged_rows(
    rows: Rows,
    tiers: Collection[Tier],
    words: list[int],
    followers: Mapping[int, list[int]],
    seats: Collection[int],
    most_bytes: int,
) -> set[int]:
    """The rows that make no sense. *words* are the grant words, *followers* the rows that
    follow each head, *seats* those that are taken; nothing is larger than *most_bytes*."""
    extents, cells, links = (_column(rows, word) for word in (EXTENT, FIRST_CELL, LINK))
    led = {row for members in followers.values() for row in members}
    damaged: set[int] = set()
    for tier in tiers:
        for row in range(tier.base, tier.end):
            word, state = words[row], state_of(words[row])
            if state in _HELD:
                run = _run(tier, row, extents[row], links)
                if (
                    run == [row, *followers.get(row, ())]
                    and _is_somebodys(word, extents[row], seats, most_bytes)
                    and (state != State.PUBLISHED or _is_publication(rows, row, word, extents[row]))
                ):
                    continue
                damaged.update(at for at in run if state_of(words[at]) == State.FOLLOWER and at not in led)
            elif state == State.FOLLOWER:
                if row in led or (_is_nobodys(word, cells[row]) and _was_left(tier, words, extents[row])):
                    continue
            elif state not in _NOBODYS or _is_nobodys(word, cells[row]):
                continue
            damaged.add(row)
            damaged.update(followers.get(row, ()))
    return damaged | _left_by(damaged, tiers, words, extents, led) if damaged else damaged


def _left_by(heads: set[int], tiers: Collection[Tier], words: list[int], extents: list[int], led: set[int]) -> set[int]:
    """The rows that name one of these as their head, of whatever birth: its own words may not say so any more."""
    rows = (row for tier in tiers if tier.kind is TierKind.CHUNK for row in range(tier.base, tier.end))
    return {
        row
        for row in rows
        if state_of(words[row]) == State.FOLLOWER and row not in led and head_of(extents[row]) in heads
    }


def _is_somebodys(word: int, extent: int, seats: Collection[int], most_bytes: int) -> bool:
    """Whether there is whom a held row names (a seat is cleared after its rows), and memory for its bytes."""
    is_custody = state_of(word) == State.PUBLISHED and seat_of(word) == BROKER
    return (is_custody or seat_of(word) in seats) and nbytes_of(extent) <= most_bytes


def _is_publication(rows: Rows, row: int, word: int, extent: int) -> bool:
    """Whether its tickets are as many as cells were made for this generation. (The last
    cell may be a checksum.) Its client works on while this is read: where the grant word is another
    by now, the rest may be of its next publication."""
    tickets = tickets_of(extent)
    if is_shared(extent):
        if seat_of(word) == BROKER and tickets in _SHARED:
            return True
    elif 1 <= tickets <= MAX_TICKETS:
        following = rows.words[row * ROW_WORDS + FIRST_CELL + tickets] if tickets < MAX_TICKETS - 1 else 0
        if state_of(following) not in _MARKS or generation_of(following) != generation_of(word):
            return True
    return rows.grant(row) != word


def _is_nobodys(word: int, cell: int) -> bool:
    """Whether a row that says so can be nobody's: its last publication is of an earlier
    generation."""
    return seat_of(word) == BROKER and not (state_of(cell) in _MARKS and generation_of(cell) >= generation_of(word))


def _was_left(tier: Tier, words: list[int], extent: int) -> bool:
    """Whether the head that a FOLLOWER names can have moved on without it: a broker died
    while it granted or freed the run."""
    head = head_of(extent)
    if tier.kind is not TierKind.CHUNK or not tier.base <= head < tier.end:
        return False
    state, seat = state_of(words[head]), seat_of(words[head])
    return state in _HELD or (seat == BROKER and (state in _NOBODYS or state == State.FOLLOWER))


def _column(rows: Rows, word: int) -> list[int]:
    column = rows.words[word : rows.count * ROW_WORDS : ROW_WORDS]
    return column.tolist() if isinstance(column, memoryview) else list(column)


def _run(tier: Tier, head: int, extent: int, links: list[int]) -> list[int]:
    """The rows of a lease by its head's words, lowest first behind the head; empty for
    links that no broker writes."""
    first, count, following = head, chunks_of(extent), next_row_of(links[head])
    if tier.kind is not TierKind.CHUNK:
        return [] if following else [head]
    members: list[int] = []
    for _ in range(MAX_EXTENTS):
        if not (tier.base <= first < tier.end and 0 < count <= tier.end - first):
            return []
        members += range(first, first + count)
        if not following:
            return [head, *sorted(members[1:])]
        first = min(following, tier.end)
        if first < tier.end:
            count, following = chunks_of_link(links[first]), next_row_of(links[first])
    return []
