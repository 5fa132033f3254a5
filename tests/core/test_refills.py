"""Refills: batches, the order of waiting, larger tiers, warming and cooling under the cap."""

from __future__ import annotations

import pytest
from harness import CHUNKS, MEDIUM, SMALL, Client, World, small_settings

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Recall, Refill, Refusal, Return
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State
from shmpoold.core.actions import Cool, Send, Warm
from shmpoold.core.lending.recalls import RECALL_EVERY, SPACING
from shmpoold.core.memory import slots


def fill(world: World, tier: int = SMALL, *, leave: int = 0, batch: int = 1) -> Client:
    """A client that leases everything which the limit allows, but *leave* slots."""
    client = world.client()
    client.answers_recalls = False
    while True:
        client.refill(tier, count=batch, queue=False)
        world.run()
        if client.refusals:
            break
    client.refusals.clear()
    slots = client.ready[len(client.ready) - leave :] if leave else []
    client.give_back(*slots)
    world.run()
    for slot in list(client.ready):
        client.lease(slot)
    return client


def waiting(world: World, tier: int = SMALL, chunks: int = 1) -> Client:
    client = world.client()
    client.refill(tier, chunks)
    world.run()
    assert not client.ready and not client.refusals
    return client


def test_a_refill_is_granted_up_to_what_was_asked_for(world: World) -> None:
    client = world.client()
    client.refill(SMALL, count=5)
    world.run()
    assert len(client.ready) == 5
    assert [slot.row for slot in client.ready] == [1, 2, 3, 4, 5]
    assert all(world.state(slot.row) is State.IDLE for slot in client.ready)


def test_what_came_back_warm_is_granted_without_warming(world: World) -> None:
    client = world.client()
    client.get(count=4)
    client.give_back(*client.ready)
    world.run()
    world.keep_actions = True
    assert len(client.get(count=4)) == 4
    assert not [action for action in world.actions if isinstance(action, Warm)]


def test_each_return_raises_the_generation_by_one(world: World) -> None:
    client = world.client()
    for generation in range(3):
        (slot,) = client.get()
        assert slot.generation == generation
        client.give_back(slot)
        world.run()
        assert (world.state(slot.row), world.generation(slot.row)) == (State.FREE, generation + 1)


def test_a_warmed_batch_is_adjacent_and_warmed_in_one_action(world: World) -> None:
    world.keep_actions = True
    world.client().get(SMALL, count=8)
    assert [action for action in world.actions if isinstance(action, Warm)] == [Warm(SMALL, 1, 8)]


def test_a_run_is_warmed_in_slices_that_others_come_between(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=25)
    one, other = world.client(), world.client()
    one.refill(CHUNKS, 300)
    world.deliver(one.link)
    other.refill(SMALL)
    world.deliver(other.link)
    assert [(action.tier, action.count) for action in world.shell if isinstance(action, Warm)] == [
        (CHUNKS, 128), (SMALL, 1),
    ]  # fmt: skip
    world.run()
    world.pass_time(0.1)
    assert [count for _, count in one.ready[0].extents] == [300]


def test_waiters_of_a_tier_are_served_in_the_order_they_came(world: World) -> None:
    hoarder = fill(world)
    line = [waiting(world) for _ in range(4)]
    for served in range(4):
        hoarder.put_back(hoarder.leased[0])
        hoarder.give_back(*hoarder.ready)
        world.run()
        for client in line[: served + 1]:
            client.answers_recalls = False
        assert [len(client.ready) for client in line] == [1] * (served + 1) + [0] * (3 - served)
        for client in line[: served + 1]:
            for slot in list(client.ready):
                client.lease(slot)
                client.ready.append(client.leased.pop())


def test_a_newcomer_does_not_overtake_who_waits_for_its_tier(world: World) -> None:
    hoarder = fill(world)
    first = waiting(world)
    newcomer = world.client()
    newcomer.refill(SMALL, queue=False)
    hoarder.put_back(hoarder.leased[0])
    slots = list(hoarder.ready)
    hoarder.give_back(*slots, tell=False)
    world.deliver(newcomer.link)
    world.run()
    assert [refusal.code for refusal in newcomer.refusals] == [Code.EXHAUSTED]
    hoarder.send(Return([slot.row for slot in slots]))
    world.run()
    assert len(first.ready) == 1


def test_many_waiters_are_all_served_when_much_comes_back(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=1024 * KIB, max_clients=110))
    hoarder = fill(world)
    line = [waiting(world) for _ in range(100)]
    for client in line:
        client.answers_recalls = False
    for slot in list(hoarder.leased):
        hoarder.put_back(slot)
    hoarder.give_back(*hoarder.ready)
    world.run()
    while any(not client.ready for client in line):
        assert world.broker.next_deadline() is not None
        assert world.broker.next_deadline() <= world.now  # type: ignore[operator]
        world.tick()
        world.run()
    assert world.now == 1000.0


def test_an_older_waiter_for_a_larger_tier_goes_before_a_younger_one_for_a_smaller(world: World) -> None:
    hoarder = fill(world, MEDIUM)
    rest = fill(world, SMALL)
    older, younger = waiting(world, MEDIUM), waiting(world, SMALL)
    younger.refill(SMALL)
    hoarder.put_back(hoarder.leased[0])
    hoarder.give_back(*hoarder.ready)
    world.run()
    assert [slot.tier.index for slot in older.ready] == [MEDIUM]
    assert younger.ready == [] and rest.leased


@pytest.mark.parametrize("how", ["cancel", "disconnect", "die"])
def test_who_has_gone_from_the_line_is_passed_over(world: World, how: str) -> None:
    hoarder = fill(world)
    gone, next_one = waiting(world), waiting(world)
    if how == "cancel":
        gone.cancel(1)
    elif how == "disconnect":
        gone.disconnect()
    else:
        gone.die()
    world.run()
    hoarder.put_back(hoarder.leased[0])
    row = hoarder.ready[0].row
    hoarder.give_back(*hoarder.ready)
    world.run()
    assert gone.ready == []
    assert [slot.row for slot in next_one.ready] == [row]
    if how == "cancel":
        assert [refusal.code for refusal in gone.refusals] == [Code.CANCELLED]
        assert f"pid {hoarder.process.pid}" in gone.refusals[0].text


def test_cancelled_waiters_do_not_pile_up_behind_one_that_waits(world: World) -> None:
    fill(world)
    waiting(world)
    impatient = world.client()
    for _ in range(50):
        impatient.cancel(impatient.refill(SMALL))
    world.run()
    assert len(impatient.refusals) == 50
    assert sum(len(list(queue)) for queue in world.broker.lending.line._queues.values()) == 1


def test_a_cancel_forgets_its_own_request_and_no_other_of_that_client(world: World) -> None:
    fill(world)
    client = world.client()
    numbers = [client.refill(SMALL) for _ in range(3)]
    world.run()
    for number in (numbers[1], numbers[0], numbers[2]):
        client.cancel(number)
        world.run()
        assert [refusal.request for refusal in client.refusals][-1] == number
    assert not world.broker.lending.line and not world.broker.lending.line._under_way


@pytest.mark.parametrize("how", ["cancel", "disconnect", "die"])
def test_who_goes_during_warming_is_granted_nothing_and_the_memory_is_free(world: World, how: str) -> None:
    client = world.client()
    number = client.refill(SMALL, count=4)
    world.deliver()
    assert len(world.shell) == 1
    if how == "cancel":
        client.cancel(number)
    elif how == "disconnect":
        client.disconnect()
    else:
        client.die()
    while world.deliver() or world.run_news():
        pass
    world.run()
    assert world.broker.inventory.granted == {}
    assert world.states(SMALL)[State.FREE] == 4
    assert client.ready == []


def test_a_cancel_that_crosses_the_grant_is_not_answered(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    client.cancel(1)
    world.run()
    assert client.refusals == [] and client.ready == [slot]


def test_an_empty_tier_is_helped_out_by_a_larger_one(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=2048 * KIB), check_every=25)
    world.broker.inventory.limit = 4096 * KIB
    client = world.client()
    while len(client.ready) < world.tiers[SMALL].capacity:
        client.refill(SMALL, count=64)
        world.run()
    (slot,) = client.get(SMALL, count=8)
    assert slot.tier.index == MEDIUM


def test_an_own_slot_that_must_be_warmed_goes_before_a_larger_one_that_is_warm(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(MEDIUM))
    world.run()
    assert client.get(SMALL)[0].tier.index == SMALL


def test_under_the_cap_idle_slots_of_other_tiers_are_cooled_for_a_request(world: World) -> None:
    hoarder = fill(world, CHUNKS)
    for slot in list(hoarder.leased):
        hoarder.put_back(slot)
    hoarder.give_back(*hoarder.ready)
    world.run()
    assert world.broker.inventory.room < 16 * KIB
    world.keep_actions = True
    client = world.client()
    assert client.get(MEDIUM)
    assert {action.tier for action in world.actions if isinstance(action, Cool)} == {CHUNKS}


def test_a_slot_is_cooled_after_its_lifetime_and_not_before(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(count=3))
    world.run()
    lifetime = world.settings.buffer_lifetime
    world.pass_time(lifetime - 0.5)
    assert world.states(SMALL)[State.FREE] == 3
    world.pass_time(lifetime / 8 + 1)
    assert world.states(SMALL)[State.FREE] == 0
    assert world.broker.inventory.held == world.overhead
    assert world.broker.next_deadline() is None


def test_what_a_client_returned_while_it_was_away_is_idle_from_then_on(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    client.disconnect()
    client.give_back(slot)
    client.connect()
    world.run()
    assert world.state(slot.row) is State.FREE
    world.pass_time(world.settings.buffer_lifetime / 2)
    assert world.state(slot.row) is State.FREE


def scatter(world: World) -> Client:
    """Every second chunk of the chunk tier is leased."""
    hoarder = fill(world, CHUNKS)
    for slot in list(hoarder.leased)[::2]:
        hoarder.put_back(slot)
    hoarder.give_back(*hoarder.ready)
    world.run()
    return hoarder


def test_a_run_is_scattered_where_no_place_is_large_enough(world: World) -> None:
    scatter(world)  # the limit allows 35 of 40 chunks: the last six are free in a row
    client = world.client()
    (run,) = client.get(CHUNKS, 8)
    assert len(run.extents) == 3
    assert len(set(run.rows)) == 8
    assert all(world.state(row) is State.FOLLOWER for row in run.rows if row != run.row)
    ticket = client.publish(run)[0]
    reader = world.client()
    assert reader.open(ticket)
    reader.release(ticket)
    client.reap()
    client.give_back(*client.ready)
    world.run()
    assert all(world.state(row) is State.FREE for row in run.rows)


def test_a_scattered_run_of_warm_pieces_is_granted_at_once(world: World) -> None:
    hoarder, client = fill(world, CHUNKS), world.client()
    for slot in hoarder.leased[2:8] + hoarder.leased[10:16]:
        hoarder.put_back(slot)
    hoarder.give_back(*hoarder.ready)
    world.run()
    world.keep_actions = True
    (run,) = client.get(CHUNKS, 12)
    assert [count for _, count in run.extents] == [6, 6]
    assert not [action for action in world.actions if isinstance(action, Warm)]


def test_a_run_of_many_pieces_is_granted_and_comes_back(make_world: type[World]) -> None:
    """With every second chunk free; in steps, that others come between."""
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=25)
    scatter(world)
    client, reader = world.client(), world.client()
    client.refill(CHUNKS, 100)
    world.run()
    world.pass_time(0.1)
    (run,) = client.ready
    assert len(run.extents) > 64 and len(set(run.rows)) == 100
    assert world.broker.inventory.scattered[CHUNKS] == 1
    ticket = client.publish(run)[0]
    world.restart()
    client.reconnect()
    reader.reconnect()
    assert reader.open(ticket)
    reader.release(ticket)
    client.reap()
    client.give_back(*client.ready)
    world.run()
    world.pass_time(0.1)
    assert all(world.state(row) in (State.FREE, State.COLD) for row in run.rows)
    assert world.broker.inventory.scattered[CHUNKS] == 0


def test_a_run_of_many_pieces_whose_asker_has_gone_is_put_back(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=25)
    scatter(world)
    world.pass_time(2 * world.settings.buffer_lifetime)  # all that is idle is cold, and is to be warmed
    client, chunks = world.client(), world.broker.inventory.maps[CHUNKS]
    unused = chunks.unused
    number = client.refill(CHUNKS, 100)
    world.deliver()
    assert chunks.unused == unused - 100
    client.cancel(number)
    while world.deliver() or world.run_news():
        pass
    world.run()
    world.pass_time(0.1)
    assert chunks.unused == unused


def test_a_run_of_too_many_pieces_waits(make_world: type[World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_EXTENTS", 64)
    world = make_world(small_settings(memory_limit=2048 * KIB), check_every=25)
    hoarder = scatter(world)
    client = waiting(world, CHUNKS, 100)
    assert world.broker.inventory.maps[CHUNKS].unused > 100
    for slot in list(hoarder.leased):
        hoarder.put_back(slot)
    hoarder.give_back(*hoarder.ready)
    world.run()
    assert [count for _, count in client.ready[0].extents] == [100]


def test_a_recycled_run_keeps_its_followers_as_they_were_built(world: World) -> None:
    scatter(world)
    client, reader = world.client(), world.client()
    (run,) = client.get(CHUNKS, 4)
    for _ in range(3):
        ticket = client.publish(run)[0]
        assert reader.open(ticket)
        reader.release(ticket)
        client.reap()
        world.run()
    assert world.generation(run.row) == run.generation - 1
    client.give_back(run)
    world.run()
    assert world.states(CHUNKS)[State.FOLLOWER] == 0


@pytest.mark.parametrize(("tier", "chunks"), [(CHUNKS, 41), (CHUNKS, 60000)])
def test_a_run_that_the_pool_can_never_hold_is_refused_and_not_queued(world: World, tier: int, chunks: int) -> None:
    client = world.client()
    client.refill(tier, chunks)
    world.run()
    assert [refusal.code for refusal in client.refusals] == [Code.TOO_LARGE]
    assert not world.broker.lending.line


def test_without_queueing_the_answer_is_exhausted_and_says_who_holds_most(world: World) -> None:
    hoarder = fill(world)
    client = world.client()
    client.refill(SMALL, queue=False)
    world.run()
    (refusal,) = client.refusals
    assert refusal.code == Code.EXHAUSTED
    assert f"pid {hoarder.process.pid}" in refusal.text and "memory_limit" in refusal.text
    assert not world.broker.lending.line


def test_the_first_who_waits_has_everybody_asked_at_once_and_then_regularly(world: World) -> None:
    idle = world.client()
    idle.answers_recalls = False
    fill(world, leave=1)
    idle.get()
    waiting(world)
    assert idle.recalls == 1
    world.pass_time(10 * RECALL_EVERY)
    assert 9 <= idle.recalls <= 12


def test_an_idle_magazine_is_recalled_for_who_waits(world: World) -> None:
    idle = world.client()
    (slot,) = idle.get()
    fill(world)
    client = world.client()
    client.refill(SMALL)
    world.run()
    assert [granted.row for granted in client.ready] == [slot.row]
    assert idle.ready == []


def test_a_done_publication_that_its_publisher_keeps_is_recalled_for_who_waits(world: World) -> None:
    publisher, reader = world.client(), world.client()
    (slot,) = publisher.get()
    (ticket,) = publisher.publish(slot)
    fill(world)
    assert reader.open(ticket)
    client = waiting(world)
    assert world.is_wanted(SMALL)
    recalls = publisher.recalls
    reader.release(ticket)  # sees the flag, and rings
    world.deliver(reader.link)
    world.pass_time(SPACING)
    assert publisher.recalls == recalls + 1
    world.run()
    assert [granted.row for granted in client.ready] == [slot.row]


def test_wanted_flags_are_up_while_somebody_waits_and_come_down(world: World) -> None:
    hoarder = fill(world)
    assert not any(world.is_wanted(tier.index) for tier in world.tiers)
    client = waiting(world)
    assert all(world.is_wanted(tier.index) for tier in world.tiers)  # memory is short: every tier can help
    client.cancel(1)
    world.run()
    assert not any(world.is_wanted(tier.index) for tier in world.tiers)
    assert hoarder.recalls > 0


@pytest.mark.parametrize(("tier", "wanted"), [(MEDIUM, {MEDIUM, CHUNKS}), (CHUNKS, {CHUNKS})])
def test_short_of_rows_only_what_would_serve_is_wanted_and_recalled(
    make_world: type[World], tier: int, wanted: set[int]
) -> None:
    """The tier's own rows, or those that the ladder looks in next."""
    world = make_world(small_settings(memory_limit=512 * KIB))
    world.broker.inventory.limit = 4096 * KIB
    world.broker.lending.ladder.has_fallback = False
    holders = [world.client() for _ in range(3)]
    for index, holder in enumerate(holders):
        holder.answers_recalls = False
        holder.get(index)
    for index in wanted:
        fill(world, index)
    waiting(world, tier)
    world.pass_time(2 * RECALL_EVERY)
    assert {index for index in range(4) if world.is_wanted(index)} == wanted
    assert {index for index, holder in enumerate(holders) if holder.recalls} == wanted


def test_short_of_memory_everybody_is_recalled(world: World) -> None:
    other = world.client()
    other.answers_recalls = False
    other.get(CHUNKS)
    fill(world)
    waiting(world)
    world.pass_time(2 * RECALL_EVERY)
    assert other.recalls


def test_nothing_is_due_in_a_pool_where_nothing_is_idle_or_waits(world: World) -> None:
    assert world.broker.next_deadline() is None
    world.client()
    assert world.broker.next_deadline() is None


def test_while_somebody_waits_the_next_recall_is_due(world: World) -> None:
    fill(world)
    waiting(world)
    deadline = world.broker.next_deadline()
    assert deadline is not None
    assert world.now < deadline <= world.now + RECALL_EVERY


def test_no_recall_goes_to_who_holds_nothing_or_is_away(world: World) -> None:
    nothing, away = world.client(), world.client()
    away.lease(away.get()[0])
    away.disconnect()
    fill(world)
    world.keep_actions = True
    client = waiting(world)
    told = {action.connection for action in world.actions if isinstance(action, Send) and action.message == Recall()}
    assert nothing.link is not None and client.link is not None
    assert told and told.isdisjoint({nothing.link.number, client.link.number})


def test_a_refusal_is_for_its_request(world: World) -> None:
    fill(world)
    client = world.client()
    numbers = [client.refill(SMALL, queue=False) for _ in range(3)]
    world.run()
    assert [refusal.request for refusal in client.refusals] == numbers
    assert all(isinstance(refusal, Refusal) for refusal in client.refusals)


@pytest.mark.parametrize(
    "message", [Refill(1, 3, 1, 1, True), Refill(1, 31, 1, 1, True), Refill(1, SMALL, 2, 1, True)],
    ids=["the direct tier", "no tier", "runs of a pooled tier"],
)  # fmt: skip
def test_a_refill_of_what_is_no_slot_ends_the_connection(world: World, message: Refill) -> None:
    client = world.client()
    client.send(message)
    world.run()
    assert [fault.code for fault in client.faults] == [Code.BAD_MESSAGE]
    assert world.broker.seats.taken[client.seat].connection is None


def test_a_number_that_is_already_under_way_ends_the_connection_and_its_requests(world: World) -> None:
    fill(world)
    client = waiting(world)
    client.send(Refill(1, SMALL, 1, 1, True))
    world.run()
    assert [fault.code for fault in client.faults] == [Code.BAD_MESSAGE]
    assert not world.broker.lending.line


def test_only_who_can_give_back_is_asked_and_once_in_a_while(world: World) -> None:
    holder, nothing, away, gone = (world.client() for _ in range(4))
    for client in (holder, away, gone):
        client.answers_recalls = False
        client.lease(client.get()[0])
    numbers = [client.seat for client in (holder, nothing, away, gone)]
    away.disconnect()
    gone.goodbye()
    world.run()
    recalls, world.keep_actions = world.broker.lending.recalls, True
    for _ in range(3):
        for number in numbers:
            recalls.ask(number, world.now)
    world.tick()
    assert holder.link is not None
    assert recalls_to(world) == [holder.link.number]
    world.now += SPACING
    recalls.ask(holder.seat, world.now)
    recalls.tick(world.now)  # a round: it leaves in peace who was asked just now
    world.tick()
    assert recalls_to(world) == [holder.link.number] * 2
    assert recalls.next_deadline > world.now + SPACING, "nobody has to be asked once more"


def recalls_to(world: World) -> list[int]:
    return [action.connection for action in world.actions if isinstance(action, Send) and action.message == Recall()]


def test_what_nobody_took_is_not_put_back(world: World) -> None:
    slots = world.broker.inventory.maps[SMALL]
    for row in (slots.tier.base, slots.tier.base + 1):
        with pytest.raises(ValueError, match="not all used"):
            slots.put_back(row, 1)
    assert slots.unused == slots.tier.capacity
