"""What seems to be leaked: found by its age, asked about once, told once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from harness import CHUNKS, MEDIUM, SMALL, Client, World, small_settings
from test_reports import ask

from shmpool.protocol.figures import HELD_BY_VIEWS
from shmpool.protocol.header import counters_at
from shmpool.protocol.messages import MAX_INQUIRED, Account, Topic
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State
from shmpoold.core.actions import Log
from shmpoold.core.events import Ticked
from shmpoold.core.reports import leaks as module
from shmpoold.core.reports.leaks import MOST_TOLD, OVER_WITHIN

AGE = 10.0


@pytest.fixture
def world(make_world: type[World]) -> World:
    world = make_world(small_settings(leak_age=AGE))
    world.keep_actions = True
    return world


def told(world: World) -> list[str]:
    """The lines about single leaks; that there are any is an alert besides."""
    lines = [action.text for action in world.actions if isinstance(action, Log) and action.is_warning]
    return [line for line in lines if not line.startswith("alert ")]


def leaks(world: World) -> list[dict[str, Any]]:
    found = ask(world, Topic.LEAKS)
    assert found["total"] == found["shown"] == len(found["leases"])
    return found["leases"]  # type: ignore[no-any-return]


def let_age(world: World) -> None:
    """Long enough for a look, and for one that finds what is too old."""
    world.pass_time(2 * AGE)


def keep_views(world: World, client: Client, *rows: int) -> None:
    client.views = set(rows)
    world.ledger[counters_at(world.broker.rows.count, client.seat) + HELD_BY_VIEWS] = len(rows)


def test_what_is_leased_for_too_long_is_told_with_process_size_and_line(world: World) -> None:
    client = world.client()
    slot = client.lease(client.get(MEDIUM)[0])
    world.pass_time(AGE / 2)
    assert leaks(world) == [] and told(world) == []
    let_age(world)
    [leak] = leaks(world)
    assert (leak["kind"], leak["row"], leak["pid"]) == ("leased", slot.row, client.process.pid)
    assert leak["bytes"] == world.tiers[MEDIUM].size
    assert AGE <= leak["age_seconds"] <= 2.5 * AGE + 1
    assert leak["site"] == f"work.py:{slot.row} in work"
    [text] = told(world)
    assert f"pid {client.process.pid} " in text and "has leased" in text and leak["site"] in text
    assert ask(world)["leaks"] == {"leased": 1, "unread": 0, "view": 0, "quarantined": 0}


def test_each_is_asked_about_and_told_once_and_the_next_use_anew(world: World) -> None:
    client = world.client()
    slot = client.lease(client.get()[0])
    for _ in range(5):
        let_age(world)
    assert [message.rows for message in client.inquired] == [[slot.row]]
    assert len(told(world)) == 1
    client.put_back(slot)
    client.lease(slot)
    world.pass_time(1.0)
    assert leaks(world) == []
    let_age(world)
    assert len(told(world)) == len(client.inquired) == 2


def test_what_comes_back_in_time_is_none(world: World) -> None:
    client = world.client()
    slot = client.get()[0]
    for _ in range(6):
        client.lease(slot)
        world.pass_time(AGE / 2)
        client.put_back(slot)
        world.run()
    assert leaks(world) == [] == told(world) == client.inquired


def test_a_ticket_that_nobody_opens_is_told_until_it_is_opened(world: World) -> None:
    client, reader = world.client(), world.client()
    slot = client.get(CHUNKS, 2)[0]
    [ticket] = client.publish(slot)
    let_age(world)
    [leak] = leaks(world)
    assert (leak["kind"], leak["row"], leak["bytes"]) == ("unread", slot.row, 2 * world.tiers[CHUNKS].size)
    assert "nobody has opened it" in told(world)[0]
    reader.open(ticket)
    assert leaks(world) == [], "reading for long is no leak"
    let_age(world)
    assert leaks(world) == [] and len(told(world)) == 1


def test_a_publisher_that_leaves_takes_neither_the_line_of_code_along_nor_has_it_told_again(world: World) -> None:
    client = world.client()
    slot = client.get()[0]
    client.publish(slot)
    let_age(world)
    [before] = leaks(world)
    client.goodbye()
    let_age(world)
    [leak] = leaks(world)
    assert leak["pid"] is None
    assert leak["site"] == before["site"] == f"work.py:{slot.row} in work"
    assert len(told(world)) == 1


def test_what_only_a_view_keeps_is_told_for_who_keeps_it(world: World) -> None:
    client, reader = world.client(), world.client()
    read, kept = client.get(count=2)[:2]
    tickets = [*client.publish(read), *client.publish(kept)]
    for ticket in tickets:
        reader.open(ticket)
    keep_views(world, reader, kept.row)
    let_age(world)
    [leak] = leaks(world)
    assert (leak["kind"], leak["row"], leak["pid"]) == ("view", kept.row, reader.process.pid)
    assert "by a view" in told(world)[0] and "opened at" in told(world)[0]
    assert ask(world)["leaks"]["view"] == 1


def test_a_writer_that_keeps_a_view_of_what_was_read_is_told(world: World) -> None:
    client, reader = world.client(), world.client()
    slot = client.get()[0]
    [ticket] = client.publish(slot)
    reader.open(ticket)
    reader.release(ticket)
    keep_views(world, client, slot.row)
    let_age(world)
    [leak] = leaks(world)
    assert (leak["kind"], leak["row"], leak["pid"]) == ("view", slot.row, client.process.pid)


def test_a_client_that_does_not_answer_is_told_without_its_line(world: World) -> None:
    client = world.client()
    client.answers_inquiries = False
    slot = client.lease(client.get()[0])
    keep_views(world, client)
    let_age(world)
    let_age(world)
    [leak] = leaks(world)
    assert (leak["row"], leak["site"]) == (slot.row, "")
    assert len(told(world)) == 1


def test_one_that_is_away_is_not_asked(world: World) -> None:
    client = world.client()
    client.lease(client.get()[0])
    client.disconnect()
    let_age(world)
    assert len(leaks(world)) == len(told(world)) == 1
    assert client.inquired == []


def test_who_answers_what_was_not_asked_changes_nothing(world: World) -> None:
    client, other = world.client(), world.client()
    slot = client.lease(client.get()[0])
    let_age(world)
    before = leaks(world)
    for who in (client, other):
        for is_reader in (False, True):
            who.send(Account([[slot.row, True, "lies.py:1"], [999_999, True, ""]], is_reader))
    world.run()
    assert leaks(world) == before
    assert len(told(world)) == 1


def test_of_many_some_are_told_and_the_rest_counted(make_world: type[World]) -> None:
    world = make_world(small_settings(leak_age=AGE, memory_limit=4096 * KIB), check_every=0)
    world.keep_actions = True
    client = world.client()
    while len(client.ready) < MAX_INQUIRED + 20:
        client.refill(SMALL, count=64)
        world.run()
    count = len(client.ready)
    for slot in list(client.ready):
        client.lease(slot)
    let_age(world)
    assert len(leaks(world)) == ask(world)["leaks"]["leased"] == count
    assert max(len(message.rows) for message in client.inquired) == MAX_INQUIRED
    assert sum(len(message.rows) for message in client.inquired) == count
    assert MOST_TOLD <= len(told(world)) <= MOST_TOLD + 2


def test_no_more_are_looked_after_than_most_leaks(world: World) -> None:
    client = world.client()
    for slot in client.get(count=8):
        client.lease(slot)
    with patch.object(module, "MOST_LEAKS", 5):
        let_age(world)
        assert len(leaks(world)) == ask(world)["leaks"]["leased"] == 5
    assert 5 <= module.MOST_LEAKS <= 10_000


def test_one_look_is_over_before_the_next_begins(world: World) -> None:
    client, looks = world.client(), 0
    client.lease(client.get()[0])

    def look(clock: object) -> Iterator[int]:
        nonlocal looks
        looks += 1
        yield from [100] * 100

    with patch.object(world.broker.reports.leaks, "look", look):
        world.now += AGE
        for _ in range(5):
            world.now += 0.001
            world.dispatch(Ticked())
        world.pass_time(1.0)
        assert looks == 1


def test_a_row_that_is_quarantined_is_told(world: World) -> None:
    world.check_every = 0
    client, other = world.client(), world.client()
    slot = client.lease(client.get()[0])
    other.lease(other.get()[0])
    world.store(slot.row, State.COLD)
    client.die()
    world.run()
    let_age(world)
    assert [leak["row"] for leak in leaks(world) if leak["kind"] == "quarantined"] == [slot.row]
    assert len([text for text in told(world) if "quarantined" in text]) == 1


def test_a_dead_clients_leaks_go_with_it_but_not_what_nobody_has_read(world: World) -> None:
    client = world.client()
    client.lease(client.get()[0])
    slot = client.get()[0]
    client.publish(slot)
    let_age(world)
    assert {leak["kind"] for leak in leaks(world)} == {"leased", "unread"}
    client.die()
    world.run()
    [leak] = leaks(world)
    assert (leak["kind"], leak["row"], leak["pid"]) == ("unread", slot.row, None)


@pytest.mark.parametrize("others", ["nobody", "somebody"])
@pytest.mark.parametrize("how", ["dies", "gives it back"])
def test_a_leak_that_is_over_is_none_soon_and_its_alert_is_over(make_world: type[World], how: str, others: str) -> None:
    world = make_world(small_settings(leak_age=300.0))
    client = world.client()
    slot = client.lease(client.get()[0])
    if others == "somebody":
        other = world.client()
        other.get()
    world.pass_time(700.0)

    def state() -> tuple[int, bool]:
        found = ask(world)
        (alert,) = [line for line in found["alert_states"] if line["name"] == "leaks"]
        return found["leaks"]["leased"], alert["cleared_seconds"] is None

    assert state() == (1, True)
    if how == "dies":
        client.die()
    else:
        client.put_back(slot)
        client.give_back(slot)
    world.run()
    world.pass_time(OVER_WITHIN + 0.1)
    assert state() == (0, False)
