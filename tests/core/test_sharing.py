"""Shared publications in the core: who holds what, over deaths and restarts, in any order; names and whose
turn it is; who may drop; what caches give up."""

from __future__ import annotations

import random

import pytest
from harness import CHUNKS, SMALL, World, small_settings
from sharers import cache, is_there, shared, sharer

from shmpool.protocol.codes import Code
from shmpool.protocol.ledger import (
    CACHED,
    FIRST_CELL,
    KEPT,
    ROW_WORDS,
    grant_word,
    shared_facts,
)
from shmpool.protocol.messages import Bell, LetGo, Purpose, Share
from shmpool.protocol.sizing import KIB, TierKind
from shmpool.protocol.states import CellState


@pytest.mark.parametrize("kind", ["pooled", "run", "direct"])
def test_it_lives_as_long_as_somebody_holds_it(world: World, kind: str) -> None:
    maker, reader = sharer(world), sharer(world)
    slot = maker.get_direct(9000) if kind == "direct" else maker.get(*((CHUNKS, 3) if kind == "run" else (SMALL,)))[0]
    made = maker.share(slot, "x" * 96)
    world.run()
    first = reader.find("x" * 96)
    world.run()
    second = reader.hold(slot.row, world.generation(slot.row))
    world.run()
    assert set(reader.holds) == {first, second}
    for client, number in ((maker, made), (reader, second), (reader, first)):
        assert is_there(world, slot.row)
        client.let_go(number)
        world.run()
    assert not is_there(world, slot.row)
    late = reader.hold(slot.row, slot.generation)
    missing = reader.find("x" * 96)
    world.run()
    assert reader.code(late) == reader.code(missing) == Code.NOT_FOUND


def test_names_that_look_like_tickets_are_no_tickets(world: World) -> None:
    maker, other = sharer(world), sharer(world)
    taken = grant_word(0, CellState.TAKEN, other.seat).to_bytes(8, "little").decode()
    number, row = shared(maker, taken * 12)
    other.die()
    world.run()
    assert shared_facts(list(world.ledger[row * ROW_WORDS + FIRST_CELL :][:13]))[0] == taken * 12
    maker.let_go(number)
    world.run()
    assert not is_there(world, row)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_maker_that_dies_leaves_it_to_those_who_hold_it(world: World, is_told: bool) -> None:
    maker, reader = sharer(world), sharer(world)
    (slot,) = maker.get(SMALL)
    maker.share(slot, "name", tell=is_told)
    world.run()
    assert is_there(world, slot.row)
    if is_told:
        number = reader.find("name")
        world.run()
        assert number in reader.holds
    maker.die()
    world.run()
    assert is_there(world, slot.row) == is_told
    reader.die()
    world.run()
    assert not is_there(world, slot.row)


def test_a_hold_of_a_seat_that_has_ended_lasts_as_long_as_its_children_read(world: World) -> None:
    maker, reader = sharer(world), sharer(world)
    number, row = shared(maker)
    reader.hold(row, world.generation(row))
    world.run()
    maker.let_go(number)
    world.read_by_children.add(reader.seat)
    reader.die()
    world.run()
    world.pass_time(5)
    assert is_there(world, row)
    world.read_by_children.clear()
    world.pass_time(5)
    assert not is_there(world, row)


def test_after_a_restart_nothing_is_freed_before_everybody_has_told(world: World) -> None:
    maker, reader, other = sharer(world), sharer(world), sharer(world)
    number, row = shared(maker, "a")
    reader.find("a")
    world.run()
    kept, kept_row = shared(other, "kept", keep=KEPT)
    _, lost = shared(other)
    world.restart()
    world.run()
    maker.reconnect()
    world.run()
    maker.let_go(number)
    other.reconnect()
    world.run()
    other.let_go(kept)
    world.run()
    assert all(is_there(world, at) for at in (row, kept_row, lost))
    assert world.broker.shared.untold == {reader.seat}
    late = other.find("a")
    world.run()
    assert late in other.holds
    reader.die()
    world.run()
    assert not world.broker.shared.untold
    other.let_go(late)
    world.run()
    assert [is_there(world, at) for at in (row, kept_row, lost)] == [False, True, True]
    assert other.drop("kept")
    world.run()
    assert not is_there(world, kept_row)


def test_a_word_that_was_lost_with_the_connection_is_made_good(world: World) -> None:
    maker, reader = sharer(world), sharer(world)
    number, row = shared(maker)
    reader.hold(row, world.generation(row))
    world.run()
    reader.disconnect()
    for mine in list(reader.holds):
        reader.let_go(mine)  # nobody hears it
    reader.connect()
    world.run()
    maker.let_go(number)
    world.run()
    assert not is_there(world, row)


# --- names -------------------------------------------------------------------------------------------------


def test_one_at_a_time_has_the_turn_and_hands_it_on(world: World) -> None:
    first, second, third, reader = (sharer(world) for _ in range(4))
    a = first.find("n", Purpose.MAKE, queue=True)
    world.run()
    assert first.turns == {a: "n"}
    b, c = second.find("n", Purpose.MAKE, queue=True), third.find("n", Purpose.MAKE, queue=True)
    waiting, impatient = reader.find("n", queue=True), reader.find("n", Purpose.MAKE)
    taken = reader.find("n", Purpose.CLAIM)
    world.run()
    assert reader.code(impatient) == Code.NOT_FOUND
    assert reader.code(taken) == Code.NAME_TAKEN
    assert not second.turns
    first.die()  # before anything of it is settled, the next one has it
    world.run()
    assert second.turns == {b: "n"}
    second.send(LetGo([b]))
    world.run()
    assert third.turns == {c: "n"}
    (slot,) = third.get(SMALL)
    number = third.share(slot, "n", turn=c)
    world.run()
    assert number in third.holds
    assert waiting in reader.holds


def test_a_name_that_is_taken_meanwhile_costs_the_second_its_publication(world: World) -> None:
    first, second = sharer(world), sharer(world)
    shared(first, "n")
    (slot,) = second.get(SMALL)
    number = second.share(slot, "n")
    world.run()
    assert second.code(number) == Code.NAME_TAKEN
    assert not is_there(world, slot.row)


def test_who_waits_for_a_name_may_give_up_or_go_away(world: World) -> None:
    client, other = sharer(world), sharer(world)
    number = client.find("n", queue=True)
    other.find("n", queue=True)
    world.run()
    client.cancel(number)
    other.disconnect()
    world.run()
    assert client.code(number) == Code.NOT_FOUND
    assert not world.broker.shared.names._lines and not world.broker.shared.names._waiting
    other.connect()
    world.run()
    made, _ = shared(client, "n")
    assert len(other.holds) == 1
    client.let_go(made)


def test_another_user_finds_and_holds_and_only_its_maker_s_user_and_root_drop(world: World) -> None:
    maker, other, root = sharer(world, 1000), sharer(world, 2000), sharer(world, 0)
    number, row = shared(maker, "n", keep=KEPT)
    assert shared_facts(list(world.ledger[row * ROW_WORDS + FIRST_CELL :][:13]))[1] == 1000  # not what it wrote
    found = other.find("n")
    refused = other.drop("n")
    world.run()
    assert found in other.holds
    assert other.code(refused) == Code.FORBIDDEN
    world.restart()
    for client in (maker, other, root):
        client.reconnect()
    world.run()
    refused = other.drop("n")
    allowed = root.drop("n")
    world.run()
    assert other.code(refused) == Code.FORBIDDEN
    assert root.dropped == [allowed]
    maker.let_go(number)
    other.let_go(found)
    world.run()
    assert not is_there(world, row)


def test_a_name_that_was_dropped_is_none_for_the_next_broker_either(world: World) -> None:
    maker, other = sharer(world), sharer(world)
    number, row = shared(maker, "n", keep=KEPT)
    maker.drop("n")
    world.run()
    world.restart()
    for client in (maker, other):
        client.reconnect()
    world.run()
    found = other.find("n", Purpose.MAKE)
    world.run()
    assert found in other.turns and found not in other.holds
    maker.let_go(number)
    world.run()
    assert not is_there(world, row)


@pytest.mark.parametrize("is_direct", [False, True])
def test_a_name_is_found_at_the_next_broker_though_nobody_tells_of_it_again(world: World, is_direct: bool) -> None:
    maker, other = sharer(world), sharer(world)
    number = maker.share(maker.get_direct(9000) if is_direct else maker.get(SMALL)[0], "n")
    world.run()
    assert number in maker.holds
    world.restart()
    for client in (maker, other):
        client.reconnect()
    world.run()
    found = other.find("n")
    world.run()
    assert found in other.holds


def test_holds_are_counted_while_they_last(world: World) -> None:
    maker, other = sharer(world), sharer(world)
    number, row = shared(maker)
    for expected in (2, 1):
        if expected == 2:
            held = other.hold(row, world.generation(row))
            world.run()
        else:
            other.let_go(held)
            world.run()
        assert world.broker.shared.summary()["holds"] == expected
    maker.let_go(number)
    world.run()
    assert world.broker.shared.summary()["holds"] == 0


# --- caches ------------------------------------------------------------------------------------------------


def test_caches_are_given_up_before_anything_waits_and_the_least_recently_held_first() -> None:
    world = World(small_settings())
    client = sharer(world)
    rows = {}
    while world.broker.inventory.room >= 3 * world.tiers[CHUNKS].size:
        rows[f"c{len(rows)}"] = cache(client, f"c{len(rows)}", chunks=2)
    assert len(rows) >= 3
    kept = client.find("c0")
    world.run()
    touched = client.find("c1")
    world.run()
    client.let_go(touched)
    world.run()
    before = set(rows)
    (slot,) = client.get(CHUNKS, 3)
    gone = {name for name in before if not is_there(world, rows[name])}
    assert gone
    assert "c0" not in gone
    assert gone <= before - {"c0"}
    assert "c1" not in gone or gone == before - {"c0"}
    assert world.broker.shared.caches.evictions == len(gone)
    client.lease(slot)
    client.put_back(slot)
    client.let_go(kept)


def rungs(world: World) -> dict[str, int]:
    return {rung.value: count for rung, count in world.broker.lending.ladder.served.items() if count}


@pytest.mark.parametrize("is_direct", [False, True])
def test_what_caches_made_room_for_is_counted_under_their_rung(is_direct: bool) -> None:
    world = World(small_settings())
    client = sharer(world)
    size = world.tiers[CHUNKS].size
    while world.broker.inventory.room >= 2 * size:
        cache(client, f"c{world.broker.inventory.room}")
    served = world.broker.lending.ladder.served
    served.update(dict.fromkeys(served, 0))
    if is_direct:
        slot = client.get_direct(3 * size)
    else:
        (slot,) = client.get(CHUNKS, 3)
    assert world.broker.shared.caches.evictions
    assert rungs(world) == {"evict": 1}
    client.lease(slot)
    client.put_back(slot)


def test_what_needed_idle_slots_besides_caches_is_counted_under_theirs() -> None:
    world = World(small_settings())
    client = sharer(world)
    size = world.tiers[CHUNKS].size
    cache(client, "c")
    others = [client.get(SMALL)[0] for _ in range(4 * size // world.tiers[SMALL].size)]
    client.give_back(*others)
    served = world.broker.lending.ladder.served
    served.update(dict.fromkeys(served, 0))
    slot = client.get_direct(world.broker.inventory.room + 4 * size)
    assert world.broker.shared.caches.evictions == 1
    assert rungs(world) == {"cool": 1}
    client.lease(slot)
    client.put_back(slot)


def test_a_cache_is_not_given_up_in_vain() -> None:
    world = World(small_settings())
    client = sharer(world)
    row = cache(client, "c")
    number = client.ask_direct(world.settings.memory_limit - world.overhead - 4 * KIB, queue=False)
    world.run()
    slots = [slot for slot in client.ready if slot.tier.kind is TierKind.DIRECT]
    if slots:  # all of it could be had, with what the cache gave up
        assert not is_there(world, row)
        client.lease(slots[0])
        client.put_back(slots[0])
    busy = client.get_direct(world.settings.memory_limit // 2)
    row = cache(client, "d")
    number = client.ask_direct(world.settings.memory_limit // 2, queue=False)
    world.run()
    assert client.code(number) == Code.EXHAUSTED
    assert is_there(world, row)
    client.lease(busy)
    client.put_back(busy)
    world.run()
    client.drop("d")
    world.run()
    assert not is_there(world, row)


def test_a_cache_is_not_given_up_for_rows_where_there_is_no_memory_either(world: World) -> None:
    client = sharer(world)
    row = cache(client, "c")
    client.get(CHUNKS, 30)
    slots = world.broker.inventory.maps[CHUNKS]
    assert slots.unused < 12 and 12 * slots.tier.size > world.broker.inventory.room + 2 * slots.tier.size
    number = client.refill(CHUNKS, 12, queue=False)
    world.run()
    assert client.code(number) == Code.EXHAUSTED
    assert is_there(world, row)


def test_for_rows_a_cache_of_their_tier_is_given_up(world: World) -> None:
    client = sharer(world)
    earlier, later = cache(client, "runs"), cache(client, "slots", SMALL, 1)
    assert world.broker.shared.give_up(SMALL, world.now) == 4 * KIB
    assert is_there(world, earlier) and not is_there(world, later)
    assert world.broker.shared.give_up(SMALL, world.now) == 0
    assert world.broker.shared.give_up(None, world.now)
    assert not is_there(world, earlier)


def test_a_ttl_ends_what_nobody_holds_and_the_name_of_what_is_held(world: World) -> None:
    client = sharer(world)
    row = cache(client, "c", ttl=3.0)
    number, held = shared(client, "k", keep=KEPT, ttl=3.0)
    world.pass_time(2.5)
    assert is_there(world, row)
    world.pass_time(1)
    assert not is_there(world, row)
    assert is_there(world, held)
    assert "k" not in world.broker.shared.names
    client.let_go(number)
    world.run()
    assert not is_there(world, held)


# --- anything ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_what_is_held_stays_and_the_rest_comes_back(seed: int) -> None:
    """The world checks at every action that nothing is given to two, or freed under a holder."""
    chance, world = random.Random(seed), World(small_settings())
    clients = [sharer(world) for _ in range(4)]
    names = ["a", "b", "c"]

    def step() -> None:
        index = chance.randrange(len(clients))
        client, what = clients[index], chance.random()
        if client.is_over:
            clients[index] = sharer(world)
        elif not client.is_welcome:
            client.reconnect()
        elif what < 0.3:
            is_direct = chance.random() < 0.2
            client.ask_direct(5000, queue=False) if is_direct else client.refill(queue=False)
            world.run()
            if client.ready:
                slot = chance.choice(client.ready)
                name, keep = chance.choice(["", *names]), chance.choice([0, 0, KEPT, CACHED])
                client.share(slot, name, keep=keep, ttl=chance.choice([0, 2.0]), tell=chance.random() < 0.9)
        elif what < 0.5:
            client.find(chance.choice(names), chance.choice(list(Purpose)), queue=chance.random() < 0.5)
        elif what < 0.7 and client.holds:
            client.let_go(chance.choice(list(client.holds)))
        elif what < 0.75 and client.turns:
            client.send(LetGo([client.turns.popitem()[0]]))
        elif what < 0.8:
            client.drop(chance.choice(names))
        elif what < 0.84:
            client.disconnect()
        elif what < 0.87:
            client.die()
        elif what < 0.9:
            world.restart()
        elif what < 0.95:
            world.pass_time(1)
        else:
            others = [one for one in clients if one.holds]
            if others:
                row, generation, _ = chance.choice(list(chance.choice(others).holds.values()))
                client.hold(row, generation)
        if chance.random() < 0.7:
            world.run()

    for _ in range(120):
        step()
    for client in clients:
        if not client.is_over:
            client.reconnect()
    world.run()
    ending = sharer(world, 0)
    for name in names:
        ending.drop(name)
    world.run()


def test_a_direct_one_is_its_maker_s_for_the_next_broker_too(world: World) -> None:
    maker = sharer(world)
    slots = [maker.get_direct(64 * KIB), *maker.get(SMALL, count=2)]
    for slot in slots:
        maker.share(slot)
    world.run()
    world.restart()
    assert world.broker.shared.published_by(maker.seat) == [slots[0].row]
    assert not world.broker.shared.published_by(maker.seat + 1)


def test_one_that_is_rung_for_before_it_is_told_of_is_no_publication_with_tickets(world: World) -> None:
    maker = sharer(world)
    (slot,) = maker.get(SMALL)
    number = maker.share(slot, "a", tell=False)
    maker.send(Bell([slot.row]))
    world.run()
    assert slot.row in world.broker.shared.publications and is_there(world, slot.row)
    maker._ask(Share(number, slot.row, 0, 0))
    world.run()
    maker.let_go(number)
    world.run()
    assert not is_there(world, slot.row)


def test_of_two_that_say_the_same_name_the_next_broker_gives_it_to_one(world: World) -> None:
    """The second was published, and its maker had yet to hear that the name is taken."""
    maker, other = sharer(world), sharer(world)
    shared(maker, "a")
    other.share(other.get(SMALL)[0], "a", tell=False)
    world.restart()
    publications = list(world.broker.shared.publications.values())
    assert sorted(publication.name for publication in publications) == ["", "a"]
    assert world.broker.shared.names.holder("a") in publications
