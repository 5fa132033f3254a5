"""When a peer that has used its turn up has the next: all of them together have a part of the time.

A peer alone waits for `REST`. Many are given their next turns one after the other, with pauses
as long as leave the loop to everybody else for most of the time: however many flood the broker,
who has a single question waits for one of their turns at the longest.
"""

from __future__ import annotations

from typing import Final

#: Seconds until a peer that used its turn up has the next, at the earliest.
REST: Final = 0.005
#: How many times as long as it takes such a turn has to itself, so that many have together no more than
#: one alone; and the shortest that it counts for (seconds).
SPACING: Final = 8
SHORTEST: Final = 0.00025


class Turns:
    """The time that is given to those who use their turns up."""

    def __init__(self) -> None:
        self._taken_until = 0.0

    def reserve(self, now: float, took: float) -> float:
        """When the next turn is of a peer whose last one took so many seconds of CPU."""
        begins = max(now + REST, self._taken_until)
        self._taken_until = begins + SPACING * max(took, SHORTEST)
        return begins
