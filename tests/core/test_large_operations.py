"""`max_concurrent_large_ops`: chunked and direct buffers, from their grant until their last reader is done."""

from __future__ import annotations

from collections.abc import Callable

from harness import CHUNKS, SMALL, Client, World, small_settings

from shmpool.protocol.codes import Code
from shmpoold.core.events import Reconfigured
from shmpoold.core.lending.recalls import RECALL_EVERY

MakeWorld = Callable[..., World]


def bounded(make_world: MakeWorld, most: int) -> World:
    return make_world(small_settings(memory_limit=900 * 1024, max_concurrent_large_ops=most))


def lease_run(client: Client, chunks: int = 2) -> None:
    client.lease(client.get(CHUNKS, chunks)[0])


def test_more_than_so_many_wait_though_there_is_memory_and_slots_do_not(make_world: MakeWorld) -> None:
    world = bounded(make_world, 2)
    client, other = world.client(), world.client()
    lease_run(client)
    client.lease(client.get_direct(4096))
    assert other.get(CHUNKS) == []
    other.ask_direct(4096)
    world.run()
    assert not other.ready
    assert len(other.requests) == 2
    assert other.get(SMALL)  # pooled slots are not bounded
    client.put_back(client.leased[0])
    client.give_back(client.ready[0])
    world.run()
    assert [slot.tier.index for slot in other.ready].count(CHUNKS) == 1  # who came first


def test_a_request_gets_no_more_runs_at_once_than_the_bound_leaves(make_world: MakeWorld) -> None:
    world = bounded(make_world, 3)
    client = world.client()
    client.give_back(*client.get(CHUNKS, 8))  # they are warm
    assert len(client.get(CHUNKS, 1, count=8)) == 3


def test_a_place_is_free_when_the_last_ticket_is_done_not_before(make_world: MakeWorld) -> None:
    world = bounded(make_world, 1)
    client, reader, other = world.client(), world.client(), world.client()
    tickets = client.publish(client.get_direct(4096), 2)
    other.ask_direct(8192)
    assert all(reader.open(ticket) for ticket in tickets)
    reader.release(tickets[0])
    world.run()
    assert not other.ready
    reader.release(tickets[1])
    world.run()
    assert len(other.ready) == 1


def test_idle_runs_are_recalled_at_the_bound_and_who_has_only_slots_is_left_in_peace(make_world: MakeWorld) -> None:
    world = bounded(make_world, 2)
    idle, slots, other = world.client(), world.client(), world.client()
    idle.get(CHUNKS, 2)
    idle.get(CHUNKS, 2)
    slots.get(SMALL, count=4)
    assert len(other.get(CHUNKS)) == 1
    assert idle.recalls == 1
    assert slots.recalls == 0
    assert len(slots.ready) == 4


def test_a_dead_clients_share_returns(make_world: MakeWorld) -> None:
    world = bounded(make_world, 2)
    client, other = world.client(), world.client()
    lease_run(client)
    client.lease(client.get_direct(4096))
    other.refill(CHUNKS)
    other.ask_direct(4096)
    client.die()
    world.run()
    assert len(other.ready) == 2


def test_a_request_that_does_not_queue_is_told_of_the_bound(make_world: MakeWorld) -> None:
    world = bounded(make_world, 1)
    client, other = world.client(), world.client()
    lease_run(client)
    other.refill(CHUNKS, queue=False)
    other.ask_direct(4096, queue=False)
    world.run()
    assert [refusal.code for refusal in other.refusals] == [Code.EXHAUSTED] * 2
    assert "1 large operations (max_concurrent_large_ops) are under way" in other.refusals[0].text


def test_no_memory_is_kept_from_others_for_who_waits_at_the_bound(make_world: MakeWorld) -> None:
    world = bounded(make_world, 1)
    client, waiter, other = world.client(), world.client(), world.client()
    lease_run(client)
    waiter.ask_direct(800 * 1024 - world.overhead)
    world.run()
    for _ in range(20):
        world.pass_time(RECALL_EVERY)
        assert other.get(SMALL), "memory was kept for a request that it does not help"


def test_a_reload_changes_the_bound_and_who_has_more_keeps_it(make_world: MakeWorld) -> None:
    world = bounded(make_world, 1)
    client, other = world.client(), world.client()
    lease_run(client)
    other.refill(CHUNKS)
    world.run()
    world.settings = small_settings(memory_limit=900 * 1024, max_concurrent_large_ops=2)
    world.dispatch(Reconfigured(world.settings))
    world.run()
    assert len(other.ready) == 1
    world.settings = small_settings(memory_limit=900 * 1024)
    world.dispatch(Reconfigured(small_settings(memory_limit=900 * 1024, max_concurrent_large_ops=1)))
    client.refill(CHUNKS, queue=False)
    world.run()
    assert len(client.refusals) == 1
    assert len(other.ready) == 1


def test_a_restarted_broker_counts_what_is_out(make_world: MakeWorld) -> None:
    world = bounded(make_world, 2)
    client, other = world.client(), world.client()
    lease_run(client)
    client.publish(client.get_direct(4096))
    world.run()
    world.restart()
    for one in (client, other):
        one.reconnect()
    world.run()
    assert other.get(CHUNKS) == []
    client.die()
    world.run()
    assert len(other.ready) == 1


def test_what_is_being_warmed_counts(make_world: MakeWorld) -> None:
    world = bounded(make_world, 1)
    first, second = world.client(), world.client()
    first.refill(CHUNKS, 2)
    second.refill(CHUNKS, 2)
    while world.deliver():
        pass
    assert len(world.shell) == 1, "the second waits for the first, whose pages have yet to come"
    world.run()
    assert [len(first.ready), len(second.ready)] == [1, 0]
