"""Quotas, in simulated time: what counts for whom, what is recalled first, what a refusal says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from harness import CHUNKS, SMALL, Client, World, small_settings, turns_of
from sharers import cache, shared, sharer

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Recall, Refill
from shmpool.protocol.sizing import KIB, MIB
from shmpoold.core.actions import Action, Send
from shmpoold.core.chores import Lane
from shmpoold.core.events import Received, Reconfigured
from shmpoold.core.lending.quotas import LOOK_EVERY, PATIENCE
from shmpoold.core.lending.recalls import RECALLED_PER_TURN
from shmpoold.core.lending.usage import FRESH, LOOKED_AT

MakeWorld = Callable[..., World]


def sent(kind: type[object]) -> Callable[[list[Action]], int]:
    return lambda actions: sum(isinstance(action, Send) and isinstance(action.message, kind) for action in actions)


def with_quotas(make_world: MakeWorld, **quotas: Any) -> World:
    return make_world(small_settings(**{"memory_limit": 900 * KIB, **quotas}))


def lease(client: Client, count: int = 1, tier: int = SMALL) -> None:
    for _ in range(count):
        client.lease(client.get(tier)[0])


def soon(world: World) -> None:
    """Let what is on its way arrive, and what that brings be looked at."""
    world.run()
    world.pass_time(LOOK_EVERY)


def refusal(client: Client, tier: int = SMALL, chunks: int = 1, *, queue: bool = True) -> str:
    """What a client is told that asks for one more."""
    client.refill(tier, chunks, queue=queue)
    client.world.run()
    assert client.refusals, "it was not refused"
    assert client.refusals[-1].code == Code.QUOTA
    return client.refusals.pop().text


def test_leases_count_and_a_refusal_names_the_quota_and_the_use(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_bytes=16 * KIB)
    client, other = world.client(), world.client()
    lease(client, 3)
    assert refusal(client, CHUNKS) == (
        "client_quota_bytes is 16 KiB, this client has 12 KiB leased, unread and open to read, and asks for 8 KiB more"
    )
    lease(client)
    assert refusal(client, queue=False).startswith("client_quota_bytes is 16 KiB, this client has 16 KiB")
    lease(other, 4)  # it has its own
    client.ask_direct(4096)
    world.run()
    assert client.refusals[-1].code == Code.QUOTA


def test_buffers_count_whatever_their_size(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=3)
    client = world.client()
    client.lease(client.get(CHUNKS, 5)[0])
    client.lease(client.get_direct(50_000))
    lease(client)
    assert refusal(client) == (
        "client_quota_buffers is 3, this client has 3 leased, unread and open to read, and asks for 1 more"
    )


def test_a_batch_is_cut_to_what_the_quota_leaves(make_world: MakeWorld) -> None:
    assert len(with_quotas(make_world, client_quota_buffers=3).client().get(SMALL, count=8)) == 3


def test_a_publication_is_its_publishers_until_it_is_opened_then_its_readers(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=2)
    client, reader = world.client(), world.client()
    tickets = [client.publish(client.get()[0])[0] for _ in range(2)]
    refusal(client)
    assert all(reader.open(ticket) for ticket in tickets)
    lease(client)
    assert "2 leased, unread and open to read" in refusal(reader)
    reader.release(tickets[0])
    lease(reader)


def test_what_is_open_twice_in_a_process_counts_once_and_for_each_reader(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=1)
    client, readers = world.client(), [world.client(), world.client()]
    tickets = client.publish(client.get()[0], 3)
    assert readers[0].open(tickets[0])
    assert readers[1].open(tickets[1])
    assert readers[0].open(tickets[2])
    for reader in readers:
        assert "has 1 leased" in refusal(reader)


def test_what_is_idle_is_recalled_before_a_refusal_and_serves_the_request(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_bytes=32 * KIB)
    client = world.client()
    client.get(SMALL, count=8)
    assert len(client.ready) == 8
    client.refill(CHUNKS, 2)
    soon(world)
    assert client.recalls == 1
    assert [len(slot.rows) for slot in client.ready] == [2]
    assert not client.refusals


def test_nobody_is_recalled_for_a_request_that_would_be_refused_all_the_same(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_bytes=16 * KIB)
    client = world.client()
    lease(client, 3)
    client.get()
    assert "16 KiB leased, unread and open to read, 4 KiB of it idle" in refusal(client, CHUNKS)
    assert client.recalls == 0


def test_a_client_that_keeps_what_is_idle_is_refused_in_the_end(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=2)
    client = world.client()
    client.answers_recalls = False
    client.get(SMALL, count=2)
    client.refill(CHUNKS)
    world.run()
    assert not client.refusals
    world.pass_time(PATIENCE + 0.1)
    assert [refusal.code for refusal in client.refusals] == [Code.QUOTA]


def test_a_users_processes_share_its_quota_and_are_all_recalled(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, uid_quota_buffers=4)
    client, idle, foreign = world.client(), world.client(), world.client(is_connected=False)
    foreign.process.uid = 1001
    foreign.connect()
    lease(client, 2)
    idle.get(SMALL, count=2)
    foreign.get(SMALL, count=2)
    client.refill(count=2)
    soon(world)
    assert idle.recalls == 1
    assert foreign.recalls == 0
    for slot in list(client.ready):
        client.lease(slot)
    assert refusal(idle) == (
        "uid_quota_buffers is 4, uid 1000 has 4 leased, unread and open to read, and asks for 1 more"
    )
    lease(foreign)


def test_who_is_held_back_holds_up_nobody_and_may_cancel(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=2)
    client, other = world.client(), world.client()
    client.answers_recalls = False
    client.get(SMALL, count=2)
    number = client.refill(SMALL)
    world.run()
    assert len(other.get(SMALL, count=2)) == 2
    client.cancel(number)
    world.run()
    assert client.refusals[-1].code == Code.QUOTA
    client.refill(SMALL)
    world.run()
    client.die()
    world.run()
    world.pass_time(1)
    assert not world.broker.lending.quotas.held


def test_many_requests_at_once_do_not_pass_by_one_anothers_back(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=3)
    client = world.client()
    client.answers_recalls = False
    for _ in range(10):
        client.ask_direct(4096)
        client.refill(SMALL)
    world.run()
    world.pass_time(2 * PATIENCE)
    assert len(client.ready) == 3
    assert len(client.refusals) == 17


def test_a_waiter_whose_quota_is_used_up_meanwhile_is_not_served_over_it(make_world: MakeWorld) -> None:
    world = make_world(small_settings(memory_limit=320 * KIB, client_quota_buffers=70))
    client, other = world.client(), world.client()
    for one in (client, other):
        one.answers_recalls = False
    while world.broker.inventory.room >= 4 * KIB:
        other.get()
    client.refill(SMALL)
    client.refill(SMALL)
    world.run()
    world.settings = small_settings(memory_limit=320 * KIB, client_quota_buffers=1)
    world.dispatch(Reconfigured(world.settings))
    other.give_back(*other.ready[:3])
    world.run()
    world.pass_time(2 * PATIENCE)
    assert len(client.ready) == 1


def test_a_reload_turns_quotas_on_and_off(make_world: MakeWorld) -> None:
    world = with_quotas(make_world)
    client = world.client()
    lease(client, 3)
    world.dispatch(Reconfigured(small_settings(memory_limit=900 * KIB, client_quota_buffers=3)))
    refusal(client)
    world.dispatch(Reconfigured(small_settings(memory_limit=900 * KIB)))
    lease(client)


@pytest.fixture
def large_world(make_world: MakeWorld) -> World:
    """Where much is granted, so that a census is taken."""
    settings = small_settings(memory_limit=24 * MIB, max_clients=20, client_quota_buffers=2 * LOOKED_AT)
    return make_world(settings, check_every=50)


def test_where_much_is_granted_the_quota_is_exact_all_the_same(large_world: World) -> None:
    client, reader = large_world.client(), large_world.client()
    while len(client.ready) + len(client.published) < 2 * LOOKED_AT:
        client.get(SMALL, count=40)
        large_world.pass_time(0.1)
    tickets = [client.publish(slot)[0] for slot in list(client.ready)]
    client.refill()
    large_world.run()
    large_world.pass_time(1)
    assert client.refusals.pop().code == Code.QUOTA
    assert all(reader.open(ticket) for ticket in tickets)
    reader.refill()
    large_world.pass_time(FRESH + 0.1)
    assert reader.refusals.pop().code == Code.QUOTA
    client.refill(SMALL, count=3)
    large_world.run()
    large_world.pass_time(1)
    assert len(client.ready) == 3
    reader.release(tickets[0])
    large_world.pass_time(FRESH)
    reader.refill()
    large_world.run()
    large_world.pass_time(1)
    assert len(reader.ready) == 1


def test_a_steady_stream_of_requests_takes_a_census_a_second(large_world: World) -> None:
    client = large_world.client()
    censuses, take = 0, large_world.broker.reports.ledger.take_census

    def counted() -> Any:
        nonlocal censuses
        censuses += 1
        return take()

    large_world.broker.lending.quotas.usage.ledger.take_census = counted  # type: ignore[method-assign]
    while len(client.ready) <= LOOKED_AT:
        client.get(SMALL, count=40)
    for _ in range(150):
        client.give_back(client.ready[-1])
        client.refill()
        soon(large_world)
    assert len(client.ready) > LOOKED_AT
    assert 2 <= censuses <= 3


def test_many_idle_processes_of_a_user_are_recalled_some_at_a_time_and_not_more_often(make_world: MakeWorld) -> None:
    settings = small_settings(memory_limit=24 * MIB, max_clients=220, uid_quota_buffers=200)
    world = make_world(settings, check_every=0)
    idlers = [world.client() for _ in range(200)]
    for idler in idlers:
        idler.answers_recalls = False
        idler.get(SMALL)
    client = world.client()
    with turns_of(world, sent(Recall)) as recalls:
        for _ in range(20):
            client.cancel(client.refill(SMALL))
            world.pass_time(0.001)
        assert sum(recalls) <= RECALLED_PER_TURN + 1
        client.refill(SMALL)
        world.run()
        world.pass_time(PATIENCE + 0.1)
    assert max(recalls) <= RECALLED_PER_TURN + 1 <= 33
    assert all(idler.recalls for idler in idlers)


def test_of_a_users_idle_processes_those_that_have_most_are_recalled_first(make_world: MakeWorld) -> None:
    poor, rich, few = RECALLED_PER_TURN, 4, 3
    settings = small_settings(memory_limit=24 * MIB, max_clients=60, uid_quota_buffers=poor + few * rich)
    world = make_world(settings, check_every=0)
    idlers = [world.client() for _ in range(poor + rich)]
    for number, idler in enumerate(idlers):
        idler.answers_recalls = False
        idler.get(SMALL, count=few if number < rich else 1)
    world.client().refill(SMALL)
    world.run()
    assert sum(idler.recalls for idler in idlers) == RECALLED_PER_TURN
    assert all(idler.recalls for idler in idlers[:rich])


def test_what_a_client_had_is_not_its_users_any_more_once_it_is_gone(make_world: MakeWorld) -> None:
    """Also where that is not counted anew for each request."""
    quota = 2 * LOOKED_AT
    world = make_world(small_settings(memory_limit=24 * MIB, uid_quota_buffers=quota), check_every=50)
    gone, client, other = world.client(), world.client(), sharer(world, uid=2000)
    for who, count in ((gone, quota - 10), (client, 10), (other, LOOKED_AT)):
        while len(who.ready) < count:
            who.get(SMALL, count=count - len(who.ready))
    seat = gone.seat
    gone.die()
    world.run()
    while seat in world.broker.seats.taken:
        world.tick()
    client.refill()
    world.run()
    assert len(client.ready) == 11


def test_the_number_of_a_request_that_was_refused_may_be_used_again(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=1)
    client = world.client()
    lease(client)
    for _ in range(2):
        client.send(Refill(77, SMALL, 1, 1, False))
        world.run()
    assert [(one.request, one.code) for one in client.refusals] == [(77, Code.QUOTA)] * 2 and not client.faults


def test_who_is_over_its_quota_is_told_so_where_there_is_no_memory_either(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=1)
    client, other = world.client(), world.client()
    lease(client)
    other.lease(other.get_direct(world.broker.inventory.room + world.broker.inventory.idle - 4 * KIB))
    assert "client_quota_buffers is 1" in refusal(client, CHUNKS, queue=False)


def test_a_direct_segment_counts_at_its_whole_length(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_bytes=20 * KIB)
    client = world.client()
    client.publish(client.get_direct(16 * KIB), nbytes=100, keep=True)
    assert "this client has 16 KiB leased" in refusal(client, CHUNKS)


def test_what_a_request_costs_does_not_depend_on_how_many_clients_there_are(make_world: MakeWorld) -> None:
    def steps(clients: int) -> int:
        settings = small_settings(memory_limit=24 * MIB, max_clients=clients + 8, client_quota_bytes=20 * MIB)
        world = make_world(settings, check_every=0)
        for _ in range(clients):
            world.client().get(SMALL, count=max(1, 2 * LOOKED_AT // clients))
        client = world.client()
        client.get(SMALL)
        client.give_back(*client.ready)
        world.run()
        assert client.link is not None
        taken = 0

        def trace(frame: FrameType, event: str, argument: object) -> object:
            nonlocal taken
            taken += event == "line"
            return trace

        sys.settrace(trace)
        try:
            world.broker.handle(Received(client.link.number, Refill(9999, SMALL, 1, 1, False)), world.now)
        finally:
            sys.settrace(None)
        return taken

    assert steps(150) <= steps(4) + 20


# --- what is shared ---------------------------------------------------------------------------------


def test_what_is_shared_counts_for_its_maker_while_it_lives_and_for_who_holds_it(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=2)
    maker, reader = sharer(world), sharer(world)
    number, row = shared(maker)
    held = reader.hold(row, world.generation(row))
    world.run()
    for client in (maker, reader):
        lease(client)
        assert "this client has 2 leased" in refusal(client)
    reader.let_go(held)
    lease(reader)
    maker.let_go(number)
    lease(maker)
    assert "this client has 2 leased" in refusal(maker)


def test_who_holds_what_its_dead_maker_has_shared_has_it_alone(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, uid_quota_buffers=2)
    maker, reader = sharer(world, uid=1000), sharer(world, uid=2000)
    _, row = shared(maker)
    reader.hold(row, world.generation(row))
    world.run()
    maker.die()
    world.pass_time(1.0)
    lease(reader)
    assert "uid 2000 has 2 leased" in refusal(reader)
    lease(sharer(world, uid=1000), 2)


def test_several_holds_of_one_object_count_once(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=2)
    maker, reader = sharer(world), sharer(world)
    _, row = shared(maker)
    for _ in range(3):
        reader.hold(row, world.generation(row))
        maker.hold(row, world.generation(row))
    world.run()
    lease(reader)
    lease(maker)
    assert refusal(reader) and refusal(maker)


def test_a_cache_that_nobody_holds_is_nobodys(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=1)
    client = sharer(world)
    cache(client, "it")
    lease(client)
    client.find("it")
    world.run()
    assert "this client has 2 leased" in refusal(client)


def test_many_holds_are_counted_in_turns(make_world: MakeWorld) -> None:
    world = with_quotas(make_world, client_quota_buffers=2)
    maker = sharer(world)
    _, row = shared(maker)
    for _ in range(3):
        reader = sharer(world)
        for _ in range(LOOKED_AT):
            reader.hold(row, world.generation(row))
        world.run()
    lease(reader)
    counted: list[int] = []
    world.broker.chores.begin = counted_by(world.broker.chores.begin, counted)  # type: ignore[method-assign]
    world.pass_time(FRESH)
    assert "has 2 leased" in refusal(reader)
    assert counted


def counted_by(begin: Callable[..., None], counted: list[int]) -> Callable[..., None]:
    def note(chore: Any, now: float, lane: Lane) -> None:
        counted.append(1)
        begin(chore, now, lane)

    return note
