"""An orderly stop of a pool that goes: nothing new is lent, and it is over when nothing is out."""

from __future__ import annotations

from harness import MEDIUM, SMALL, World

from shmpool.protocol.codes import Code
from shmpoold.core.events import StopAsked


def test_who_waits_and_who_asks_is_refused_and_may_try_again(world: World) -> None:
    client, waiter = world.client(), world.client()
    client.answers_recalls = False
    while not client.refusals:
        client.refill(SMALL, queue=False)
        world.run()
    waiting = waiter.refill(SMALL)
    world.run()
    world.dispatch(StopAsked())
    world.run()
    asking = [waiter.refill(MEDIUM), waiter.ask_direct(100_000)]
    world.run()
    told = {refusal.request: refusal.code for refusal in waiter.refusals}
    assert told == dict.fromkeys((waiting, *asking), Code.STOPPING)
    assert all(world.is_wanted(tier.index) for tier in world.tiers)
    world.wind_down()


def test_it_is_done_when_leases_publications_and_magazines_are_back(world: World) -> None:
    writer, reader = world.client(), world.client()
    leased, published, *_ = writer.get(SMALL, count=4)
    writer.lease(leased)
    [ticket] = writer.publish(writer.lease(published))
    world.dispatch(StopAsked())
    world.pass_time(3.0)  # what is idle was asked for
    assert not writer.ready and not world.broker.draining.is_done
    assert reader.open(ticket)
    writer.put_back(leased)
    world.pass_time(3.0)
    assert not world.broker.draining.is_done
    reader.release(ticket)
    world.pass_time(3.0)
    assert world.broker.draining.is_done
    assert world.broker.draining.next_deadline == float("inf")


def test_an_empty_pool_is_done_at_once(world: World) -> None:
    world.client()
    world.dispatch(StopAsked())
    assert world.broker.draining.is_done
