"""Clients that break the rules: they may lose their own memory, nobody else loses anything."""

from __future__ import annotations

import random

import pytest
from harness import CHUNKS, DIRECT, SMALL, Client, Slot, World

from shmpool.protocol.header import header_fault
from shmpool.protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    LINK,
    MAX_GENERATION,
    MAX_ROWS,
    ROW_WORDS,
    extent_word,
    grant_word,
)
from shmpool.protocol.messages import Bell, Cancel, Return
from shmpool.protocol.states import State

GARBAGE = 0xDEAD_BEEF_DEAD_BEEF


@pytest.fixture
def world(make_world: type[World]) -> World:
    """What was scribbled shows at once; that the broker has dealt with it is checked at the end."""
    return make_world(check_every=0)


def holder(world: World, tier: int = SMALL, chunks: int = 1) -> tuple[Client, Slot]:
    client = world.client()
    return client, client.lease(client.get(tier, chunks)[0])


def assert_others_are_served(world: World) -> None:
    other = world.client()
    assert other.get(SMALL, count=8) and other.get(CHUNKS, 5) and other.get_direct(4096)
    reader = world.client()
    (ticket,) = other.publish(other.ready[0])
    assert reader.open(ticket)
    reader.release(ticket)
    world.run()


@pytest.mark.parametrize("kind", [Return, Bell])
def test_a_message_about_somebody_elses_row_does_nothing(world: World, kind: type[Return] | type[Bell]) -> None:
    client, slot = holder(world)
    before = world.grant(slot.row)
    other = world.client()
    other.send(kind([slot.row, slot.row, *range(1, 60), MAX_ROWS - 1]))
    world.run()
    assert world.grant(slot.row) == before
    assert list(world.broker.inventory.granted) == [slot.row]
    assert other.faults == []
    client.publish(slot)


def test_a_return_of_what_is_still_leased_does_nothing(world: World) -> None:
    client, slot = holder(world)
    client.send(Return([slot.row]))
    world.run()
    assert world.state(slot.row) is State.LEASED
    client.publish(slot)


def test_a_late_second_return_does_not_free_the_next_owners_slot(world: World) -> None:
    client, other = world.client(), world.client()
    (slot,) = client.get()
    client.give_back(slot)
    world.run()
    (again,) = other.get()
    assert again.row == slot.row
    client.send(Return([slot.row]))
    client.send(Bell([slot.row]))
    world.run()
    assert world.state(slot.row) is State.IDLE
    other.lease(again)


def test_a_cancel_of_nothing_does_nothing(world: World) -> None:
    client = world.client()
    client.send(Cancel(77))
    world.run()
    assert client.refusals == [] and client.faults == []


@pytest.mark.parametrize("state", [State.RETURNED, State.LEASED, State.PUBLISHED])
@pytest.mark.parametrize("tier", [SMALL, DIRECT])
def test_a_lowered_generation_costs_the_row(world: World, state: State, tier: int) -> None:
    client = world.client()
    for _ in range(2):
        slot = client.get_direct(4096) if tier == DIRECT else client.get()[0]
        client.give_back(slot)
        world.run()
    slot = client.lease(client.get_direct(4096) if tier == DIRECT else client.get()[0])
    assert slot.generation == 2
    world.store(slot.row, grant_word(1, state, 0 if state is State.RETURNED else client.seat))
    client.send(Return([slot.row]))
    client.die()
    world.run()
    assert world.broker.inventory.quarantined == {slot.row}
    assert world.direct == {}
    assert_others_are_served(world)


def test_a_direct_row_returned_with_its_old_generation_is_never_named_again(world: World) -> None:
    client = world.client()
    slot = client.get_direct(4096)
    client._disown(slot)
    client.ready.clear()
    world.store(slot.row, grant_word(slot.generation, State.RETURNED, 0))
    client.send(Return([slot.row]))
    world.run()
    again = world.client().get_direct(4096)
    assert (again.row, again.generation) != (slot.row, slot.generation)


@pytest.mark.parametrize("word", [GARBAGE, 0, grant_word(9, State.FOLLOWER, 0), grant_word(9, State.LEASED, 9)])
def test_garbage_in_an_own_row_costs_that_row_when_its_writer_dies(world: World, word: int) -> None:
    client, slot = holder(world)
    world.store(slot.row, word)
    client.send(Return([slot.row]))
    client.send(Bell([slot.row]))
    world.run()
    client.die()
    world.run()
    assert world.broker.inventory.quarantined == {slot.row}
    assert world.broker.seats.taken == {}
    assert_others_are_served(world)


@pytest.mark.parametrize("word", [GARBAGE, 0, grant_word(3, State.FREE, 0), grant_word(3, State.PUBLISHED, 2)])
def test_garbage_in_followers_costs_those_rows_and_not_the_others(world: World, word: int) -> None:
    client, run = holder(world, CHUNKS, 5)
    world.store(run.rows[2], word)
    client.die()
    world.run()
    assert world.broker.inventory.quarantined == {run.rows[2]}
    assert [world.state(row) for row in run.rows if row != run.rows[2]] == [State.FREE] * 4
    assert world.broker.seats.taken == {}
    assert_others_are_served(world)


@pytest.mark.parametrize("state", [State.LEASED, State.IDLE, State.PUBLISHED, State.RETURNED])
def test_a_row_at_its_last_generation_is_taken_out_of_use(world: World, state: State) -> None:
    client, slot = holder(world)
    world.ledger[slot.row * ROW_WORDS + EXTENT] = extent_word(1, 0, 1)
    world.store(slot.row, grant_word(MAX_GENERATION, state, 0 if state is State.RETURNED else client.seat))
    client.die()
    world.run()
    assert world.broker.inventory.quarantined == {slot.row}
    assert (world.state(slot.row), world.generation(slot.row)) == (State.COLD, MAX_GENERATION)
    world.restart()
    assert world.broker.inventory.quarantined == {slot.row}
    assert_others_are_served(world)


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("word", [GARBAGE, grant_word(0, State.FREE, 7), grant_word(5, State.IDLE, 1)])
def test_a_free_row_that_somebody_scribbled_on_is_never_granted(world: World, is_warm: bool, word: int) -> None:
    client = world.client()
    if is_warm:
        client.give_back(*client.get(count=4))
        world.run()
    world.store(2, word)
    assert len(client.get(count=4)) > 0
    client.get(count=4)
    assert 2 not in {slot.row for slot in client.ready}
    assert 2 in world.broker.inventory.quarantined


def test_a_scribbled_idle_slot_does_not_stop_the_cooling_of_others(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(count=8))
    world.run()
    world.store(3, GARBAGE)
    world.pass_time(2 * world.settings.buffer_lifetime)
    assert [world.state(row) for row in (1, 2, 4, 5, 6, 7, 8)] == [State.COLD] * 7
    assert world.broker.inventory.quarantined == {3}


def test_a_scribbled_publication_in_custody_does_not_stop_the_sweep_of_others(world: World) -> None:
    client, reader = world.client(), world.client()
    tickets = [client.publish(slot)[0] for slot in client.get(count=3)]
    client.die()
    world.run()
    world.store(tickets[0].row, GARBAGE)
    for ticket in tickets[1:]:
        assert reader.open(ticket)
        reader.release(ticket, ring=False)
    world.pass_time(5)
    assert [world.state(ticket.row) for ticket in tickets[1:]] == [State.FREE] * 2
    reader.send(Bell([tickets[0].row]))
    world.run()
    assert reader.faults == []


def test_a_publication_is_not_freed_on_a_cell_that_makes_no_sense(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    client.die()
    world.run()
    world.ledger[ticket.row * ROW_WORDS + FIRST_CELL] = GARBAGE
    reader.send(Bell([ticket.row]))
    world.run()
    world.pass_time(2 * world.settings.handle_ttl)
    assert world.state(ticket.row) is State.PUBLISHED


@pytest.mark.parametrize("link", [GARBAGE, 0, 2**64 - 1])
def test_garbage_links_cost_nothing_while_the_broker_lives_nor_after_it(world: World, link: int) -> None:
    client, run = holder(world, CHUNKS, 5)
    world.ledger[run.row * ROW_WORDS + LINK] = link
    world.restart()
    client.die()
    world.run()
    assert_others_are_served(world)


@pytest.mark.parametrize("seed", range(20))
def test_a_ledger_with_garbage_in_every_tenth_row_is_adopted_and_the_rest_of_it_serves(world: World, seed: int) -> None:
    dice = random.Random(seed)
    world.client().get(count=8)
    world.kill_broker()
    rows = range(1, world.tiers[DIRECT].base)
    for row in dice.sample(rows, len(rows) // 10):
        for word in range(ROW_WORDS):
            world.ledger[row * ROW_WORDS + word] = dice.getrandbits(64)
        if dice.random() < 0.8:
            word = grant_word(dice.randrange(4), dice.randrange(8), dice.choice((0, 0, 1, 7)))
            world.store(row, word)
            world.ledger[row * ROW_WORDS + LINK] = dice.randrange(3) << 24
    world.owners.clear()
    world.warm.update(rows)  # what a scribbled word says of pages is believed
    assert header_fault(world.header[:]) is None
    world.restart()
    for client in world.clients:
        client.die()
    world.run()
    world.pass_time(10)
    assert world.broker.seats.taken == {}
    assert_others_are_served(world)
