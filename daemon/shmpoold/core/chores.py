"""Work that is too long for one turn of the loop: done a few steps at a time, others between.

A chore is a generator that yields after every small step (a row, a ticket, a line of a
report) what that step has cost, in units of about two microseconds. What is short is done
at once, within the event that began it.

Urgent chores take turns, step by step: neither does a flood of bells hold up the end of a seat,
nor a thousand ends a bell. Questions get their part too, a quarter of the time, however much
there is to do; they are answered one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

#: Units in one turn, and seconds between two turns that are full.
STEPS_PER_TURN = 128
PAUSE = 0.001

#: A time that does not come.
NEVER = float("inf")

Chore = Iterator[int]


class Chores:
    """What is under way. Deaths, returns and memory come before questions."""

    #: What urgent chores get of a turn, for each unit that the others get.
    WEIGHT = 3

    def __init__(self) -> None:
        self._urgent: deque[Chore] = deque()
        self._other: deque[Chore] = deque()
        #: What the others have coming to them, in units.
        self._owed = 0
        self._left = STEPS_PER_TURN
        self._full_again = 0.0
        #: The time of the present turn, for the chores.
        self.now = 0.0

    def __bool__(self) -> bool:
        return bool(self._urgent or self._other)

    def begin(self, chore: Chore, now: float, *, is_urgent: bool) -> None:
        """Start a chore, and do as much as this turn has room for."""
        (self._urgent if is_urgent else self._other).append(chore)
        self.work(now)

    def work(self, now: float) -> None:
        """One turn. A chore that fails is at its end; the others go on in the next turn."""
        self.now = now
        if now >= self._full_again:
            self._left, self._full_again = STEPS_PER_TURN, now + PAUSE
        while self._left > 0 and (self._urgent or self._other):
            is_urgent = bool(self._urgent) and (self._owed <= 0 or not self._other)
            chores = self._urgent if is_urgent else self._other
            chore = chores.popleft()
            try:
                cost = next(chore)
            except StopIteration:
                continue
            if is_urgent:
                chores.append(chore)
            else:
                chores.appendleft(chore)  # questions are answered in the order in which they came
            self._left -= cost
            if not (self._urgent and self._other):
                self._owed = 0
            else:
                self._owed += cost if is_urgent else -self.WEIGHT * cost

    def tick(self, now: float) -> None:
        """Go on, if there is room for more by now."""
        self.work(now)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        return self._full_again if self._urgent or self._other else NEVER

    @property
    def next_turn(self) -> float | None:
        """When to go on; None when nothing is under way."""
        return self._full_again if self._urgent or self._other else None
