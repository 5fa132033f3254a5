"""What a restart scan takes for damage, and nothing besides: a row too many is memory that nobody has again, one too
few is given to somebody else. (Every single flipped bit, and random damage: tests/faults/test_damaged_ledger.py.)"""

from __future__ import annotations

from typing import NamedTuple

import harness
import pytest

from shmpool.protocol.ledger import CHUNKS_SHIFT, EXTENT, FIRST_CELL, ROW_WORDS, grant_word, head_of
from shmpool.protocol.states import CellState, State
from shmpoold.core.recovery import invariants


class Scene(NamedTuple):
    """Two runs that lie one behind the other, and a slot that is free. They were granted at different generations."""

    world: harness.World
    run: harness.Slot
    other: harness.Slot
    free: int

    def quarantined(self) -> set[int]:
        """By the next broker."""
        world = self.world
        world.kill_broker()
        broker = world._make_broker()
        broker.adopt(world.now)
        invariants.check(broker)
        return set(broker.inventory.quarantined)


@pytest.fixture
def scene() -> Scene:
    world = harness.World(harness.small_settings(), check_every=0)
    client = world.client()
    before, _ = client.get(harness.CHUNKS, 4), client.get(harness.CHUNKS, 3)
    client.give_back(*before)
    world.run()
    (run,), (free,) = client.get(harness.CHUNKS, 4), client.get()
    client.give_back(free)
    world.run()
    (other,) = (slot for slot in client.ready if slot is not run)
    return Scene(world, run, other, free.row)


def test_a_sound_ledger_has_none(scene: Scene) -> None:
    assert scene.run.rows[-1] + 1 == scene.other.row
    assert scene.world.generation(scene.run.row) != scene.world.generation(scene.other.row)
    assert scene.quarantined() == set()


def test_a_follower_that_names_another_head_is_set_aside_with_the_run_that_has_it(scene: Scene) -> None:
    """By its own words it was left behind, and would be given out while its lease is written."""
    ledger, follower = scene.world.ledger, scene.run.rows[1]
    at = follower * ROW_WORDS + EXTENT
    ledger[at] += scene.other.row - head_of(ledger[at])
    assert head_of(ledger[at]) == scene.other.row
    assert scene.quarantined() == set(scene.run.rows)


@pytest.mark.parametrize("chunks", [1, 2], ids=["its head", "a follower"])
def test_a_run_that_reaches_into_the_next_takes_nothing_of_it_along(scene: Scene, chunks: int) -> None:
    scene.world.ledger[scene.run.row * ROW_WORDS + EXTENT] += chunks << CHUNKS_SHIFT
    assert scene.quarantined() == set(scene.run.rows)


def test_a_free_row_that_was_published_at_its_own_generation_is_set_aside(scene: Scene) -> None:
    """Its generation was another: a handle of before would open what is published there next."""
    mark = grant_word(scene.world.generation(scene.free), CellState.DONE, 0)
    scene.world.ledger[scene.free * ROW_WORDS + FIRST_CELL] = mark
    assert scene.quarantined() == {scene.free}


@pytest.mark.parametrize("state", [State.FREE, State.RETURNED, State.COLD, 9])
def test_a_row_of_nobodys_that_names_somebody_is_set_aside(scene: Scene, state: int) -> None:
    world = scene.world
    world.ledger[scene.free * ROW_WORDS] = grant_word(world.generation(scene.free), state, 1)
    assert scene.quarantined() == {scene.free}


def test_whom_a_follower_names_means_nothing(scene: Scene) -> None:
    """Its head has its lease, and nobody asks the follower."""
    scene.world.ledger[scene.run.rows[1] * ROW_WORDS] += 1
    assert scene.quarantined() == set()
