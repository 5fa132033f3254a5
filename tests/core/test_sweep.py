"""The sweep: what living clients gave back is found within a stated time, though every bell is lost."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from harness import CHUNKS, SMALL, Client, World
from test_refills import fill, waiting

from shmpool.protocol.ledger import grant_word
from shmpool.protocol.messages import Bell, Return
from shmpool.protocol.sizing import KIB, MIB
from shmpool.protocol.states import State
from shmpoold.core.chores import STEPS_PER_TURN
from shmpoold.core.events import Ticked
from shmpoold.core.lending.sweep import FIRST, HURRY, LONGEST, SWEEPING, SWEPT_PER_STEP
from shmpoold.core.rows import Rows
from shmpoold.core.settings import Settings

#: Simulated seconds that everything else takes.
SOON = 0.1


def lose_bells(client: Client) -> None:
    """The broker hears of nothing that it gives back."""
    send = client.send

    def send_others(message: Any) -> None:
        if not isinstance(message, Bell | Return):
            send(message)

    client.send = send_others  # type: ignore[method-assign]


def test_who_waits_has_what_a_living_client_gave_back_without_a_word(world: World) -> None:
    holder = fill(world)
    waiters = [waiting(world) for _ in range(4)]
    for slot in list(holder.owned.values())[:20]:
        holder.put_back(slot)
        holder.give_back(slot, tell=False)
    world.pass_time(HURRY + SOON)
    assert all(waiter.ready for waiter in waiters)
    assert not world.states(SMALL)[State.RETURNED]


def test_runs_come_back_without_a_word(world: World) -> None:
    client = world.client()
    runs = client.get(CHUNKS, 3) + client.get(CHUNKS, 1)
    client.give_back(*runs, tell=False)
    world.pass_time(FIRST + SOON)
    assert world.states(CHUNKS)[State.FREE] == 4
    assert not world.broker.inventory.granted


def test_a_direct_segment_that_was_published_without_a_word_is_freed_when_it_was_read(world: World) -> None:
    publisher, reader = world.client(), world.client()
    lose_bells(publisher)
    lose_bells(reader)
    (ticket,) = publisher.publish(publisher.get_direct(64 * KIB))
    assert reader.open(ticket)
    world.pass_time(FIRST + SOON)
    assert world.broker.inventory.granted[ticket.row].owner is world.broker.custody
    reader.release(ticket)
    world.pass_time(1 + SOON)  # custody's own sweep
    assert world.state(ticket.row) is State.FREE


def test_while_nothing_changes_it_is_looked_for_more_and_more_seldom(world: World) -> None:
    client = world.client()
    slot = client.get()[0]
    sweeps = 0

    def given_back(rows: Rows, first: int, end: int, real: Any = Rows.given_back) -> list[int]:
        nonlocal sweeps
        sweeps += first == 0
        return real(rows, first, end)  # type: ignore[no-any-return]

    with patch.object(Rows, "given_back", given_back):
        world.pass_time(10 * LONGEST)
    assert sweeps <= 10 + 3
    client.give_back(slot, tell=False)
    world.pass_time(LONGEST + SOON)
    assert world.state(slot.row) is State.FREE
    assert world.broker.sweep.next_deadline == float("inf"), "nobody has anything"
    client.get()
    assert world.broker.sweep.next_deadline == world.now + FIRST, "it begins anew with what is granted next"


def test_a_large_pool_is_swept_in_small_steps(make_world: type[World]) -> None:
    world = make_world(Settings(memory_limit=64 * MIB, max_clients=4), check_every=0)
    client = world.client()
    while len(client.ready) < 6000:
        client.get(count=256)
    searched: list[int] = []

    def given_back(rows: Rows, first: int, end: int, real: Any = Rows.given_back) -> list[int]:
        searched[-1] += 1
        assert end - first <= SWEPT_PER_STEP
        return real(rows, first, end)  # type: ignore[no-any-return]

    with patch.object(Rows, "given_back", given_back):
        end = world.now + FIRST + SOON
        while (deadline := world.broker.next_deadline()) is not None and deadline <= end:
            world.now = max(world.now, deadline)
            searched.append(0)
            world.dispatch(Ticked())
    assert sum(searched) * SWEPT_PER_STEP >= 6000
    assert max(searched) <= STEPS_PER_TURN // SWEEPING + 1


def test_what_was_named_in_the_meantime_and_granted_again_is_left_alone(world: World) -> None:
    """The word comes late: by then the slot is another's."""
    holder = fill(world)
    other = waiting(world)
    (slot, *_) = holder.owned.values()
    holder.put_back(slot)
    holder.give_back(slot, tell=False)
    world.pass_time(HURRY + SOON)
    (granted,) = other.ready
    assert granted.row == slot.row
    other.lease(granted)
    holder.send(Return([slot.row]))
    world.run()
    world.pass_time(LONGEST)
    assert world.grant(slot.row) == grant_word(granted.generation, State.LEASED, other.seat)


def test_a_row_of_nobody_s_that_somebody_has_scribbled_on_is_left_to_who_takes_it(make_world: type[World]) -> None:
    world = make_world(check_every=10**9)
    client = world.client()
    (slot,) = client.get()
    scribbled = slot.row + 1
    world.store(scribbled, grant_word(9, State.RETURNED, 0))
    client.give_back(slot, tell=False)
    world.pass_time(FIRST + SOON)
    assert world.state(slot.row) is State.FREE and world.state(scribbled) is State.RETURNED
    world.store(scribbled, 0)
