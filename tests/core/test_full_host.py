"""A host with less room than the limit allows: ENOSPC while warming or making segments."""

from __future__ import annotations

import pytest
from harness import CHUNKS, MEDIUM, SMALL, Client, World, small_settings

from shmpool.protocol.codes import Code
from shmpool.protocol.meanings import MEANINGS, Blame
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State
from shmpoold.core.actions import Warm
from shmpoold.core.lending.lending import RETRY_EVERY


def keep(world: World, tier: int = SMALL) -> Client:
    """Somebody who holds something that could come back."""
    client = world.client()
    client.answers_recalls = False
    client.lease(client.get(tier)[0])
    return client


def test_a_refusal_blames_the_host_and_says_why(world: World) -> None:
    world.fail_on = lambda action: True
    client = world.client()
    client.refill(SMALL)
    world.run()
    (refusal,) = client.refusals
    assert refusal.code == Code.SHM_FULL and MEANINGS[Code.SHM_FULL].blame is Blame.HOST
    assert "no room on this host" in refusal.text


def test_the_account_is_exact_after_a_failure(world: World) -> None:
    world.fail_on = lambda action: True
    client = world.client()
    for tier, chunks, count in ((SMALL, 1, 8), (MEDIUM, 1, 3), (CHUNKS, 7, 1)):
        client.refill(tier, chunks, count)
        world.run()
    assert world.broker.inventory.held == world.overhead
    assert all(world.states(tier)[State.COLD] == world.tiers[tier].capacity for tier in (SMALL, MEDIUM, CHUNKS))


def test_what_a_failed_run_had_already_warmed_is_not_lost(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB))
    world.fail_on = lambda action: isinstance(action, Warm) and action.row > world.tiers[CHUNKS].base
    client = world.client()
    client.refill(CHUNKS, 300)
    world.run()
    assert [refusal.code for refusal in client.refusals] == [Code.SHM_FULL]
    assert world.states(CHUNKS)[State.FREE] == 128
    assert world.broker.inventory.held == world.overhead + 128 * 8 * KIB


def test_a_run_that_half_fits_the_host_does_not_warm_for_ever(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB))
    world.host_room = world.overhead + 2000 * KIB
    world.keep_actions = True
    client = world.client()
    client.refill(CHUNKS, 300)
    world.run()
    assert [refusal.code for refusal in client.refusals] == [Code.SHM_FULL]
    assert len([action for action in world.actions if isinstance(action, Warm)]) < 10


def test_idle_slots_are_traded_in_when_the_host_is_full(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(CHUNKS, count=1), *client.get(SMALL, count=8))
    world.run()
    world.host_room = 40 * KIB
    assert client.get(MEDIUM)
    assert world.states(SMALL)[State.FREE] + world.states(CHUNKS)[State.FREE] < 9


def test_it_waits_when_something_is_out_that_could_come_back(world: World) -> None:
    holder = keep(world, MEDIUM)
    world.host_room = 16 * KIB
    client = world.client()
    client.refill(SMALL)
    world.run()
    assert client.refusals == [] and client.ready == []
    holder.put_back(holder.leased[0])
    holder.give_back(*holder.ready)
    world.run()
    assert len(client.ready) == 1


def test_what_comes_back_elsewhere_is_cooled_for_who_waits(world: World) -> None:
    holder = keep(world, SMALL)
    for _ in range(3):
        holder.lease(holder.get(SMALL)[0])
    world.host_room = 16 * KIB
    client = world.client()
    client.refill(MEDIUM)
    world.run()
    for slot in list(holder.leased):
        holder.put_back(slot)
    holder.give_back(*holder.ready)
    world.run()
    assert [slot.tier.index for slot in client.ready] == [MEDIUM]


@pytest.mark.parametrize("waiters", [1, 3])
def test_who_waits_for_a_full_host_is_tried_again_now_and_then_and_not_all_the_time(world: World, waiters: int) -> None:
    keep(world)
    world.host_room = 4 * KIB
    world.keep_actions = True
    clients = [world.client() for _ in range(waiters)]
    for client in clients:
        client.refill(MEDIUM)
    world.run()
    world.actions.clear()
    world.pass_time(20 * RETRY_EVERY)
    tries = [action for action in world.actions if isinstance(action, Warm)]
    assert 5 * waiters <= len(tries) <= 22 * waiters
    world.host_room = None
    world.pass_time(3 * RETRY_EVERY)
    assert all(client.ready for client in clients)


def test_those_who_failed_together_are_in_line_in_the_order_they_came(world: World) -> None:
    keep(world)
    clients = [world.client() for _ in range(4)]
    world.fail_on = lambda action: True
    for client in clients:
        client.refill(MEDIUM)
        world.deliver(client.link)
    while world.shell:
        world.answer(len(world.shell) - 1)  # the last one fails first
    assert [request.connection for request in world.broker.lending.line.all()] == [
        client.link.number for client in clients if client.link
    ]


def test_who_waited_for_a_full_host_in_vain_is_told_that_it_is_full(world: World) -> None:
    keep(world)
    world.host_room = 4 * KIB
    client = world.client()
    number = client.refill(MEDIUM)
    world.run()
    client.cancel(number)
    world.run()
    assert [refusal.code for refusal in client.refusals] == [Code.SHM_FULL]
    assert "no room on this host" in client.refusals[0].text


def test_short_of_the_hosts_memory_every_tier_is_wanted(world: World) -> None:
    keep(world)
    world.fail_on = lambda action: True
    world.client().refill(MEDIUM)
    world.run()
    assert all(world.is_wanted(tier.index) for tier in world.tiers)


@pytest.mark.parametrize("how", ["cancel", "die"])
def test_a_failure_for_who_has_gone_is_told_to_nobody(world: World, how: str) -> None:
    world.fail_on = lambda action: True
    client = world.client()
    number = client.refill(SMALL, count=4)
    world.deliver()
    client.cancel(number) if how == "cancel" else client.die()
    while world.deliver() or world.run_news():
        pass
    world.run()
    assert [refusal.code for refusal in client.refusals] == ([Code.CANCELLED] if how == "cancel" else [])
    assert world.broker.inventory.held == world.overhead
