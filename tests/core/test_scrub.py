"""A slot that moves between users gets new pages first, where the configuration asks for it."""

from __future__ import annotations

import pytest
from harness import CHUNKS, SMALL, Process, World, small_settings

from shmpoold.core.actions import Cool, Warm


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
