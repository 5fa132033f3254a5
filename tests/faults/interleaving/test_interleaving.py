"""No interleaving of the pairwise scenarios breaks the protocol, and every mutant does.

Covered: see the package. `pytest -s` shows the states and the speed of each exploration. The default
setting explores the smaller scenarios whole, walks through the others at random, and looks for each
mutant in one memory model; the long one goes as far as `MANY` states of each scenario in TSO, which is all of
the smaller ones and has every interleaving of SC, and looks for each mutant in both. ``-m exhaustive`` explores
all of them whole in both, three parties with faults too, and everybody at once up to a bound.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

from . import machines
from .explorer import Result, explore
from .mutants import MUTANTS, Mutant, grants_trusted, old_replies_kept
from .scenarios import LARGE, SCENARIO, SCENARIOS, WHOLE, Scenario
from .start import NO_CHORES

MODES = ("SC", "TSO")
#: At most some ten thousand states each.
SMALL = (
    "readers of two tickets", "reader's death x sweep", "idle publisher x waiter", "fork x publisher",
    "fork of a writer x reader", "dead reader's ticket x reader, by swaps", "reader's death x sweep, by asking",
    "open within open", "discard and close within open, by swaps",
)  # fmt: skip
#: The others that the default setting walks through, and how many states of each.
WALKED = sorted(
    one.name
    for one in SCENARIOS
    if one.by == "locks" and not one.has_visits and one.chores is NO_CHORES and one.name not in SMALL
)
WALK = 500
#: Mutants that a short walk finds sooner than a search of all beginnings does, and the walk that finds each soonest;
#: where that one does not, as after a change of what is explored, a few more are tried in another order, and then all
#: interleavings.
BY_WALKS = {
    "the old socket's replies not discarded": 5, "expiry without the lock": 0, "expiry that stores": 10,
    "an answer believed": 0, "a reader that does not look for the custodian": 0, "custody passed on twice": 0,
    "a lock that is no barrier": 0, "a map believed whatever its segment is called": 0,
    "a cell of another generation accepted": 9,
    "a dead reader's ticket given back under another generation": 4,
    "settled at once, whoever inherited": 6,
    "a dead writer's rows freed whoever has to copy them": 31, "a readers' byte given up with the seat's sweep": 13,
    "a process that cannot be seen taken for dead": 0, "the end of a queue judged by two publications": 0,
    "what lies in no queue closed with one": 8, "a spare made longer by its own name": 2,
    "no sweep of what the living gave back": 0, "no sweep of what was handed over": 1,
    "a sweep that frees what was handed over": 0, "a row that does not say that it is cold": 0,
    "a cold slot that is thought warm": 0,
}  # fmt: skip
MUTANT_WALK, WALKS = 2_000, 4
#: One shows after two hundred thousand states.
SOON = [mutant for mutant in MUTANTS if mutant.name != "an open in the middle of another that unlocks its byte"]
#: States of each scenario in the long setting, and of everybody at once.
MANY, WHOLE_STATES = 2_000, 3_000_000


def show(result: Result) -> None:
    print(f"\n{result}", *result.story, sep="\n    ")


def look_through(scenario: Scenario, mode: str, max_states: int | None = None, seed: int = 0) -> Result:
    result = explore(scenario, is_tso=mode == "TSO", max_states=max_states, seed=seed)
    show(result)
    return result


@pytest.mark.parametrize("name", SMALL)
def test_no_interleaving_of_a_small_scenario_breaks_the_protocol(name: str) -> None:
    """Store buffers that are drained at once are sequential consistency: TSO has all of its interleavings."""
    result = look_through(SCENARIO[name], "TSO")
    assert result.violation is None, "\n".join(result.story)
    assert result.is_complete and result.at_rest


@pytest.mark.parametrize("name", WALKED)
def test_no_walk_through_a_large_scenario_breaks_the_protocol(name: str) -> None:
    result = look_through(SCENARIO[name], "TSO", WALK)
    assert result.violation is None, "\n".join(result.story)
    assert result.states >= WALK and not result.is_complete


@pytest.mark.long
@pytest.mark.parametrize("mode", ["TSO", pytest.param("SC", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_interleaving_of_many_breaks_the_protocol(scenario: Scenario, mode: str) -> None:
    result = look_through(scenario, mode, MANY)
    assert result.violation is None, "\n".join(result.story)
    assert result.states >= MANY or (result.is_complete and result.at_rest)


@pytest.mark.parametrize("mutant", SOON, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant: Mutant) -> None:
    with mutant.make():
        assert is_found(mutant, mutant.modes[-1])


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found_in_its_modes_alone(mutant: Mutant) -> None:
    with mutant.make():
        found = {mode for mode in MODES if is_found(mutant, mode)}
    assert found == set(mutant.modes)


def is_found(mutant: Mutant, mode: str) -> bool:
    """That it is found in a mode is shown by a walk, where one is short; that it is not by all interleavings."""
    first = BY_WALKS.get(mutant.name)
    walks = range(first, first + WALKS) if first is not None and mode in mutant.modes else range(0)
    results = (look_through(mutant.scenario, mode, MUTANT_WALK, walk) for walk in walks)
    if any(result.violation is not None for result in results):
        return True
    return look_through(mutant.scenario, mode).violation is not None


def test_a_story_leads_to_its_violation() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "the lock left out")
    with mutant.make():
        result = explore(mutant.scenario, is_tso=False)
    takers = [line for line in result.story if "store cell0 = (TAKEN" in line]
    assert [line.split()[0] for line in takers] == ["reader1", "reader2"]
    assert result.story[-1] == result.violation


def test_an_exploration_is_the_same_every_time() -> None:
    first, second = (explore(SCENARIO["idle publisher x waiter"], is_tso=True, max_states=WALK) for _ in range(2))
    assert figures(first) == figures(second)


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_a_party_s_future_is_what_its_fingerprint_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hardly any greenlet is kept, parties come to their local states by other ways, and do the same there."""
    kept = explore(SCENARIO[name], is_tso=True)
    monkeypatch.setattr(machines, "MAX_LIVE", 3)
    assert figures(explore(SCENARIO[name], is_tso=True)) == figures(kept)


def figures(result: Result) -> tuple[int, ...]:
    return result.states, result.steps, result.at_rest, result.local_states


# --- on demand ------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", [*SCENARIOS, *LARGE], ids=lambda scenario: scenario.name)
def test_no_interleaving_breaks_the_protocol(scenario: Scenario, mode: str) -> None:
    result = look_through(scenario, mode)
    assert result.violation is None, "\n".join(result.story)
    assert result.is_complete and result.at_rest


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
def test_no_interleaving_of_all_breaks_the_protocol(mode: str) -> None:
    result = look_through(WHOLE, mode, WHOLE_STATES)
    assert result.violation is None, "\n".join(result.story)


@pytest.mark.exhaustive
@pytest.mark.parametrize("harmless", [old_replies_kept, grants_trusted], ids=lambda mistake: mistake.__name__)
def test_old_replies_do_no_harm_where_rows_are_read(harmless: Any) -> None:
    """Discarding them, and reading the row at every grant: each alone would do."""
    mistake: AbstractContextManager[None] = harmless()
    with mistake:
        result = explore(SCENARIO["restart x return"], is_tso=False)
    show(result)
    assert result.violation is None, "\n".join(result.story)
