"""Seats: who gets one, who gets it back, and when its number is another's."""

from __future__ import annotations

from harness import DIRECT, POOL_ID, SMALL, World, small_settings

from shmpool.protocol.codes import Code
from shmpool.protocol.header import SEAT_STATE, seat_at
from shmpool.protocol.messages import HELLO_MAGIC, PROTOCOL_VERSION, Bell, Hello, Query, Refill, Role, Setting, Topic
from shmpool.protocol.sizing import KIB, Sizing, Strategy
from shmpool.protocol.states import State
from shmpoold.core.actions import ProbeSeat
from shmpoold.core.connections.clients import MOST_OPERATORS
from shmpoold.core.connections.seats import Away
from shmpoold.core.events import Received, Unseen


def test_a_worker_gets_a_seat_of_its_own(world: World) -> None:
    one, other = world.client(), world.client()
    assert one.seat and other.seat and one.seat != other.seat
    assert not one.welcomes[0].resumed
    assert world.broker.seats.taken[one.seat].peer.pid == one.process.pid


def test_two_pools_of_one_process_have_two_seats(world: World) -> None:
    one = world.client()
    other = world.client(process=one.process, is_connected=False)
    other.nonce = one.nonce + 1
    other.connect()
    world.run()
    assert other.seat not in (0, one.seat)


def test_a_client_that_comes_back_with_its_nonce_has_its_seat_and_its_slots_again(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    seat = client.seat
    client.disconnect()
    world.run()
    assert world.broker.seats.taken[seat].connection is None
    client.connect()
    world.run()
    assert client.welcomes[-1].resumed and client.seat == seat
    assert client.ready == [slot]
    assert client.get()[0].row != slot.row


def test_another_nonce_pool_or_process_does_not_get_the_seat(world: World) -> None:
    client = world.client()
    seat = client.seat
    hello = Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.WORKER, client.nonce, POOL_ID, seat)
    for process, changed in (
        (client.process, hello._replace(nonce=client.nonce + 1)),
        (client.process, hello._replace(pool_id=POOL_ID + 1)),
        (None, hello),
    ):
        other = world.client(process=process, is_connected=False)
        other.dial()
        other.send(changed)
        world.run()
        assert not other.welcomes[0].resumed
        assert other.seat not in (0, seat)
    assert world.broker.seats.taken[seat].connection == client.link.number  # type: ignore[union-attr]


def test_a_grant_that_was_lost_with_the_connection_is_adopted_by_its_client(world: World) -> None:
    client = world.client()
    client.refill(count=3)
    while world.deliver() or world.answer():
        pass  # the reply is sent, and not read
    client.disconnect()
    world.run()
    assert client.ready == []
    client.connect()
    world.run()
    assert {1, 2, 3} < {slot.row for slot in client.ready}  # and again: it asks once more
    assert {slot.row for slot in client.ready} == world.broker.seats.taken[client.seat].rows


def test_a_newer_connection_of_the_same_client_replaces_the_older_one(world: World) -> None:
    client = world.client()
    older = client.link
    assert older is not None
    older.outbox.clear()
    client.connect()  # the end of the older one was not seen
    world.run()
    assert client.welcomes[-1].resumed
    assert not older.is_served
    assert older.number not in world.broker.clients
    assert world.broker.seats.taken[client.seat].connection == client.link.number  # type: ignore[union-attr]


def test_what_arrives_from_a_replaced_connection_does_nothing(world: World) -> None:
    client = world.client()
    assert client.link is not None
    older = client.link.number
    client.connect()
    world.run()
    assert world.dispatch(Received(older, Refill(1, SMALL, 1, 1, True))) == []
    assert world.broker.inventory.granted == {} and not world.broker.lending.line


def test_the_late_end_of_a_replaced_connection_does_not_end_the_newer_one(world: World) -> None:
    client = world.client()
    client.disconnect()
    client.connect()
    assert client.link is not None
    world.deliver(client.link)
    world.deliver(client.link)  # the newer hello before the older end
    world.run()
    assert world.broker.seats.taken[client.seat].connection == client.link.number
    assert client.get()


def test_when_all_seats_are_taken_the_next_worker_is_told_so(make_world: type[World]) -> None:
    world = make_world(small_settings(max_clients=2))
    world.client(), world.client()
    third = world.client()
    assert [fault.code for fault in third.faults] == [Code.NO_SEAT]
    assert third.link is None and third.seat == 0


def test_operators_need_no_seat_and_get_answers_when_all_are_taken(make_world: type[World]) -> None:
    world = make_world(small_settings(max_clients=1))
    world.client()
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    operator.send(Query(1, Topic.STATS))
    world.run()
    assert operator.welcomes[0].seat == 0
    assert [answer.last for answer in operator.answers] == [True]


def test_a_seats_number_is_given_out_again_only_when_its_rows_are_settled(make_world: type[World]) -> None:
    world = make_world(small_settings(max_clients=1))
    client = world.client()
    idle, leased, published = client.get() + client.get() + client.get()
    client.lease(leased)
    client.publish(published)
    seat = client.seat
    client.die()
    world.run()
    next_one = world.client()
    assert next_one.seat == seat
    assert world.state(idle.row) is world.state(leased.row) is State.FREE
    assert world.grant(published.row) & 0xFFFF == 0
    assert world.broker.seats.taken[seat].rows == set()


def test_what_an_earlier_owner_of_a_seats_number_published_is_not_its_next_owners(make_world: type[World]) -> None:
    world = make_world(small_settings(max_clients=1))
    client = world.client()
    client.publish(client.get()[0])
    client.die()
    world.run()
    next_one = world.client()
    (row,) = world.broker.inventory.granted
    assert world.broker.inventory.granted[row].publisher != next_one.seat
    next_one.die()
    world.run()
    assert world.broker.custody.next_sweep(hurry=False) is not None


def test_a_seat_is_cleared_in_the_header_at_its_end(world: World) -> None:
    client = world.client()
    at = seat_at(client.seat) + SEAT_STATE
    assert world.header[at] == 1
    client.goodbye()
    world.run()
    assert world.header[at] == 0
    world.assert_all_is_back()


def test_an_away_client_keeps_what_it_holds(world: World) -> None:
    client = world.client()
    tickets = client.publish(client.get()[0])
    (slot,) = client.get()
    client.lease(slot)
    client.disconnect()
    world.run()
    world.pass_time(1000)
    assert world.state(slot.row) is State.LEASED
    assert world.client().open(tickets[0])


def test_a_wrong_version_is_told_which_one_is_spoken(world: World) -> None:
    client = world.client(is_connected=False)
    client.dial()
    client.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION + 1, Role.WORKER, 1, 0, 0))
    world.run()
    assert [fault.code for fault in client.faults] == [Code.WRONG_VERSION]
    assert str(PROTOCOL_VERSION) in client.faults[0].text


def test_a_message_before_hello_ends_the_connection(world: World) -> None:
    for message in (Refill(1, 0, 1, 1, False), Bell([1]), Query(1, Topic.STATS)):
        client = world.client(is_connected=False)
        client.dial()
        client.send(message)
        world.run()
        assert [fault.code for fault in client.faults] == [Code.BAD_MESSAGE]
    assert world.broker.seats.taken == {} and not world.broker.clients


def test_a_second_hello_ends_the_connection_and_the_seat_stays(world: World) -> None:
    client = world.client()
    client.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.WORKER, client.nonce, POOL_ID, client.seat))
    world.run()
    assert [fault.code for fault in client.faults] == [Code.BAD_MESSAGE]
    assert world.broker.seats.taken[client.seat].connection is None


def test_an_operator_that_asks_for_memory_is_refused(world: World) -> None:
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    operator.send(Refill(1, 0, 1, 1, False))
    world.run()
    assert [fault.code for fault in operator.faults] == [Code.BAD_MESSAGE]
    assert world.broker.inventory.granted == {}


def test_a_goodbye_that_comes_with_everything_settled_leaves_nothing(world: World) -> None:
    client = world.client()
    client.get(count=4)
    client.publish(client.ready[0])
    client.get_direct(1)
    client.goodbye()
    world.run()
    assert world.broker.seats.taken == {}
    assert [holding.owner for holding in world.broker.inventory.granted.values()] == [world.broker.custody]


def test_an_unknown_death_does_nothing(world: World) -> None:
    client = world.client()
    client.get_direct(4096)
    seat = client.seat
    client.die()
    client.die()
    world.run()
    assert seat not in world.broker.seats.taken
    assert world.states(DIRECT)[State.FREE] == world.tiers[DIRECT].capacity


def test_operators_are_no_more_than_their_share_and_shut_out_no_worker(world: World) -> None:
    operators = [world.client(is_connected=False) for _ in range(MOST_OPERATORS + 1)]
    for operator in operators:
        operator.connect(Role.OPERATOR)
    world.run()
    assert [fault.code for fault in operators[-1].faults] == [Code.NO_SEAT]
    assert not any(operator.faults for operator in operators[:-1])
    assert world.client().get()
    operators[0].disconnect()
    world.run()
    late = world.client(is_connected=False)
    late.connect(Role.OPERATOR)
    world.run()
    assert not late.faults


def test_a_seat_whose_process_cannot_be_seen_is_probed_at_once_in_a_while(world: World) -> None:
    """One that is connected a second later; one that is away as soon as any."""
    connected, away = world.client(), world.client()
    away.disconnect()
    world.run()
    world.keep_actions = True

    def probed() -> set[int]:
        seats = {action.seat for action in world.actions if isinstance(action, ProbeSeat)}
        world.actions.clear()
        return seats

    for client in (connected, away):
        world.dispatch(Unseen(client.seat))
    world.pass_time(Away.LONGEST / 2)
    assert probed() == {away.seat}
    world.pass_time(Away.LONGEST)
    assert probed() == {away.seat, connected.seat}


def test_a_welcome_says_whether_large_objects_are_chunked(make_world: type[World]) -> None:
    for strategy in (Strategy.CHUNKED, Strategy.DIRECT):
        sizing = Sizing(
            16 * KIB, 32 * KIB, 64 * KIB,
            pooled_sizes=(4 * KIB, 16 * KIB), chunk_sizes=(8 * KIB,), large_object_strategy=strategy,
        )  # fmt: skip
        (welcome,) = make_world(small_settings(sizing=sizing)).client().welcomes
        assert dict(map(tuple, welcome.settings))[Setting.IS_CHUNKING] == (strategy is Strategy.CHUNKED)
