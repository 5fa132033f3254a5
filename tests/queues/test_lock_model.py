"""Every interleaving of the lock of a queue's end, deaths included; each ingredient left out is found."""

from __future__ import annotations

import pytest
from lock_model import Model
from walking import Violation

SMALL = [Model((1, 1), deaths=1), Model((2, 1), deaths=1, versions=6), Model((1, 1, 1), deaths=1, versions=3)]
LARGE = [Model((1, 1, 1), deaths=2, versions=4), Model((2, 2), deaths=1), Model((2, 1, 1), deaths=1, versions=3)]


@pytest.mark.parametrize("model", [*SMALL, *(pytest.param(model, marks=pytest.mark.long) for model in LARGE)])
def test_one_is_inside_and_nobody_is_blocked(model: Model) -> None:
    assert model.explore() > 100


MUTANTS = [
    "it says so when it has it",
    "it does not look at the version again",
    "it says nothing before it lets go",
    "many may mend",
    "the version stays",
    "it does not wait for those inside",
    pytest.param("the dead are forgotten first", marks=pytest.mark.long),
    pytest.param("those who die late are forgotten too", marks=pytest.mark.long),
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_lock_without_one_ingredient_is_found(mutant: str) -> None:
    sizes = [((1, 1), 1, 4), ((1, 1, 1), 1, 3), ((1, 1, 1), 2, 3), ((1, 1, 1), 2, 4)]
    assert any(is_found(Model(turns, deaths, versions, mutant)) for turns, deaths, versions in sizes)


def is_found(model: Model) -> bool:
    try:
        model.explore()
    except Violation:
        return True
    return False
