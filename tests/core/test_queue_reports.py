"""What a queue's memory says to operators: how much is in it, who waits, who is inside; a report of many."""

from __future__ import annotations

from array import array
from typing import Any
from unittest.mock import patch

import pytest
from harness import SMALL, World
from sharers import sharer

from shmpool.protocol import queues as layout
from shmpool.protocol.ledger import QUEUE
from shmpool.protocol.queues import (
    CAPACITY,
    DROPPED,
    FLAGS,
    GETTERS_SLEEP,
    GRANULE_BYTES,
    GRANULES,
    HEAD,
    LOW,
    MAGIC,
    MAXSIZE,
    ODD,
    PUTTERS_SLEEP,
    SEATS,
    SLEEPERS_SHIFT,
    TAIL,
    Flag,
    Kind,
    Odd,
    first_said,
    look,
)
from shmpoold.core.reports import queues

COUNT, NOW = 5, 1000


@pytest.fixture
def words() -> array[int]:
    """Three items in five granules, numbers about to turn over; two putters wait, and a getter did."""
    words = array("Q", bytes(layout.looked_at_bytes(COUNT)))
    words[0], words[SEATS], words[GRANULES], words[CAPACITY], words[MAXSIZE] = MAGIC, COUNT, 64, 10, 7
    words[HEAD], words[TAIL] = LOW - 1 << 32 | LOW - 1, 3 << 32 | 1
    words[DROPPED], words[FLAGS] = 4, Flag.JOINABLE | 1 << 40
    words[PUTTERS_SLEEP], words[GETTERS_SLEEP] = NOW << SLEEPERS_SHIFT | 2, NOW - 1 << SLEEPERS_SHIFT | 1
    words[first_said(COUNT, 0) + COUNT] = 3 << 48 | 99
    words[first_said(COUNT, 1)] = 2 << 48 | 98
    return words


def test_a_look_tells_what_the_words_say(words: array[int]) -> None:
    found = look(words, COUNT, NOW)
    assert found is not None
    assert (found.items, found.used_bytes) == (3, 5 * GRANULE_BYTES)
    assert (found.capacity, found.maxsize, found.dropped, found.flags) == (10, 7, 4, Flag.JOINABLE)
    assert (found.waiting, found.inside, found.is_shut) == ((2, 0), ((3,), (2,)), False)
    words[ODD] = Odd.SHUT
    assert look(words, COUNT, NOW).is_shut  # type: ignore[union-attr]


def test_scribbled_numbers_are_no_more_than_there_is_room_for(words: array[int]) -> None:
    words[TAIL] = words[HEAD] - (1 << 32) - 1
    found = look(words, COUNT, NOW)
    assert found is not None and (found.items, found.used_bytes) == (10, 64 * GRANULE_BYTES)


@pytest.mark.parametrize("word", [0, SEATS])
def test_what_is_no_queue_s_memory_says_nothing(words: array[int], word: int) -> None:
    assert look(words[:-1], COUNT, NOW) is None
    words[word] += 1
    assert look(words, COUNT, NOW) is None


def report(world: World, words: array[int]) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of all queues, of each of which the memory says this; and what each step cost."""
    memory, costs = words.tobytes() + bytes(layout.looked_at_bytes(world.broker.seats.count)), list[int]()
    steps = queues.lines(world.broker.shared, world.broker.seats, lambda holding, nbytes: memory[:nbytes], lambda: 1.0)
    try:
        while True:
            costs.append(next(steps))
    except StopIteration as done:
        return done.value, costs


def test_a_report_has_so_many_queues_at_most_and_a_step_for_each(world: World, words: array[int]) -> None:
    maker = sharer(world)
    words[SEATS] = world.broker.seats.count
    for _ in range(3):
        maker.share(maker.get(SMALL)[0], keep=QUEUE)
        world.run()
    lines, costs = report(world, words)
    assert [line["members"] for line in lines] == [[maker.process.pid]] * 3
    assert costs == [queues.QUEUE] * 3 and queues.QUEUE <= 16
    with patch.object(queues, "MOST_QUEUES", 2):
        assert len(report(world, words)[0]) == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (0, (False, "block", "drop")),
        (Flag.JOINABLE | Flag.DROP_NEWEST, (True, "drop_newest", "drop")),
        (Flag.DROP_OLDEST | Flag.REQUEUE, (False, "drop_oldest", "requeue")),
    ],
)
def test_a_line_says_how_a_queue_was_made(
    world: World, words: array[int], flags: int, told: tuple[bool, str, str]
) -> None:
    maker = sharer(world)
    words[SEATS], words[FLAGS] = world.broker.seats.count, flags
    maker.share(maker.get(SMALL)[0], keep=QUEUE)
    world.run()
    ((line,), _) = report(world, words)
    assert (line["joinable"], line["overflow"], line["on_dead_consumer"]) == told


def test_the_words_of_a_queue_lie_side_by_side() -> None:
    """Each where the layout says, and none in another's: members of another version would read what is not meant."""
    intents = [layout.INTENTS + 3 * number + word for number in range(layout.MOST_INTENTS) for word in range(3)]
    assert intents == list(range(80, layout.LOCKS)) and layout.LOCKS == 128
    assert tuple(range(layout.MEMBER_WORDS)) == (layout.NONCE, layout.CLAIMED, layout.TAKEN, layout.FINISHED)
    kinds = (Kind.INLINE, Kind.HANDLE, Kind.PICKLED, Kind.PAD, Kind.BYTES, Kind.TOKEN)
    assert kinds == tuple(range(1, 7))
    assert tuple(range(layout.HAND_WORDS - 1)) == (layout.OWNER, layout.NUMBER, layout.WORD)
