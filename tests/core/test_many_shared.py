"""Many shared publications, holds, turns and waiters for names: no turn is longer for them than its bounds,
and no client makes the broker remember more than its own."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
from harness import CHUNKS, SMALL, World, small_settings, turns_of
from sharers import Sharer, cache, is_there, shared, sharer

from shmpool.protocol.codes import Code
from shmpool.protocol.ledger import CACHED
from shmpool.protocol.messages import Find, Held, Holds, LetGo, Purpose, Recall, Settings
from shmpool.protocol.sizing import MIB
from shmpool.protocol.states import State
from shmpoold.core.actions import Action, Send
from shmpoold.core.chores import STEPS_PER_TURN
from shmpoold.core.connections import clients
from shmpoold.core.events import Reconfigured, StopAsked
from shmpoold.core.lending import evictions
from shmpoold.core.lending.recalls import RECALLED_PER_TURN
from shmpoold.core.looks import LOOKED_AT_PER_TURN
from shmpoold.core.objects import holds, names
from shmpoold.core.objects import shared as shared_objects

LARGE = small_settings(memory_limit=24 * MIB, max_clients=250)


@pytest.fixture
def world(make_world: type[World]) -> World:
    return make_world(LARGE, check_every=0)


def sent(kind: type[object]) -> Callable[[list[Action]], int]:
    return lambda actions: sum(isinstance(action, Send) and isinstance(action.message, kind) for action in actions)


def newly_gone(world: World) -> Callable[[list[Action]], int]:
    """Shared publications that a turn has freed."""
    before = len(world.broker.shared.publications)

    def more(_: list[Action]) -> int:
        nonlocal before
        was, before = before, len(world.broker.shared.publications)
        return was - before

    return more


def share_many(client: Sharer, count: int, **options: float) -> list[int]:
    """So many, held by their maker: their rows."""
    rows = []
    while len(rows) < count:
        client.refill(SMALL, count=min(256, count - len(rows)))
        client.world.run()
        for slot in list(client.ready):
            client.share(slot, **options)  # type: ignore[arg-type]
            rows.append(slot.row)
        client.world.run()
    return rows


def forget(client: Sharer) -> list[int]:
    """Nothing is open here any more, and nobody was told: the numbers of what was held."""
    numbers = list(client.holds)
    for number, (_, _, publication) in client.holds.items():
        del publication.taken[client._key(number)]
    client.holds.clear()
    return numbers


# --- turns ---------------------------------------------------------------------------------------------------


def test_a_turn_frees_no_more_of_what_is_let_go_of_at_once_than_it_looks_at(world: World) -> None:
    client = sharer(world)
    share_many(client, 1000)
    with turns_of(world, newly_gone(world)) as gone:
        client.send(LetGo(forget(client)))
        world.run()
        world.pass_time(0.1)
    assert sum(gone) == 1000
    assert max(gone) <= LOOKED_AT_PER_TURN + STEPS_PER_TURN <= 256


@pytest.mark.parametrize("how", ["dies", "forgets"])
def test_the_holds_of_the_dead_and_what_nobody_tells_again_go_in_turns(world: World, how: str) -> None:
    client = sharer(world)
    rows = share_many(client, 1000)
    with turns_of(world, newly_gone(world)) as gone:
        if how == "dies":
            client.die()
        else:
            client.disconnect()
            forget(client)
            client.connect()
        world.run()
        world.pass_time(1.0)
    assert sum(gone) == 1000 and not any(is_there(world, row) for row in rows)
    assert max(gone) <= STEPS_PER_TURN <= 128


def test_when_the_last_one_has_told_what_nobody_holds_goes_in_turns(world: World) -> None:
    client, silent = sharer(world), sharer(world)
    share_many(client, 1000)
    world.restart()
    world.run()
    forget(client)
    client.reconnect()
    world.run()
    assert len(world.broker.shared.publications) == 1000
    with turns_of(world, newly_gone(world)) as gone:
        silent.reconnect()
        world.run()
        world.pass_time(0.1)
    assert sum(gone) == 1000
    assert max(gone) <= STEPS_PER_TURN <= 128


def test_a_turn_drops_no_more_whose_ttl_is_over_than_dropped_per_turn(world: World) -> None:
    client = sharer(world)
    share_many(client, 500, ttl=5.0)
    client.send(LetGo(forget(client)))
    world.run()
    world.pass_time(1.0)
    kept = []
    for number in range(300):
        (slot,) = client.get(SMALL)
        kept.append(slot.row)
        made = client.share(slot, f"n{number}", keep=CACHED, ttl=5.0)
        world.run()
        client.let_go(made)
    world.run()
    with turns_of(world, newly_gone(world)) as gone:
        world.pass_time(6.0)
    assert sum(gone) == 300 and not any(is_there(world, row) for row in kept)
    assert max(gone) <= shared_objects.DROPPED_PER_TURN <= 64


def test_what_goes_before_its_ttl_is_over_is_not_remembered_until_then(world: World) -> None:
    client = sharer(world)
    for number in range(3000):
        (slot,) = client.get(SMALL)
        made = client.share(slot, ttl=1000.0 + number)
        world.run()
        client.let_go(made)
        world.run()
    expiries = world.broker.shared._expiries
    assert not expiries._at and len(expiries._moments) <= 1024 + 1


@pytest.mark.parametrize("what", ["room", "rows"])
def test_a_turn_gives_up_no_more_caches_than_given_up_at_once(make_world: type[World], what: str) -> None:
    """For a direct segment, which needs room, and for a long run, which needs rows."""
    world = make_world(small_settings(memory_limit=6 * MIB), check_every=0)
    client = sharer(world)
    rows = []
    tier = world.tiers[CHUNKS]
    while len(rows) < tier.capacity and world.broker.inventory.room >= tier.size:
        rows.append(cache(client, f"c{len(rows)}", chunks=1))
    assert len(rows) > 500
    needed = 400
    with turns_of(world, newly_gone(world)) as gone:
        if what == "room":
            client.ask_direct(needed * tier.size)
        else:
            client.refill(CHUNKS, needed)
        world.run()
        world.pass_time(0.5)
    (slot,) = client.ready
    assert len(slot.rows) == (1 if what == "room" else needed)
    assert sum(gone) == world.broker.shared.caches.evictions <= needed
    assert max(gone) <= evictions.GIVEN_UP_AT_ONCE + STEPS_PER_TURN // evictions.GIVING_UP <= 48
    assert [is_there(world, row) for row in rows] == sorted(is_there(world, row) for row in rows), "the oldest first"
    client.lease(slot)
    client.put_back(slot)


def test_a_request_that_is_cancelled_has_no_more_given_up(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=6 * MIB), check_every=0)
    client = sharer(world)
    tier = world.tiers[CHUNKS]
    while world.broker.inventory.room >= tier.size and len(world.broker.shared.publications) < tier.capacity:
        cache(client, f"c{len(world.broker.shared.publications)}", chunks=1)
    number = client.ask_direct(400 * tier.size)
    assert client.link is not None
    world.dispatch(client.link.outbox.popleft())
    client.cancel(number)
    world.run()
    world.pass_time(0.5)
    assert world.broker.shared.caches.evictions <= evictions.GIVEN_UP_AT_ONCE + STEPS_PER_TURN // evictions.GIVING_UP
    assert not client.ready and not world.broker.lending.evictions


def test_a_turn_tells_no_more_who_wait_for_a_name_than_told_at_once(world: World) -> None:
    maker, readers = sharer(world), [sharer(world) for _ in range(200)]
    for reader in readers:
        reader.find("n", queue=True)
    world.run()
    with turns_of(world, sent(Held)) as told:
        shared(maker, "n")
        world.pass_time(0.1)
    assert sum(told) == 201 and all(len(reader.holds) == 1 for reader in readers)
    assert max(told) <= names.TOLD_AT_ONCE + STEPS_PER_TURN // names.TELLING + 1 <= 33


def test_who_waits_for_a_name_that_is_taken_away_meanwhile_waits_on_and_one_makes_it(world: World) -> None:
    maker, readers = sharer(world), [sharer(world) for _ in range(200)]
    for reader in readers:
        reader.find("n", Purpose.MAKE, queue=True)
    world.run()
    (first,) = [reader for reader in readers if reader.turns]
    (slot,) = first.get(SMALL)
    (turn,) = first.turns
    first.share(slot, "n", turn=turn)
    assert first.link is not None
    world.dispatch(first.link.outbox.popleft())
    maker.drop("n")
    assert maker.link is not None
    world.dispatch(maker.link.outbox.popleft())
    world.run()
    world.pass_time(0.1)
    holding = [reader for reader in readers if reader.holds]
    makers = [reader for reader in readers if reader.turns and reader is not first]
    assert 0 < len(holding) < 200 and len(makers) == 1
    shared(makers[0], "n", turn=next(iter(makers[0].turns)))
    world.pass_time(0.1)
    assert all(reader.holds for reader in readers)


def test_a_turn_tells_no_more_clients_of_changed_settings_than_it_has_units(world: World) -> None:
    everybody = [world.client() for _ in range(200)]
    world.run()
    changed = small_settings(memory_limit=24 * MIB, max_clients=250, lease_timeout=7.0)
    with turns_of(world, sent(Settings)) as told:
        world.dispatch(Reconfigured(changed))
        world.run()
        world.pass_time(0.1)
    assert sum(told) == len(everybody)
    assert max(told) <= STEPS_PER_TURN // clients.TELLING <= 16


def test_a_turn_of_a_drain_recalls_from_no_more_clients_than_recalled_per_turn(world: World) -> None:
    holders = [world.client() for _ in range(200)]
    for client in holders:
        client.get(SMALL)
    with turns_of(world, sent(Recall)) as recalls:
        world.dispatch(StopAsked())
        world.run()
        world.pass_time(0.5)
    assert sum(recalls) >= len(holders) and not world.broker.inventory.granted
    assert max(recalls) <= RECALLED_PER_TURN <= 32


# --- what one client may have ------------------------------------------------------------------------------------


def test_a_client_has_no_more_holds_than_most_holds(world: World) -> None:
    maker, greedy = sharer(world), sharer(world)
    _, row = shared(maker, "n")
    generation = world.generation(row)
    with patch.object(holds, "MOST_HOLDS", 100), patch.object(shared_objects, "MOST_HOLDS", 100):
        numbers = [greedy.hold(row, generation) for _ in range(150)]
        world.run()
        assert len(greedy.holds) == 100 == len(world.broker.shared._holds.of(greedy.seat))
        found = greedy.find("n")
        world.run()
        assert greedy.code(found) == Code.QUOTA and greedy.code(numbers[-1]) == Code.QUOTA
        (slot,) = greedy.get(SMALL)
        made = greedy.share(slot, "mine")
        world.run()
        assert greedy.code(made) == Code.QUOTA and not is_there(world, slot.row), "what cannot be held is gone"
        told = [[number, row, generation] for number in range(10_000, 10_200)]
        greedy.send(Holds(told, False))
        world.run()
        assert greedy.faults
    assert holds.MOST_HOLDS == 65_536
    other = maker.find("n")
    world.run()
    assert other in maker.holds


def test_a_client_waits_for_no_more_names_than_most_waiting(world: World) -> None:
    client, other = sharer(world), sharer(world)
    numbers = [client.find(f"n{number}", queue=True) for number in range(1100)]
    world.run()
    assert [client.code(number) for number in numbers[1024:]] == [Code.QUOTA] * 76
    assert names.MOST_WAITING == 1024
    waiting = other.find("n0", queue=True)
    shared(other, "n0")
    world.pass_time(0.1)
    assert numbers[0] in client.holds and waiting in other.holds


@pytest.mark.parametrize("purpose", [Purpose.MAKE, Purpose.CLAIM])
def test_a_client_has_no_more_turns_than_most_turns(world: World, purpose: Purpose) -> None:
    client = sharer(world)
    numbers = [client.find(f"n{number}", purpose) for number in range(1100)]
    world.run()
    assert list(client.turns) == numbers[:1024]
    assert {client.code(number) for number in numbers[1024:]} == {Code.QUOTA}
    client.send(LetGo(numbers[:1024]))
    world.run()
    assert not world.broker.shared.names._makers and not world.broker.shared.names._turns
    again = client.find("n0", purpose)
    world.run()
    assert client.turns[again] == "n0"


def test_a_number_that_is_used_anew_has_the_turn_for_one_name(world: World) -> None:
    client, other = sharer(world), sharer(world)
    client._ask(Find(7, "a", Purpose.MAKE, False))  # type: ignore[arg-type]
    world.run()
    waiting = other.find("a", Purpose.MAKE, queue=True)
    world.run()
    client._ask(Find(7, "b", Purpose.MAKE, False))  # type: ignore[arg-type]
    world.run()
    assert other.turns == {waiting: "a"} and client.turns == {7: "b"}
    client.send(LetGo([7]))
    world.run()
    assert set(world.broker.shared.names._makers) == {"a"}


# --- telling again ---------------------------------------------------------------------------------------------


def test_what_was_told_over_a_connection_that_was_lost_in_the_middle_counts_for_nothing(world: World) -> None:
    """Half of it was told; what was let go of before the next connection is not held for ever."""
    maker, reader = sharer(world), sharer(world)
    made = [shared(maker) for _ in range(2)]
    for _, row in made:
        reader.hold(row, world.generation(row))
    world.run()
    told = [[number, row, generation] for number, (row, generation, _) in reader.holds.items()]
    reader.send(Holds(told[:1], False))
    world.run()
    reader.disconnect()
    reader.let_go(told[0][0])  # nobody hears it
    reader.connect()
    world.run()
    for number, _ in made:
        maker.let_go(number)
    world.run()
    assert [is_there(world, row) for _, row in made] == [False, True]
    assert world.state(made[1][1]) is State.PUBLISHED
