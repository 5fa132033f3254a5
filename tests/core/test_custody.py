"""Publications without a publisher: who frees them, when, and what happens if nobody rings."""

from __future__ import annotations

import itertools

import pytest
from harness import CHUNKS, SMALL, Client, Ticket, World, small_settings

from shmpool.protocol.ledger import (
    BOUND_CELL,
    BOUND_TO,
    BROKER,
    GENERATION_FIELD,
    ONE_GENERATION,
    ROW_WORDS,
    STATE_SHIFT,
    generation_of,
    link_word,
    seat_of,
)
from shmpool.protocol.messages import Bell
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import CellState, State
from shmpoold.core.events import TicketClosed
from shmpoold.core.objects.custody import HURRY, LONGEST
from shmpoold.core.owners import Owner


def hand_over(world: World, tickets: int = 1, chunks: int = 0) -> list[Ticket]:
    """A publication whose publisher has said goodbye."""
    publisher = world.client()
    made = publisher.publish(publisher.get(CHUNKS, chunks)[0] if chunks else publisher.get()[0], tickets)
    publisher.goodbye()
    world.run()
    return made


@pytest.mark.parametrize("chunks", [0, 3])
def test_a_publisher_that_leaves_hands_its_publications_over(world: World, chunks: int) -> None:
    (ticket,) = hand_over(world, chunks=chunks)
    assert world.state(ticket.row) is State.PUBLISHED
    assert seat_of(world.grant(ticket.row)) == BROKER
    reader = world.client()
    assert reader.open(ticket)
    reader.release(ticket)
    world.run()
    assert world.state(ticket.row) is State.FREE
    assert world.states(CHUNKS)[State.FOLLOWER] == 0


def test_it_is_freed_by_the_last_bell_and_not_before(world: World) -> None:
    tickets = hand_over(world, tickets=13)
    reader = world.client()
    for ticket in tickets:
        assert world.state(ticket.row) is State.PUBLISHED
        assert reader.open(ticket)
        reader.release(ticket)
        world.run()
    assert world.state(tickets[0].row) is State.FREE


def test_custody_that_passes_before_the_bell_is_heard_is_found_at_the_goodbye(world: World) -> None:
    publisher, reader = world.client(), world.client()
    (ticket,) = publisher.publish(publisher.get()[0])
    assert publisher.link is not None
    publisher.goodbye()
    publisher.link.outbox.popleft()  # the bell is lost
    assert reader.open(ticket)
    reader.release(ticket, ring=False)
    world.run()
    assert world.state(ticket.row) is State.FREE


def lose_bells(world: World) -> tuple[Ticket, Client]:
    (ticket,) = hand_over(world)
    reader = world.client()
    assert reader.open(ticket)
    return ticket, reader


def test_a_lost_bell_is_found_by_the_sweep_within_a_second(world: World) -> None:
    ticket, reader = lose_bells(world)
    world.pass_time(60)
    reader.release(ticket, ring=False)
    world.run()
    world.pass_time(LONGEST)
    assert world.state(ticket.row) is State.FREE


def test_who_asks_for_a_direct_segment_has_the_oldest_looked_at_first(world: World) -> None:
    ticket, reader = lose_bells(world)
    reader.release(ticket, ring=False)
    world.run()
    assert world.state(ticket.row) is State.PUBLISHED
    world.client().ask_direct(4096)
    world.run()
    assert world.state(ticket.row) is State.FREE


def test_the_sweep_backs_off_to_once_a_second(world: World) -> None:
    hand_over(world)
    deadlines = []
    while len(deadlines) < 12:
        sweep = world.broker.custody.next_sweep(hurry=False)
        if world.tick() == sweep:
            deadlines.append(sweep)
    gaps = [later - earlier for earlier, later in itertools.pairwise(deadlines)]  # type: ignore[operator]
    assert gaps == sorted(gaps)
    assert gaps[0] < 0.2 and gaps[-1] == pytest.approx(LONGEST)


def test_a_new_publication_in_custody_is_swept_soon_after_a_long_pause(world: World) -> None:
    hand_over(world)
    world.pass_time(60)
    hand_over(world)
    assert world.broker.custody.next_sweep(hurry=False) == pytest.approx(world.now + 0.05)


def test_while_somebody_waits_the_sweep_comes_every_five_milliseconds(world: World) -> None:
    ticket, reader = lose_bells(world)
    hoarder = world.client()
    hoarder.answers_recalls = False
    while not hoarder.refusals:
        hoarder.refill(SMALL, queue=False)
        world.run()
    world.pass_time(60)
    waiter = world.client()
    waiter.refill(SMALL)
    world.run()
    deadline = world.broker.next_deadline()
    assert deadline is not None and deadline <= world.now + HURRY
    reader.release(ticket, ring=False)
    world.pass_time(HURRY)
    assert [slot.row for slot in waiter.ready] == [ticket.row]


def test_nothing_is_swept_when_nothing_is_in_custody(world: World) -> None:
    ticket, reader = lose_bells(world)
    reader.release(ticket)
    world.run()
    world.pass_time(10)
    assert world.broker.custody.next_sweep(hurry=True) is None


def test_unopened_tickets_are_closed_when_the_publisher_has_been_gone_for_the_ttl(world: World) -> None:
    tickets = hand_over(world, tickets=3)
    world.pass_time(world.settings.handle_ttl - 2)
    assert world.state(tickets[0].row) is State.PUBLISHED
    world.pass_time(4)
    assert world.state(tickets[0].row) is State.FREE
    assert not world.client().open(tickets[0])


def test_the_ttl_spares_tickets_that_are_open(world: World) -> None:
    opened, unread = hand_over(world, tickets=2)
    reader = world.client()
    assert reader.open(opened)
    world.pass_time(2 * world.settings.handle_ttl)
    assert reader.why_not(unread) == "used"
    assert world.state(opened.row) is State.PUBLISHED
    reader.release(opened)
    world.run()
    assert world.state(opened.row) is State.FREE


def test_a_ticket_opened_just_before_it_expires_is_its_readers(world: World) -> None:
    (ticket,) = hand_over(world)
    reader = world.client()
    deadline = world.now + world.settings.handle_ttl + 2
    while not world.shell:
        assert world.tick() is not None and world.now < deadline
    assert reader.open(ticket)  # the broker has asked for its lock, and does not have it yet
    world.run()
    assert world.state(ticket.row) is State.PUBLISHED
    assert world.cell(ticket.row) >> 16 & 0xFF == CellState.TAKEN
    reader.release(ticket)
    world.run()
    assert world.state(ticket.row) is State.FREE


def test_a_living_publishers_tickets_never_expire(world: World) -> None:
    publisher = world.client()
    (ticket,) = publisher.publish(publisher.get()[0])
    publisher.disconnect()
    world.run()
    world.pass_time(2 * world.settings.handle_ttl)
    assert world.client().open(ticket)


def test_after_a_restart_the_ttl_begins_anew_and_still_ends(world: World) -> None:
    (ticket,) = hand_over(world)
    world.pass_time(world.settings.handle_ttl / 2)
    world.restart()
    world.pass_time(world.settings.handle_ttl / 2 + 2)
    assert world.state(ticket.row) is State.PUBLISHED
    world.pass_time(world.settings.handle_ttl / 2)
    assert world.state(ticket.row) is State.FREE


def test_a_discarded_handle_frees_a_publication_in_custody(world: World) -> None:
    (ticket,) = hand_over(world)
    assert world.client().discard(ticket)
    world.run()
    assert world.state(ticket.row) is State.FREE


def test_a_double_bell_does_nothing(world: World) -> None:
    ticket, reader = lose_bells(world)
    reader.release(ticket)
    reader.send(Bell([ticket.row, ticket.row]))
    world.run()
    reader.send(Bell([ticket.row]))
    world.run()
    assert world.generation(ticket.row) == 1
    assert world.state(ticket.row) is State.FREE


def test_many_publications_are_swept_a_part_at_a_time(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * 1024), check_every=50)
    publisher, reader = world.client(), world.client()
    while len(publisher.ready) < 900:
        publisher.refill(SMALL, count=64)
        world.run()
    tickets = [ticket for slot in list(publisher.ready) for ticket in publisher.publish(slot)]
    publisher.goodbye()
    world.run()
    for ticket in tickets:
        assert reader.open(ticket)
        reader.release(ticket, ring=False)
    world.run()
    before = len(world.broker.inventory.granted)
    world.tick()
    freed = before - len(world.broker.inventory.granted)
    assert 0 < freed < before
    world.pass_time(2)
    assert world.broker.inventory.granted == {}


@pytest.mark.parametrize("is_direct", [False, True])
def test_each_holding_has_one_owner_at_a_time_and_is_in_one_account(world: World, is_direct: bool) -> None:
    core, publisher, reader = world.broker, world.client(), world.client()
    slot = publisher.get_direct(50 * KIB) if is_direct else publisher.get()[0]
    seat = core.seats.taken[publisher.seat]
    assert accounts(world) == {seat: {slot.row}}
    (ticket,) = publisher.publish(slot)
    world.run()
    assert accounts(world) == {core.custody if is_direct else seat: {slot.row}}
    publisher.goodbye()
    world.run()
    assert accounts(world) == {core.custody: {slot.row}}
    assert reader.open(ticket)
    reader.release(ticket)
    world.run()
    assert accounts(world) == {} and not core.inventory.granted
    assert (core.custody.nbytes, core.custody.large) == (0, 0)


def accounts(world: World) -> dict[Owner, set[int]]:
    return {owner: owner.rows for owner in world.broker.owners() if owner.rows}


def test_a_look_at_what_is_not_in_custody_does_nothing_and_costs_a_unit(world: World) -> None:
    """Also where somebody has scribbled that it were."""
    custody, client = world.broker.custody, world.client()
    leased, free = client.get(count=2)
    client.lease(leased)
    client.give_back(free)
    world.run()
    for row in (leased.row, free.row):
        before = world.broker.rows.grant(row)
        for word in (before, before & GENERATION_FIELD | State.PUBLISHED << STATE_SHIFT):
            world.ledger[row * ROW_WORDS] = word
            assert custody.look(row, world.now) == 1
            assert world.broker.rows.grant(row) == word
        world.ledger[row * ROW_WORDS] = before


def test_a_look_that_comes_late_frees_nothing_of_the_next_publisher_s(world: World) -> None:
    """Its row was freed and published again meanwhile; that every ticket is done is his affair."""
    (ticket,) = hand_over(world)
    reader, client = world.client(), world.client()
    assert reader.open(ticket)
    reader.release(ticket)
    world.run()
    (slot,) = client.get()
    assert slot.row == ticket.row
    (again,) = client.publish(slot)
    assert reader.open(again)
    reader.release(again, ring=False)
    world.dispatch(TicketClosed(slot.row))
    assert world.state(slot.row) is State.PUBLISHED and slot.row in world.broker.inventory.granted


def test_a_publication_in_custody_that_somebody_scribbled_on_stays(world: World) -> None:
    ticket, reader = lose_bells(world)
    reader.release(ticket, ring=False)
    word = world.grant(ticket.row)
    for scribble in (word | reader.seat, word & GENERATION_FIELD | State.LEASED << STATE_SHIFT):
        world.store(ticket.row, scribble)
        assert world.broker.custody.look(ticket.row, world.now) == 1
        assert world.grant(ticket.row) == scribble and ticket.row in world.broker.inventory.granted
    world.store(ticket.row, word)
    world.broker.custody.look(ticket.row, world.now)
    assert world.state(ticket.row) is State.FREE


def test_a_look_at_what_somebody_still_reads_costs_a_unit(world: World) -> None:
    (ticket,) = hand_over(world)
    assert world.broker.custody.look(ticket.row, world.now) == 1
    assert world.state(ticket.row) is State.PUBLISHED


def bind(world: World, chunk: Ticket, stream: Ticket) -> None:
    """What a stream's writer stores beside its chunk's ticket."""
    at, generation = chunk.row * ROW_WORDS, generation_of(world.grant(stream.row))
    world.ledger[at + BOUND_TO] = link_word(stream.row, generation)
    world.ledger[at + BOUND_CELL] = world.grant(chunk.row) & GENERATION_FIELD | CellState.BOUND << STATE_SHIFT


def test_a_streams_chunks_go_when_its_reader_has_gone_too_and_not_before(world: World) -> None:
    writer, reader = world.client(), world.client()
    stream, chunk, other = (writer.publish(writer.get()[0])[0] for _ in range(3))
    bind(world, chunk, stream)
    assert reader.open(stream)
    writer.goodbye()
    world.run()
    world.pass_time(2 * LONGEST)
    assert world.state(chunk.row) is State.PUBLISHED
    reader.release(stream)
    world.run()
    world.pass_time(2 * LONGEST)
    assert world.state(chunk.row) is State.FREE
    assert world.state(other.row) is State.PUBLISHED


def test_what_an_earlier_stream_left_in_a_row_says_nothing_of_its_next_publication(world: World) -> None:
    writer = world.client()
    stream, chunk = (writer.publish(writer.get()[0])[0] for _ in range(2))
    bind(world, chunk, stream)
    world.ledger[chunk.row * ROW_WORDS + BOUND_CELL] += ONE_GENERATION
    assert writer.open(stream)
    writer.release(stream)
    writer.goodbye()
    world.run()
    world.pass_time(2 * LONGEST)
    assert world.state(chunk.row) is State.PUBLISHED
