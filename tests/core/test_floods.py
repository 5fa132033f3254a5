"""Floods of messages: what is to be looked at is a set, deaths and questions get their turns, and
nobody is asked to give back more often than once in `SPACING`."""

from __future__ import annotations

import pytest
from harness import CHUNKS, SMALL, Client, World, small_settings

from shmpool.protocol.messages import Bell, Cancel, Query, Recall, Refill, Role, Topic
from shmpool.protocol.sizing import KIB, MIB
from shmpoold.core.actions import Action, Send
from shmpoold.core.chores import PAUSE, Lane
from shmpoold.core.events import ProcessDied, Received, Ticked
from shmpoold.core.lending.recalls import (
    RECALL_EVERY,
    RECALLED_PER_TURN,
    SPACING,
)
from shmpoold.core.looks import LOOKED_AT_PER_TURN
from shmpoold.core.settings import Settings

#: A peer that uses its turn up has the next after so many seconds.
REST = 0.005


@pytest.fixture
def large_world(make_world: type[World]) -> World:
    return make_world(Settings(memory_limit=64 * MIB, max_clients=64), check_every=0)


def recalls(actions: list[Action]) -> list[int]:
    """The connections that are asked to give back."""
    return [action.connection for action in actions if isinstance(action, Send) and action.message == Recall()]


def flood(world: World, client: Client, rows: list[int], seconds: float) -> None:
    """The longest bell there is, again and again, with every tick that is due meanwhile."""
    assert client.link is not None
    end, bell = world.now + seconds, Bell((rows * 1024)[:1024])
    next_bell = world.now
    while world.now < end:
        world.run_news()
        deadline = world.broker.next_deadline()
        world.now = next_bell if deadline is None else min(next_bell, max(deadline, world.now + PAUSE))
        if world.now >= next_bell:
            world.dispatch(Received(client.link.number, bell))
            next_bell += REST
        else:
            world.dispatch(Ticked())


@pytest.mark.parametrize("own", [1, 3000])
def test_a_flood_of_bells_leaves_no_more_to_do_than_there_are_rows(large_world: World, own: int) -> None:
    world = large_world
    attacker = world.client()
    while len(attacker.ready) < own:
        attacker.get(count=min(256, own))
    rows = [slot.row for slot in attacker.ready]
    for _ in range(80):
        world.dispatch(Received(attacker.link.number, Bell((rows * 1024)[:1024])))  # type: ignore[union-attr]
        rows = rows[1024:] + rows[:1024]
    broker = world.broker
    assert len(broker.returns.looks) <= len(rows)
    assert len(broker.chores._lanes[Lane.LOOKS].chores) <= 1
    world.pass_time(1.0)
    assert not broker.returns.looks and not broker.chores._busy
    world.check()


@pytest.mark.parametrize("own", [1, 3000])
def test_the_dead_are_swept_in_the_middle_of_a_flood_of_bells(large_world: World, own: int) -> None:
    world = large_world
    attacker, victim = world.client(), world.client()
    for client, most in ((attacker, own), (victim, 1024)):
        while len(client.ready) < most:
            client.get(count=min(256, most))
    rows = [slot.row for slot in attacker.ready]
    flood(world, attacker, rows, 0.2)
    victim_seat = victim.seat
    victim.die(is_seen=False)
    world.dispatch(ProcessDied(victim_seat))
    flood(world, attacker, rows, 0.1)
    assert victim_seat not in world.broker.seats.taken
    world.check()


def test_a_question_is_answered_in_the_middle_of_a_flood_of_bells(large_world: World) -> None:
    world = large_world
    attacker = world.client()
    while len(attacker.ready) < 3000:
        attacker.get(count=256)
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    world.run()
    flood(world, attacker, [slot.row for slot in attacker.ready], 0.1)
    operator.send(Query(1, Topic.LEASES))
    world.deliver(operator.link)
    flood(world, attacker, [slot.row for slot in attacker.ready], 0.5)
    operator.read()
    assert operator.answers[-1].last


def test_each_row_of_a_long_bell_is_looked_at_once(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB))
    client = world.client()
    slots = client.get(SMALL, count=2 * LOOKED_AT_PER_TURN)
    rows = [slot.row for slot in slots]
    looked_at: list[int] = []

    def look(row: int, now: float) -> int:
        looked_at.append(row)
        return 1

    world.broker.returns.looks._look = look
    client.send(Bell([*rows, *rows, *rows][:1024]))
    world.run()
    world.pass_time(1.0)
    assert sorted(looked_at) == sorted(rows)


# --- recalls ------------------------------------------------------------------------------------


@pytest.fixture
def exhausted(make_world: type[World]) -> World:
    """A pool without a free slot, of which many clients have one and the first has the rest."""
    world = make_world(small_settings(memory_limit=1024 * KIB, max_clients=120), check_every=0)
    clients = [world.client() for _ in range(100)]
    for client in clients:
        client.answers_recalls = False
        client.lease(client.get()[0])
    while not clients[0].refusals:
        clients[0].refill(CHUNKS, queue=False)
        world.run()
    while len(clients[0].refusals) < 2:
        clients[0].refill(SMALL, queue=False)
        world.run()
    return world


def test_who_asks_and_cancels_in_a_loop_has_nobody_asked_more_often(exhausted: World) -> None:
    world = exhausted
    attacker = world.client()
    told, pairs = 0, 1000
    for number in range(1, pairs + 1):
        actions = world.dispatch(Received(attacker.link.number, Refill(number, SMALL, 1, 1, True)))  # type: ignore[union-attr]
        actions += world.dispatch(Received(attacker.link.number, Cancel(number)))  # type: ignore[union-attr]
        asked = recalls(actions)
        assert len(asked) <= RECALLED_PER_TURN
        told += len(asked)
        world.now += 0.0001
    assert told <= 100 * (1 + pairs * 0.0001 / RECALL_EVERY)


def test_a_round_asks_everybody_once_whoever_holds_most_first_and_some_in_each_turn(exhausted: World) -> None:
    world = exhausted
    client = world.client()
    world.keep_actions = True
    started = world.now
    actions = world.dispatch(Received(client.link.number, Refill(1, SMALL, 1, 1, True)))  # type: ignore[union-attr]
    turns = [recalls(actions)]
    while (deadline := world.broker.next_deadline()) is not None and deadline < started + RECALL_EVERY / 2:
        world.now = max(world.now, deadline)
        turns.append(recalls(world.dispatch(Ticked())))
    asked = [number for turn in turns for number in turn]
    assert max(map(len, turns)) <= RECALLED_PER_TURN
    assert len(asked) == len(set(asked)) == 100
    assert asked[0] == world.clients[0].link.number  # type: ignore[union-attr]


def test_a_round_ends_when_nobody_waits_any_more(exhausted: World) -> None:
    world = exhausted
    client = world.client()
    world.dispatch(Received(client.link.number, Refill(1, SMALL, 1, 1, True)))  # type: ignore[union-attr]
    world.dispatch(Received(client.link.number, Cancel(1)))  # type: ignore[union-attr]
    world.keep_actions = True
    world.pass_time(1.0)
    assert recalls(world.actions) == []


def test_bells_about_a_done_publication_have_its_publisher_asked_once(exhausted: World) -> None:
    world = exhausted
    publisher, reader, waiter = world.clients[0], world.client(), world.client()
    tickets = [publisher.publish(slot)[0] for slot in publisher.ready[:20]]
    waiter.refill(SMALL)
    world.run()
    for ticket in tickets:
        assert reader.open(ticket)
        reader.release(ticket, ring=False)
    world.pass_time(SPACING / 2)
    world.keep_actions = True
    for _ in range(50):
        reader.send(Bell([ticket.row for ticket in tickets] * 50))
    world.run()
    assert recalls(world.actions).count(publisher.link.number) <= 1  # type: ignore[union-attr]
    world.pass_time(SPACING)
    assert recalls(world.actions).count(publisher.link.number) <= 2  # type: ignore[union-attr]
    publisher.answers_recalls = True
    world.pass_time(RECALL_EVERY)
    assert waiter.ready
