"""The figures: what an operator is told is what the ledger says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness import CHUNKS, DIRECT, MEDIUM, SMALL, World, small_settings

from shmpool.protocol.figures import DEFERRED, HELD_BY_VIEWS, LATENCIES, LEASES, MISSES, TIMEOUTS, TO_BUCKET
from shmpool.protocol.header import counters_at
from shmpool.protocol.messages import MAX_BLOB, Query, Role, Topic
from shmpool.protocol.sizing import KIB
from shmpool.protocol.states import State


def ask(world: World, topic: Topic = Topic.STATS) -> Any:
    """What an operator is told, through the messages."""
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    operator.send(Query(7, topic))
    world.run()
    while not any(answer.last for answer in operator.answers):  # a long one takes several turns
        world.tick()
        world.run()
    assert all(answer.request == 7 for answer in operator.answers)
    assert [answer.last for answer in operator.answers] == [False] * (len(operator.answers) - 1) + [True]
    assert all(len(answer.payload) <= MAX_BLOB for answer in operator.answers)
    return json.loads(b"".join(answer.payload for answer in operator.answers))


def test_an_untouched_pool_holds_its_ledger_and_header_and_nothing_else(world: World) -> None:
    stats = ask(world)
    assert stats["memory"] == {
        "limit": 320 * KIB, "held": world.overhead, "overhead": world.overhead, "payload": 0,
        "by_state": {"free": 0, "idle": 0, "leased": 0, "published": 0},
        "pressure": "normal", "pressure_changes": {"normal": 0, "elevated": 0, "critical": 0}, "retired": 0,
    }  # fmt: skip
    assert stats["memory_efficiency"] == 1.0
    assert (stats["total_gets"], stats["total_puts"], stats["pool_hits"]) == (0, 0, 0)
    assert [tier["capacity"] for tier in stats["tiers"]] == [tier.capacity for tier in world.tiers]
    assert stats["clients"] == [] and stats["alerts"] == []


def test_memory_is_told_by_state(world: World) -> None:
    client = world.client()
    client.get(SMALL, count=4)
    client.get(CHUNKS, 3)
    client.get_direct(10_000)
    free, idle, leased, published, run, direct = client.ready
    client.give_back(free)
    client.lease(leased)
    client.publish(published, nbytes=1000)
    client.lease(run)
    client.publish(direct, nbytes=10_000)
    world.run()
    stats = ask(world)
    assert stats["memory"]["by_state"] == {
        "free": 4 * KIB, "idle": 4 * KIB, "leased": 4 * KIB + 24 * KIB, "published": 4 * KIB + 12 * KIB,
    }  # fmt: skip
    assert stats["memory"]["held"] == world.overhead + 16 * KIB + 24 * KIB + 12 * KIB
    assert stats["memory"]["payload"] == 4 * KIB + 24 * KIB + 1000 + 10_000
    assert stats["active_buffers"] == 4
    assert stats["memory_efficiency"] == pytest.approx((28 * KIB + 11_000) / (44 * KIB))
    small = stats["tiers"][SMALL]
    assert (small["warm"], small["free"], small["idle"], small["leased"], small["published"]) == (4, 1, 1, 1, 1)
    assert stats["tiers"][CHUNKS]["leased"] == 3
    assert stats["tiers"][DIRECT]["published"] == 1
    assert idle in client.ready


def test_the_states_of_a_tier_add_up_to_what_is_warm(world: World) -> None:
    client = world.client()
    client.get(MEDIUM, count=5)
    client.give_back(client.ready[0])
    client.lease(client.ready[0])
    client.publish(client.ready[0])
    world.run()
    tier = ask(world)["tiers"][MEDIUM]
    assert tier["warm"] == tier["free"] + tier["idle"] + tier["leased"] + tier["published"] == 5


def test_counters_are_summed_over_the_living_and_the_gone(world: World) -> None:
    one, other = world.client(), world.client()
    pooled_small, chunked_large, direct_huge = LEASES + 0, LEASES + 4 + 2, LEASES + 8 + 3
    for client in (one, other):
        at = counters_at(world.broker.rows.count, client.seat)
        for word, value in (
            (pooled_small, 10), (chunked_large, 5), (direct_huge, 1), (MISSES, 3), (DEFERRED, 3), (HELD_BY_VIEWS, 2),
            (TIMEOUTS, 1), (LATENCIES, 2800), (LATENCIES + TO_BUCKET[10], 4),
        ):  # fmt: skip
            world.ledger[at + word] = value
    one.die()
    world.run()
    stats = ask(world)
    assert stats["total_gets"] == stats["total_puts"] == 32
    assert (stats["pool_hits"], stats["pool_misses"]) == (24, 6)
    assert stats["strategies"] == {"pooled": 20, "chunked": 10, "direct": 2}
    assert stats["operations"] == {"small": 20, "medium": 0, "large": 10, "very_large": 2}
    assert (stats["deferred_releases"], stats["lease_timeouts"]) == (6, 2)
    # The views of the one that is gone are gone with it.
    assert stats["held_by_views"] == stats["clients"][0]["held_by_views"] == 2
    assert stats["average_latency_ns"]["small"] == 700
    assert 512 < stats["p50_latency_ns"]["small"] < stats["p99_latency_ns"]["small"] < 1024
    assert stats["latency_histogram"]["small"] == {"counts": [0, 0, 8, *[0] * 23], "sum_ns": 5600}


def test_each_client_is_told_with_what_it_holds(world: World) -> None:
    one, other = world.client(), world.client()
    one.lease(one.get()[0])
    one.get()
    other.disconnect()
    world.run()
    clients = {client["seat"]: client for client in ask(world)["clients"]}
    assert clients[one.seat]["pid"] == one.process.pid
    assert (clients[one.seat]["leases"], clients[one.seat]["bytes"]) == (1, 8 * KIB)
    assert clients[one.seat]["connected"] and not clients[other.seat]["connected"]
    assert (clients[other.seat]["leases"], clients[other.seat]["bytes"]) == (0, 0)


def test_a_long_report_comes_in_parts(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=0)
    client = world.client()
    while len(client.ready) < 600:
        client.refill(SMALL, count=64)
        world.run()
    assert ask(world, Topic.BUFFERS)["shown"] == len(client.ready)


def test_who_is_away_and_what_is_quarantined_are_alerts(world: World) -> None:
    world.check_every = 0
    client, holder = world.client(), world.client()
    slot = client.lease(client.get()[0])
    world.store(slot.row, State.COLD)
    client.die()
    holder.lease(holder.get()[0])
    holder.disconnect()
    world.run()
    alerts = ask(world)["alerts"]
    assert "1 rows are quarantined" in alerts
    assert any(f"pid {holder.process.pid}" in alert and "away" in alert for alert in alerts)


def test_who_waits_is_an_alert(world: World) -> None:
    client, waiter = world.client(), world.client()
    client.answers_recalls = False
    while not client.refusals:
        client.refill(SMALL, queue=False)
        world.run()
    waiter.refill(SMALL)
    world.run()
    assert "1 requests wait for memory" in ask(world)["alerts"]


def test_an_operator_may_go_on_asking(world: World) -> None:
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    for request in (1, 2, 3):
        operator.send(Query(request, Topic.STATS))
    world.run()
    world.pass_time(0.1)
    assert [answer.request for answer in operator.answers] == [1, 2, 3]
    assert world.broker.seats.taken == {}


def test_a_worker_may_ask_too(world: World) -> None:
    client = world.client()
    client.send(Query(1, Topic.STATS))
    world.run()
    assert json.loads(client.answers[0].payload)["clients"][0]["seat"] == client.seat


def test_the_invariants_are_told_to_who_asks(world: World) -> None:
    world.client().get()
    assert ask(world, Topic.INVARIANTS) == {"violation": None}
    world.check_every = 0
    world.broker.inventory.held += 1
    assert ask(world, Topic.INVARIANTS)["violation"]
    world.broker.inventory.held -= 1


def test_what_was_adopted_is_as_old_as_its_broker(world: World) -> None:
    client = world.client()
    client.lease(client.get()[0])
    world.pass_time(500.0)
    world.restart()
    client.reconnect()
    world.run()
    world.pass_time(5.0)
    [lease] = ask(world, Topic.LEASES)["leases"]
    assert 0 <= lease["age_seconds"] <= 6.0
