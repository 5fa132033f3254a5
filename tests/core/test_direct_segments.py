"""Direct segments: their cap, their names, their end."""

from __future__ import annotations

import pytest
from harness import DIRECT, World, small_settings

from shmpool.protocol.codes import Code
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State
from shmpoold.core.actions import CreateDirect, RemoveDirect


def test_a_direct_segment_holds_whole_pages_of_the_cap(world: World) -> None:
    client = world.client()
    slot = client.get_direct(4097)
    assert world.direct == {(slot.row, slot.generation): 8 * KIB}
    assert world.broker.inventory.held == world.overhead + 8 * KIB


@pytest.mark.parametrize("nbytes", [0, 1, 4096])
def test_the_smallest_direct_segment_is_a_page(world: World, nbytes: int) -> None:
    world.client().get_direct(nbytes)
    assert list(world.direct.values()) == [4096]


def test_the_cap_is_credited_after_the_last_ticket_is_done(world: World) -> None:
    publisher, reader = world.client(), world.client()
    tickets = publisher.publish(publisher.get_direct(50 * KIB), 3)
    world.run()
    held = world.broker.inventory.held
    for ticket in tickets:
        assert world.broker.inventory.held == held
        assert reader.open(ticket)
        reader.release(ticket)
        world.run()
    assert world.broker.inventory.held == held - 52 * KIB
    assert world.direct == {}


def test_no_name_is_used_twice(world: World) -> None:
    world.keep_actions = True
    client, reader = world.client(), world.client()
    for _ in range(4):
        (ticket,) = client.publish(client.get_direct(4096))
        world.run()
        reader.open(ticket)
        reader.release(ticket)
        world.run()
        client.lease(client.get_direct(4096))
        client.put_back(client.leased[0])
        world.run()
    made = [action for action in world.actions if isinstance(action, CreateDirect)]
    names = [(action.row, action.generation) for action in made if action.spare is None]
    assert len(made) == 8 and len(names) == len(set(names)) >= 2
    world.pass_time(1.0)
    assert all(action.spare[:2] in names for action in made if action.spare is not None)
    removed = [(action.row, action.generation) for action in world.actions if isinstance(action, RemoveDirect)]
    assert sorted(removed) == sorted(names)


def test_a_segment_that_was_not_published_is_removed_when_it_is_given_back(world: World) -> None:
    client = world.client()
    client.lease(client.get_direct(4096))
    client.put_back(client.leased[0])
    world.run()
    assert world.direct == {}
    assert world.broker.inventory.granted == {}


def test_a_segment_larger_than_the_pool_can_ever_hold_is_refused(world: World) -> None:
    client = world.client()
    client.ask_direct(world.settings.memory_limit - world.overhead + 1)
    client.ask_direct((1 << 40) - 1)
    world.run()
    assert [refusal.code for refusal in client.refusals] == [Code.TOO_LARGE] * 2
    assert "memory_limit" in client.refusals[0].text


def test_a_segment_as_large_as_the_whole_cap_is_granted(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(count=8))  # warm and idle: cooled for it
    world.run()
    client.get_direct(world.settings.memory_limit - world.overhead)
    assert world.broker.inventory.room == 0
    assert world.states(0)[State.FREE] == 0


def test_a_segment_over_the_cap_waits_for_memory(world: World) -> None:
    client, other = world.client(), world.client()
    large = (world.settings.memory_limit - world.overhead) // 4096 * 4096
    slot = client.lease(client.get_direct(large))
    other.ask_direct(large)
    world.run()
    assert other.ready == [] and other.refusals == []
    client.put_back(slot)
    world.run()
    assert [granted.tier.index for granted in other.ready] == [DIRECT]


def test_a_segment_waits_when_all_rows_are_used(make_world: type[World]) -> None:
    world = make_world(small_settings(), direct_rows=2)
    client, other = world.client(), world.client()
    client.lease(client.get_direct(1))
    client.lease(client.get_direct(1))
    other.ask_direct(1)
    world.run()
    assert other.ready == []
    client.put_back(client.leased[1])
    world.run()
    assert len(other.ready) == 1


def test_a_segment_that_cannot_be_made_is_refused_with_the_reason_and_costs_nothing(world: World) -> None:
    client = world.client()
    world.fail_on = lambda action: isinstance(action, CreateDirect)
    client.ask_direct(8 * KIB)
    world.run()
    assert [refusal.code for refusal in client.refusals] == [Code.SHM_FULL]
    assert "no room on this host" in client.refusals[0].text
    assert world.broker.inventory.held == world.overhead
    assert world.states(DIRECT)[State.FREE] == world.tiers[DIRECT].capacity


@pytest.mark.parametrize("how", ["cancel", "disconnect", "die"])
def test_a_segment_made_for_who_has_gone_is_removed(world: World, how: str) -> None:
    client = world.client()
    number = client.ask_direct(8 * KIB)
    world.deliver()
    if how == "cancel":
        client.cancel(number)
    elif how == "disconnect":
        client.disconnect()
    else:
        client.die()
    while world.deliver() or world.run_news():
        pass
    world.run()
    assert world.direct == {} and world.broker.inventory.granted == {}
    assert world.broker.inventory.held == world.overhead


def test_a_dead_writers_segment_is_removed(world: World) -> None:
    client = world.client()
    client.lease(client.get_direct(8 * KIB))
    client.die()
    world.run()
    assert world.direct == {}
    world.assert_all_is_back()


def test_a_dead_publishers_segment_stays_for_its_reader(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get_direct(8 * KIB))
    client.die()
    world.run()
    assert reader.open(ticket)
    reader.release(ticket)
    world.run()
    assert world.direct == {}


def test_a_living_publishers_segment_is_never_expired_by_time(world: World) -> None:
    client = world.client()
    client.publish(client.get_direct(8 * KIB))
    world.run()
    world.pass_time(2 * world.settings.handle_ttl)
    assert len(world.direct) == 1


def test_orphaned_segments_are_told_from_those_that_rows_name(world: World) -> None:
    client = world.client()
    slot = client.get_direct(1)
    client.publish(client.get_direct(1))
    (used, published) = world.broker.inventory.direct_segments()
    assert {used, published} == set(world.direct)
    assert (slot.row, slot.generation) in world.direct
