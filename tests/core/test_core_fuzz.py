"""Random courses among clients that say and store anything: see `fuzzing`."""

from __future__ import annotations

import random

import pytest
from fuzzing import Fuzz

from shmpool.protocol.messages import FROM_CLIENT


def fuzz(seed: int, steps: int) -> Fuzz:
    one = Fuzz(seed)
    try:
        one.run(steps)
    except BaseException as error:
        error.add_note(f"replay it: fuzz({seed}, {steps}) of tests/core/test_core_fuzz.py")
        raise
    return one


def test_nothing_that_clients_say_or_store_upsets_the_core() -> None:
    fuzz(random.getrandbits(32), 1500)


def test_everything_is_said() -> None:
    said = fuzz(7, 1500).said
    assert len(said.keys() | {"Goodbye"}) == len(FROM_CLIENT), said


@pytest.mark.parametrize(
    "courses", [pytest.param(3, marks=pytest.mark.long), pytest.param(30, marks=pytest.mark.exhaustive)]
)
def test_nor_in_very_many_courses(courses: int) -> None:
    for _ in range(courses):
        fuzz(random.getrandbits(32), 6000)
