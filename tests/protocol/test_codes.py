"""Wire codes: each has a blame, a retry and a sentence for people."""

from __future__ import annotations

import pytest

from shmpool.protocol.codes import Code
from shmpool.protocol.meanings import MEANINGS, Blame


@pytest.mark.parametrize("code", Code)
def test_every_code_has_its_meaning(code: Code) -> None:
    meaning = MEANINGS[code]
    assert isinstance(meaning.blame, Blame)
    assert type(meaning.retry) is bool
    assert meaning.text


def test_numbers_are_pinned_because_they_are_on_the_wire() -> None:
    assert {code.name: int(code) for code in Code} == {
        "BAD_FRAME": 1,
        "BAD_MESSAGE": 2,
        "WRONG_VERSION": 3,
        "FORBIDDEN": 4,
        "NO_SEAT": 5,
        "STOPPING": 6,
        "EXHAUSTED": 7,
        "TOO_LARGE": 8,
        "SHM_FULL": 9,
        "QUOTA": 10,
        "SLOW_READER": 11,
        "CANCELLED": 12,
        "NOT_FOUND": 13,
        "NAME_TAKEN": 14,
    }


@pytest.mark.parametrize("code", [Code.BAD_FRAME, Code.BAD_MESSAGE, Code.WRONG_VERSION, Code.TOO_LARGE])
def test_what_can_never_succeed_is_not_retried(code: Code) -> None:
    assert not MEANINGS[code].retry


@pytest.mark.parametrize("code", [Code.EXHAUSTED, Code.SHM_FULL, Code.STOPPING, Code.NO_SEAT])
def test_what_time_can_mend_is_never_blamed_on_the_client(code: Code) -> None:
    assert MEANINGS[code].retry
    assert MEANINGS[code].blame is not Blame.CLIENT
