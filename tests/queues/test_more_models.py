"""Every interleaving of sleepers and bells, and of hands; each ingredient left out is found."""

from __future__ import annotations

from typing import Any

import hands_model
import pytest
import sleep_model
from walking import Violation

SLEEPERS = [
    sleep_model.Model(((1, 1),), (1, 1)),
    sleep_model.Model(((2,),), (1, 1)),
    sleep_model.Model(((2, 1),), (1, 2)),
    sleep_model.Model(((3,),), (1, 1, 1)),
    pytest.param(sleep_model.Model(((2,), (1,)), (1, 1, 1)), marks=pytest.mark.long),
]
HANDS = [
    hands_model.Model((1, 1)),
    hands_model.Model((2,), hands=1),
    hands_model.Model((2, 1), hands=2),
    pytest.param(hands_model.Model((2, 1), getters=3, hands=3, deaths=2), marks=pytest.mark.long),
]


@pytest.mark.parametrize("model", [*SLEEPERS, *HANDS])
def test_no_wake_up_and_no_item_is_lost(model: Any) -> None:
    assert model.explore() > 100


SLEEP_MUTANTS = [
    "a putter looks for sleepers first", "letting go is no fence", "it lies down when it has let go",
    "the kernel does not compare", "a batch wakes one, and nobody passes the bell on",
]  # fmt: skip
HANDS_MUTANTS = [
    "HEAD before the hand", "a hand is believed though HEAD is not stored", "hands of the dead stay",
    "who joins looks at the hands first",
]  # fmt: skip


@pytest.mark.parametrize("mutant", SLEEP_MUTANTS)
def test_a_bell_without_one_ingredient_is_found(mutant: str) -> None:
    assert any(is_found(sleep_model.Model(one.puts, one.gets, mutant)) for one in SLEEPERS[:4])


@pytest.mark.parametrize("mutant", HANDS_MUTANTS)
def test_hands_without_one_ingredient_are_found(mutant: str) -> None:
    assert any(is_found(hands_model.Model(one.batches, hands=one.hands, mutant=mutant)) for one in HANDS[:3])


def is_found(model: Any) -> bool:
    try:
        model.explore()
    except Violation:
        return True
    return False
