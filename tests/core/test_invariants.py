"""What the invariants complain of in a broker that lives: at once, as tests ask after each event, and in slices, as a
running broker is asked."""

from __future__ import annotations

from collections.abc import Callable

import harness
import pytest

from shmpool.protocol.ledger import ROW_WORDS, grant_word
from shmpool.protocol.states import State
from shmpoold.core.broker import Broker
from shmpoold.core.recovery import invariants

Break = Callable[[Broker, int, int], None]
"""A broker, a row that is free in it and one that is granted."""


def say(broker: Broker, row: int, state: State, seat: int = 0) -> None:
    broker.rows.words[row * ROW_WORDS] = grant_word(3, state, seat)


WRONG: dict[str, Break] = {
    "a free row that says cold": lambda broker, free, granted: say(broker, free, State.COLD),
    "a free row that says idle": lambda broker, free, granted: say(broker, free, State.IDLE),
    "a free row with a seat": lambda broker, free, granted: say(broker, free, State.FREE, 1),
    "a cold row that says free": lambda broker, free, granted: say(broker, cold(broker), State.FREE),
    "a cold row with a seat": lambda broker, free, granted: say(broker, cold(broker), State.COLD, 1),
    "a free row that is quarantined": lambda broker, free, granted: broker.inventory.quarantined.add(free),
    "a granted row that is quarantined": lambda broker, free, granted: broker.inventory.quarantined.add(granted),
    "a granted row that is nobody's": lambda broker, free, granted: broker.inventory.maps[0].give(granted, 1, 0),
    "a used row that nobody has": lambda broker, free, granted: broker.inventory.maps[0].take(free, 1),
}


def in_slices(broker: Broker) -> object:
    report = invariants.report(broker)
    while True:
        try:
            next(report)
        except StopIteration as end:
            return end.value


def cold(broker: Broker) -> int:
    row, _ = broker.inventory.maps[0].find_cold(1) or (0, 0)
    return row


@pytest.mark.parametrize("break_it", WRONG.values(), ids=WRONG)
def test_each_wrong_row_is_found_at_once_as_it_is_in_slices(break_it: Break) -> None:
    world = harness.World(check_every=0)
    client = world.client()
    (granted,), (free,) = client.get(), client.get()
    client.give_back(free)
    world.run()
    assert invariants.violation(world.broker) is None
    break_it(world.broker, free.row, granted.row)
    found = invariants.violation(world.broker)
    assert found is not None
    assert in_slices(world.broker) == {"violation": found}
