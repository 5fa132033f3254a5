"""The random simulation, and the rules that it checks, checked themselves.

``pytest tests/core --events 1000000`` runs it for longer, ``--seed N`` replays a failure.
"""

from __future__ import annotations

import random
import time

import pytest
from corners import corner
from harness import SMALL, World
from simulation import Simulation

from shmpool.protocol.messages import Grant
from shmpoold.core.actions import Cool, RemoveDirect, Send


def simulate(seed: int, events: int, *, as_lists: bool = False) -> Simulation:
    simulation = Simulation(seed, check_every=5, as_lists=as_lists)
    started = time.perf_counter()
    try:
        simulation.run(events)
    except BaseException as error:
        error.add_note(f"replay it: pytest tests/core/test_simulation.py --seed {seed} --events {events}")
        error.add_note("the last events and actions:\n  " + "\n  ".join(map(str, simulation.world.recent)))
        raise
    rate = simulation.world.events / (time.perf_counter() - started)
    print(f"seed {seed}: {simulation.world.events} events, {rate:.0f}/s, {dict(simulation.done)}")
    return simulation


def test_nothing_is_lost_and_nothing_given_twice_whatever_happens(pytestconfig: pytest.Config) -> None:
    events, seed = pytestconfig.getoption("--events", 3_000), pytestconfig.getoption("--seed", None)
    seeds = [random.randrange(1 << 32) for _ in range(3)] if seed is None else [seed]
    for seed in seeds:
        simulation = simulate(seed, events // len(seeds))
        # At most: 13 tickets of each of some 30 publications that expire at once.
        assert simulation.world.most_actions < 500, "one event brought an unbounded number of actions"


@pytest.mark.parametrize(
    "least", [pytest.param(20_000, marks=pytest.mark.long), pytest.param(1_000_000, marks=pytest.mark.exhaustive)]
)
def test_the_cap_holds_over_very_many_operations(least: int, pytestconfig: pytest.Config) -> None:
    """The world sums what has pages at every action: tiers, chunks, direct segments, spares, ledger, header.
    A million take some four minutes; ``--events`` asks for more."""
    seed = pytestconfig.getoption("--seed", None) or random.randrange(1 << 32)
    operations = 0
    while operations < max(least, pytestconfig.getoption("--events", 0)):
        simulation = Simulation(seed, check_every=1000)
        try:
            simulation.run(50_000)
        except BaseException as error:
            error.add_note(f"replay it with --seed {seed}")
            raise
        operations += simulation.done.total()
        seed += 1


@pytest.mark.parametrize("seed", corner(1, 2, 3))
def test_the_same_seed_gives_the_same_course_with_memoryviews_and_with_lists(seed: int) -> None:
    one, other = simulate(seed, 2000), simulate(seed, 2000, as_lists=True)
    assert one.done == other.done
    assert list(one.world.ledger) == list(other.world.ledger)


def test_everything_that_can_happen_does_happen() -> None:
    missing = {name for name in vars(Simulation) if not name.startswith("_") and name != "run"}
    for seed in (11, 12, 13):
        missing -= {move for move, times in simulate(seed, 2_500).done.items() if times}
        if not missing:
            break
    assert missing == set()


# --- the shadow notices -----------------------------------------------------------------------------


def test_the_shadow_notices_a_slot_that_is_granted_twice(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    assert client.link is not None
    with pytest.raises(AssertionError, match="granted while seat"):
        world._obey_all([Send(client.link.number, Grant(9, [slot.row]))])


def test_the_shadow_notices_a_slot_that_is_cooled_under_its_owner(world: World) -> None:
    (slot,) = world.client().get()
    with pytest.raises(AssertionError, match="cooled while seat"):
        world._obey_all([Cool(SMALL, slot.row, 1)])


def test_the_shadow_notices_a_segment_that_is_removed_under_its_readers(world: World) -> None:
    client = world.client()
    client.publish(client.get_direct(4096))
    world.run()
    (name,) = world.direct
    with pytest.raises(AssertionError, match="removed while tickets are open"):
        world._obey_all([RemoveDirect(*name)])


def test_the_shadow_notices_somebody_elses_bytes(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    assert reader.open(ticket)
    world.content[ticket.row] += 1
    with pytest.raises(AssertionError, match="somebody else's bytes"):
        reader.release(ticket)
