"""The helper without a broker: how long it waits for one that listens and does not answer, and what wakes it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from itertools import count
from queue import Queue

import pytest
from patience import PATIENCE

from shmpool.link import helper as module
from shmpool.link.connection import Connection, ConnectionEnded, Interruption
from shmpool.link.helper import FIRST_PATIENCE, LONGEST_PATIENCE, Helper
from shmpool.link.link import Link
from shmpool.system.descriptors import make_eventfd, signal


class Clock:
    """For the helper: what it waits for is over at once."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Seat:
    """One whose broker is away."""

    address, is_over, is_orphaned = "nowhere", False, False

    def __init__(self, clock: Clock) -> None:
        self.link = Link(self)  # type: ignore[arg-type]
        self.clock = clock
        #: What becomes of each attempt: "silent", "refused", "welcome".
        self.fates: Iterator[str] = iter(())
        self.patience: list[float] = []
        self.helper: Helper

    def reconnect(self, timeout: float, interruption: Interruption | None = None) -> bool:
        self.patience.append(timeout)
        fate = next(self.fates, None)
        if fate is None:
            self.helper.thread = None
        elif fate == "silent":
            self.clock.now += timeout
        return fate == "welcome"


@pytest.fixture
def seat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seat]:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
    seat = Seat(clock)
    seat.helper = Helper(seat, lambda: False)  # type: ignore[arg-type]
    seat.helper.thread = threading.current_thread()
    yield seat
    seat.link.close()


def patience_of(seat: Seat, *fates: str) -> list[float]:
    seat.fates = iter(fates)
    for _ in fates:
        seat.helper._reconnect()
    return seat.patience


def test_a_broker_that_does_not_answer_is_given_twice_as_long_each_time(seat: Seat) -> None:
    """Where it is starved and all clients come at once, who gives up soon makes it work for those who have gone."""
    assert patience_of(seat, *["silent"] * 8) == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 64.0, 64.0]
    assert (FIRST_PATIENCE, LONGEST_PATIENCE) == (2.0, 64.0)


def test_one_that_is_not_there_is_not_waited_for_and_one_that_answers_is_as_ever(seat: Seat) -> None:
    assert patience_of(seat, "silent", "refused", "refused", "welcome", "silent") == [2.0, 4.0, 4.0, 4.0, 2.0]


def test_who_waits_for_an_answer_looks_up_when_it_is_woken_and_at_no_other_time() -> None:
    ours, theirs = socket.socketpair()
    wakeup, connection = make_eventfd(), Connection(ours)
    asked = Queue[int]()
    looks = count(1)

    def is_called() -> bool:
        asked.put(look := next(looks))
        return look == 3

    def wait() -> None:
        with pytest.raises(ConnectionEnded, match="no longer"):
            connection.receive_one(float("inf"), Interruption(is_called, wakeup))

    waiter = threading.Thread(target=wait)
    waiter.start()
    for number in (1, 2, 3):
        signal(wakeup)
        assert asked.get(timeout=PATIENCE) == number  # it is drained before: none of these is lost
    waiter.join()
    assert asked.empty()
    connection.close()
    theirs.close()
