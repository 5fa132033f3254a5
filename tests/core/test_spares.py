"""Spares: what is kept of a steady producer's direct segments, and for how long."""

from __future__ import annotations

import pytest
from harness import Client, Slot, World, small_settings

from shmpool.protocol.ledger import grant_word
from shmpool.protocol.messages import Return
from shmpool.protocol.sizing import KIB, MIB
from shmpool.protocol.states import State
from shmpoold.core.actions import CreateDirect, RemoveDirect
from shmpoold.core.memory.spares import (
    LIFETIME,
    MOST,
    SHARE,
    Spares,
)


@pytest.fixture
def world(world: World) -> World:
    world.keep_actions = True
    return world


def hand_over(world: World, producer: Client, reader: Client, *sizes: int) -> None:
    """Objects one after the other, each segment asked for before the last one is done."""
    tickets = []
    for size in sizes:
        world.now += 0.001
        tickets += producer.publish(producer.get_direct(size))
        world.run()
        if len(tickets) > 1:
            read(world, reader, tickets.pop(0))
    read(world, reader, tickets.pop())


def read(world: World, reader: Client, ticket) -> None:
    assert reader.open(ticket)
    reader.release(ticket)
    world.run()


def made(world: World) -> list[CreateDirect]:
    return [action for action in world.actions if isinstance(action, CreateDirect)]


def test_a_spare_is_served_again_as_it_lies(world: World) -> None:
    """Row and name stay, and with them every map; the generation counts on."""
    reader, generations = world.client(), dict[int, list[int]]()
    hand_over(world, world.client(), reader, *[8 * KIB] * 4)
    for _ in range(4):  # of several, none of which is steady by itself
        slot = world.client().get_direct(8 * KIB)
        generations.setdefault(slot.row, []).append(world.generation(slot.row))
        hand_on(world, slot, reader)
    spares = [action.spare for action in made(world)]
    assert spares[:2] == [None, None]
    assert all(spare is not None and spare.nbytes == 8 * KIB for spare in spares[2:])
    names = [(action.row, action.generation) for action in made(world)]
    assert set(names) == set(names[:2])
    for row, births in set(names):
        assert generations[row] == sorted(set(generations[row])) and generations[row][0] > births


def hand_on(world: World, slot: Slot, reader: Client) -> None:
    client = next(client for client in world.clients if slot in client.ready)
    (ticket,) = client.publish(slot)
    world.run()
    read(world, reader, ticket)


def test_a_smaller_object_takes_a_spare_whole_and_a_larger_one_extends_it_under_another_name(world: World) -> None:
    hand_over(world, world.client(), world.client(), 8 * KIB, 8 * KIB, 12 * KIB, 8 * KIB, 8 * KIB)
    served = [(action.spare.nbytes, action.nbytes) for action in made(world) if action.spare]
    assert served == [(8 * KIB, 12 * KIB), (8 * KIB, 8 * KIB), (12 * KIB, 12 * KIB)]
    renamed = [action for action in made(world) if action.spare and action.spare.generation != action.generation]
    assert [action.nbytes for action in renamed] == [12 * KIB]
    assert world.broker.inventory.spares.nbytes == sum(world.direct.values())


def test_a_spare_that_does_not_serve_keeps_no_row_from_who_needs_one(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4 * MIB), direct_rows=2)
    producer = world.client()
    for slot in [producer.lease(producer.get_direct(100 * KIB)) for _ in range(2)]:
        producer.put_back(slot)
    world.run()
    assert len(world.broker.inventory.spares) == 2
    assert producer.get_direct(4 * KIB)


def test_a_spare_whose_row_somebody_scribbled_on_is_not_served(make_world: type[World]) -> None:
    world = make_world(check_every=0)
    producer = world.client()
    hand_over(world, producer, world.client(), *[8 * KIB] * 4)
    spares = {row for row, _ in world.direct}
    for row in spares:
        world.store(row, grant_word(world.generation(row), State.LEASED, 3))
    assert producer.get_direct(8 * KIB).row not in spares
    assert world.broker.inventory.quarantined == spares
    assert world.broker.inventory.held == world.overhead + 8 * KIB


def test_what_nobody_has_a_use_for_goes_soon(world: World) -> None:
    hand_over(world, world.client(), world.client(), *[8 * KIB] * 4)
    spares = world.broker.inventory.spares
    assert spares.nbytes == sum(world.direct.values()) > 0
    assert world.broker.inventory.held == world.overhead + spares.nbytes
    world.pass_time(2 * LIFETIME)
    assert world.direct == {}
    assert (len(spares), spares.nbytes, spares.next_look) == (0, 0, None)
    assert world.broker.inventory.held == world.overhead


def test_what_does_not_follow_another_is_not_kept(world: World) -> None:
    producer, reader = world.client(), world.client()
    for _ in range(3):
        (ticket,) = producer.publish(producer.get_direct(8 * KIB))
        read(world, reader, ticket)
        assert world.direct == {}
        world.now += LIFETIME


def test_what_was_given_back_unpublished_is_kept_like_what_was_read(world: World) -> None:
    client = world.client()
    for _ in range(3):
        client.put_back(client.lease(client.get_direct(8 * KIB)))
        world.run()
    assert [action.spare is None for action in made(world)] == [True, True, False]


@pytest.mark.parametrize("how", ["of a dead writer", "of a dead publisher"])
def test_what_a_dead_client_had_is_not_kept(world: World, how: str) -> None:
    producer, reader = world.client(), world.client()
    slots = [producer.lease(producer.get_direct(8 * KIB)) for _ in range(2)]
    if how == "of a dead writer":
        producer.die()
    else:
        tickets = [producer.publish(slot)[0] for slot in slots]
        producer.die()
        world.run()
        for ticket in tickets:
            read(world, reader, ticket)
    world.run()
    assert world.direct == {}


def test_memory_that_is_needed_is_taken_from_spares_before_slots(world: World) -> None:
    producer, reader = world.client(), world.client()
    producer.give_back(*producer.get(count=4))
    hand_over(world, producer, reader, *[8 * KIB] * 4)
    warm = world.broker.inventory.maps[0].warm
    inventory = world.broker.inventory
    assert warm and len(inventory.spares)
    producer.get_direct(inventory.room + inventory.spares.nbytes)
    assert len(inventory.spares) == 0
    assert inventory.maps[0].warm == warm


def test_who_waits_gets_what_would_be_a_spare(world: World) -> None:
    producer, other = world.client(), world.client()
    size = (world.settings.memory_limit - world.overhead) // 16 // 4096 * 4096
    tickets = [producer.publish(producer.get_direct(size))[0] for _ in range(16)]
    other.ask_direct(size)
    world.run()
    assert other.ready == []
    read(world, other, tickets[0])
    assert len(other.ready) == 1
    assert made(world)[-1].spare is not None


def test_with_scrubbing_nothing_is_kept(make_world: type[World]) -> None:
    world = make_world(small_settings(scrub=True))
    world.keep_actions = True
    hand_over(world, world.client(), world.client(), *[8 * KIB] * 4)
    assert world.direct == {}
    assert all(action.spare is None for action in made(world))


def test_a_spare_that_cannot_be_used_costs_nothing_and_a_new_one_serves(world: World) -> None:
    producer, reader = world.client(), world.client()
    hand_over(world, producer, reader, *[8 * KIB] * 4)
    world.fail_on = lambda action: isinstance(action, CreateDirect) and action.spare is not None
    slot = producer.get_direct(8 * KIB)
    assert [action.spare is None for action in made(world)[-2:]] == [False, True]
    assert world.direct == {(slot.row, slot.generation): 8 * KIB}
    assert world.broker.inventory.held == world.overhead + 8 * KIB


def test_none_is_left_when_a_client_leaves(world: World) -> None:
    producer, reader = world.client(), world.client()
    hand_over(world, producer, reader, *[8 * KIB] * 4)
    assert world.direct
    producer.goodbye()
    world.run()
    assert world.direct == {}


def test_a_restart_removes_them(world: World) -> None:
    hand_over(world, world.client(), world.client(), *[8 * KIB] * 4)
    assert world.direct
    world.restart()
    world.run()
    assert world.direct == {}
    assert world.broker.inventory.held == world.overhead


def test_what_may_still_be_mapped_is_neither_kept_nor_cut(make_world: type[World]) -> None:
    world = make_world(check_every=0)
    world.keep_actions = True
    client = world.client()
    slot = client.get_direct(8 * KIB)
    world.now += 0.001
    client.get_direct(8 * KIB)
    # Given back with the generation that it was granted with: whose it is now, nobody can tell.
    world.store(slot.row, grant_word(slot.generation, State.RETURNED, 0))
    client.send(Return([slot.row]))
    client.die()
    world.run()
    removed = [action for action in world.actions if isinstance(action, RemoveDirect)]
    assert [action.may_be_mapped for action in removed if action.row == slot.row] == [True]
    assert len(world.broker.inventory.spares) == 0


# --- what its producer keeps ---------------------------------------------------------------------


def recycle(world: World, producer: Client, reader: Client, slot, times: int = 3):
    """Objects one after the other in one segment, of which the last is done."""
    for _ in range(times):
        (ticket,) = producer.publish(slot, keep=True)
        read(world, reader, ticket)
        producer.reap()
    return slot


def test_what_its_producer_keeps_stays_one_segment_of_one_name(world: World) -> None:
    producer, reader = world.client(), world.client()
    slot = producer.get_direct(8 * KIB)
    named = dict(world.direct)
    recycle(world, producer, reader, slot)
    assert slot.generation == next(iter(named))[1] + 3
    assert world.direct == named and len(made(world)) == 1
    producer.give_back(slot)
    world.run()
    world.pass_time(1.0)
    assert world.direct == {} and world.broker.inventory.held == world.overhead


@pytest.mark.parametrize("nbytes", [8 * KIB, 100])
def test_a_restart_takes_up_what_a_producer_keeps_at_its_whole_length(world: World, nbytes: int) -> None:
    producer, reader = world.client(), world.client()
    slot = recycle(world, producer, reader, producer.get_direct(8 * KIB))
    (ticket,) = producer.publish(slot, nbytes=nbytes, keep=True)
    named = dict(world.direct)
    world.restart()
    assert world.direct == named
    assert world.broker.inventory.held == world.overhead + 8 * KIB
    reader.reconnect()
    producer.reconnect()
    read(world, reader, ticket)
    producer.reap()
    producer.give_back(slot)
    world.run()
    world.pass_time(1.0)
    assert world.direct == {} and world.broker.inventory.held == world.overhead


def test_what_a_dead_producer_kept_stays_for_its_reader_and_no_longer(world: World) -> None:
    producer, reader = world.client(), world.client()
    idle, kept = producer.get_direct(8 * KIB), producer.get_direct(8 * KIB)
    recycle(world, producer, reader, idle)
    (ticket,) = producer.publish(recycle(world, producer, reader, kept), keep=True)
    producer.die()
    world.run()
    assert [row for row, _ in world.direct] == [kept.row]
    read(world, reader, ticket)
    assert world.direct == {} and world.broker.inventory.held == world.overhead


# --- what is chosen ------------------------------------------------------------------------------


def kept(*sizes: int, limit: int = 1 << 30) -> Spares:
    spares = Spares(limit, is_on=True)
    spares.note_request(1.0)
    spares.note_request(1.0)
    for row, size in enumerate(sizes):
        spares.keep(row, 1, size, 1.1)
    return spares


@pytest.mark.parametrize(
    ("sizes", "asked", "taken"),
    [
        ((8192, 16384, 12288), 12288, 12288),
        ((8192, 16384), 12288, 16384),
        ((4096, 8192), 12288, 8192),
        ((32768,), 12288, None),  # most of it would be held for nothing
        ((24576,), 12288, 24576),
        ((), 4096, None),
    ],
)
def test_the_best_fitting_is_taken(sizes: tuple[int, ...], asked: int, taken: int | None) -> None:
    spares = kept(*sizes)
    spare = spares.take(asked)
    assert (spare.nbytes if spare else None) == taken
    assert spares.nbytes == sum(sizes) - (taken or 0)


def test_they_never_hold_more_than_their_share() -> None:
    limit = 1 << 20
    spares = kept(*[limit // 16] * 8, limit=limit)
    assert spares.nbytes == limit * SHARE
    assert len(kept(*[4096] * (MOST + 1))) == MOST


def test_the_oldest_goes_first() -> None:
    spares = Spares(1 << 30, is_on=True)
    for moment in (1.0, 2.0, 3.0):
        spares.note_request(moment)
        spares.note_request(moment)
        assert spares.keep(int(moment), 1, 4096, moment + 0.1)
    assert [spare.row for spare in spares.idle_since(2.2)] == [1, 2]
    assert len(spares) == 1


def test_one_that_was_taken_in_vain_lies_where_it_lay() -> None:
    spares = Spares(1 << 30, is_on=True)
    for moment in (1.0, 2.0, 3.0):
        spares.note_request(moment)
        spares.note_request(moment)
        assert spares.keep(int(moment), 1, 4096, moment + 0.1)
    spare = spares.take(4096)
    assert spare is not None and spare.row == 1
    spares.put_back(spare)
    assert spares.nbytes == 3 * 4096
    assert [spare.row for spare in spares.idle_since(2.2)] == [1, 2]
