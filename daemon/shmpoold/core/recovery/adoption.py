"""The restart scan: a new broker rebuilds all that it knows from the ledger's rows.

Nothing is granted before it has ended. What belongs to the living stays as it is; what
belongs to no seat is freed. Seats that nobody has any more are swept by the events that the
WatchAdopted actions bring, before the shell serves anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shmpool.protocol.ledger import (
    BROKER,
    GENERATION_FIELD,
    MAX_GENERATION,
    birth_of,
    chunks_of,
    generation_of,
    grant_word,
    head_of,
    nbytes_of,
    seat_of,
    state_of,
)
from shmpool.protocol.sizing import (
    Tier,
    TierKind,
    page_round,
)
from shmpool.protocol.states import State

from ..actions import (
    Cool,
    RemoveDirect,
    WatchAdopted,
)
from ..memory.holding import Holding
from ..memory.scrubber import UNKNOWN
from ..memory.slots import Extent
from .damage import damaged_rows

if TYPE_CHECKING:
    from ..broker import Broker

HEADS = (State.IDLE, State.LEASED, State.PUBLISHED, State.RETURNED)


def adopt(broker: Broker, now: float, segments: Mapping[tuple[int, int], int]) -> None:
    """Rebuild seats, holdings, free lists, custody and the cap's account. *segments* are the bytes that
    direct segments hold, by row and birth: a row only says how long the object in one is."""
    for seat in broker.seats.adopt():
        broker.outbox.add(WatchAdopted(seat.number, seat.peer))
        broker.away.leave(seat, now)
    broker.shared.untold = set(broker.seats.taken)
    words = broker.rows.grant_words()
    followers = _followers(broker, words)
    inventory = broker.inventory
    most = max(inventory.limit, *(tier.size * tier.capacity for tier in broker.tiers))
    damaged = damaged_rows(broker.rows, broker.tiers, words, followers, broker.seats.taken, most)
    holdings = []
    for tier in broker.tiers:
        holdings += _adopt_tier(broker, tier, words, followers, damaged, now)
    for holding in holdings:
        if holding.tier.kind is TierKind.DIRECT:
            holding.direct_bytes = max(holding.direct_bytes, segments.get((holding.row, holding.birth), 0))
    inventory.held = inventory.overhead + sum(
        slots.warm * slots.tier.size for slots in inventory.maps[:-1]
    ) + sum(holding.direct_bytes for holding in holdings)  # fmt: skip
    for holding in holdings:
        _place(broker, holding, words[holding.row], now)
    if inventory.room < 0:
        inventory.cool(-inventory.room, inventory.rows.count)  # the limit was lowered meanwhile
    inventory.adopted = inventory.held
    broker.shared.look_at_all(now)
    broker.shared.queues.clear(now)
    broker.cooling.note_idle(now)


def _followers(broker: Broker, words: list[int]) -> dict[int, list[int]]:
    """Head's row -> the rows that follow it in its present run."""
    rows = broker.rows
    followers: dict[int, list[int]] = {}
    for row, word in enumerate(words):
        if state_of(word) == State.FOLLOWER:
            named = rows.extent(row)
            head = head_of(named)
            is_held = 0 < head < rows.count and state_of(words[head]) in HEADS
            if is_held and birth_of(rows.link(head)) == birth_of(named):
                followers.setdefault(head, []).append(row)
    return followers


def _adopt_tier(
    broker: Broker, tier: Tier, words: list[int], followers: dict[int, list[int]], damaged: set[int], now: float
) -> list[Holding]:
    """Sort a tier's rows into unused, held and quarantined; returns what is held."""
    inventory, slots = broker.inventory, broker.inventory.maps[tier.index]
    slots.take(tier.base, tier.capacity)
    claimed: set[int] = set()
    holdings = []
    for row in range(tier.base, tier.end):
        if state_of(words[row]) in HEADS and row not in damaged:
            members = [at for at in followers.get(row, ()) if tier.base <= at < tier.end]
            claimed.update(members)
            holdings.append(_holding(broker, tier, row, members))
    is_cold = bytearray(tier.capacity)
    for row in range(tier.base, tier.end):
        word = words[row]
        if row in damaged:
            _set_aside(broker, tier, row)
        elif word & ~GENERATION_FIELD == 0 and generation_of(word) < MAX_GENERATION:  # COLD
            is_cold[row - tier.base] = 1
        else:
            slots.set_warm(row, 1, now)
            if state_of(word) not in HEADS and row not in claimed:
                _adopt_unheld(broker, tier, row, word, now)
    cold = _extents_of(is_cold, tier.base)
    for row, count in cold:
        if tier.kind is TierKind.DIRECT:
            inventory.warmed(tier, row, count, now)  # a pool whose broker died while it was making it
        slots.give(row, count, now)
        if tier.kind is not TierKind.DIRECT:
            broker.outbox.add(Cool(tier.index, row, count, had_pages=False))  # pages that a crash left in cold rows
    return holdings


def _adopt_unheld(broker: Broker, tier: Tier, row: int, word: int, now: float) -> None:
    """A warm row that nobody holds: free, or a chunk that its run has left behind."""
    if state_of(word) == State.FOLLOWER:
        word = grant_word(broker.rows.move(row, State.FREE), State.FREE, BROKER)
    if state_of(word) == State.FREE and seat_of(word) == BROKER:
        broker.inventory.scrubber.note(((row, 1),), UNKNOWN)
        broker.inventory.give(tier, row, generation_of(word), now)
    else:
        broker.inventory.set_aside(row)


def _extents_of(marks: bytearray, base: int) -> list[Extent]:
    """Where the marks are set, by row."""
    extents: list[Extent] = []
    end = 0
    while (start := marks.find(1, end)) >= 0:
        end = marks.find(0, start)
        end = len(marks) if end < 0 else end
        extents.append((start + base, end - start))
    return extents


def _set_aside(broker: Broker, tier: Tier, row: int) -> None:
    """Never give a damaged row out again. It may have pages and readers, so it counts as
    warm and is not cooled."""
    broker.inventory.maps[tier.index].set_warm(row, 1, 0.0)
    broker.inventory.set_aside(row)
    if tier.kind is TierKind.DIRECT:
        broker.outbox.add(RemoveDirect(row, birth_of(broker.rows.link(row)), may_be_mapped=True))


def _holding(broker: Broker, tier: Tier, head: int, members: list[int]) -> Holding:
    extents: list[Extent] = [(head, 1)]
    for row in sorted(members):
        _extend(extents, row)
    birth = birth_of(broker.rows.link(head))
    holding = Holding(head, tier, tuple(extents), birth=birth, least=birth)
    if tier.kind is TierKind.DIRECT:
        holding.direct_bytes = page_round(max(1, nbytes_of(broker.rows.extent(head))))
    return holding


def _place(broker: Broker, holding: Holding, word: int, now: float) -> None:
    """Give a holding to the owner that its grant word names."""
    inventory = broker.inventory
    holding.granted_at = now
    seat = broker.seats.taken.get(seat_of(word))
    inventory.scrubber.note(holding.extents, seat.peer.uid if seat else UNKNOWN)
    holding.publisher = seat.number if seat else 0
    if generation_of(word) < holding.least:
        inventory.quarantine(holding)
        return
    if broker.rows.is_shared(holding.row):
        if holding.tier.kind is TierKind.DIRECT:
            holding.publisher = broker.shared.publisher_of(holding.row)
        broker.shared.adopt(holding, now)
        return
    if seat is not None and state_of(word) != State.RETURNED:
        inventory.hold(holding, seat)
        return
    if state_of(word) == State.PUBLISHED and holding.tier.kind is TierKind.DIRECT:
        publisher = broker.seats.taken.get(chunks_of(broker.rows.extent(holding.row)))
        if publisher is not None:
            holding.publisher = publisher.number
            broker.custody.accept(holding, now)
            return
    holding.orphaned_at = now
    if state_of(word) == State.PUBLISHED:
        broker.custody.take_over(holding, now)
    else:
        broker.returns.free(holding, now)


def _extend(extents: list[Extent], row: int) -> None:
    if extents and sum(extents[-1]) == row:
        extents[-1] = (extents[-1][0], extents[-1][1] + 1)
    else:
        extents.append((row, 1))
