"""How tests wait for what others do: by looking, never by sleeping and hoping."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

#: Seconds for what happens by itself within milliseconds: other work shares the machine.
PATIENCE = float(os.environ.get("PATIENCE", 60))
#: Between looks, in seconds: what comes at once is seen at once, what takes its time is not asked a thousand times.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


def settle(look: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What *look* returns as soon as that is empty, or what it still is in the end."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while (seen := look()) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_PAUSE)
    return seen


def eventually(look: Callable[[], T], what: str = "it", seconds: float = PATIENCE) -> T:
    """What *look* returns as soon as that is true; an AssertionError after *seconds*."""
    seen: list[T] = []

    def unseen() -> bool:
        seen[:] = [look()]
        return not seen[0]

    assert not settle(unseen, seconds), f"{what} did not happen within {seconds} s; last seen: {seen[0]!r}"
    return seen[0]


def rounds(least: int, has_happened: Callable[[], bool], seconds: float = PATIENCE) -> Iterator[int]:
    """The numbers of so many rounds, and of more until *has_happened*: a race that one side won each time, as a busy
    machine may let it, shows nothing. AssertionError after *seconds*."""
    deadline, number = time.monotonic() + seconds, 0
    while number < least or not has_happened():
        assert number < least or time.monotonic() < deadline, f"it did not happen within {number} rounds"
        yield number
        number += 1
