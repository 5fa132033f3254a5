"""What must hold after every event; `check` raises AssertionError with the story."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmpool.protocol.ledger import BROKER, birth_of, head_of, seat_of, state_of
from shmpool.protocol.sizing import TierKind
from shmpool.protocol.states import State

if TYPE_CHECKING:
    from .broker import Broker


def violation(broker: Broker) -> str | None:
    """What does not hold, None when all does. Looks at every row: tens of milliseconds."""
    try:
        check(broker)
    except AssertionError as error:
        return str(error) or "an invariant does not hold"
    return None


def check(broker: Broker) -> None:
    """Every slot is in exactly one place, the account of memory is exact and under the
    cap, and the index agrees with the ledger."""
    inventory = broker.inventory
    used = _used_rows(broker)
    words = broker.rows.grant_words()
    held = inventory.overhead
    for slots in inventory.maps:
        tier = slots.tier
        for row in range(tier.base, tier.end):
            state = state_of(words[row])
            if slots.is_unused(row):
                assert row not in used, f"{_story(row, state)}: it is unused and also {used.get(row)}"
                assert state == (State.FREE if slots.is_warm(row) else State.COLD), f"{_story(row, state)}: unused"
                assert seat_of(words[row]) == BROKER, f"{_story(row, state)}: unused, with a seat"
            else:
                assert row in used, f"{_story(row, state)}: it is used by nobody"
        held += slots.warm * tier.size
    held += sum(holding.direct_bytes for holding in inventory.granted.values())
    held += sum(holding.direct_bytes for _, holding in broker.lending.creating.values())
    held += sum(_still_cold(broker, warming.holdings) for warming in set(broker.lending.warming.values()))
    assert held == inventory.held, f"held is {inventory.held}, the slots say {held}"
    assert held <= max(inventory.limit, inventory.overhead, inventory.adopted), f"held {held} of {inventory.limit}"
    _check_holdings(broker)


def _story(row: int, state: int) -> str:
    return f"row {row} says {state}"


def _used_rows(broker: Broker) -> dict[int, str]:
    used: dict[int, str] = dict.fromkeys(broker.inventory.quarantined, "quarantined")
    holdings = [(holding, "granted") for holding in broker.inventory.granted.values()]
    holdings += [(holding, "warming") for job in set(broker.lending.warming.values()) for holding in job.holdings]
    holdings += [(holding, "being created") for _, holding in broker.lending.creating.values()]
    for holding, place in holdings:
        for first, count in holding.spans:
            for row in range(first, first + count):
                assert row not in used, f"row {row} is {used[row]} and {place}"
                used[row] = place
    return used


def _still_cold(broker: Broker, holdings: list) -> int:  # type: ignore[type-arg]
    slots = broker.inventory.maps[holdings[0].tier.index]
    return sum(
        slots.tier.size
        for holding in holdings
        for first, count in holding.spans
        for row in range(first, first + count)
        if not slots.is_warm(row)
    )


def _check_holdings(broker: Broker) -> None:
    for row, holding in broker.inventory.granted.items():
        assert row == holding.row
        seat = broker.seats.taken.get(holding.seat)
        assert seat is None or row in seat.rows, f"row {row} is not among the rows of seat {holding.seat}"
        assert seat is not None or holding.in_custody, f"row {row} has neither seat nor custodian"
        if holding.tier.kind is TierKind.CHUNK:
            for first, count in holding.spans:
                for member in range(first, first + count):
                    if member != row:
                        named = broker.rows.extent(member)
                        assert state_of(broker.rows.grant(member)) == State.FOLLOWER
                        assert (head_of(named), birth_of(named)) == (row, holding.birth)
    for seat in broker.seats.taken.values():
        for row in seat.rows:
            assert broker.inventory.granted[row].seat == seat.number
        nbytes = sum(broker.inventory.granted[row].nbytes for row in seat.rows)
        assert nbytes == seat.nbytes, f"seat {seat.number} counts {seat.nbytes} bytes, its rows hold {nbytes}"
