"""Death at any point: memory comes back, readers go on reading."""

from __future__ import annotations

import pytest
from harness import CHUNKS, SMALL, World

from shmpool.protocol.figures import LEASES, MISSES
from shmpool.protocol.header import counters_at
from shmpool.protocol.ledger import BROKER, CHECKSUM, ROW_WORDS, grant_word, seat_of, state_of
from shmpool.protocol.sizing import MIB
from shmpool.protocol.states import CellState, State
from shmpoold.core.connections.endings import SETTLED_TOGETHER
from shmpoold.core.events import ProcessDied
from shmpoold.core.lending.recalls import SPACING
from shmpoold.core.rows import FEW_SEATS
from shmpoold.core.settings import Settings


@pytest.mark.parametrize("is_leased", [False, True])
def test_what_a_dead_client_had_not_published_is_free_with_a_new_generation(world: World, is_leased: bool) -> None:
    client = world.client()
    (slot,) = client.get()
    if is_leased:
        client.lease(slot)
    generation = world.generation(slot.row)
    client.die()
    world.run()
    assert (world.state(slot.row), world.generation(slot.row)) == (State.FREE, generation + 1)
    world.assert_all_is_back()


def test_a_dead_publishers_readers_go_on_reading(world: World) -> None:
    client, reader = world.client(), world.client()
    opened, unread = client.publish(client.get()[0], 2)
    assert reader.open(opened)
    client.die()
    world.run()
    assert world.state(opened.row) is State.PUBLISHED and seat_of(world.grant(opened.row)) == BROKER
    assert reader.open(unread)
    reader.release(opened)
    reader.release(unread)
    world.run()
    assert world.state(opened.row) is State.FREE


def test_a_dead_reader_frees_its_ticket_for_a_living_publisher(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    assert reader.open(ticket)
    reader.die()
    world.run()
    assert state_of(world.cell(ticket.row)) == CellState.DONE
    client.reap()
    assert len(client.ready) == 1


def test_the_last_dead_reader_frees_what_the_broker_has_in_custody(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get(CHUNKS, 3)[0])
    assert reader.open(ticket)
    client.die()
    world.run()
    reader.die()
    world.run()
    assert world.state(ticket.row) is State.FREE
    assert world.states(CHUNKS)[State.FOLLOWER] == 0


@pytest.mark.parametrize("seats", [1, 2 * FEW_SEATS])
def test_what_lies_behind_the_tickets_and_looks_like_one_outlives_a_reader(world: World, seats: int) -> None:
    """A checksum may be any word: one in 16 million says TAKEN by the seat that ends."""
    client, readers = world.client(), [world.client() for _ in range(seats)]
    (ticket,) = client.publish(client.get()[0])
    at = ticket.row * ROW_WORDS + CHECKSUM
    world.ledger[at] = word = grant_word(0xD2, CellState.TAKEN, readers[0].seat)
    for reader in readers:
        reader.die()
    world.run()
    assert world.ledger[at] == word
    assert client.open(ticket)


def test_a_process_that_read_its_own_publication_leaves_nothing(world: World) -> None:
    client = world.client()
    (ticket,) = client.publish(client.get()[0])
    assert client.open(ticket)
    client.die()
    world.run()
    world.assert_all_is_back()


def test_a_dead_readers_ticket_is_a_reason_to_ask_the_publisher_while_somebody_waits(world: World) -> None:
    client, reader, waiter = world.client(), world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    assert reader.open(ticket)
    hoarder = world.client()
    hoarder.answers_recalls = False
    while not hoarder.refusals:
        hoarder.refill(SMALL, queue=False)
        world.run()
    waiter.refill(SMALL)
    world.run()
    reader.die()
    world.run()
    world.pass_time(SPACING)
    assert [slot.row for slot in waiter.ready] == [ticket.row]


def test_a_ticket_that_nobody_opened_stays_open_when_another_reader_dies(world: World) -> None:
    client, reader, other = world.client(), world.client(), world.client()
    one, two = client.publish(client.get()[0], 2)
    assert reader.open(one)
    reader.die()
    world.run()
    assert other.open(two)


def test_a_dead_readers_ticket_is_done_and_another_readers_is_not(world: World) -> None:
    client, dead, living = world.client(), world.client(), world.client()
    one, two = client.publish(client.get()[0], 2)
    assert dead.open(one) and living.open(two)
    dead.die()
    client.die()
    world.run()
    assert state_of(world.cell(one.row, one.cell)) == CellState.DONE
    assert state_of(world.cell(two.row, two.cell)) == CellState.TAKEN
    living.release(two)
    world.run()
    assert world.state(one.row) is State.FREE


def test_a_publication_whose_readers_were_done_is_free_when_its_publisher_dies(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    assert reader.open(ticket)
    reader.release(ticket)
    client.reap()  # in its magazine, and its word still says PUBLISHED
    client.die()
    world.run()
    assert (world.state(ticket.row), world.generation(ticket.row)) == (State.FREE, 1)


def test_a_return_that_was_not_told_is_seen_at_the_death(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(count=2), tell=False)
    client.die()
    world.run()
    world.assert_all_is_back()


def test_a_run_of_the_dead_is_freed_whole(world: World) -> None:
    client = world.client()
    client.get(CHUNKS, 5)
    client.die()
    world.run()
    assert world.states(CHUNKS)[State.FREE] == 5
    world.assert_all_is_back()


def test_death_is_seen_though_a_child_keeps_the_socket_open(world: World) -> None:
    client = world.client()
    client.get()
    assert client.link is not None
    number, seat = client.link.number, client.seat
    client.die()
    world.links[number].outbox.clear()  # no end of file
    world.run()
    assert seat not in world.broker.seats.taken
    assert number not in world.broker.clients
    world.assert_all_is_back()


def test_a_process_that_died_before_it_was_watched_leaves_nothing(world: World) -> None:
    client = world.client(is_connected=False)
    client.connect()
    client.refill()
    client.die()
    world.run()
    world.assert_all_is_back()


def test_what_comes_from_the_dead_after_their_death_does_nothing(world: World) -> None:
    client = world.client()
    client.get()
    client.refill(count=4)
    client.die()
    world.run_news()
    world.run()
    world.assert_all_is_back()


def test_a_death_serves_who_waits(world: World) -> None:
    hoarder, waiter = world.client(), world.client()
    hoarder.answers_recalls = False
    while not hoarder.refusals:
        hoarder.refill(SMALL, queue=False)
        world.run()
    waiter.refill(SMALL)
    world.run()
    hoarder.die()
    world.run()
    assert len(waiter.ready) == 1


def test_both_seats_of_a_dead_process_are_ended(world: World) -> None:
    one = world.client()
    other = world.client(process=one.process, is_connected=False)
    other.nonce += 1
    other.connect()
    world.run()
    one.get()
    other.get()
    one.die()
    world.run()
    world.assert_all_is_back()


def test_a_dead_clients_counters_are_kept_and_its_block_is_clean_for_the_next(world: World) -> None:
    client = world.client()
    at = counters_at(world.broker.rows.count, client.seat)
    world.ledger[at + LEASES], world.ledger[at + MISSES] = 7, 3
    client.die()
    world.run()
    total = counters_at(world.broker.rows.count, 0)
    assert (world.ledger[total + LEASES], world.ledger[total + MISSES]) == (7, 3)
    assert not any(world.ledger[at + word] for word in range(32))


def test_what_a_dead_reader_s_children_read_waits_for_them_and_nothing_else_does(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    assert reader.open(ticket)
    (slot,) = reader.get()
    seat = reader.seat
    world.read_by_children.add(seat)
    reader.die()
    world.run()
    assert world.state(slot.row) is State.FREE
    assert state_of(world.cell(ticket.row)) == CellState.TAKEN
    assert world.client().seat != seat
    world.read_by_children.clear()
    world.pass_time(0.5)
    assert state_of(world.cell(ticket.row)) == CellState.DONE
    assert seat not in world.broker.seats.taken


def test_who_had_nothing_open_is_not_waited_for_whoever_holds_the_byte(world: World) -> None:
    """A child by a bare fork(2) has its parent's pages, whatever the parent had open."""
    client, reader = world.client(), world.client()
    done, kept = client.publish(client.get()[0], 2)
    assert reader.open(done)
    reader.release(done)
    other = world.client()
    assert other.open(kept)
    idle, reading = reader.seat, other.seat
    world.read_by_children |= {idle, reading}
    reader.die()
    other.die()
    world.run()
    world.pass_time(0.5)
    assert idle not in world.broker.seats.taken
    assert reading in world.broker.seats.taken
    assert state_of(world.cell(kept.row, kept.cell)) == CellState.TAKEN
    world.read_by_children.clear()
    world.pass_time(0.5)
    assert reading not in world.broker.seats.taken


def test_who_had_little_is_swept_soon_beside_many_that_had_much(make_world: type[World]) -> None:
    """Thirty processes with a thousand slots each are killed, others still, and then one with few."""
    world = make_world(Settings(memory_limit=512 * MIB, max_clients=64), check_every=10**9)
    many = [world.client() for _ in range(30)]
    for client in many:
        for _ in range(4):
            client.refill(SMALL, count=256)
        world.run()
    victim = world.client()
    victim.refill(SMALL, count=200)
    world.run()
    seat = victim.seat
    for client in many:
        client.die()
    world.run()
    world.pass_time(0.01)
    victim.die()
    world.run()
    started = world.now
    while seat in world.broker.seats.taken:
        world.pass_time(0.001)
    assert world.now - started <= 0.06
    assert len(world.broker.inventory.granted) > 5000, "the others were not settled before"
    world.pass_time(2.0)
    assert not world.broker.inventory.granted


def test_two_that_had_more_than_is_settled_together_are_settled_one_after_the_other(make_world: type[World]) -> None:
    world = make_world(Settings(memory_limit=16 * MIB, max_clients=4), check_every=10**9)
    clients = [world.client() for _ in range(2)]
    for client in clients:
        while len(client.owned) <= SETTLED_TOGETHER:
            client.refill(SMALL, count=256)
            world.run()
    seats = [client.seat for client in clients]
    for client in clients:
        client.die(is_seen=False)
    for seat in seats:
        world.dispatch(ProcessDied(seat))
    world.pass_time(1.0)
    assert not world.broker.inventory.granted and not world.broker.seats.taken
