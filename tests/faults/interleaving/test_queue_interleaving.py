"""No interleaving of puts and gets breaks a queue, deaths at any instruction included, and every mutant does.

The queue's real code runs: locks and their mending, putting, getting, hands, batches, handles of the pool, shutdown.
The default setting explores the smaller scenarios whole, walks through the others at random, and looks for each
mutant; the long one walks further; ``-m exhaustive`` explores each scenario whole, for minutes.
"""

from __future__ import annotations

import pytest

from .explorer import Result, explore
from .mutants import Mutant
from .queue_mutants import QUEUE_MUTANTS
from .queue_scenarios import QUEUE_SCENARIO, QUEUE_SCENARIOS
from .queue_world import QueueScenario, QueueWorld
from .test_interleaving import MANY, MODES, show

#: At most some ten thousand states each.
SMALL = (
    "one puts, one gets", "a putter's death x putter", "a putter's death x getter", "a stop x putter", "hands",
    "shutdown x getter", "a lease's putter's death x putter",
)  # fmt: skip
#: States of each of the others in the default setting.
WALK = 700
#: States where `MANY` are too few: a wake-up was lost behind the ten thousandth.
FURTHER = {"a full queue": 40_000, "two put in a full queue": 20_000, "shutdown x putter in a full queue": 20_000}
#: States of a walk that looks for a mutant, and how many walks there are at the most.
MUTANT_WALK, WALKS = 20_000, 20


def look_through(scenario: QueueScenario, mode: str, max_states: int | None = None, seed: int = 0) -> Result:
    result = explore(scenario, is_tso=mode == "TSO", max_states=max_states, seed=seed, kind=QueueWorld)
    show(result)
    return result


@pytest.mark.parametrize("name", SMALL)
def test_no_interleaving_of_a_small_scenario_breaks_a_queue(name: str) -> None:
    result = look_through(QUEUE_SCENARIO[name], "TSO")
    assert result.violation is None, "\n".join(result.story)
    assert result.is_complete and result.at_rest


@pytest.mark.parametrize("name", sorted(QUEUE_SCENARIO.keys() - set(SMALL)))
def test_no_walk_through_a_large_scenario_breaks_a_queue(name: str) -> None:
    result = look_through(QUEUE_SCENARIO[name], "TSO", WALK)
    assert result.violation is None, "\n".join(result.story)
    assert result.states >= WALK and not result.is_complete


@pytest.mark.parametrize(
    "most", [pytest.param(MANY, marks=pytest.mark.long), pytest.param(None, marks=pytest.mark.exhaustive)],
    ids=["many", "all"],
)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", QUEUE_SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_interleaving_breaks_a_queue(scenario: QueueScenario, mode: str, most: int | None) -> None:
    bound = most and max(most, FURTHER.get(scenario.name, 0))
    result = look_through(scenario, mode, bound)
    assert result.violation is None, "\n".join(result.story)
    assert result.is_complete or result.states >= (bound or MANY)


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(one, marks=[pytest.mark.long] if one.scenario.hands else [], id=one.name) for one in QUEUE_MUTANTS],
)
def test_every_mutant_of_a_queue_is_found(mutant: Mutant) -> None:
    """By walks: breadth first some would take minutes."""
    assert isinstance(mutant.scenario, QueueScenario)
    with mutant.make():
        bound = None if mutant.scenario.name == "one place" else MUTANT_WALK
        walks = (look_through(mutant.scenario, mutant.modes[0], bound, seed) for seed in range(WALKS))
        assert any(result.violation is not None for result in walks)
