"""The ladder: its rungs in their order, each counted under its name."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from harness import CHUNKS, MEDIUM, SMALL, SMALL_SIZING, Client, World, small_settings

from shmpool.protocol import metrics, sizing
from shmpool.protocol.codes import Code
from shmpool.protocol.sizing import KIB, MIB, Sizing, TierKind
from shmpoold.core.lending.recalls import RECALL_EVERY
from shmpoold.core.lending.requests import Rung

MakeWorld = Callable[..., World]


def rungs(world: World) -> dict[str, int]:
    return {rung.value: count for rung, count in world.broker.lending.ladder.served.items() if count}


def fill(world: World, tier: int = SMALL) -> Client:
    """Somebody has all slots of a tier, or all memory, and does not answer recalls."""
    client = world.client()
    client.answers_recalls = False
    slots = world.broker.inventory.maps[tier]
    while slots.unused and world.broker.inventory.room >= slots.tier.size:
        client.get(tier)
    world.broker.lending.ladder.served.update(dict.fromkeys(Rung, 0))
    return client


def test_what_was_warmed_is_ready_the_next_time(world: World) -> None:
    client = world.client()
    client.give_back(*client.get())
    client.get()
    assert rungs(world) == {"warm": 1, "ready": 1}


def test_idle_slots_are_cooled_before_others_are_asked(world: World) -> None:
    holder = fill(world)
    client = world.client()
    holder.give_back(*holder.ready)
    assert client.get(MEDIUM)
    assert rungs(world) == {"cool": 1}
    assert holder.recalls == 0


def short_of_rows(make_world: MakeWorld, **changes: object) -> World:
    """Much memory, whose rows a test uses up."""
    return make_world(small_settings(**{"memory_limit": 4 * MIB, **changes}), check_every=20)


def use_up(world: World, tier: int) -> None:
    """Nothing of a tier is left: its rows are quarantined, as far as lending can see."""
    slots = world.broker.inventory.maps[tier]
    while (row := slots.find_unused(1)) is not None:
        slots.take(row, 1)
        world.broker.inventory.quarantined.add(row)


def test_a_larger_slot_serves_then_a_run_of_chunks(make_world: MakeWorld) -> None:
    world = short_of_rows(make_world)
    client = world.client()
    use_up(world, SMALL)
    (slot,) = client.get(SMALL)
    assert slot.tier.index == MEDIUM
    use_up(world, MEDIUM)
    (slot,) = client.get(SMALL)
    assert slot.tier.index == CHUNKS
    assert rungs(world) == {"larger": 2}


def test_a_run_of_another_chunk_tier_serves(make_world: MakeWorld) -> None:
    sizing = Sizing(
        16 * KIB, 32 * KIB, 64 * KIB, pooled_sizes=SMALL_SIZING.pooled_sizes, chunk_sizes=(8 * KIB, 16 * KIB)
    )
    world = make_world(small_settings(memory_limit=4 * MIB, sizing=sizing), check_every=20)
    client = world.client()
    use_up(world, CHUNKS)
    (slot,) = client.get(CHUNKS, 5)
    assert (slot.tier.size, len(slot.rows)) == (16 * KIB, 3)
    client.publish(slot)
    assert rungs(world) == {"larger": 1}


def test_a_recall_serves_before_a_segment_is_made(make_world: MakeWorld) -> None:
    world = short_of_rows(make_world)
    holder, client = world.client(), world.client()
    holder.get(CHUNKS, 20)
    use_up(world, CHUNKS)
    client.refill(CHUNKS, 20)
    world.run()
    assert holder.recalls == 1
    assert [slot.tier.index for slot in client.ready] == [CHUNKS]
    assert rungs(world)["recall"] == 1


def test_a_direct_segment_serves_where_rows_are_missing_and_nobody_gives_any_back(make_world: MakeWorld) -> None:
    world = short_of_rows(make_world)
    holder, client = world.client(), world.client()
    holder.answers_recalls = False
    holder.get(SMALL)
    for tier in (SMALL, MEDIUM, CHUNKS):
        use_up(world, tier)
    client.refill(SMALL)
    world.run()
    assert not client.ready
    world.pass_time(2 * RECALL_EVERY)
    (slot,) = client.ready
    assert slot.tier.kind is TierKind.DIRECT
    assert holder.recalls
    client.refill(CHUNKS, 3, queue=False)
    world.run()
    assert [slot.tier.kind for slot in client.ready] == [TierKind.DIRECT] * 2
    tickets = client.publish(client.ready[0])
    client.put_back(client.lease(client.ready[0]))
    assert holder.open(tickets[0])
    holder.release(tickets[0])
    world.run()
    assert rungs(world)["fallback"] == 2
    assert len(world.broker.inventory.granted) == 1


def test_without_fallback_the_client_waits_and_is_refused(make_world: MakeWorld) -> None:
    world = short_of_rows(make_world, fallback=False)
    holder, client = world.client(), world.client()
    holder.answers_recalls = False
    holder.get(SMALL)
    for tier in (SMALL, MEDIUM, CHUNKS):
        use_up(world, tier)
    number = client.refill(SMALL)
    client.refill(SMALL, queue=False)
    world.run()
    world.pass_time(1)
    assert not client.ready
    assert client.refusals[-1].code == Code.EXHAUSTED
    client.cancel(number)
    world.run()
    assert rungs(world) == {"warm": 1, "refused": 1, "withdrawn": 1}
    holder.give_back(*holder.ready)
    world.run()


def test_the_cap_holds_for_a_fallback_too(world: World) -> None:
    fill(world)
    client = world.client()
    client.refill(SMALL, queue=False)
    world.run()
    assert client.refusals[-1].code == Code.EXHAUSTED
    assert rungs(world) == {"refused": 1}


def test_what_comes_back_later_is_waited_for(world: World) -> None:
    holder, client = fill(world), world.client()
    client.refill(SMALL)
    world.run()
    world.pass_time(10 * RECALL_EVERY)
    holder.give_back(holder.ready[0])
    world.run()
    assert len(client.ready) == 1
    assert rungs(world) == {"wait": 1}


def test_the_figures_name_every_rung() -> None:
    assert [rung.value for rung in Rung] == list(metrics.KEYS["rung"])


def test_what_is_ready_is_granted_though_more_is_held_than_the_limit_is_now(make_world: type[World]) -> None:
    """A pool that is taken up again with a lower limit; the line sees to it that the ladder is climbed."""
    world = make_world(small_settings(), check_every=10**9)
    holder, waiter, client = world.client(), world.client(), world.client()
    inventory = world.broker.inventory
    holder.answers_recalls = False
    slots = holder.get(SMALL, count=8)
    holder.give_back(*slots[4:])
    world.run()
    waiter.ask_direct(inventory.room + inventory.idle + 4 * KIB)
    world.run()
    inventory.limit, inventory.adopted = inventory.held - inventory.idle, inventory.held
    client.refill(SMALL)
    world.run()
    assert client.ready and not waiter.ready
    inventory.limit = world.settings.memory_limit


def test_more_chunks_than_their_tier_has_are_refused_though_there_is_memory(make_world: MakeWorld) -> None:
    with patch.object(sizing, "MAX_TIER_ROWS", 10):
        world = make_world()
    client = world.client()
    client.refill(CHUNKS, 10)
    client.refill(CHUNKS, 11)
    world.run()
    assert [len(slot.rows) for slot in client.ready] == [10]
    [refusal] = client.refusals
    assert refusal.code == Code.TOO_LARGE
    assert refusal.text.startswith("11 chunks of ") and refusal.text.endswith(": it has 10 of them")
