"""What lay in a queue that is gone is closed, and nothing else: publishers work on while the broker looks."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest

from shmpool.protocol.ledger import (
    CHUNKS_SHIFT,
    EXTENT,
    FIRST_CELL,
    QUEUE,
    QUEUE_CELL,
    QUEUED_CELL,
    ROW_WORDS,
    SHARED,
    STATE_SHIFT,
    TICKETS_SHIFT,
    generation_of,
    grant_word,
    queue_word,
    queued_word,
)
from shmpool.protocol.states import CellState, State
from shmpoold.core.actions import CloseTicket
from shmpoold.core.chores import Chores, Lane
from shmpoold.core.objects.queues import CLOSING, SEARCHED_PER_STEP, SEARCHING, Queues
from shmpoold.core.outbox import Outbox
from shmpoold.core.rows import Rows

GONE, LIVING, ITEM, COUNT, SEAT = 1, 2, 5, 8, 3
AT = ITEM * ROW_WORDS
#: More than the broker reads of a ledger of so many rows.
MOST_READS = 200


class Ledger(list[int]):
    """Where another process stores its next publication just before one of the broker's reads."""

    def __init__(self) -> None:
        super().__init__([0] * COUNT * ROW_WORDS)
        self.reads, self.changes_before, self.queue = 0, -1, 0
        for queue in (GONE, LIVING):
            self[queue * ROW_WORDS] = grant_word(7, State.PUBLISHED, 0)
        self[LIVING * ROW_WORDS + EXTENT] = (SHARED | QUEUE) << TICKETS_SHIFT | 1 << CHUNKS_SHIFT | 64
        self[AT + EXTENT] = 1 << TICKETS_SHIFT | 1 << CHUNKS_SHIFT | 64
        self.publish(9, GONE)

    def publish(self, generation: int, queue: int) -> None:
        if queue:
            self[AT + QUEUE_CELL], self[AT + QUEUED_CELL] = queue_word(queue, 7), queued_word(generation)
        self[AT + FIRST_CELL] = self[AT] = grant_word(generation, State.PUBLISHED, SEAT)

    def __getitem__(self, at: Any) -> Any:
        self.reads += 1
        if self.reads == self.changes_before:
            self[AT + FIRST_CELL] = grant_word(9, 0, 0) | CellState.DONE << STATE_SHIFT  # it was read,
            self.publish(10, self.queue)  # and what follows is another's
        return super().__getitem__(at)


def closed_in(ledger: Ledger) -> list[int]:
    """The generations whose tickets are closed when a queue is gone."""
    chores, outbox = Chores(), Outbox()
    Queues(Rows(ledger, COUNT), chores, outbox).clear(0.0)
    while chores:
        chores.tick(0.0)
    return [generation_of(action.granted) for action in outbox.take() if isinstance(action, CloseTicket)]


def test_what_lies_in_a_queue_that_is_gone_is_closed() -> None:
    assert closed_in(Ledger()) == [9]


@pytest.mark.parametrize("queue", [LIVING, 0], ids=["another queue", "none"])
def test_what_is_published_meanwhile_is_not(queue: int) -> None:
    """A consumer lost one of some hundred thousand items: their producer worked on while an earlier queue's end was
    looked after."""
    closed = []
    for place in range(1, MOST_READS):
        ledger = Ledger()
        ledger.reads, ledger.changes_before, ledger.queue = 0, place, queue
        closed += closed_in(ledger)
        if ledger.reads < place:
            break
    else:
        pytest.fail("it reads more than was thought")
    assert closed and set(closed) == {9}


def test_a_large_ledger_is_searched_in_steps_that_say_what_they_cost() -> None:
    count = 3 * SEARCHED_PER_STEP + 1
    ledger = [0] * count * ROW_WORDS
    ledger[: COUNT * ROW_WORDS] = Ledger()
    chores, outbox = Chores(), Outbox()
    queues = Queues(Rows(ledger, count), chores, outbox)
    with patch.object(chores, "begin") as begin:
        queues.clear(0.0)
        ((chore, _, lane),) = (call.args for call in begin.call_args_list)
        costs = [next(chore), next(chore)]
        queues.clear(0.0)  # while that goes on it only has to begin again
        costs += chore
    assert lane is Lane.SHARED and begin.call_count == 1
    assert costs == [1, *2 * [SEARCHING + CLOSING, SEARCHING, SEARCHING, SEARCHING]]
    assert len(outbox.take()) == 2
