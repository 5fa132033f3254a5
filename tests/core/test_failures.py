"""Something goes wrong inside the core: nothing stays under way, and nothing is lost for ever.

What can go wrong is a row that somebody scribbles on between two events of one request, and a
mistake of ours: each is made here, and the rest must go on as if nothing had been.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness import CHUNKS, DIRECT, SMALL, Client, World, small_settings

from shmpool.protocol.codes import Code
from shmpool.protocol.ledger import grant_word
from shmpool.protocol.messages import Bell, Return
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State
from shmpoold.core.actions import CreateDirect, Warm
from shmpoold.core.events import ProcessDied, Received
from shmpoold.core.rows import Rows

SCRIBBLES = [grant_word(0, State.FREE, 0), grant_word(7, State.IDLE, 3), grant_word(9, State.PUBLISHED, 1)]


@pytest.fixture
def world(make_world: type[World]) -> World:
    """What was scribbled shows at once; that the broker has dealt with it is checked at the end."""
    return make_world(check_every=0)


def assert_all_is_well(world: World) -> None:
    """Nothing is under way, and everybody is served."""
    lending = world.broker.lending
    assert not (lending.line or lending.grants or lending.clearings)
    other = world.client()
    assert other.get(SMALL, count=8) and other.get(CHUNKS, 5) and other.get_direct(4096)
    world.check()


@pytest.mark.parametrize("word", SCRIBBLES[1:])
@pytest.mark.parametrize(("tier", "chunks", "count"), [(SMALL, 1, 4), (CHUNKS, 6, 1)])
@pytest.mark.parametrize("queue", [False, True])
def test_a_row_that_is_scribbled_on_while_it_is_warmed_is_quarantined_and_the_request_served(
    world: World, word: int, tier: int, chunks: int, count: int, queue: bool
) -> None:
    client = world.client()
    client.refill(tier, chunks, count, queue=queue)
    world.deliver()
    (warm,) = [action for action in world.shell if isinstance(action, Warm)]
    row = warm.row + 1
    world.store(row, word)
    world.run()
    assert client.ready and not client.requests
    assert world.broker.inventory.quarantined == {row}
    assert row not in {at for slot in client.ready for at in slot.rows}
    assert_all_is_well(world)


def test_a_cold_row_that_says_free_before_its_time_is_quarantined(world: World) -> None:
    client = world.client()
    client.refill(SMALL, count=4)
    world.deliver()
    world.store(3, SCRIBBLES[0])
    world.run()
    assert client.ready and world.broker.inventory.quarantined == {3}
    assert_all_is_well(world)


def test_a_row_that_is_scribbled_on_after_it_was_warmed_is_not_granted(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=0)
    client = world.client()
    client.refill(CHUNKS, 300)
    world.deliver()
    world.answer()
    first = next(iter(world.broker.lending.grants.warming.values())).holdings[0].row
    world.store(first + 5, SCRIBBLES[1])
    world.run()
    world.pass_time(0.1)
    assert client.ready and first + 5 not in client.ready[0].rows
    assert world.broker.inventory.quarantined == {first + 5}
    assert_all_is_well(world)


def test_a_direct_row_that_is_scribbled_on_while_its_segment_is_made_is_quarantined(world: World) -> None:
    client = world.client()
    client.ask_direct(8192)
    world.deliver()
    (create,) = [action for action in world.shell if isinstance(action, CreateDirect)]
    world.store(create.row, grant_word(5, State.LEASED, 1))
    world.run()
    assert client.ready and create.row in world.broker.inventory.quarantined
    assert list(world.direct) == [(client.ready[0].row, client.ready[0].generation)]
    assert_all_is_well(world)


class Mistake(Exception):
    """A bug of ours."""


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: int = 0) -> None:
    """Let the next call of a method raise, or a later one."""
    real: Callable[..., Any] = getattr(owner, name)
    left = [after]

    def fail(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise Mistake
        return real(*args, **options)

    monkeypatch.setattr(owner, name, fail)


def with_a_mistake(world: World, event: Any) -> None:
    """As the shell does: a mistake costs the connection of whoever's message it was in."""
    try:
        world.dispatch(event)
    except Mistake:
        world._obey_all(world.broker.outbox.take())
        if isinstance(event, Received):
            world.clients[0].disconnect()
    else:
        raise AssertionError("nothing went wrong")
    world.run()


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_ending_that_failed_is_taken_up_again(world: World, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    client, other = world.client(), world.client()
    for slot in client.get(count=4):
        client.lease(slot)
    kept = other.get()[0]
    seat = client.seat
    fail_once(monkeypatch, Rows, "move", after=after)
    client.die(is_seen=False)
    with_a_mistake(world, ProcessDied(seat))
    world.pass_time(1.0)
    assert seat not in world.broker.seats.taken
    assert len(world.broker.inventory.quarantined) == 1
    assert list(world.broker.inventory.granted) == [kept.row]
    assert_all_is_well(world)


def test_an_ending_whose_search_failed_is_taken_up_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = world.client(), world.client()
    (ticket,) = writer.publish(writer.get()[0])
    assert reader.open(ticket)
    fail_once(monkeypatch, Rows, "finish_cell")
    seat = reader.seat
    reader.die(is_seen=False)
    world.dispatch(ProcessDied(seat))
    with pytest.raises(Mistake):
        world.run()
    world._obey_all(world.broker.outbox.take())
    world.pass_time(1.0)
    assert seat not in world.broker.seats.taken
    writer.reap()
    assert writer.ready
    assert_all_is_well(world)


@pytest.mark.parametrize("kind", [Return, Bell])
def test_looks_that_failed_are_taken_up_again(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: type[Return] | type[Bell]
) -> None:
    client = world.client()
    slots = client.get(count=8)
    client.give_back(*slots, tell=False)
    fail_once(monkeypatch, Rows, "move", after=2)
    world.broker.returns.looks._rows.update(slot.row for slot in slots)
    with pytest.raises(Mistake):
        world.tick()
    world.pass_time(1.0)
    assert world.broker.inventory.granted == {}
    assert len(world.broker.inventory.quarantined) == 1
    assert_all_is_well(world)


@pytest.mark.parametrize("name", ["move", "describe"])
@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("how", ["warmed", "ready"])
def test_a_grant_that_failed_leaves_nothing_under_way(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, after: int, how: str
) -> None:
    client, other = world.client(), world.client()
    if how == "ready":
        client.give_back(*client.get(CHUNKS, 6))
        world.run()
    client.refill(CHUNKS, 6)
    event = None
    if how == "ready":
        event = client.link.outbox.popleft()  # type: ignore[union-attr]
    else:
        world.deliver(client.link)
        event = world._carry_out(world.shell.popleft())
    fail_once(monkeypatch, Rows, name, after=after)
    with_a_mistake(world, event)
    monkeypatch.undo()
    world.pass_time(1.0)
    if how == "warmed" and not client.ready:
        assert [refusal.code for refusal in client.refusals] == [Code.EXHAUSTED]
    assert other.get(CHUNKS, 6)
    assert_all_is_well(world)


def test_one_that_waits_is_answered_when_serving_it_fails_in_anothers_event(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hoarder, waiter = world.client(), world.client()
    hoarder.answers_recalls = False
    while not hoarder.refusals:
        hoarder.refill(SMALL, count=8, queue=False)
        world.run()
    waiter.refill(SMALL)
    world.run()
    hoarder.give_back(hoarder.ready[0])
    fail_once(monkeypatch, Rows, "describe")
    with_a_mistake(world, hoarder.link.outbox.popleft())  # type: ignore[union-attr]
    monkeypatch.undo()
    world.pass_time(0.1)
    assert waiter.ready or [refusal.code for refusal in waiter.refusals] == [Code.EXHAUSTED]
    assert not waiter.requests


def spoil(world: World, client: Client, nbytes: int) -> None:
    """A direct segment that its owner returns with the generation that it has."""
    slot = client.get_direct(nbytes)
    client._disown(slot)
    client.ready.remove(slot)
    world.store(slot.row, grant_word(slot.generation, State.RETURNED, 0))
    client.send(Return([slot.row]))
    world.run()


def test_quarantined_direct_segments_count_until_their_seat_ends(world: World) -> None:
    client = world.client()
    limit, most = world.settings.memory_limit, 64 * KIB
    while not client.refusals:
        spoil(world, client, most)
        client.ask_direct(most, queue=False)
        world.run()
        for slot in list(client.ready):
            client.lease(slot)
            client.put_back(slot)
        world.run()
        assert world.broker.inventory.held <= limit
    assert len(world.broker.inventory.quarantined) <= limit // most
    assert world.broker.inventory.held > limit - 2 * most
    client.die()
    world.run()
    world.pass_time(1.0)
    assert world.broker.inventory.held == world.overhead
    assert world.client().get_direct(most).tier.index == DIRECT


@pytest.mark.parametrize("word", SCRIBBLES)
def test_of_a_batch_that_lay_ready_what_is_scribbled_on_is_quarantined_and_the_rest_is_granted(
    world: World, word: int
) -> None:
    client = world.client()
    client.give_back(*client.get(SMALL, count=6))
    world.run()
    used = client.get(SMALL)[0].row  # so that what lies ready is not side by side
    rows = [row for row in range(1, 7) if row != used]
    scribbled = rows[2]
    world.store(scribbled, grant_word(0, State.COLD, 0) if word == SCRIBBLES[0] else word)
    other = world.client()
    assert [slot.row for slot in other.get(SMALL, count=4)] == [row for row in rows if row != scribbled]
    assert world.broker.inventory.quarantined == {scribbled}
    assert_all_is_well(world)


def test_of_a_batch_whose_grant_fails_in_its_middle_what_stands_in_the_ledger_is_granted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client()
    client.give_back(*client.get(SMALL, count=4))
    world.run()
    plain, moved = Rows.move, list[int]()

    def move(self: Rows, row: int, target: State, *seat: int) -> int:
        if len(moved) == 2:
            raise RuntimeError("a mistake of ours")
        moved.append(row)
        return plain(self, row, target, *seat)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "move", move)
        client.refill(SMALL, count=4)
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            world.deliver()
    world.run()
    for action in world.broker.outbox.take():
        world._obey_all([action])
    world.run()
    assert [slot.row for slot in client.ready] == moved == [1, 2]
    assert set(world.broker.inventory.granted) == {1, 2} == world.broker.seats.taken[client.seat].rows
    assert_all_is_well(world)
