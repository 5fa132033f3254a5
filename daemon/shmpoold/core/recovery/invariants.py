"""What must hold after every event; `check` raises AssertionError with the story.

A running broker is checked in slices (`report`): each step looks at things that belong
together at one moment, and forgives what has changed since an earlier step.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from shmpool.protocol.ledger import (
    BROKER,
    birth_of,
    head_of,
    seat_of,
    state_of,
)
from shmpool.protocol.sizing import TierKind
from shmpool.protocol.states import State

from ..memory.holding import Holding
from ..memory.slots import SlotMap
from ..memory.turnover import BYTES
from ..owners import Owner

if TYPE_CHECKING:
    from ..broker import Broker

_USED = re.compile(b"\0")
#: Rows that are looked at in one step, and chunks of one run; what the account costs, in units.
ROWS_PER_STEP, CHUNKS_PER_STEP, ACCOUNT = 4, 64, 512
#: Rows that are compared in one step with what they should say were they unused, and what that costs, in units.
COMPARED_PER_STEP, COMPARING = 256, 4


def report(broker: Broker) -> Generator[int, None, dict[str, Any]]:
    """A chore: what does not hold, None when all does."""
    try:
        yield from _steps(broker)
    except AssertionError as error:
        return {"violation": str(error) or "an invariant does not hold"}
    return {"violation": None}


def violation(broker: Broker) -> str | None:
    """What does not hold just now, None when all does."""
    try:
        check(broker)
    except AssertionError as error:
        return str(error) or "an invariant does not hold"
    return None


def check(broker: Broker) -> None:
    """Every slot is in exactly one place, the account of memory is exact and under the
    cap, and the index agrees with the ledger. Looks at every row: milliseconds."""
    _check_turnover(broker)
    for _ in _steps(broker, sys.maxsize):
        pass


def _suspects(broker: Broker, slots: SlotMap, extent: range) -> Iterable[int]:
    """The rows of an extent that are used, or lie among what is; all of them where an unused one does not say so. Of
    the others `_check_row` has nothing to complain, and they are most."""
    unused = slots.unused_marks(extent.start, len(extent))
    if not broker.rows.are_where(extent.start, unused, slots.marks(extent.start, len(extent))):
        return extent
    used = (extent.start + match.start() for match in _USED.finditer(unused))
    inventory = broker.inventory
    return sorted({*used, *_within(inventory.granted, extent), *_within(inventory.quarantined, extent)})


def _within(rows: Collection[int], extent: range) -> Iterator[int]:
    """Those of the *rows* that lie there, by as many looks as the fewer of both take."""
    return (row for row in (rows if len(rows) < len(extent) else extent) if row in extent and row in rows)


def _steps(broker: Broker, compared: int = COMPARED_PER_STEP) -> Iterator[int]:
    """So many rows are compared at once."""
    _check_account(broker)
    yield ACCOUNT
    claims = array("L", bytes(array("L").itemsize * broker.rows.count))
    for holding in list(broker.inventory.granted.values()):
        yield from _check_holding(broker, holding, claims)
    for owner in list(broker.owners()):
        yield from _check_owner(broker, owner)
    _check_unfinished(broker, claims)
    yield 1
    for slots in broker.inventory.maps:
        base, end = slots.tier.base, slots.tier.end
        for first in range(base, end, compared):
            for at, row in enumerate(_suspects(broker, slots, range(first, min(first + compared, end))), 1):
                _check_row(broker, slots, row)
                if at % ROWS_PER_STEP == 0:
                    yield 1
            yield COMPARING


def _check_account(broker: Broker) -> None:
    """What is held is what the slots, the direct segments and the spares say, and what is
    counted along is what is there."""
    inventory = broker.inventory
    for slots in inventory.maps:
        assert slots.counts() == (slots.unused, slots.warm, slots.ready), f"{slots.tier.label()} is counted wrongly"
    promised = broker.lending.clearings.left
    assert promised == broker.lending.earmarks.promised, f"{broker.lending.earmarks.promised} bytes are promised"
    held = inventory.overhead + sum(slots.warm * slots.tier.size for slots in inventory.maps)
    direct = broker.tiers[-1]
    granted = _within(inventory.granted, range(direct.base, direct.end))
    held += sum(inventory.granted[row].direct_bytes for row in granted)
    held += sum(holding.direct_bytes for _, holding in broker.lending.grants.creating.values())
    held += inventory.spares.nbytes + broker.lending.clearings.aside
    held += sum(inventory.condemned.values())
    held += sum(_still_cold(broker, warming.holdings) for warming in broker.lending.grants.unfinished_warmings())
    if broker.manager.filling is not None:
        held += _still_cold(broker, [broker.manager.filling])
    assert held == inventory.held, f"held is {inventory.held}, the slots say {held}"
    owned = sum(len(owner.rows) for owner in broker.owners())
    assert owned == len(inventory.granted), f"{len(inventory.granted)} are granted, {owned} have an owner"
    large = sum(owner.large for owner in broker.owners())
    assert large == inventory.large, f"{inventory.large} large operations are counted, {large} are out"
    assert held <= max(inventory.limit, inventory.overhead, inventory.adopted), f"held {held} of {inventory.limit}"


def _check_turnover(broker: Broker) -> None:
    """What was granted since ever is what is granted."""
    inventory = broker.inventory
    out = inventory.turnover.since(float("-inf"), BYTES)
    granted = sum(holding.nbytes for holding in inventory.granted.values())
    assert out == granted, f"{granted} bytes are granted, {out} counted by when they were"


def _still_cold(broker: Broker, holdings: list[Holding]) -> int:
    slots = broker.inventory.maps[holdings[0].tier.index]
    return sum(slots.tier.size for holding in holdings for row in _rows_of(holding) if not slots.is_warm(row))


def _rows_of(holding: Holding) -> Iterator[int]:
    for first, count in holding.extents:
        yield from range(first, first + count)


def _check_holding(broker: Broker, holding: Holding, claims: array[int]) -> Iterator[int]:
    """It has an owner, its rows are its own, and a run's rows name their head."""
    head, rows = holding.row, broker.rows
    if holding.owner is None:  # freed meanwhile
        return
    assert broker.inventory.granted.get(head) is holding, f"row {head} is granted otherwise than to its owner"
    assert head in holding.owner.rows, f"row {head} is not in its owner's account"
    left = CHUNKS_PER_STEP
    for row in _rows_of(holding):
        if left == 0:
            yield CHUNKS_PER_STEP
            left = CHUNKS_PER_STEP
            if holding.owner is None:
                return
        left -= 1
        _claim(broker, holding, row, claims)
        if holding.tier.kind is TierKind.CHUNK and row != head:
            named = rows.extent(row)
            assert state_of(rows.grant(row)) == State.FOLLOWER, f"{_story(broker, row)}: a chunk of row {head}"
            assert (head_of(named), birth_of(named)) == (head, holding.birth), f"row {row} names another head"
    yield 1 + CHUNKS_PER_STEP - left


def _claim(broker: Broker, holding: Holding, row: int, claims: array[int]) -> None:
    slots = broker.inventory.maps[holding.tier.index]
    other = _claimant(broker, row, claims)
    assert other is None or other is holding, f"row {row} is of rows {holding.row} and {other.row}"
    assert not slots.is_unused(row), f"{_story(broker, row)}: it is unused and also granted"
    assert row not in broker.inventory.quarantined, f"row {row} is quarantined and granted"
    claims[row] = holding.row + 1


def _claimant(broker: Broker, row: int, claims: array[int]) -> Holding | None:
    """What a row was seen to be a part of, unless that has ended meanwhile."""
    holding = broker.inventory.granted.get(claims[row] - 1)
    return holding if holding is not None and row in _rows_of(holding) else None


def _check_owner(broker: Broker, owner: Owner) -> Iterator[int]:
    """Its account, unless it changes meanwhile."""
    granted = broker.inventory.granted
    rows, counted = list(owner.rows), (owner.nbytes, owner.large, dict(owner.tiers))
    nbytes, large, tiers = 0, 0, Counter[int]()
    for at, row in enumerate(rows, 1):
        if row in owner.rows:
            holding = granted.get(row)
            assert holding is not None and holding.owner is owner, f"row {row} is not this owner's"
            nbytes += holding.nbytes
            large += holding.is_large
            tiers[holding.tier.index] += 1
        if at % CHUNKS_PER_STEP == 0:
            yield CHUNKS_PER_STEP // ROWS_PER_STEP
    is_still = (owner.nbytes, owner.large, owner.tiers) == counted and len(owner.rows) == len(rows)
    if is_still and owner.rows.issuperset(rows):
        found = nbytes, large, tiers
        assert found == counted, f"an owner counts {counted} (bytes, large ones, by tier), it has {found}"
    yield 1


def _unfinished(broker: Broker) -> Iterator[Holding]:
    """What was taken and is not granted yet."""
    for warming in broker.lending.grants.unfinished_warmings():
        yield from warming.holdings
    for _, holding in broker.lending.grants.creating.values():
        yield holding
    yield from broker.lending.grants.building.values()
    if broker.manager.filling is not None:
        yield broker.manager.filling


def _check_unfinished(broker: Broker, claims: array[int]) -> None:
    seen: set[int] = set()
    for holding in _unfinished(broker):
        for row in _rows_of(holding):
            assert row not in seen, f"row {row} is being made ready twice"
            assert _claimant(broker, row, claims) is None, f"row {row} is granted and being made ready"
            assert row not in broker.inventory.granted, f"row {row} is granted and being made ready"
            assert row not in broker.inventory.quarantined, f"row {row} is quarantined and being made ready"
            assert not broker.inventory.maps[holding.tier.index].is_unused(row), f"row {row} is unused and taken"
            seen.add(row)


def _check_row(broker: Broker, slots: SlotMap, row: int) -> None:
    """Unused and says so, or in somebody's hands."""
    if slots.is_unused(row):
        word = broker.rows.grant(row)
        expected = State.FREE if slots.is_warm(row) else State.COLD
        assert state_of(word) == expected, f"{_story(broker, row)}: unused"
        assert seat_of(word) == BROKER, f"{_story(broker, row)}: unused, with a seat"
        assert row not in broker.inventory.quarantined, f"row {row} is unused and quarantined"
        assert row not in broker.inventory.granted, f"{_story(broker, row)}: it is unused and also granted"
    elif broker.inventory.spares.has_row(row):
        assert state_of(broker.rows.grant(row)) == State.FREE, f"{_story(broker, row)}: its segment lies spare"
        assert row not in broker.inventory.granted, f"{_story(broker, row)}: its segment lies spare"
    elif not (row in broker.inventory.granted or row in broker.inventory.quarantined):
        assert _is_used(broker, row), f"{_story(broker, row)}: it is used by nobody"


def _is_used(broker: Broker, row: int) -> bool:
    """Whether a row is part of a run, or is being made ready."""
    run = broker.inventory.granted.get(head_of(broker.rows.extent(row)))
    extents = [extent for holding in (*((run,) if run else ()), *_unfinished(broker)) for extent in holding.extents]
    extents += [extent for left in broker.inventory.leaving.values() for extent in left]
    return any(first <= row < first + count for first, count in extents)


def _story(broker: Broker, row: int) -> str:
    return f"row {row} says {state_of(broker.rows.grant(row))}"
