"""A slot that moves between users gets new pages first, where the configuration asks for it."""

from __future__ import annotations

import pytest
from harness import CHUNKS, SMALL, Client, Process, Slot, World, small_settings, turns_of

from shmpool.protocol.sizing import MIB
from shmpool.protocol.states import State
from shmpoold.core.actions import Action, Cool, Warm
from shmpoold.core.chores import STEPS_PER_TURN


@pytest.fixture
def world(make_world: type[World]) -> World:
    world = make_world(small_settings(scrub=True))
    world.keep_actions = True
    return world


def of_user(world: World, uid: int):
    return world.client(process=Process(9000 + uid, 77, uid=uid))


def pages_renewed(world: World) -> list[tuple[type, int, int]]:
    return [(type(a), a.row, a.count) for a in world.actions if isinstance(a, Cool | Warm)]


@pytest.mark.parametrize(("tier", "chunks"), [(SMALL, 1), (CHUNKS, 4)])
def test_another_user_s_slot_gets_new_pages(world: World, tier: int, chunks: int) -> None:
    first, second = of_user(world, 1), of_user(world, 2)
    (slot,) = first.get(tier, chunks)
    first.give_back(slot)
    world.run()
    world.actions.clear()
    (again,) = second.get(tier, chunks)
    assert again.row == slot.row
    cooled = [range(row, row + count) for kind, row, count in pages_renewed(world) if kind is Cool]
    assert sorted(row for rows in cooled for row in rows) == sorted(slot.rows)
    assert [entry for entry in pages_renewed(world) if entry[0] is Warm] == [(Warm, slot.row, chunks)]


def test_the_same_user_s_slot_stays_warm(world: World) -> None:
    first, second = of_user(world, 1), world.client(process=Process(9777, 78, uid=1))
    (slot,) = first.get()
    first.give_back(slot)
    world.run()
    world.actions.clear()
    (again,) = second.get()
    assert again.row == slot.row
    assert pages_renewed(world) == []


def test_a_dead_user_s_slot_gets_new_pages(world: World) -> None:
    first, second = of_user(world, 1), of_user(world, 2)
    (slot,) = first.get()
    first.die()
    world.run()
    world.actions.clear()
    (again,) = second.get()
    assert again.row == slot.row
    assert pages_renewed(world) == [(Cool, slot.row, 1), (Warm, slot.row, 1)]


def test_after_a_restart_nobody_s_pages_are_trusted(world: World) -> None:
    first = of_user(world, 1)
    (slot,) = first.get()
    first.give_back(slot)
    world.run()
    world.restart()
    first.connect()
    world.run()
    world.actions.clear()
    (again,) = first.get()
    assert again.row == slot.row
    assert pages_renewed(world) == [(Cool, slot.row, 1), (Warm, slot.row, 1)]


def test_without_it_pages_stay_whoever_comes(make_world: type[World]) -> None:
    world = make_world(small_settings())
    world.keep_actions = True
    first, second = of_user(world, 1), of_user(world, 2)
    (slot,) = first.get()
    first.give_back(slot)
    world.run()
    world.actions.clear()
    assert second.get()[0].row == slot.row
    assert pages_renewed(world) == []


def cooled(actions: list[Action]) -> int:
    return sum(action.count for action in actions if isinstance(action, Cool))


@pytest.fixture
def large_world(make_world: type[World]) -> World:
    return make_world(small_settings(scrub=True, memory_limit=24 * MIB), check_every=0)


def get_run(client: Client, chunks: int) -> Slot:
    client.refill(CHUNKS, chunks)
    client.world.run()
    client.world.pass_time(0.5)
    client.world.run()
    (run,) = client.ready
    return run


def test_a_long_run_loses_another_user_s_pages_in_turns(large_world: World) -> None:
    world = large_world
    first, second = of_user(world, 1), of_user(world, 2)
    run = get_run(first, 2000)
    first.give_back(run)
    world.run()
    world.pass_time(0.1)
    with turns_of(world, cooled) as turns:
        second.refill(CHUNKS, 2000)
        world.run()
        world.pass_time(0.1)
        world.run()
    assert sum(turns) == 2000 and max(turns) <= STEPS_PER_TURN + 64
    assert [slot.rows for slot in second.ready] == [run.rows]
    world.check()


@pytest.mark.parametrize("end", ["cancel", "die"])
def test_who_leaves_while_pages_are_renewed_leaves_nothing_behind(large_world: World, end: str) -> None:
    world = large_world
    first, second = of_user(world, 1), of_user(world, 2)
    run = get_run(first, 2000)
    first.give_back(run)
    world.run()
    world.pass_time(0.1)
    number = second.refill(CHUNKS, 2000)
    world.run()
    assert world.broker.lending.grants.scrubbing and not second.ready
    world.check()
    second.cancel(number) if end == "cancel" else second.die()
    world.run()
    world.pass_time(0.1)
    world.run()
    assert not world.broker.lending.grants.unfinished_warmings() and not second.ready
    world.check()
    assert get_run(first, 2000)


def test_a_host_that_fills_up_while_pages_are_renewed_is_an_answer(large_world: World) -> None:
    world = large_world
    first, second = of_user(world, 1), of_user(world, 2)
    run = get_run(first, 2000)
    first.give_back(run)
    world.run()
    world.pass_time(0.1)
    world.fail_on = lambda action: isinstance(action, Warm)
    second.refill(CHUNKS, 2000, queue=False)
    world.run()
    world.pass_time(0.1)
    world.run()
    assert second.refusals and not second.ready
    world.check()


def test_memory_that_was_given_back_meanwhile_is_not_renewed_once_more(world: World) -> None:
    first, second = of_user(world, 1), of_user(world, 2)
    slots = first.get(count=3)
    first.give_back(*slots)
    world.run()
    world.pass_time(2 * world.settings.buffer_lifetime)
    assert {world.state(slot.row) for slot in slots} == {State.COLD}
    world.actions.clear()
    again = second.get(count=3)
    assert {slot.row for slot in again} == {slot.row for slot in slots}
    assert {kind for kind, _, _ in pages_renewed(world)} == {Warm}
