"""What is reserved in advance and kept, what is too old, and what follows from memory pressure; time is simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from harness import CHUNKS, MEDIUM, SMALL, SMALL_SIZING, World, small_settings

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Recall, Setting
from shmpool.protocol.messages import Settings as SettingsMessage
from shmpool.protocol.sizing import KIB, MIB, TierKind
from shmpool.protocol.states import State
from shmpoold.core.actions import Cool, Log, Send, Warm
from shmpoold.core.events import MemoryRead, Reconfigured, Started
from shmpoold.core.memory import manager
from shmpoold.core.memory.manager import RETRY
from shmpoold.core.memory.pressure import CALM, Level, Pressure, Room, Thresholds
from shmpoold.core.settings import Allocation, Floor, Settings, UnderPressure

MakeWorld = Callable[..., World]
FLOORS = (Floor(TierKind.POOLED, 4 * KIB, 10), Floor(TierKind.CHUNK, 8 * KIB, 5))
FLOOR_BYTES = 10 * 4 * KIB + 5 * 8 * KIB


def preallocating(strategy: Allocation = Allocation.PREALLOCATE, **changes: Any) -> Settings:
    return small_settings(allocation=strategy, floors=FLOORS, **changes)


def warm(world: World) -> list[int]:
    return [slots.warm for slots in world.broker.inventory.maps[:-1]]


def logged(world: World) -> list[str]:
    return [action.text for action in world.actions if isinstance(action, Log)]


def read(world: World, free: float = 0.5, stalled: float | None = None) -> None:
    """The host has so much of its memory free."""
    total = 1000 * MIB
    world.dispatch(MemoryRead((Room("the host's memory", total, int(free * total), bounds_pool=False),), stalled))
    world.run()


def start(world: World) -> World:
    world.keep_actions = True
    world.dispatch(Started())
    world.run()
    return world


# --- floors --------------------------------------------------------------------------------------


def test_on_demand_reserves_nothing_and_is_ready_at_once(world: World) -> None:
    start(world)
    assert world.broker.manager.is_ready and warm(world) == [0, 0, 0]
    assert world.actions == [] and world.broker.next_deadline() is None


def test_preallocation_comes_before_readiness_in_slices_and_tells_its_progress(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "FILL_SLICE", 8 * KIB)
    world = make_world(preallocating())
    world.keep_actions = True
    world.dispatch(Started())
    assert not world.broker.manager.is_ready
    while world.answer():
        slices = [action for action in world.actions if isinstance(action, Warm)]
        assert len(world.shell) <= 1, "one slice at a time, so that others come between"
    assert world.broker.manager.is_ready and warm(world) == [10, 0, 5]
    assert all(action.count * world.tiers[action.tier].size <= 8 * KIB for action in slices)
    assert world.broker.inventory.held == world.overhead + FLOOR_BYTES
    assert logged(world)[0] == "preallocating 80 KiB" and logged(world)[-1] == "preallocated 80 KiB of 80 KiB"
    assert len(logged(world)) > 5
    client = world.client()
    world.actions.clear()
    client.get(SMALL, count=8)
    assert not any(isinstance(action, Warm) for action in world.actions)


def test_a_hybrid_serves_while_its_floors_are_filled(make_world: MakeWorld) -> None:
    world = make_world(preallocating(Allocation.HYBRID))
    world.dispatch(Started())
    assert world.broker.manager.is_ready and warm(world) == [0, 0, 0]
    client = world.client()
    client.get(MEDIUM)
    world.run()
    assert warm(world) == [10, 1, 5]


def test_what_is_reserved_in_advance_is_not_cooled_and_what_is_above_it_is(make_world: MakeWorld) -> None:
    world = start(make_world(preallocating(buffer_lifetime=5.0)))
    client = world.client()
    client.answers_recalls = False
    client.give_back(*[slot for _ in range(3) for slot in client.get(SMALL, count=8)], *client.get(MEDIUM))
    world.run()
    assert warm(world)[SMALL] > 10
    world.pass_time(12)
    assert warm(world) == [10, 0, 5]
    assert world.states(SMALL)[State.FREE] == 10


def test_a_pool_at_rest_at_its_floors_asks_for_no_more_time(make_world: MakeWorld) -> None:
    world = start(make_world(preallocating(buffer_lifetime=5.0)))
    assert world.pass_time(100) <= 3
    assert world.broker.next_deadline() is None


def test_a_floor_gives_way_to_who_needs_the_room_and_is_filled_again(make_world: MakeWorld) -> None:
    world = start(make_world(preallocating()))
    client = world.client()
    room = world.broker.inventory.room
    segment = client.get_direct(room + 60 * KIB)
    assert sum(warm(world)) < 15
    client.give_back(segment)
    world.run()
    world.pass_time(3 * RETRY)
    assert warm(world)[SMALL] >= 10 and warm(world)[CHUNKS] >= 5


def test_who_waits_comes_before_a_floor(make_world: MakeWorld) -> None:
    world = start(make_world(preallocating()))
    client, other = world.client(), world.client()
    client.answers_recalls = False
    segment = client.get_direct(world.broker.inventory.room + 60 * KIB)
    number = other.ask_direct(200 * KIB)
    world.run()
    world.pass_time(3 * RETRY)
    held = world.broker.inventory.held
    client.give_back(segment)
    world.run()
    assert number not in other.requests and held <= world.broker.inventory.limit


def test_a_host_without_room_ends_the_preparation_with_its_reason(make_world: MakeWorld) -> None:
    world = make_world(preallocating())
    world.host_room = world.overhead + 8 * KIB
    start(world)
    assert not world.broker.manager.is_ready
    assert "no room on this host" in world.broker.manager.failure
    assert any("preallocation stopped at" in text for text in logged(world))
    world.host_room = None
    world.pass_time(2 * RETRY)
    assert world.broker.manager.is_ready and warm(world) == [10, 0, 5]


def test_floors_that_the_limit_has_no_room_for_end_the_preparation_with_that_reason(make_world: MakeWorld) -> None:
    world = start(
        make_world(small_settings(allocation=Allocation.PREALLOCATE, floors=(Floor(TierKind.POOLED, 4 * KIB, 80),)))
    )
    assert not world.broker.manager.is_ready
    assert "no room for it under memory_limit" in world.broker.manager.failure
    assert any("preallocation stopped at" in text for text in logged(world))


def test_while_a_slice_is_filled_there_is_nothing_to_wake_for(make_world: MakeWorld) -> None:
    world = make_world(preallocating())
    world.dispatch(Started())
    assert world.shell
    world.now += 2 * RETRY
    assert world.broker.next_deadline() is None


def test_a_restart_fills_what_is_missing(make_world: MakeWorld) -> None:
    world = make_world(preallocating())
    world.dispatch(Started())
    world.answer()
    world.restart()
    start(world)
    assert world.broker.manager.is_ready and warm(world) == [10, 0, 5]


def test_a_broker_that_dies_while_it_fills_leaves_a_pool_to_take_up(make_world: MakeWorld) -> None:
    world = make_world(preallocating())
    world.dispatch(Started())
    world.restart(finish_shell=True)
    assert world.broker.inventory.held == world.overhead


# --- age -----------------------------------------------------------------------------------------


def test_a_slot_past_its_age_gets_new_pages_when_it_comes_back(make_world: MakeWorld) -> None:
    world = make_world(small_settings(max_buffer_age=60.0, buffer_lifetime=1000.0))
    client = world.client()
    client.answers_recalls = False
    young, old = client.get(SMALL), client.get(SMALL)
    client.give_back(*young)
    world.run()
    assert warm(world)[SMALL] == 2 and world.broker.inventory.retired == 0
    world.pass_time(61)
    world.keep_actions = True
    client.give_back(*old)
    world.run()
    assert [action for action in world.actions if isinstance(action, Cool)] == [Cool(SMALL, old[0].row, 1)]
    assert world.state(old[0].row) is State.COLD
    assert world.broker.manager.figures()["retired"] == 1
    assert client.get(SMALL)[0].row in (young[0].row, old[0].row)


def test_a_run_past_its_age_is_retired_as_a_whole(make_world: MakeWorld) -> None:
    world = make_world(small_settings(max_buffer_age=60.0))
    client = world.client()
    run = client.get(CHUNKS, chunks=5)
    world.pass_time(61)
    client.give_back(*run)
    world.run()
    assert warm(world)[CHUNKS] == 0 and world.broker.inventory.held == world.overhead
    assert world.broker.inventory.retired == 5


def test_a_chain_of_spares_does_not_outlive_the_age(make_world: MakeWorld) -> None:
    world = make_world(small_settings(max_buffer_age=2.0, memory_limit=4 * MIB))
    client = world.client()
    for _ in range(40):
        client.give_back(client.get_direct(64 * KIB))
        world.run()
        world.pass_time(0.1)
    assert 1 <= world.broker.inventory.retired <= 3


def test_the_age_may_change_by_a_reload(world: World) -> None:
    client = world.client()
    slots = client.get(SMALL)
    world.pass_time(61)
    world.dispatch(Reconfigured(replace(world.settings, max_buffer_age=60.0)))
    client.give_back(*slots)
    world.run()
    assert world.state(slots[0].row) is State.COLD


# --- the levels ----------------------------------------------------------------------------------

HOST = Room("the host's memory", 1000, 500)


def judge(free: int = 500, stalled: float | None = None, *, room: Room = HOST, held: int = 0) -> Level:
    pressure = Pressure(Thresholds())
    pressure.read((room._replace(free=free),), stalled, held, 0.0)
    return pressure.level


@pytest.mark.parametrize(
    ("free", "level"),
    [(1000, Level.NORMAL), (100, Level.NORMAL), (99, Level.ELEVATED), (40, Level.ELEVATED), (39, Level.CRITICAL),
     (-5, Level.CRITICAL)],
)  # fmt: skip
def test_little_free_memory_is_pressure(free: int, level: Level) -> None:
    assert judge(free) is level


@pytest.mark.parametrize(
    ("stalled", "level"),
    [(None, Level.NORMAL), (0.2, Level.NORMAL), (0.21, Level.ELEVATED), (0.61, Level.CRITICAL)],
)
def test_tasks_that_wait_for_memory_are_pressure(stalled: float | None, level: Level) -> None:
    assert judge(500, stalled) is level


@pytest.mark.parametrize(
    ("free", "held", "level"),
    [(1, 999, Level.NORMAL), (100, 100, Level.NORMAL), (5, 900, Level.ELEVATED), (0, 500, Level.ELEVATED)],
)
def test_a_full_shm_is_others_memory_and_never_critical(free: int, held: int, level: Level) -> None:
    assert judge(free, room=Room("/dev/shm", 1000, 0, is_shm=True), held=held) is level


def test_thresholds_of_nothing_are_never_crossed() -> None:
    pressure = Pressure(Thresholds((0.0, 0.0), (1.0, 1.0)))
    pressure.read((HOST._replace(free=0),), 1.0, 0, 0.0)
    assert pressure.level is Level.NORMAL


def test_it_rises_at_once_and_falls_slowly_and_not_at_the_threshold() -> None:
    pressure = Pressure(Thresholds())
    levels = []
    course = [(500, 0), (30, 1), (45, 2), (45, 20), (60, 21), (60, 23), (45, 24), (60, 25), (60, 29), (60, 30.1),
              (110, 40), (110, 60), (130, 61), (130, 65.9), (130, 66)]  # fmt: skip
    for free, now in course:
        pressure.read((HOST._replace(free=free),), None, 0, now)
        levels.append(pressure.level.value)
    assert levels == [0, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 0]
    assert CALM == 5.0
    assert [pressure.changes[level] for level in Level] == [1, 1, 1]


def test_a_short_place_is_named_with_its_figures() -> None:
    pressure = Pressure(Thresholds())
    pressure.read((Room("the cgroup /a", 100 * MIB, 3 * MIB),), None, 0, 0.0)
    assert pressure.why == "the cgroup /a has 3 MiB free of 100 MiB"


def test_a_host_that_shrank_below_the_limit_is_an_alert() -> None:
    pressure = Pressure(Thresholds())
    pressure.read((Room("/dev/shm", 64 * MIB, 30 * MIB, is_shm=True),), None, 20 * MIB, 0.0)
    assert pressure.shortfall(50 * MIB, 20 * MIB) == ""
    text = pressure.shortfall(64 * MIB, 20 * MIB)
    assert "memory_limit is 64 MiB and 20 MiB are held, but /dev/shm has only 30 MiB left" in text


# --- what follows --------------------------------------------------------------------------------


def test_elevated_cools_what_is_idle_and_recalls_what_magazines_hold(make_world: MakeWorld) -> None:
    world = start(make_world(preallocating(buffer_lifetime=1000.0)))
    client = world.client()
    client.give_back(*client.get(SMALL, count=8), *client.get(SMALL, count=8), *client.get(MEDIUM, count=2))
    idle = client.get(SMALL, count=4)
    world.run()
    world.actions.clear()
    read(world, 0.08)
    recalled = [a for a in world.actions if isinstance(a, Send) and isinstance(a.message, Recall)]
    assert recalled and all(world.state(slot.row) is not State.IDLE for slot in idle)
    read(world, 0.08)  # what came back by the recall
    world.pass_time(1)
    assert warm(world) == [10, 0, 5]
    assert logged(world) == ["memory pressure is elevated: the host's memory has 80 MiB free of 1000 MiB"]
    assert world.broker.manager.figures()["pressure"] == "elevated"
    assert world.broker.inventory.room > 0, "it may still grow"


def test_critical_gives_up_floors_too_and_stops_growth(make_world: MakeWorld) -> None:
    world = start(make_world(preallocating()))
    client = world.client()
    client.lease(client.get(MEDIUM)[0])
    read(world, 0.01)
    world.pass_time(0.1)
    read(world, 0.01)
    assert warm(world)[SMALL] == warm(world)[CHUNKS] == 0
    held = world.broker.inventory.held
    client.refill(MEDIUM, count=4)
    client.ask_direct(64 * KIB, queue=False)
    world.run()
    assert world.broker.inventory.held == held and len(client.requests) == 1, "the one waits, the other is refused"
    (refusal,) = client.refusals
    assert refusal.code == Code.SHM_FULL
    assert "does not grow while the host is short of memory: the host's memory has 10 MiB free" in refusal.text
    assert any("memory pressure is critical" in text for text in world.broker.manager.alerts())
    read(world)  # the margin must hold for a while
    assert client.requests
    world.now += CALM + 1
    read(world)
    world.pass_time(3)
    read(world)
    world.pass_time(3 * RETRY)
    assert not client.requests and world.broker.manager.figures()["pressure"] == "normal"
    assert warm(world)[SMALL] == 10 and warm(world)[CHUNKS] == 5


def test_what_is_held_serves_on_under_critical_pressure(world: World) -> None:
    client = world.client()
    slots = client.get(SMALL, count=4)
    client.lease(slots[0])
    read(world, 0.01)
    client.put_back(client.leased[0])
    client.give_back(*client.ready)
    held = world.broker.inventory.held
    world.run()
    assert client.get(SMALL) and world.broker.inventory.held <= held


def test_refuse_lets_nobody_wait_for_growth(make_world: MakeWorld) -> None:
    world = make_world(small_settings(under_pressure=UnderPressure.REFUSE))
    client = world.client()
    client.lease(client.get(MEDIUM)[0])
    read(world, 0.01)
    client.refill(SMALL, queue=True)
    world.run()
    assert not client.requests and [refusal.code for refusal in client.refusals] == [Code.SHM_FULL]
    world.now += 1
    read(world)
    world.now += CALM
    read(world)
    client.get(SMALL)


@pytest.mark.parametrize("fallback", [False, True])
def test_direct_tells_the_clients_and_lets_segments_be_made(make_world: MakeWorld, fallback: bool) -> None:
    world = make_world(small_settings(under_pressure=UnderPressure.DIRECT, fallback=fallback))
    world.keep_actions = True
    client = world.client()
    read(world, 0.01)
    told = [a.message for a in world.actions if isinstance(a, Send) and isinstance(a.message, SettingsMessage)]
    assert told == [SettingsMessage([[Setting.PREFERS_DIRECT, 1]])]
    client.get_direct(64 * KIB)
    client.refill(SMALL, queue=False)
    world.run()
    if fallback:  # what asks for a slot may have a segment too
        assert client.ready[-1].tier.kind is TierKind.DIRECT
    else:
        assert [refusal.code for refusal in client.refusals] == [Code.SHM_FULL]
    for _ in range(2):
        world.now += CALM
        read(world)
    told = [a.message for a in world.actions if isinstance(a, Send) and isinstance(a.message, SettingsMessage)]
    assert told[-1] == SettingsMessage([[Setting.PREFERS_DIRECT, 0]])


def test_thresholds_and_policy_may_change_by_a_reload(make_world: MakeWorld) -> None:
    world = make_world(small_settings())
    client = world.client()
    read(world, 0.01)
    world.dispatch(Reconfigured(replace(world.settings, under_pressure=UnderPressure.REFUSE)))
    client.refill(SMALL, queue=True)
    world.run()
    assert client.refusals
    world.dispatch(Reconfigured(replace(world.settings, thresholds=Thresholds((0.0, 0.0)))))
    for _ in range(2):
        world.now += CALM
        read(world, 0.01)
    client.get(SMALL)


def test_levels_are_counted() -> None:
    world = World(small_settings(sizing=SMALL_SIZING))
    for free in (0.5, 0.08, 0.01, 0.01):
        read(world, free)
    assert world.broker.manager.figures()["pressure_changes"] == {"normal": 0, "elevated": 1, "critical": 1}


def test_critical_pressure_makes_clients_prefer_direct_segments_only_where_that_is_the_policy(world: World) -> None:
    read(world, 0.01)
    assert not world.broker.manager.prefers_direct
    world.dispatch(Reconfigured(replace(world.settings, under_pressure=UnderPressure.DIRECT)))
    assert world.broker.manager.prefers_direct
    for _ in range(2):
        world.now += CALM
        read(world)
    assert not world.broker.manager.prefers_direct


def test_a_place_that_is_not_there_is_not_short() -> None:
    assert judge(0, room=HOST._replace(total=0)) is Level.NORMAL
