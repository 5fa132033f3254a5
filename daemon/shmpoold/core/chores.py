"""Work that is too long for one turn of the loop: done a few steps at a time, others between.

A chore is a generator that yields after every small step (a row, a ticket, a line of a
report) what that step has cost, in units of about two microseconds. What is short is done
at once, within the event that began it.

Urgent chores have lanes, which share the time by what their steps cost, however many chores a lane
has: neither does a flood of bells, of names or of long runs hold up the end of a seat, nor a thousand
ends a bell. Those of one lane take turns, step by step. Questions get their part too, a quarter of the
time, however much there is to do; they are answered one after the other. Where there is nothing else to do
a question need not wait between its turns, as long as few are asked: `Chores.tick`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter

#: Units in one turn, and seconds between two turns that are full.
STEPS_PER_TURN = 128
PAUSE = 0.001

#: What questions may have without a pause, in units, and how many of them come back in a second.
SAVED = 16 * STEPS_PER_TURN
SAVED_PER_SECOND = 100 * STEPS_PER_TURN

#: A time that does not come, and one that is always over.
NEVER = float("inf")
AT_ONCE = float("-inf")

Chore = Iterator[int]


class Lane(IntEnum):
    """What chores are about."""

    #: Seats that end.
    ENDINGS = 0
    #: Rows that are to be looked at.
    LOOKS = 1
    #: Runs that have ended.
    RUNS = 2
    #: What one request needs.
    REQUESTS = 3
    #: Cooling, and what all clients are told.
    MEMORY = 4
    #: Names, holds and queues.
    SHARED = 5
    #: Not urgent.
    QUESTIONS = 6


#: What an urgent lane gets for each unit that any other gets.
SHARES = {Lane.ENDINGS: 4}


@dataclass(slots=True, eq=False)
class _Queue:
    """The chores of a lane. *spent*: the units that they had, divided by its share."""

    share: int
    spent: float = 0.0
    chores: deque[Chore] = field(default_factory=deque)


_BY_SPENT = attrgetter("spent")


class Chores:
    """What is under way. Deaths, returns and memory come before questions."""

    #: What urgent chores get of a turn, for each unit that the others get.
    WEIGHT = 3

    def __init__(self) -> None:
        self._lanes = [_Queue(SHARES.get(lane, 1)) for lane in Lane if lane is not Lane.QUESTIONS]
        #: The urgent lanes that have anything to do; the one that was chosen last had spent so much.
        self._busy: list[_Queue] = []
        self._level = 0.0
        self._questions: deque[Chore] = deque()
        #: What questions have coming to them, in units.
        self._owed = 0
        self._left = STEPS_PER_TURN
        self._full_again = 0.0
        #: What questions may have without a pause, and when that was counted.
        self._saved, self._counted_at = float(SAVED), 0.0
        #: The time of the present turn, for the chores.
        self.now = 0.0

    def __bool__(self) -> bool:
        return bool(self._busy or self._questions)

    def begin(self, chore: Chore, now: float, lane: Lane) -> None:
        """Start a chore, and do as much as this turn has room for."""
        if lane is Lane.QUESTIONS:
            self._questions.append(chore)
        else:
            self._add(self._lanes[lane], chore)
        self.work(now)

    def work(self, now: float) -> None:
        """One turn. A chore that fails is at its end; the others go on in the next turn."""
        self.now = now
        if now >= self._full_again:
            self._left, self._full_again = STEPS_PER_TURN, now + PAUSE
        while self._left > 0 and (self._busy or self._questions):
            if self._busy and (self._owed <= 0 or not self._questions):
                self._owed += self._do_urgent_step()
            else:
                self._owed -= self.WEIGHT * self._answer()
            if not (self._busy and self._questions):
                self._owed = 0
        if not self._busy:
            self._level = 0.0
            for queue in self._lanes:
                queue.spent = 0.0

    def _do_urgent_step(self) -> int:
        """One step of the lane that has had least; what it cost."""
        queue = min(self._busy, key=_BY_SPENT) if len(self._busy) > 1 else self._busy[0]
        self._level = queue.spent
        chore = queue.chores.popleft()
        if not queue.chores:  # also for what this step begins itself
            self._busy.remove(queue)
        try:
            cost = next(chore)
        except StopIteration:
            return 0
        self._left -= cost
        queue.spent += cost / queue.share
        self._add(queue, chore)
        return cost

    def _add(self, queue: _Queue, chore: Chore) -> None:
        """A lane that had nothing to do has nothing coming to it for that."""
        if not queue.chores:
            queue.spent = max(queue.spent, self._level)
            self._busy.append(queue)
        queue.chores.append(chore)

    def _answer(self) -> int:
        """One step of the oldest question; what it cost."""
        chore = self._questions.popleft()
        try:
            cost = next(chore)
        except StopIteration:
            return 0
        self._questions.appendleft(chore)  # they are answered in the order in which they came
        self._left -= cost
        return cost

    def tick(self, now: float) -> None:
        """Go on, if there is room for more by now. A turn of its own whenever the loop has been around: who
        watches the broker would wait for a dozen pauses."""
        if self:
            self._saved = min(SAVED, self._saved + max(0.0, now - self._counted_at) * SAVED_PER_SECOND)
            self._counted_at = now
            if self._is_saving_pauses:
                self._saved -= STEPS_PER_TURN
                self._left = STEPS_PER_TURN
            self.work(now)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        if not self:
            return NEVER
        return AT_ONCE if self._is_saving_pauses else self._full_again

    @property
    def next_turn(self) -> float | None:
        """When the next full turn is due; None when nothing is under way."""
        return self._full_again if self else None

    @property
    def _is_saving_pauses(self) -> bool:
        return self._left <= 0 and self._saved >= STEPS_PER_TURN and not self._busy and bool(self._questions)
