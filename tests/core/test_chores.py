"""Who gets how much of a turn: what is urgent, and questions."""

from __future__ import annotations

import pytest

from shmpoold.core.chores import AT_ONCE, PAUSE, SAVED, SAVED_PER_SECOND, SHARES, STEPS_PER_TURN, Chore, Chores, Lane

#: By the first word of a chore's name.
LANES = {"urgent": Lane.LOOKS, "question": Lane.QUESTIONS, "ending": Lane.ENDINGS, "run": Lane.RUNS}
QUARTER = STEPS_PER_TURN // (1 + Chores.WEIGHT)


class Turns:
    """Chores, and what was done in each turn."""

    def __init__(self) -> None:
        self.chores = Chores()
        self.done: list[str] = []
        self._now = 0.0

    def begin(self, name: str, steps: int, cost: int = 1) -> None:
        lane = LANES[name.split()[0]]
        self.chores.begin(self._chore(name, steps, cost), self._now, lane)

    def _chore(self, name: str, steps: int, cost: int) -> Chore:
        for _ in range(steps):
            self.done.append(name)
            yield cost

    def turn(self) -> list[str]:
        """What the next one does."""
        self.done.clear()
        self._now += 2 * PAUSE
        self.chores.tick(self._now)
        return list(self.done)

    def fill(self) -> None:
        """Nothing that is begun now has room in this turn."""
        self.begin("urgent filler", STEPS_PER_TURN)


def test_what_is_urgent_comes_first() -> None:
    turns = Turns()
    turns.fill()
    turns.begin("question", 1)
    turns.begin("urgent", 1)
    assert turns.turn() == ["urgent", "question"]


@pytest.mark.parametrize("cost", [1, 4])
def test_questions_get_a_quarter_of_each_turn_beside_what_is_urgent(cost: int) -> None:
    turns = Turns()
    turns.fill()
    turns.begin("urgent", 10_000)
    turns.begin("question", 10_000, cost)
    for _ in range(5):
        assert QUARTER - cost <= cost * turns.turn().count("question") <= QUARTER + cost


def test_questions_have_nothing_coming_to_them_from_when_there_were_none() -> None:
    turns = Turns()
    turns.begin("urgent", 10_000)
    for _ in range(10):
        assert set(turns.turn()) == {"urgent"}
    turns.begin("question", 10_000)
    assert turns.turn().count("question") <= QUARTER + 1


def test_a_question_that_ends_leaves_its_part_to_what_is_urgent() -> None:
    for steps in range(1, 6):
        turns = Turns()
        turns.fill()
        turns.begin("urgent", 10_000)
        turns.begin("question", steps)
        done = turns.turn()
        assert (done.count("question"), len(done)) == (steps, STEPS_PER_TURN)
        assert turns.turn() == ["urgent"] * STEPS_PER_TURN
        turns.begin("question", 1)
        assert turns.turn()[0] == "urgent", "nothing is owed to who was not there"


def test_a_turn_that_is_full_does_no_more_until_the_next() -> None:
    turns = Turns()
    turns.fill()
    turns.begin("urgent", 1)
    turns.chores.tick(PAUSE / 2)
    assert "urgent" not in turns.done
    assert turns.chores.next_deadline == turns.chores.next_turn == PAUSE
    assert turns.turn() == ["urgent"]


@pytest.mark.parametrize("cost", [1, 64])
def test_lanes_share_by_cost_however_many_chores_one_has_and_however_dear_its_steps_are(cost: int) -> None:
    turns = Turns()
    turns.fill()
    for number in range(500):
        turns.begin(f"run {number}", 10_000, cost)
    turns.begin("urgent", 100_000)
    turns.begin("ending", 100_000)
    done = [what for _ in range(20) for what in turns.turn()]
    shares = SHARES[Lane.ENDINGS], 1, 1
    units = done.count("ending"), done.count("urgent"), cost * sum(what.startswith("run") for what in done)
    for got, share in zip(units, shares, strict=True):
        part = sum(units) * share // sum(shares)
        assert part - cost - 1 <= got <= part + cost + 1


def test_a_lane_that_had_nothing_to_do_has_nothing_coming_to_it_for_that() -> None:
    turns = Turns()
    turns.fill()
    turns.begin("urgent", 100_000)
    for _ in range(10):
        turns.turn()
    turns.begin("run", 100_000)
    assert abs(turns.turn().count("run") - STEPS_PER_TURN // 2) <= 1


def ask(chores: Chores, steps: int, now: float) -> list[int]:
    """A long question, at a time that stands still: what each of its turns has until one is not due at once."""
    seen: list[int] = []

    def question() -> Chore:
        for _ in range(steps):
            seen[-1] += 1
            yield 1

    seen.append(0)
    chores.begin(question(), now, Lane.QUESTIONS)
    while chores.next_deadline == AT_ONCE:
        seen.append(0)
        chores.tick(now)
    return seen


def test_a_question_alone_does_not_wait_between_its_turns() -> None:
    assert ask(Chores(), 10 * STEPS_PER_TURN, 1.0) == [STEPS_PER_TURN] * 10 + [0]


def test_questions_without_a_pause_have_what_was_saved_and_no_more() -> None:
    chores = Chores()
    assert ask(chores, 100_000, 1.0) == [STEPS_PER_TURN] * (1 + SAVED // STEPS_PER_TURN)
    turns = 0
    for milliseconds in range(1, 1001):
        now = 1.0 + milliseconds / 1000
        if chores.next_deadline <= now:
            chores.tick(now)
        while chores.next_deadline == AT_ONCE:
            turns += 1
            chores.tick(now)
    assert turns <= SAVED_PER_SECOND // STEPS_PER_TURN


def test_what_is_urgent_keeps_the_pauses() -> None:
    chores = Chores()
    chores.begin((1 for _ in range(100_000)), 1.0, Lane.LOOKS)
    assert ask(chores, 100_000, 1.0) == [0]
