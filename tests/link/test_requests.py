"""The table of the leases that wait: no sockets, no threads, no clock."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from shmpool.link.requests import MAX_NUMBER, Request, Requests, RequestState
from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Cancel, Direct, Refill, Refusal


def magazine(*slots: str) -> Any:
    ready = list(slots)
    return SimpleNamespace(take=lambda: ready.pop(0) if ready else None)


def waiting(table: Requests, own: Any = None, *, is_sent: bool = True) -> Request:
    number = table.next_number()
    request = Request(Refill(number, 0, 1, 1, True) if own else Direct(number, 4096, True), own)
    table.add(request)
    request.is_sent = is_sent
    return request


def test_a_grant_gives_one_slot_and_leaves_the_rest() -> None:
    table, slots = Requests(), ["a", "b", "c"]
    request = waiting(table, magazine())
    assert table.grant(request.number, slots) == (request, ["b", "c"])  # type: ignore[arg-type]
    assert (request.state, request.slot) == (RequestState.GRANTED, "a")
    assert table.grant(request.number, ["d"]) == (request, ["d"])  # type: ignore[list-item]
    assert table.remove(request) is None
    assert table.grant(request.number, ["e"]) == (None, ["e"])  # type: ignore[list-item]


def test_own_slots_serve_who_has_waited_longest_and_the_broker_is_told() -> None:
    table, own, other = Requests(), magazine("a", "b"), magazine()
    first, direct, second, third = waiting(table, own), waiting(table), waiting(table, other), waiting(table, own)
    assert table.offer() == [first, third]
    assert (first.slot, third.slot) == ("a", "b")
    assert second.is_waiting and direct.is_waiting
    assert table.remove(first) == Cancel(first.number)
    assert table.remove(first) is None


def test_a_refusal_is_the_last_word() -> None:
    table = Requests()
    request = waiting(table, magazine("a"))
    refusal = Refusal(request.number, Code.EXHAUSTED, "full")
    assert table.refuse(refusal) is request
    assert table.offer() == []
    assert table.grant(request.number, ["b"]) == (request, ["b"])  # type: ignore[list-item]
    assert (request.state, request.refusal) == (RequestState.REFUSED, refusal)
    assert table.remove(request) is None


def test_only_what_was_sent_is_asked_again_or_cancelled() -> None:
    table = Requests()
    sent, remembered = waiting(table), waiting(table, is_sent=False)
    assert table.unanswered() == [sent.message]
    assert table.remove(remembered) is None
    assert table.remove(sent) == Cancel(sent.number)
    assert table.all() == []


def test_numbers_go_round_and_pass_over_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Requests()
    request = waiting(table)
    monkeypatch.setattr(table, "_numbers", count(MAX_NUMBER))
    assert request.number == 1
    assert table.next_number() == 2
