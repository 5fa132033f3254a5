"""Who holds what: writers and readers apart, by process and by buffer, and who is named when
there is nothing left."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
from harness import CHUNKS, MEDIUM, SMALL, Client, Ticket, World, small_settings
from sharers import shared, sharer
from test_reports import ask

from shmpool.protocol.census import Use
from shmpool.protocol.ledger import grant_word
from shmpool.protocol.messages import Topic
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State
from shmpoold.core.reports import LONGEST, SOON, holders
from shmpoold.core.reports.holders import Process
from shmpoold.core.reports.keeper import LOOKED_AT
from shmpoold.core.reports.rules import LINGERS


def by_state(world: World, client: Client | None) -> dict[str, dict[str, Any]]:
    """What one process holds, by state; None: those that have gone."""
    pid = client.process.pid if client else None
    return {line["state"]: line for line in ask(world, Topic.LEASES)["leases"] if line["pid"] == pid}


def buffers(world: World) -> list[dict[str, Any]]:
    """As `shmpool.stats.query_buffers` unfolds them."""
    told = ask(world, Topic.BUFFERS)
    names = ("row", "tier", "state", "seat", "bytes", "tickets", "readers", "age", "in_custody")
    return [dict(zip(names, line, strict=True)) for line in told["leases"]]


def hand(world: World, writer: Client, reader: Client, count: int, tier: int = SMALL) -> list[Ticket]:
    """So many publications, each opened by the reader."""
    slots = writer.get(tier, count=count)
    while len(slots) < count:
        slots += writer.get(tier, count=count - len(slots))
    tickets = [ticket for slot in slots for ticket in writer.publish(slot)]
    assert all(reader.open(ticket) for ticket in tickets)
    return tickets


def fill_up(world: World, writer: Client, reader: Client) -> int:
    """Publish what there is room for, and let the reader keep it all."""
    count = 0
    while True:
        writer.refill(SMALL, queue=False)
        world.run()
        if writer.refusals:
            writer.refusals.clear()
            return count
        hand_over = writer.publish(writer.ready[-1])
        assert reader.open(hand_over[0])
        count += 1


# --- writers and readers apart --------------------------------------------------------------------


def test_a_reader_is_told_with_what_it_has_open_and_the_writer_without_it(world: World) -> None:
    writer, reader = world.client(), world.client()
    hand(world, writer, reader, 5)
    writer.lease(writer.get(MEDIUM)[0])
    clients = {client["seat"]: client for client in ask(world)["clients"]}
    told = {key: clients[reader.seat][key] for key in ("leases", "bytes", "reads", "read_bytes", "unread")}
    assert told == {"leases": 0, "bytes": 0, "reads": 5, "read_bytes": 20 * KIB, "unread": 0}
    told = {key: clients[writer.seat][key] for key in ("leases", "bytes", "reads", "read_bytes", "unread")}
    assert told == {"leases": 1, "bytes": 16 * KIB, "reads": 0, "read_bytes": 0, "unread": 0}


def test_what_nobody_has_opened_is_its_publishers(world: World) -> None:
    writer, reader = world.client(), world.client()
    tickets = writer.publish(writer.get()[0], tickets=3)
    assert reader.open(tickets[0])
    writer.publish(writer.get_direct(10_000))
    world.run()
    clients = {client["seat"]: client for client in ask(world)["clients"]}
    assert (clients[writer.seat]["leases"], clients[writer.seat]["unread"]) == (2, 2)
    assert clients[writer.seat]["bytes"] == clients[writer.seat]["unread_bytes"] == 4 * KIB + 12 * KIB
    assert (clients[reader.seat]["reads"], clients[reader.seat]["read_bytes"]) == (1, 4 * KIB)
    assert {buffer["state"] for buffer in buffers(world)} == {"open", "unread"}
    lines = by_state(world, writer)
    assert set(lines) == {"unread"}
    assert (lines["unread"]["buffers"], lines["unread"]["tickets"]) == (2, 3)
    assert lines["unread"]["tiers"] == {"pooled 4 KiB": 1, "direct": 1}


def test_a_buffer_that_one_process_has_open_twice_is_one(world: World) -> None:
    writer, reader, other = world.client(), world.client(), world.client()
    first, second, third = writer.publish(writer.get()[0], tickets=3)
    assert reader.open(first) and reader.open(second) and other.open(third)
    for who in (reader, other):
        assert by_state(world, who)["open"]["buffers"] == 1
    (buffer,) = buffers(world)
    assert (buffer["state"], buffer["readers"]) == ("open", [reader.seat, reader.seat, other.seat])


def test_each_state_of_a_process_is_a_line_the_most_memory_first(world: World) -> None:
    writer, reader = world.client(), world.client()
    hand(world, writer, reader, 3, MEDIUM)
    writer.lease(writer.get(CHUNKS, 2)[0])
    writer.publish(writer.get()[0])
    writer.get(SMALL, count=2)
    told = ask(world, Topic.LEASES)
    assert told["total"] == told["shown"] == 4
    assert [(line["pid"], line["state"], line["buffers"], line["bytes"]) for line in told["leases"]] == [
        (reader.process.pid, "open", 3, 48 * KIB),
        (writer.process.pid, "leased", 1, 16 * KIB),
        (writer.process.pid, "idle", 2, 8 * KIB),
        (writer.process.pid, "unread", 1, 4 * KIB),
    ]


def test_the_seats_of_one_process_are_one_line(world: World) -> None:
    one = world.client()
    other = world.client(process=one.process)
    for client in (one, other):
        client.lease(client.get()[0])
    assert by_state(world, one)["leased"]["buffers"] == 2
    assert sorted(by_state(world, one)["leased"]["seats"]) == sorted([one.seat, other.seat])


def test_what_the_dead_published_is_nobodys_and_not_the_next_owners_of_their_seat(make_world: type[World]) -> None:
    world = make_world(small_settings(max_clients=1))
    client = world.client()
    client.publish(client.get()[0])
    client.publish(client.get_direct(5000))
    client.die()
    world.run()
    next_one = world.client()
    assert next_one.seat and by_state(world, next_one) == {}
    assert by_state(world, None)["unread"]["buffers"] == 2
    assert [(buffer["seat"], buffer["in_custody"]) for buffer in buffers(world)] == [(0, True), (0, True)]


def test_a_run_is_told_once_with_all_of_its_memory_scattered_or_not(world: World) -> None:
    client = world.client()
    while not client.refusals:
        client.refill(CHUNKS, 2, queue=False)
        world.run()
    ordered = sorted(client.ready, key=lambda slot: slot.row)
    every_other = ordered[::2]
    for slot in ordered[1::2]:
        client.lease(slot)
    client.give_back(*every_other)
    world.run()
    (scattered,) = client.get(CHUNKS, 10)
    assert len(scattered.extents) > 1
    (idle,) = [buffer for buffer in buffers(world) if buffer["state"] == "idle"]
    assert (idle["row"], idle["bytes"]) == (scattered.row, 10 * 8 * KIB)


def test_a_forked_child_that_reads_on_is_shown_with_what_is_open(world: World) -> None:
    writer, reader = world.client(), world.client()
    hand(world, writer, reader, 2)
    reader.lease(reader.get()[0])
    world.broker.seats.children_of = lambda seat: [4711] if seat == reader.seat else []
    lines = by_state(world, reader)
    assert (lines["open"]["children"], lines["leased"]["children"]) == ([4711], [])
    world.now += 1
    assert "4711" in world.broker.reports.who_keeps_most(world.now)


def test_what_is_done_and_not_yet_reaped_is_idle(world: World) -> None:
    writer, reader = world.client(), world.client()
    (ticket,) = hand(world, writer, reader, 1)
    reader.release(ticket)
    assert by_state(world, reader) == {}
    assert set(by_state(world, writer)) == {"idle"}


def test_a_scribble_is_nobodys_lease(world: World) -> None:
    world.check_every = 0
    client = world.client()
    client.get()
    row = world.tiers[SMALL].base + 40
    world.ledger[row * 16] = grant_word(3, State.LEASED, client.seat)
    assert set(by_state(world, client)) == {"idle"}
    world.ledger[row * 16] = 0


def test_more_than_an_answer_has_room_for_is_said(world: World) -> None:
    client = world.client()
    client.get(SMALL, count=9)
    with patch.object(holders, "MOST_LINES", 4):
        told = ask(world, Topic.BUFFERS)
    assert (told["total"], told["shown"], len(told["leases"])) == (9, 4, 4)


# --- since when -------------------------------------------------------------------------------------


def test_ages_are_since_the_first_look_that_saw_it_so(world: World) -> None:
    writer, reader = world.client(), world.client()
    kept, recycled = writer.get(count=2)
    writer.lease(kept)
    early, late = writer.publish(recycled, tickets=2)
    world.pass_time(100)
    assert reader.open(early)
    world.pass_time(50)
    lines = by_state(world, writer)
    assert 150 - SOON <= lines["leased"]["age_seconds"] <= 150
    # The second ticket has not been opened since it was made, however often others were.
    assert 150 - SOON <= lines["unread"]["age_seconds"] <= 150
    assert 50 - LONGEST <= by_state(world, reader)["open"]["age_seconds"] <= 50
    assert not world.publications[late.row].is_over


def test_a_slot_that_is_used_again_is_young_again(world: World) -> None:
    writer = world.client()
    (slot,) = writer.get()
    writer.lease(slot)
    world.pass_time(100)
    writer.put_back(slot)
    writer.lease(slot)
    (line,) = by_state(world, writer).values()
    assert line["age_seconds"] == 0.0


def test_a_publication_does_not_grow_young_when_its_publisher_dies(world: World) -> None:
    writer = world.client()
    writer.publish(writer.get()[0])
    world.pass_time(100)
    writer.die()
    world.run()
    assert by_state(world, None)["unread"]["age_seconds"] >= 100 - SOON


def test_looks_become_seldom_while_nothing_changes_and_end_with_the_last_lease(world: World) -> None:
    client = world.client()
    slot = client.lease(client.get()[0])
    world.pass_time(2 * LONGEST)
    # Ages, the alerts' figures, what was given back; two for leaks.
    assert world.pass_time(10 * LONGEST) <= 11 + 11 + 11 + 2
    client.put_back(slot)
    client.give_back(*client.ready)
    # The alert about the old lease is over, and forgotten some time later.
    world.pass_time(world.settings.buffer_lifetime + 2 * LONGEST + LINGERS)
    assert world.broker.next_deadline() is None


# --- who is named -----------------------------------------------------------------------------------


def refusal(world: World, client: Client) -> str:
    """What a client is told that asks and does not wait."""
    client.refill(SMALL, queue=False)
    world.run()
    return client.refusals.pop().text


def test_a_refusal_names_the_reader_that_keeps_everything(world: World) -> None:
    writer, reader = world.client(), world.client()
    count = fill_up(world, writer, reader)
    text = refusal(world, writer)
    keeps = f"pid {reader.process.pid} (worker {reader.process.pid}) keeps most: {count} buffers open for reading"
    assert keeps in text, text


def test_one_buffer_is_one_buffer() -> None:
    process = Process(Use.OPEN)
    process.tally.add(SMALL, 4096, 0, None)
    assert process.keeps_most().startswith("a publisher that has gone keeps most: 1 buffer open for reading, 4 KiB")
    assert "about 2 buffers" in process.keeps_most(2)


def test_a_refusal_names_the_writer_of_what_nobody_opens(world: World) -> None:
    writer, other = world.client(), world.client()
    while not writer.refusals:
        writer.refill(SMALL, queue=False)
        world.run()
        if writer.ready:
            writer.publish(writer.ready[-1])
    text = refusal(world, other)
    assert f"pid {writer.process.pid}" in text and "published and not opened" in text, text


def test_who_waited_is_told_who_keeps_most_and_so_is_the_operator(world: World) -> None:
    writer, reader, waiter = world.client(), world.client(), world.client()
    fill_up(world, writer, reader)
    number = waiter.refill(SMALL)
    world.run()
    world.pass_time(1)
    assert f"pid {reader.process.pid} (worker {reader.process.pid}) keeps most" in " ".join(ask(world)["alerts"])
    waiter.cancel(number)
    world.run()
    assert f"pid {reader.process.pid} (worker {reader.process.pid}) keeps most" in waiter.refusals[-1].text


@pytest.mark.parametrize("waits", [False, True])
def test_of_more_than_can_be_looked_at_at_once_a_part_tells_and_a_census_all(
    make_world: type[World], waits: bool
) -> None:
    world = make_world(small_settings(memory_limit=5000 * KIB), check_every=0)
    writer, reader, waiter = world.client(), world.client(), world.client()
    count = fill_up(world, writer, reader)
    assert count > 2 * LOOKED_AT
    if waits:
        number = waiter.refill(SMALL)
        world.run()
        world.pass_time(1)
        waiter.cancel(number)
        world.run()
        text = waiter.refusals[-1].text
        assert f"pid {reader.process.pid} (worker {reader.process.pid}) keeps most: {count:,} buffers" in text, text
    else:
        text = refusal(world, waiter)
        assert f"pid {reader.process.pid} (worker {reader.process.pid}) keeps most: about " in text, text


def test_naming_costs_no_more_than_a_look_at_some_rows(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=5000 * KIB), check_every=0)
    writer, reader, other = world.client(), world.client(), world.client()
    fill_up(world, writer, reader)
    world.now += 1
    with patch.object(world.broker.reports.ledger, "sample", wraps=world.broker.reports.ledger.sample) as sample:
        for _ in range(20):
            refusal(world, other)
    (rows,) = sample.call_args.args
    assert sample.call_count == 1 and len(rows) <= LOOKED_AT


def test_a_pool_of_which_nobody_has_anything_names_nobody(world: World) -> None:
    client = world.client()
    client.ask_direct(world.broker.inventory.room + 4 * KIB, queue=False)
    world.run()
    assert "keeps most" not in client.refusals[-1].text


def test_who_has_made_and_who_holds_what_is_shared_is_told(world: World) -> None:
    maker, reader = sharer(world), sharer(world)
    _, row = shared(maker)
    reader.hold(row, world.generation(row))
    world.run()
    assert by_state(world, maker)["shared"]["buffers"] == 1
    assert by_state(world, reader)["held"]["buffers"] == 1
    (line,) = (one for one in buffers(world) if one["row"] == row)
    assert (line["state"], line["seat"], sorted(line["readers"])) == ("shared", maker.seat, [maker.seat, reader.seat])
    clients = {client["seat"]: client for client in ask(world, Topic.STATS)["clients"]}
    assert (clients[reader.seat]["reads"], clients[reader.seat]["read_bytes"]) == (1, 4096)
    maker.die()
    world.pass_time(1.0)
    assert by_state(world, None)["shared"]["buffers"] == 1


def test_a_direct_segment_is_told_at_its_whole_length(world: World) -> None:
    client = world.client()
    client.publish(client.get_direct(16 * KIB), nbytes=100, keep=True)
    world.run()
    assert by_state(world, client)["unread"]["bytes"] == 16 * KIB
    assert ask(world, Topic.STATS)["memory"]["by_state"]["published"] == 16 * KIB
