"""Who waits for much, and who for little: each is served within its bound, in simulated time.

The streams here are what a pool full of them looks like to the broker: leases that end in the
order in which they began, each followed by a request for another.
"""

from __future__ import annotations

from collections import deque

import pytest
from harness import CHUNKS, MEDIUM, SMALL, Client, Process, World, small_settings
from sharers import cache, sharer

from shmpool.protocol.codes import Code
from shmpool.protocol.sizing import KIB, MIB
from shmpoold.core.actions import Cool
from shmpoold.core.lending.earmarks import (
    AGE,
    FIRST_PATIENCE,
    FUTILE,
    TURN,
)
from shmpoold.core.memory import slots
from shmpoold.core.settings import Settings

LIMIT = 64 * MIB
#: 256 KiB slots, and chunks, of the usual sizes.
LARGEST, LARGE_CHUNKS = 5, 7


class Stream:
    """Leases that end one by one, in the order in which they began, each *pause* seconds after the
    one before; a request follows each end, and waits if it must."""

    def __init__(self, world: World, tier: int, chunks: int = 1, *, pause: float, leave: int = 0) -> None:
        self.world, self.tier, self.chunks, self.pause = world, tier, chunks, pause
        self.client = world.client()
        self.client.answers_recalls = False
        self.leases: deque = deque()
        while not self.client.refusals:
            self.client.refill(tier, chunks, 1 if chunks > 1 else 16, queue=False)
            world.run()
            self._lease()
        self.client.refusals.clear()
        for _ in range(leave):
            self.end_one()
        world.run()
        self.next = world.now + pause
        self.granted = 0

    def _lease(self) -> None:
        for slot in list(self.client.ready):
            self.leases.append(self.client.lease(slot))

    def end_one(self) -> None:
        """One lease ends, and its slot goes back."""
        slot = self.leases.popleft()
        self.client.put_back(slot)
        self.client.give_back(slot)

    def run(self, seconds: float, until: Client | None = None) -> float:
        """Let so much time pass, or until that client has something; returns how much did."""
        world, started = self.world, self.world.now
        while world.now < started + seconds and not (until is not None and until.ready):
            world.pass_time(max(0.0, min(self.next, started + seconds) - world.now))
            if world.now < self.next:
                break
            self.next += self.pause
            before = len(self.leases)
            self._lease()
            self.granted += len(self.leases) - before
            if self.leases:
                self.end_one()
            if len(self.client.requests) < 8:
                self.client.refill(self.tier, self.chunks)
            world.run()
        return world.now - started


@pytest.fixture
def world(make_world: type[World]) -> World:
    return make_world(Settings(memory_limit=LIMIT, max_clients=16), check_every=500)


@pytest.mark.parametrize("pause", [0.001, 0.01, 0.1])
def test_a_large_direct_waiter_is_served_beside_a_stream_of_small_leases(world: World, pause: float) -> None:
    stream, waiter = Stream(world, LARGEST, pause=pause), world.client()
    size, nbytes = world.tiers[LARGEST].size, 8 * MIB
    waiter.ask_direct(nbytes)
    seconds = stream.run(60.0, until=waiter)
    assert waiter.ready
    comes_back_in = nbytes / size * pause
    assert seconds <= comes_back_in + 2 * AGE + max(TURN, 2 * comes_back_in) + pause
    stream.client.requests.clear()
    granted = stream.granted
    stream.run(100 * pause)
    assert stream.granted >= granted + 90  # and the stream goes on


def test_a_larger_slot_is_had_beside_a_stream_of_smaller_ones(world: World) -> None:
    stream, waiter = Stream(world, 0, pause=0.001), world.client()
    waiter.refill(LARGEST)
    assert stream.run(20.0, until=waiter) <= AGE + FUTILE * TURN + TURN
    assert waiter.ready


def test_a_run_is_had_beside_a_stream_of_chunks_of_its_tier(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=4096 * KIB), check_every=20)
    stream, waiter = Stream(world, CHUNKS, pause=0.001), world.client()
    waiter.refill(CHUNKS, 100)
    assert stream.run(20.0, until=waiter) <= AGE + FUTILE * TURN + TURN
    assert waiter.ready


def keep_for_ever(world: World, tier: int, chunks: int) -> Client:
    client = world.client()
    client.lease(client.get(tier, chunks)[0])
    return client


def test_what_living_leases_make_impossible_holds_up_nobody_for_long(world: World) -> None:
    keep_for_ever(world, LARGE_CHUNKS, 60)
    capacity = world.tiers[LARGE_CHUNKS].capacity
    waiter, other = world.client(), world.client()
    other.answers_recalls = False
    waiter.refill(LARGE_CHUNKS, capacity - 50)
    world.run()
    other.refill(LARGE_CHUNKS, 2, queue=False)
    world.run()
    assert len(other.ready) == 1 and not other.refusals
    for _ in range(20):  # whenever it comes, it waits for a turn at most
        world.pass_time(0.37)
        started = world.now
        other.refill(LARGE_CHUNKS, 2)
        world.run()
        while len(other.ready) < 2:
            world.pass_time(0.01)
            assert world.now <= started + TURN + 0.02
        other.give_back(other.ready[-1])
        world.run()
    assert not waiter.ready


@pytest.mark.parametrize("pause", [0.003, 0.02])
def test_a_stream_loses_nothing_beside_a_request_that_is_impossible_for_now(world: World, pause: float) -> None:
    keep_for_ever(world, LARGE_CHUNKS, 60)
    waiter = world.client()
    waiter.refill(LARGE_CHUNKS, world.tiers[LARGE_CHUNKS].capacity - 50)
    world.run()
    client = world.client()
    rounds = 0
    world.pass_time(AGE)
    started = world.now
    while world.now < started + 4.0:
        client.refill(LARGE_CHUNKS, 2)
        world.run()
        while not client.ready:
            world.pass_time(pause)
        client.give_back(*client.ready)
        world.run()
        world.pass_time(pause)
        rounds += 1
    assert rounds >= 0.98 * 4.0 / pause
    assert not waiter.ready


def test_a_request_that_looked_impossible_is_served_when_it_no_longer_is(world: World) -> None:
    keeper = keep_for_ever(world, LARGE_CHUNKS, 60)
    waiter = world.client()
    waiter.refill(LARGE_CHUNKS, world.tiers[LARGE_CHUNKS].capacity - 50)
    world.run()
    stream = Stream(world, LARGE_CHUNKS, 2, pause=0.005)
    stream.run(3.0)
    assert not waiter.ready
    (lease,) = keeper.leased
    keeper.put_back(lease)
    keeper.give_back(lease)
    world.run()
    assert stream.run(60.0, until=waiter) <= AGE + FUTILE * TURN + 2 * TURN
    assert waiter.ready


def test_those_who_wait_for_much_are_served_one_after_the_other(world: World) -> None:
    stream = Stream(world, LARGEST, pause=0.001)
    waiters = [world.client() for _ in range(3)]
    for waiter in waiters:
        waiter.ask_direct(8 * MIB)
        world.run()
    for waiter in waiters:
        assert stream.run(20.0, until=waiter) <= AGE + FUTILE * TURN + TURN
        assert waiter.ready


def test_caches_that_nobody_holds_count_as_what_there_is_for_who_waits(world: World) -> None:
    """They are given up once they suffice, together with what comes back: before that it must be kept."""
    stream, maker, waiter = Stream(world, LARGEST, pause=0.002, leave=100), sharer(world), world.client()
    for number in range(98):
        cache(maker, f"n{number}", LARGEST, 1)
    size, caches = world.tiers[LARGEST].size, world.broker.shared.caches
    assert caches.nbytes == 98 * size
    waiter.ask_direct((100 + len(stream.leases) // 2) * size)
    assert stream.run(20.0, until=waiter) <= 5.0
    assert waiter.ready and not caches.nbytes


CROWD = Process(5000, 1)


def crowd_of(world: World, *, connections: int, requests: int) -> list[Client]:
    """One process with so many requests for all that there could be on each of so many connections; somebody
    has a slot for ever."""
    keep_for_ever(world, SMALL, 1)
    clients = [world.client(process=CROWD) for _ in range(connections)]
    inventory = world.broker.inventory
    for client in clients:
        client.answers_recalls = False
        for _ in range(requests):
            client.ask_direct(inventory.limit - inventory.overhead)
    world.run()
    return clients


def quick_stream(world: World) -> Stream:
    """One that is never short, unless something is kept from it."""
    return Stream(world, LARGEST, pause=0.003, leave=4)


@pytest.mark.parametrize(("connections", "requests"), [(1, 1), (8, 60)])
def test_a_stream_loses_nothing_beside_any_number_of_requests_that_living_leases_make_impossible(
    world: World, connections: int, requests: int
) -> None:
    stream = quick_stream(world)
    crowd_of(world, connections=connections, requests=requests)
    stream.run(3.0)
    assert stream.granted >= 0.99 * 3.0 / stream.pause


def test_what_came_back_and_is_kept_out_whenever_it_is_waited_for_costs_the_others_a_tenth(world: World) -> None:
    """Leases that go round as long as nothing is kept for the waiter, and stay out in each of its turns."""
    stream, waiter = quick_stream(world), world.client()
    stream.client.answers_recalls = False
    waiter.ask_direct(8 * MIB)
    world.run()
    earmarks = world.broker.lending.earmarks
    kept, started, longest = 0.0, world.now, 0.0
    while world.now < started + 20.0:
        began = world.now
        while earmarks._is_turn:
            world.pass_time(0.002)
        longest = max(longest, world.now - began)
        kept += world.now - began
        stream.next = max(stream.next, world.now)
        stream.run(0.004)
    assert not waiter.ready
    assert 0 < longest <= TURN
    assert kept <= 0.1 * 20.0 + TURN


def test_a_turn_in_vain_is_short_at_first_however_rare_returns_were(world: World) -> None:
    """That nobody had anything to give back for long says little of when something comes back next; a turn
    of which a longer one would have more gets it in the end."""
    stream, waiter = quick_stream(world), world.client()
    stream.client.answers_recalls = False
    waiter.ask_direct(8 * MIB)
    world.run()
    earmarks = world.broker.lending.earmarks
    turns: list[float] = []
    while len(turns) < 5:
        stream.next = max(stream.next, world.now)
        stream.run(0.004)
        if earmarks._is_turn:
            earmarks._pause = TURN  # as after a second in which nothing came back
            began = world.now
            while earmarks._is_turn:
                world.pass_time(0.002)
            turns.append(world.now - began)
    expected = [FIRST_PATIENCE, 2 * FIRST_PATIENCE, 4 * FIRST_PATIENCE, TURN, TURN]
    assert turns == pytest.approx(expected, abs=0.01)
    assert not waiter.ready


def test_asking_and_cancelling_in_a_loop_keeps_no_more_from_others(world: World) -> None:
    stream = quick_stream(world)
    (client,) = crowd_of(world, connections=1, requests=1)
    (number,) = client.requests
    started = world.now
    while world.now < started + 5.0:
        stream.run(AGE + 0.03)  # just before its turn is over
        client.cancel(number)
        number = client.ask_direct(8 * MIB)
        world.run()
    assert stream.granted >= 0.85 * 5.0 / stream.pause


def test_who_waits_for_much_is_served_beside_ten_thousand_that_are_impossible(world: World) -> None:
    stream = Stream(world, LARGEST, pause=0.001)
    crowd_of(world, connections=8, requests=120)
    stream.run(1.0)
    waiter = world.client()
    waiter.ask_direct(8 * MIB)
    assert stream.run(20.0, until=waiter) <= AGE + 2 * (FUTILE * TURN + TURN)
    assert waiter.ready


def test_nobody_has_a_turn_before_it_has_aged(world: World) -> None:
    """Nor where the line is gone through for others: what it wants has come back meanwhile, to who asked."""
    stream = Stream(world, LARGEST, pause=0.001)
    crowd_of(world, connections=1, requests=1)
    stream.run(1.5 * AGE)
    waiter = world.client()
    waiter.ask_direct(2 * MIB)
    assert AGE <= stream.run(1.0, until=waiter) <= AGE + 0.1


def test_turns_go_by_process(world: World) -> None:
    """Of three, one of which has a hundred requests in line, each has every third turn. What they want
    comes back to the others all the time, and stays out whenever it is kept for one of them."""
    stream = Stream(world, LARGEST, pause=0.001)
    waiters = [world.client() for _ in range(3)]
    for waiter, requests in zip(waiters, (100, 1, 1), strict=True):
        for _ in range(requests):
            waiter.ask_direct(8 * MIB)
    world.run()
    turns: list[int] = []
    earmarks = world.broker.lending.earmarks
    while len(turns) < 18:
        stream.run(0.02)
        if earmarks._is_turn and earmarks._waiter is not None:
            if turns[-1:] != [earmarks._waiter.seat]:  # else it goes on with what it gathered
                turns.append(earmarks._waiter.seat)
            while earmarks._is_turn:
                world.pass_time(0.01)
            stream.next = world.now
    counts = [turns.count(waiter.seat) for waiter in waiters]
    assert max(counts) - min(counts) <= 2


def test_in_a_pool_where_nobody_waits_nothing_is_kept_for_anybody(world: World) -> None:
    waiter = world.client()
    stream = Stream(world, LARGEST, pause=0.01)
    number = waiter.ask_direct(8 * MIB)
    stream.run(AGE + 0.05)
    waiter.cancel(number)
    world.run()
    stream.run(0.5)
    earmarks = world.broker.lending.earmarks
    assert earmarks._waiter is None and earmarks._kept == 0


def test_a_futile_turn_takes_a_tenth_at_most() -> None:
    assert FUTILE / (1 + FUTILE) >= 0.9


# --- what is cooled ------------------------------------------------------------------------------


def warm(world: World) -> Client:
    """A pool whose slots are half somebody's, half warm and nobody's."""
    hoarder = world.client()
    hoarder.answers_recalls = False
    while not hoarder.refusals:
        hoarder.refill(0, count=256, queue=False)
        world.run()
        if len(hoarder.ready) >= 8192:
            break
    hoarder.give_back(*hoarder.ready[1::2])
    world.run()
    world.pass_time(0.5)
    for slot in list(hoarder.ready):
        hoarder.lease(slot)
    return hoarder


@pytest.mark.parametrize("queue", [False, True])
def test_nothing_is_cooled_for_a_request_that_it_would_not_serve(world: World, queue: bool) -> None:
    warm(world)
    inventory = world.broker.inventory
    idle = inventory.idle
    client = world.client()
    world.keep_actions = True
    client.ask_direct(inventory.room + idle + MIB, queue=queue)
    world.run()
    world.pass_time(3.0)
    assert not [action for action in world.actions if isinstance(action, Cool)]
    assert inventory.idle == idle
    assert [refusal.code for refusal in client.refusals] == ([] if queue else [Code.EXHAUSTED])


@pytest.mark.parametrize("queue", [False, True])
def test_what_suffices_is_cooled_in_slices_that_others_come_between(world: World, queue: bool) -> None:
    warm(world)
    inventory = world.broker.inventory
    client, other = world.client(), world.client()
    nbytes = inventory.room + 3 * inventory.idle // 4
    ready = inventory.maps[0].ready
    client.ask_direct(nbytes, queue=queue)
    world.run()
    assert ready - inventory.maps[0].ready <= 256
    assert other.get(0)
    world.pass_time(1.0)
    assert client.ready and not client.refusals


@pytest.mark.parametrize("how", ["cancel", "die"])
def test_room_that_is_made_for_who_has_gone_is_everybodys(world: World, how: str) -> None:
    warm(world)
    inventory = world.broker.inventory
    client, idle = world.client(), inventory.idle
    number = client.ask_direct(inventory.room + idle // 2)
    world.run()
    assert world.broker.lending.clearings
    client.cancel(number) if how == "cancel" else client.die()
    world.run()
    world.pass_time(1.0)
    assert not world.broker.lending.clearings
    assert world.broker.lending.earmarks.promised == 0
    assert inventory.idle > idle - idle // 4, "more was cooled, for nobody"
    assert not client.ready


# --- what is said --------------------------------------------------------------------------------


def test_a_refusal_says_that_rows_are_missing_and_not_bytes(make_world: type[World]) -> None:
    world = make_world(small_settings(memory_limit=2048 * KIB))
    world.broker.inventory.limit = 8192 * KIB
    client = world.client()
    while not client.refusals:
        client.refill(MEDIUM, count=64, queue=False)
        world.run()
    capacity = world.tiers[MEDIUM].capacity
    assert f"0 of its {capacity} slots are free, 1 are needed" in client.refusals[0].text


@pytest.mark.parametrize("wanted", ["some", "all"])
def test_a_refusal_says_that_what_is_free_is_in_too_many_pieces(
    make_world: type[World], monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr(slots, "MAX_EXTENTS", 64)
    world = make_world(small_settings(memory_limit=2048 * KIB, fallback=False), check_every=0)
    world.broker.inventory.limit = 8192 * KIB
    hoarder, client = world.client(), world.client()
    while not hoarder.refusals:
        hoarder.refill(CHUNKS, count=16, queue=False)
        world.run()
    hoarder.give_back(*hoarder.ready[::2])
    world.run()
    client.refill(CHUNKS, 100 if wanted == "some" else world.broker.inventory.maps[CHUNKS].unused, queue=False)
    world.run()
    (refusal,) = client.refusals
    assert "in too many pieces" in refusal.text and "as many as a lease may have, are" in refusal.text


def test_a_refusal_says_how_much_is_held_of_the_limit(make_world: type[World]) -> None:
    world = make_world()
    client = world.client()
    while not client.refusals:
        client.refill(SMALL, queue=False)
        world.run()
    assert "(memory_limit) are held" in client.refusals[0].text
