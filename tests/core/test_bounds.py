"""No turn of the loop is longer than its bounds, whatever comes at once: each bound by its name.

A turn is one event; what it did is told by its actions and by the ledger before and after. The
bounds are written out here, so that one which is raised is seen as well as one which is not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest
from harness import CHUNKS, MEDIUM, SMALL, Client, Process, World, small_settings, turns_of

from shmpool.protocol.census import slices
from shmpool.protocol.codes import Code
from shmpool.protocol.ledger import MAX_TICKETS
from shmpool.protocol.messages import Bell, Grant, Message, Recall, Refill
from shmpool.protocol.sizing import KIB, MIB
from shmpool.protocol.states import State
from shmpoold.core.actions import Action, CloseTicket, Cool, ProbeReaders, ProbeSeat, RemoveDirect, Send, Warm
from shmpoold.core.chores import STEPS_PER_TURN
from shmpoold.core.connections import endings
from shmpoold.core.connections.seats import Away
from shmpoold.core.events import Ticked
from shmpoold.core.lending.lending import (
    GIVEN_PER_TURN,
    GRANTED_PER_REQUEST,
    MOST_REQUESTS,
    RETRY_EVERY,
    SERVED_PER_TURN,
)
from shmpoold.core.lending.quotas import LOOKED_AFTER_PER_TURN
from shmpoold.core.lending.recalls import RECALL_EVERY, RECALLED_PER_TURN
from shmpoold.core.lending.requests import STANDING
from shmpoold.core.looks import LOOKED_AT_PER_TURN
from shmpoold.core.memory.clearings import SLOTS_PER_STEP
from shmpoold.core.memory.cooling import COOLED_PER_STEP, COOLED_PER_UNIT
from shmpoold.core.memory.inventory import RETIRING
from shmpoold.core.memory.slots import SlotMap
from shmpoold.core.memory.spares import MOST
from shmpoold.core.memory.stock import BUILT_PER_STEP, WARM_SLICE
from shmpoold.core.objects.custody import CLOSED_PER_TURN, SWEPT_PER_TURN
from shmpoold.core.recovery import invariants
from shmpoold.core.reports.census import CHANGED_ROWS, HELD_ROW, ROWS_PER_STEP
from shmpoold.core.rows import Rows
from shmpoold.core.settings import Settings

LARGE = small_settings(memory_limit=24 * MIB, max_clients=250)


@pytest.fixture
def large_world(make_world: type[World]) -> World:
    """6,144 small slots, 1,536 medium ones, room for 250 clients."""
    return make_world(LARGE, check_every=0)


def actions_of(kind: type[Action]) -> Callable[[list[Action]], int]:
    return lambda actions: sum(isinstance(action, kind) for action in actions)


def sent(kind: type[Message]) -> Callable[[list[Action]], int]:
    return lambda actions: sum(isinstance(action, Send) and isinstance(action.message, kind) for action in actions)


def newly_free(world: World, tier: int = SMALL) -> Callable[[list[Action]], int]:
    """Rows of a tier that a turn has made FREE."""
    before = world.states(tier)[State.FREE]

    def more(_: list[Action]) -> int:
        nonlocal before
        was, before = before, world.states(tier)[State.FREE]
        return before - was

    return more


def hold(world: World, count: int, tier: int = SMALL) -> Client:
    """A client that has leased so many slots."""
    client = world.client()
    client.answers_recalls = False
    while len(client.ready) < count:
        client.refill(tier, count=min(256, count - len(client.ready)))
        world.run()
    for slot in list(client.ready):
        client.lease(slot)
    return client


def hold_all(world: World, tier: int = SMALL) -> Client:
    """A client that has leased what the pool has."""
    client = world.client()
    client.answers_recalls = False
    while not client.refusals:
        client.refill(tier, count=256, queue=False)
        world.run()
    for slot in list(client.ready):
        client.lease(slot)
    return client


def wait(world: World, tier: int = SMALL, count: int = 1, chunks: int = 1) -> Client:
    """A client in the line, that keeps what it gets."""
    client = world.client()
    client.answers_recalls = False
    client.refill(tier, chunks, count)
    world.run()
    assert not client.ready and not client.refusals
    return client


def give_back_all(client: Client) -> None:
    for slot in list(client.leased):
        client.put_back(slot)
    client.give_back(*client.ready)


# --- what one turn does -------------------------------------------------------------------------


def test_a_turn_serves_no_more_waiters_than_served_per_turn(large_world: World) -> None:
    world = large_world
    holder = hold_all(world)
    line = [wait(world) for _ in range(200)]
    for slot in holder.leased[:800]:
        holder.put_back(slot)
    with turns_of(world, sent(Grant)) as grants:
        holder.give_back(*holder.ready)
        world.run()
        world.pass_time(0.02)
    assert sum(grants) == len(line) and all(client.ready for client in line)
    assert max(grants) <= SERVED_PER_TURN <= 64


def test_who_asks_between_two_turns_overtakes_nobody_in_the_line(large_world: World) -> None:
    world = large_world
    holder = hold_all(world)
    line = [wait(world) for _ in range(2 * SERVED_PER_TURN + 10)]
    late = world.client()
    for slot in holder.leased[: len(line)]:
        holder.put_back(slot)
    holder.give_back(*holder.ready)
    while world.deliver(holder.link):
        pass
    late.refill()
    assert world.states(SMALL)[State.FREE] and world.deliver(late.link)
    world.run()
    world.pass_time(0.02)
    assert all(client.ready for client in line) and not late.ready


def test_a_turn_serves_no_more_rows_than_given_per_turn(large_world: World) -> None:
    """Thirty waiters for runs are not thirty waiters for slots. What was gathered for one for whom enough had
    come back is there for all of them when he leaves."""
    world = large_world
    holder = world.client()
    holder.answers_recalls = False
    for _ in range(3):
        holder.refill(CHUNKS, 800)
        world.run()
        world.pass_time(0.1)
    hold_all(world)
    first = wait(world, CHUNKS, chunks=2300)
    for slot in list(holder.ready):
        holder.give_back(slot)
        holder.refill(CHUNKS, 800)
        world.run()
        world.pass_time(0.02)
    line = [wait(world, CHUNKS, chunks=48) for _ in range(30)]
    while not world.broker.lending.earmarks._is_turn:
        world.pass_time(0.005)
    holder.give_back(*holder.ready[:2])
    world.run()
    world.pass_time(0.02)
    with turns_of(world, sent(Grant)) as grants:
        first.cancel(*first.requests)
        world.run()
        world.pass_time(0.1)
    assert sum(grants) == len(line) and all(client.ready for client in line) and not first.ready
    assert max(grants) == -(-GIVEN_PER_TURN // 48) == 11


def test_a_turn_looks_at_no_more_rows_of_a_message_than_looked_at_per_turn(large_world: World) -> None:
    world = large_world
    client = hold(world, 1000)
    for slot in list(client.leased):
        client.put_back(slot)
    with turns_of(world, newly_free(world)) as freed:
        client.give_back(*client.ready)
        world.run()
        world.pass_time(0.1)
    assert sum(freed) == 1000
    assert max(freed) <= LOOKED_AT_PER_TURN + STEPS_PER_TURN <= 256


def test_a_turn_does_no_more_of_a_chore_than_steps_per_turn(large_world: World) -> None:
    world = large_world
    client = hold(world, 1000)
    for slot in list(client.leased):
        client.put_back(slot)
    with turns_of(world, newly_free(world)) as freed:
        client.die()
        world.run()
        world.pass_time(1.0)
    assert sum(freed) == 1000
    assert max(freed) <= STEPS_PER_TURN <= 128


def test_a_turn_replaces_the_pages_of_fewer_rows_than_it_looks_at(make_world: type[World]) -> None:
    """Those that come back too old: each costs what a dozen others do."""
    world = make_world(replace(LARGE, max_buffer_age=2.0), check_every=0)
    client = hold(world, 1000)
    world.pass_time(3.0)
    for slot in list(client.leased):
        client.put_back(slot)
    with turns_of(world, actions_of(Cool)) as cooled:
        client.give_back(*client.ready)
        world.run()
        world.pass_time(1.0)
    assert sum(cooled) == world.broker.inventory.retired == 1000
    assert max(cooled) <= (LOOKED_AT_PER_TURN + STEPS_PER_TURN) // RETIRING + 2 <= 24


def test_a_turn_replaces_as_few_for_publications_whose_readers_are_done(make_world: type[World]) -> None:
    """They are named by one bell, after their publisher has gone."""
    world = make_world(replace(LARGE, max_buffer_age=2.0, magazine_bytes=4 * MIB), check_every=0)
    client, reader = hold(world, 1000), world.client()
    tickets = [ticket for slot in list(client.leased) for ticket in client.publish(slot)]
    assert all(map(reader.open, tickets))
    client.goodbye()
    world.run()
    world.pass_time(3.0)
    for ticket in tickets:
        reader.release(ticket, ring=False)
    with turns_of(world, actions_of(Cool)) as cooled:
        reader.send(Bell([ticket.row for ticket in tickets]))
        world.run()
        world.pass_time(5.0)
    assert sum(cooled) == world.broker.inventory.retired == 1000
    assert max(cooled) <= (LOOKED_AT_PER_TURN + STEPS_PER_TURN) // RETIRING + 2 <= 24


def test_a_look_at_the_ages_costs_what_has_changed(large_world: World) -> None:
    world = large_world
    client = hold(world, 1000)
    ledger = world.broker.reports.ledger

    def cost_of_a_look() -> int:
        return sum(ledger.look())

    cost_of_a_look()
    at_rest = cost_of_a_look()
    for slot in list(client.leased):
        client.publish(slot)
    assert 0 <= at_rest + 2 * 1000 // CHANGED_ROWS - cost_of_a_look() <= 10
    assert cost_of_a_look() == at_rest


def test_a_census_reads_only_the_slices_of_which_something_is_granted(large_world: World) -> None:
    world = large_world
    everything = list(slices(world.tiers))
    assert sum(world.broker.reports.ledger.look()) == len(everything)
    hold(world, 10)
    read = [first for _, first, raw, _, _ in world.broker.reports.ledger._walk() if raw]
    assert 1 <= len(read) <= 2 < len(everything)


def test_a_turn_probes_no_more_seats_than_probed_per_turn(large_world: World) -> None:
    world = large_world
    writer = hold(world, 200)
    clients = [world.client() for _ in writer.leased]
    world.run()
    for client, slot in zip(clients, list(writer.leased), strict=True):
        (ticket,) = writer.publish(slot)
        assert client.open(ticket)
    with turns_of(world, actions_of(ProbeSeat)) as probes:
        for client in clients:
            client.disconnect()
        world.run()
        world.pass_time(Away.FIRST)
        assert sum(probes) >= len(clients)
    assert max(probes) <= Away.PROBED_PER_TURN <= 64


def test_a_turn_looks_at_no_more_seats_that_are_read_than_looked_at_per_turn(large_world: World) -> None:
    """Whose children read on what they had open."""
    world = large_world
    writer = hold(world, 200)
    clients = [world.client() for _ in writer.leased]
    world.run()
    for client, slot in zip(clients, list(writer.leased), strict=True):
        (ticket,) = writer.publish(slot)
        assert client.open(ticket)
    world.read_by_children.update(client.seat for client in clients)
    for client in clients:
        client.die()
    world.run()
    world.pass_time(0.1)
    with turns_of(world, actions_of(ProbeReaders)) as probes:
        world.pass_time(30.0)
    assert sum(probes) >= len(clients)
    assert max(probes) <= 64
    assert endings.LOOKED_AT_PER_TURN <= 64
    world.read_by_children.clear()
    world.pass_time(30.0)
    assert not world.broker.endings.read


def publish_and_leave(world: World, count: int, tickets: int = 1) -> list[list[object]]:
    """So many publications in the broker's custody, nobody's but their readers'."""
    client = hold(world, count)
    published = [client.publish(slot, tickets) for slot in list(client.leased)]
    client.goodbye()
    world.run()
    world.pass_time(0.1)
    assert len(world.broker.custody.rows) == count
    return published  # type: ignore[return-value]


def test_a_turn_sweeps_no_more_publications_than_swept_per_turn(large_world: World) -> None:
    world = large_world
    tickets = publish_and_leave(world, 1500)
    reader = world.client()
    world.run()
    for (ticket,) in tickets:
        assert reader.open(ticket)  # type: ignore[arg-type]
        reader.release(ticket, ring=False)  # type: ignore[arg-type]
    with turns_of(world, newly_free(world)) as freed:
        world.pass_time(5.0)
    assert sum(freed) == 1500
    assert max(freed) <= SWEPT_PER_TURN <= 512


def test_a_turn_drops_no_more_places_of_what_was_freed_meanwhile_than_swept_per_turn(large_world: World) -> None:
    """Bells have it freed at once; its place in the queue costs nothing but its part of a turn."""
    world = large_world
    tickets = publish_and_leave(world, 1500)
    reader = world.client()
    world.run()
    for (ticket,) in tickets:
        assert reader.open(ticket)  # type: ignore[arg-type]
        reader.release(ticket)  # type: ignore[arg-type]
    world.run()
    left = len(world.broker.custody._queue)
    assert left > SWEPT_PER_TURN and world.states(SMALL)[State.PUBLISHED] == 0

    def dropped(_: list[Action]) -> int:
        nonlocal left
        before, left = left, len(world.broker.custody._queue)
        return before - left

    with turns_of(world, dropped) as places:
        world.pass_time(5.0)
    assert left == 0
    assert max(places) <= SWEPT_PER_TURN <= 512


def test_a_turn_closes_no_more_tickets_than_closed_per_turn(large_world: World) -> None:
    world = large_world
    publish_and_leave(world, 300, MAX_TICKETS)
    with turns_of(world, actions_of(CloseTicket)) as closed:
        world.pass_time(world.settings.handle_ttl + 5.0)
    assert sum(closed) >= 300 * MAX_TICKETS
    assert max(closed) < CLOSED_PER_TURN + MAX_TICKETS <= 128 + MAX_TICKETS


def bytes_cooled(world: World) -> Callable[[list[Action]], int]:
    return lambda actions: sum(
        action.count * world.tiers[action.tier].size for action in actions if isinstance(action, Cool)
    )


@pytest.mark.parametrize("size", [4 * KIB, 64 * KIB, 256 * KIB])
def test_a_turn_cools_no_more_bytes_than_cooled_per_step_and_unit(make_world: type[World], size: int) -> None:
    """Of small slots their number is the bound, of large ones their bytes."""
    world = make_world(Settings(memory_limit=48 * MIB, max_clients=8), check_every=0)
    give_back_all(hold_all(world, next(tier.index for tier in world.tiers if tier.size == size)))
    world.run()
    world.pass_time(0.1)
    idle = world.broker.inventory.held - world.overhead
    lifetime = world.settings.buffer_lifetime
    with turns_of(world, bytes_cooled(world)) as cooled:
        world.pass_time(lifetime + lifetime / 8 + 1)
    assert sum(cooled) == idle > 16 * MIB
    assert max(cooled) <= COOLED_PER_UNIT * STEPS_PER_TURN + COOLED_PER_STEP <= 4 * MIB


def test_a_warming_takes_no_more_bytes_at_once_than_a_warm_slice(large_world: World) -> None:
    world = large_world
    client = world.client()
    slices: list[int] = []
    world.keep_actions = True
    for tier, chunks in ((CHUNKS, 1000), (SMALL, 1), (MEDIUM, 1)):
        client.refill(tier, chunks, 256)
        world.run()
    slices = [action.count * world.tiers[action.tier].size for action in world.actions if isinstance(action, Warm)]
    assert sum(slices) > 8 * MIB
    assert max(slices) <= WARM_SLICE <= MIB


def test_a_turn_recalls_from_no_more_clients_than_recalled_per_turn(large_world: World) -> None:
    world = large_world
    holders = [hold(world, 1) for _ in range(200)]
    hold_all(world)
    with turns_of(world, sent(Recall)) as recalls:
        wait(world)
        world.pass_time(RECALL_EVERY / 2)
    assert sum(recalls) == len(holders) + 1
    assert max(recalls) <= RECALLED_PER_TURN <= 32


def test_a_round_of_recalls_begins_no_more_often_than_recall_every(large_world: World) -> None:
    """However often the broker looks meanwhile."""
    world = large_world
    hold_all(world)
    wait(world)
    with turns_of(world, sent(Recall)) as recalls:
        for _ in range(500):
            world.now += 0.001
            world.dispatch(Ticked())
    assert 1 <= sum(recalls) <= 0.5 / RECALL_EVERY + 1 <= 11


def test_a_turn_through_a_long_line_costs_the_same_wherever_it_is(large_world: World) -> None:
    """Thousands wait for more than comes back: each is looked at once, and none of those before it again."""
    world = large_world
    holder = hold_all(world, CHUNKS)
    clients = [world.client() for _ in range(220)]
    for client in clients:
        for _ in range(STANDING):
            client.refill(CHUNKS, 1000)
    world.run()
    line = world.broker.lending.line
    assert len(line) == 220 * STANDING
    holder.put_back(holder.leased[0])
    holder.give_back(*holder.ready)
    world.run()
    steps: list[int] = []
    while line.places:
        taken = 0

        def trace(frame: FrameType, event: str, argument: object) -> object:
            nonlocal taken
            taken += event == "line"
            return trace

        sys.settrace(trace)
        try:
            world.broker.lending._serve_turn(world.now)
        finally:
            sys.settrace(None)
        steps.append(taken)
    assert len(steps) > 50
    assert max(steps[1:-1]) <= 1.2 * min(steps[1:-1])
    for client in clients:
        for number in list(client.requests):
            client.cancel(number)
    world.run()


# --- what one client may ask for --------------------------------------------------------------------


def tried(world: World, happens: Callable[[], None]) -> int:
    """How many requests the broker tries to serve meanwhile."""
    ladder, count = world.broker.lending.ladder, 0
    climb = ladder.climb

    def counting(*arguments: Any, **more: Any) -> bool:
        nonlocal count
        count += 1
        return climb(*arguments, **more)

    with patch.object(ladder, "climb", counting):
        happens()
    return count


def test_what_comes_back_is_tried_with_no_more_requests_of_a_process_than_stand(large_world: World) -> None:
    world = large_world
    holder = hold_all(world, CHUNKS)
    crowd = Process(5000, 1)
    clients = [world.client(process=crowd) for _ in range(10)]
    for client in clients:
        for _ in range(100):
            client.refill(CHUNKS, 1000)
    world.run()
    other = wait(world, CHUNKS, chunks=3)
    assert len(world.broker.lending.line) == 1001

    def give_two_back() -> None:
        for slot in holder.leased[:2]:
            holder.put_back(slot)
        holder.give_back(*holder.ready)
        world.run()

    assert tried(world, give_two_back) <= 2 * (STANDING + 1) <= 34
    assert not other.ready
    give_two_back()
    assert other.ready, "it stands behind sixteen, not behind a thousand"


def test_those_behind_take_turns_with_those_of_their_process_that_stand(large_world: World) -> None:
    """One that fits is found behind any number that do not."""
    world = large_world
    holder = hold_all(world, CHUNKS)
    client = world.client()
    client.answers_recalls = False
    for _ in range(100):
        client.refill(CHUNKS, 1000)
    client.refill(CHUNKS, 1)
    world.run()
    holder.put_back(holder.leased[0])
    holder.give_back(*holder.ready)
    world.run()
    world.pass_time(2 * 100 / STANDING * RETRY_EVERY)
    assert [slot.tier.index for slot in client.ready] == [CHUNKS]
    assert len(world.broker.lending.line) == 100, "some wait no more"


def test_requests_that_are_behind_are_withdrawn_and_granted_like_the_others(large_world: World) -> None:
    world = large_world
    holder = hold_all(world)
    clients = [world.client() for _ in range(2)]
    numbers = {client: [client.refill() for _ in range(50)] for client in clients}
    world.run()
    gone = [client.cancel(number) for client in clients for number in numbers[client][::3]]
    world.run()
    assert len(world.broker.lending.line) == 100 - len(gone)
    clients[0].die()
    world.run()
    world.pass_time(1.0)
    assert len(world.broker.lending.line) == 50 - 17
    give_back_all(holder)
    world.run()
    world.pass_time(1.0)
    assert len(clients[1].ready) == 33 and not clients[1].requests
    assert not world.broker.lending.line and not world.broker.lending.line._parties


def test_a_process_has_no_more_under_way_than_most_requests_through_all_its_connections(large_world: World) -> None:
    world = large_world
    hold_all(world)
    crowd = Process(5000, 1)
    clients = [world.client(process=crowd) for _ in range(4)]
    for client in clients:
        for _ in range(300):
            client.refill()
    world.run()
    assert len(world.broker.lending.line) == MOST_REQUESTS
    assert {refusal.code for client in clients for refusal in client.refusals} == {Code.QUOTA}
    clients[0].die()
    world.run()
    world.pass_time(1.0)
    assert world.broker.lending.line.count((5000, 1)) == 0


def test_a_client_has_no_more_under_way_than_most_requests(large_world: World) -> None:
    world = large_world
    holder = hold_all(world)
    client = world.client()
    numbers = [client.refill() for _ in range(1100)]
    world.run()
    waiting = [number for number in numbers if number in client.requests]
    assert {refusal.code for refusal in client.refusals} == {Code.QUOTA}
    assert waiting == numbers[: len(waiting)]
    assert len(waiting) == MOST_REQUESTS <= 1024
    other = wait(world)
    assert len(other.requests) == 1, "it is the client's own number that counts"
    give_back_all(holder)
    world.run()
    world.pass_time(1.0)
    assert len(client.ready) == MOST_REQUESTS


def hold_runs(world: World, count: int, chunks: int) -> Client:
    client = world.client()
    client.answers_recalls = False
    while len(client.ready) < count:
        client.refill(CHUNKS, chunks)
        world.run()
        world.pass_time(0.01)  # a long one is written in several turns
    return client


@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("chunks", [BUILT_PER_STEP, BUILT_PER_STEP + 1])
def test_a_request_is_granted_no_more_rows_than_granted_per_request(
    large_world: World, is_warm: bool, chunks: int
) -> None:
    world = large_world
    client = world.client()
    if is_warm:
        other = hold_runs(world, 10, chunks)
        other.give_back(*other.ready)
        give_back_all(hold(world, 1000))
        world.run()
        world.pass_time(1.0)
        assert world.states(SMALL)[State.FREE] == 1000 and world.states(CHUNKS)[State.FREE] == 10 * chunks
    client.send(Refill(1, SMALL, 1, 1000, True))
    world.run()
    assert len(client.ready) <= GRANTED_PER_REQUEST <= 256
    client.send(Refill(2, CHUNKS, chunks, 10, True))
    world.run()
    world.pass_time(0.1)
    runs = [slot for slot in client.ready if slot.tier.index == CHUNKS]
    assert 0 < sum(len(run.rows) for run in runs) <= GRANTED_PER_REQUEST
    world.check()  # whatever was taken is granted


def test_a_request_for_runs_is_granted_no_more_chunks_than_granted_per_request(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=0)
    client, chunks = world.client(), 40
    client.give_back(*[slot for _ in range(10) for slot in client.get(CHUNKS, chunks)])
    world.run()
    assert len(client.get(CHUNKS, chunks, 10)) == GRANTED_PER_REQUEST // chunks == 6


def test_nobody_is_granted_a_warm_batch_while_others_wait(world: World) -> None:
    """Eight slots come back at once: all who wait for a batch of eight get one of them first."""
    holder = hold_all(world)
    line = [wait(world, count=8) for _ in range(4)]
    for slot in holder.leased[:8]:
        holder.put_back(slot)
    holder.give_back(*holder.ready)
    world.run()
    assert [len(client.ready) for client in line] == [1, 1, 1, 5]


def test_nobody_is_granted_a_cold_batch_while_others_wait(world: World) -> None:
    """A direct segment is removed: there is room for sixteen cold slots."""
    holder = world.client()
    direct = holder.lease(holder.get_direct(64 * KIB))
    hold_all(world)
    line = [wait(world, count=8) for _ in range(4)]
    holder.put_back(direct)
    world.run()
    assert [len(client.ready) for client in line] == [1, 1, 1, 8]


def test_a_batch_is_granted_whole_when_nobody_waits(world: World) -> None:
    holder = hold_all(world)
    client = wait(world, count=8)
    for slot in holder.leased[:8]:
        holder.put_back(slot)
    holder.give_back(*holder.ready)
    world.run()
    assert len(client.ready) == 8


# --- spares -------------------------------------------------------------------------------------


def test_no_more_direct_segments_lie_spare_than_most(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=64 * MIB), direct_rows=256, check_every=0)
    client = world.client()
    slots = [client.get_direct(64 * KIB) for _ in range(100)]
    assert len({slot.row for slot in slots}) == 100
    for slot in slots:
        client.lease(slot)
    with turns_of(world, actions_of(RemoveDirect)) as removed:
        for slot in slots:
            client.put_back(slot)
        world.run()
    assert len(world.broker.inventory.spares) == 100 - sum(removed) == MOST <= 64


def test_a_turn_looks_after_no_more_who_are_held_back_than_looked_after_per_turn(make_world: type[World]) -> None:
    """By the quota of their user, who has what they need lying idle."""
    world = make_world(small_settings(memory_limit=24 * MIB, max_clients=250, uid_quota_buffers=60), check_every=0)
    holder = world.client()
    holder.answers_recalls = False
    while len(holder.ready) < 60:
        holder.refill(SMALL, count=60 - len(holder.ready))
        world.run()
        world.pass_time(0.1)
    line = [world.client() for _ in range(50)]
    for client in line:
        client.answers_recalls = False
        client.refill(SMALL)
    world.run()
    assert len(world.broker.lending.quotas.held) == len(line)
    with turns_of(world, sent(Grant)) as grants:
        holder.give_back(*holder.ready)
        world.run()
        world.pass_time(2.0)
    assert sum(grants) == len(line)
    assert max(grants) <= LOOKED_AFTER_PER_TURN <= 16


def rows_cooled(actions: list[Action]) -> int:
    return sum(action.count for action in actions if isinstance(action, Cool))


def test_a_turn_makes_no_more_slots_cold_for_who_waits_than_slots_per_step(large_world: World) -> None:
    """Of slots that are so small that their bytes are no bound."""
    world = large_world
    give_back_all(hold_all(world))
    world.run()
    world.pass_time(0.1)
    client = world.client()

    with turns_of(world, rows_cooled) as slots:
        client.ask_direct(8 * MIB)
        world.run()
        world.pass_time(1.0)
    assert client.ready and sum(slots) >= 2048
    assert max(slots) <= 2 * SLOTS_PER_STEP <= STEPS_PER_TURN


@pytest.mark.parametrize("is_warm", [False, True])
def test_a_turn_writes_no_more_of_a_run_than_built_per_step(large_world: World, is_warm: bool) -> None:
    """Also of one that lies ready, and of one that is taken apart again."""
    world = large_world
    client = world.client()
    client.answers_recalls = False
    if is_warm:
        client.refill(CHUNKS, 1000)
        world.run()
        world.pass_time(0.1)
        client.give_back(*client.ready)
        world.run()
        world.pass_time(0.1)
    before = 0

    def moved(_: list[Action]) -> int:
        nonlocal before
        was, before = before, world.states(CHUNKS)[State.FOLLOWER]
        return abs(before - was)

    with turns_of(world, moved) as rows:
        client.refill(CHUNKS, 1000)
        world.run()
        world.pass_time(0.1)
        assert sum(rows) == 999 and client.ready
        client.give_back(*client.ready)
        world.run()
        world.pass_time(0.1)
    assert sum(rows) == 2 * 999
    assert max(rows) <= STEPS_PER_TURN + BUILT_PER_STEP <= 192


def test_a_turn_makes_no_more_of_a_run_cold_for_another_user_than_built_per_step(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=24 * MIB, max_clients=8, scrub=True), check_every=0)
    first, second = (world.client(process=Process(9000 + uid, 77, uid=uid)) for uid in (1, 2))
    for client in (first, second):
        with turns_of(world, rows_cooled) as rows:
            client.refill(CHUNKS, 1000)
            world.run()
            world.pass_time(0.1)
        client.give_back(*client.ready)
        world.run()
        world.pass_time(0.1)
    assert sum(rows) == 1000
    assert max(rows) <= STEPS_PER_TURN + BUILT_PER_STEP <= 192


def test_a_step_of_a_census_reads_no_more_buffers_than_rows_per_step(large_world: World) -> None:
    world = large_world
    hold(world, 2000)
    steps = [cost for cost in world.broker.reports.ledger.find() if isinstance(cost, int)]
    assert sum(steps) >= 2000 * HELD_ROW
    assert max(steps) <= ROWS_PER_STEP * HELD_ROW <= 64


def test_a_step_of_the_invariants_looks_at_no_more_than_rows_per_step(
    large_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account, which is looked at in one piece, says what it costs. All rows are compared, used ones looked at."""
    world, looks, check = large_world, list[int](), invariants._check_row
    compared, compare = list[int](), Rows.are_where
    held = {slot.row for slot in hold(world, 1000).leased}
    monkeypatch.setattr(invariants, "_check_row", lambda *args: (looks.append(args[2]), check(*args)))
    monkeypatch.setattr(Rows, "are_where", lambda *args: (compared.append(len(args[2])), compare(*args))[1])
    steps, looked = [], set[int]()
    for cost in invariants._steps(world.broker):
        steps.append((cost, len(looks), sum(compared)))
        looked.update(looks)
        looks.clear()
        compared.clear()
    assert steps[0] == (invariants.ACCOUNT, 0, 0)
    assert held <= looked
    assert sum(rows for _, _, rows in steps) == sum(tier.capacity for tier in world.tiers)
    assert max(rows for _, rows, _ in steps) <= invariants.ROWS_PER_STEP <= 4
    assert max(rows for _, _, rows in steps) <= invariants.COMPARED_PER_STEP <= 256
    assert sum(cost for cost, _, rows in steps if rows) >= invariants.COMPARING


def test_no_run_is_looked_for_where_there_is_no_memory_for_it(
    large_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever anything comes back all who wait are tried."""
    world = large_world
    holder = hold_all(world)
    waiting = world.client()
    for _ in range(STANDING):
        waiting.refill(CHUNKS, 1000)
    world.run()
    looked: list[int] = []
    find = SlotMap.find_unused
    monkeypatch.setattr(SlotMap, "find_unused", lambda slots, count: looked.append(count) or find(slots, count))
    for slot in list(holder.leased[:50]):
        holder.put_back(slot)
        holder.give_back(slot)
        world.run()
    assert not looked
    assert len(world.broker.lending.line) == STANDING
