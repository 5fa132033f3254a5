"""No interleaving of the pairwise scenarios breaks the protocol, and every mutant does.

Covered: see the package. `pytest -s` shows the states and the speed of each exploration. The largest
scenarios are of the long setting. Not run unless asked for (``--interleaving-whole``): everybody at
once, which is explored depth first up to a bound, and what is harmless only because something else
is there too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

from .explorer import Result, explore
from .mutants import MUTANTS, Mutant, grants_trusted, old_replies_kept
from .scenarios import SCENARIO, SCENARIOS, WHOLE, Scenario

MODES = ("SC", "TSO")
#: Hundreds of thousands of states each.
LARGE = {"reader x expiry", "restart x publisher", "restart x return"}


def show(result: Result) -> None:
    print(f"\n{result}", *result.story, sep="\n    ")


def explore_both(scenario: Scenario) -> dict[str, Result]:
    """By mode."""
    results = {mode: explore(scenario, is_tso=mode == "TSO") for mode in MODES}
    for result in results.values():
        show(result)
    return results


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(one, id=one.name, marks=[pytest.mark.long] if one.name in LARGE else []) for one in SCENARIOS],
)
def test_no_interleaving_breaks_the_protocol(scenario: Scenario) -> None:
    for result in explore_both(scenario).values():
        assert result.violation is None, "\n".join(result.story)
        assert result.is_complete and result.at_rest


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_found(mutant: Mutant) -> None:
    with mutant.make():
        results = explore_both(SCENARIO[mutant.scenario])
    for mode, result in results.items():
        if mode in mutant.modes:
            assert result.violation is not None, mode
        else:
            assert result.violation is None, "it was expected to show in the other mode only"


def test_a_story_leads_to_its_violation() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "the lock left out")
    with mutant.make():
        result = explore(SCENARIO[mutant.scenario], is_tso=False)
    takers = [line for line in result.story if "store cell0 = (TAKEN" in line]
    assert [line.split()[0] for line in takers] == ["reader1", "reader2"]
    assert result.story[-1] == result.violation


def test_an_exploration_is_the_same_every_time() -> None:
    first, second = (explore(SCENARIO["idle publisher x waiter"], is_tso=True) for _ in range(2))
    assert (first.states, first.steps, first.at_rest) == (second.states, second.steps, second.at_rest)


# --- on demand ------------------------------------------------------------------------------------------


@pytest.fixture
def max_states(request: pytest.FixtureRequest) -> int:
    if not request.config.getoption("--interleaving-whole", default=False):
        pytest.skip("minutes: pytest tests/faults/interleaving --interleaving-whole")
    bound: int = request.config.getoption("--max-states")
    return bound


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
def test_no_interleaving_of_all_breaks_the_protocol(mode: str, max_states: int) -> None:
    result = explore(WHOLE, is_tso=mode == "TSO", max_states=max_states)
    show(result)
    assert result.violation is None, "\n".join(result.story)


@pytest.mark.parametrize("harmless", [old_replies_kept, grants_trusted], ids=lambda mistake: mistake.__name__)
def test_old_replies_do_no_harm_where_rows_are_read(harmless: Any, max_states: int) -> None:
    """Discarding them, and reading the row at every grant: each alone would do."""
    mistake: AbstractContextManager[None] = harmless()
    with mistake:
        result = explore(SCENARIO["restart x return"], is_tso=False)
    show(result)
    assert result.violation is None, "\n".join(result.story)
