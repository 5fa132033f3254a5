"""Every interleaving of the queue's protocol, deaths included; each ingredient left out is found."""

from __future__ import annotations

import pytest
from queue_model import Model, Violation

SMALL = [
    Model(puts=(("a", "b"),), gets=(1, 1)),
    Model(puts=(("a",), ("x",)), gets=(2,)),
    Model(puts=(("a", "b", "c"),), gets=(3,), cells=1),
]
LARGE = [
    Model(puts=(("a", "b"), ("x", "y")), gets=(2, 2)),
    Model(puts=(("a", "b"), ("x",)), gets=(1, 2), cells=1, deaths=2),
    Model(puts=(("a", "b"), ("x",)), gets=(2, 1), deaths=3),
]


@pytest.mark.parametrize("model", [*SMALL, *(pytest.param(model, marks=pytest.mark.long) for model in LARGE)])
def test_nothing_is_lost_doubled_reordered_or_blocked(model: Model) -> None:
    assert model.explore() > 100


MUTANTS = [
    "no lock for putters", "no lock for getters", "leftovers stay", "published before it is noted",
    "leftovers are taken for not put", "committed before it is stored", "HEAD before the ticket",
    "stops at what is done",
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_protocol_without_one_ingredient_is_found(mutant: str) -> None:
    sizes = [((("a", "b"),), (1, 1)), ((("a",), ("x",)), (2,)), ((("a",), ("x", "y")), (1, 1))]
    assert any(is_found(Model(puts, gets, mutant=mutant)) for puts, gets in sizes)


def is_found(model: Model) -> bool:
    try:
        model.explore()
    except Violation:
        return True
    return False
