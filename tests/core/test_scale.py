"""300 clients and 80,000 granted holdings in a pool of more than 100,000 rows. Times are printed (``-s``) and not
asserted; what is asserted is the amount of work for each event."""

from __future__ import annotations

import gc
import time
from unittest.mock import Mock, patch

import pytest
from harness import Client, World

from shmpool.protocol.ledger import ROW_WORDS
from shmpool.protocol.messages import Bell, Query, Refill, Return, Role, Topic
from shmpool.protocol.sizing import MIB, TierKind
from shmpoold.core.actions import Action, Close, Cool, ProbeReaders, Send, Unwatch
from shmpoold.core.chores import STEPS_PER_TURN
from shmpoold.core.connections.endings import SEARCHING_FOR_FEW
from shmpoold.core.events import Event, ProcessDied, ReadersGone, Received, Ticked
from shmpoold.core.memory.inventory import SEARCHED_PER_STEP
from shmpoold.core.settings import Settings

CLIENTS = 300
BATCH = 64
#: Words that one turn of chores touches at most: a step is a row, its cells, a run's chunks.
MOST_WORDS = 32 * STEPS_PER_TURN


class CountingWords:
    """Words that count how often they are read and written; a slice counts as one."""

    def __init__(self, words: memoryview[int]) -> None:
        self.words, self.loads, self.stores = words, 0, 0

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, at: int) -> int:
        self.loads += 1
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.stores += 1
        self.words[at] = value


def fill(world: World) -> None:
    """Every client takes batches from the small tiers until much is granted."""
    pooled = [tier.index for tier in world.tiers if tier.kind is TierKind.POOLED]
    for client in world.clients:
        for tier in (*pooled[:5], *pooled[:5]):
            client.refill(tier, count=BATCH)
        client.refill(pooled[-1] + 1, 8)
    world.run()


@pytest.fixture(scope="module")
def large_world() -> World:
    world = World(Settings(memory_limit=32 * 1024 * MIB, max_clients=CLIENTS), check_every=0, direct_rows=4096)
    for _ in range(CLIENTS):
        world.client()
    started = time.perf_counter()
    while len(world.broker.inventory.granted) < 80_000:
        before = len(world.broker.inventory.granted)
        fill(world)
        assert len(world.broker.inventory.granted) > before
    seconds = time.perf_counter() - started
    print(f"\n{world.events} events in {seconds:.1f} s, {len(world.broker.inventory.granted)} holdings granted")
    world.check()
    return world


def count(world: World) -> CountingWords:
    counting = CountingWords(world.ledger)  # type: ignore[arg-type]
    world.broker.rows.words = counting  # type: ignore[assignment]
    return counting


def holder(world: World) -> Client:
    return next(client for client in world.clients if client.process.is_alive and len(client.ready) > 2 * BATCH)


def test_a_return_and_a_refill_cost_what_they_move_and_not_what_there_is(large_world: World) -> None:
    world = large_world
    client = holder(world)
    assert client.link is not None
    slots = [slot for slot in client.ready if slot.tier.index == 0][:BATCH]
    client.give_back(*slots, tell=False)
    words = count(world)
    actions = world.dispatch(Received(client.link.number, Return([slot.row for slot in slots])))
    assert actions == []
    assert words.loads + words.stores <= 12 * BATCH
    words = count(world)
    actions = world.dispatch(Received(client.link.number, Refill(9999, 0, 1, len(slots), False)))
    assert len(actions) == 1
    assert words.loads + words.stores <= 16 * BATCH
    world.broker.rows.words = world.ledger
    world.run()
    world.check()


def test_a_bell_costs_what_it_names(large_world: World) -> None:
    world = large_world
    client = holder(world)
    assert client.link is not None
    words = count(world)
    assert world.dispatch(Received(client.link.number, Bell(list(range(1, 1001))))) == []
    assert words.loads <= 4 * 1000 and words.stores == 0
    world.broker.rows.words = world.ledger


def test_a_tick_reads_nothing_of_what_clients_hold(large_world: World) -> None:
    world = large_world
    words = count(world)
    actions = world.dispatch(Ticked())
    assert words.loads + words.stores == 0 and actions == []
    world.broker.rows.words = world.ledger


def in_turns(world: World, event: Event) -> list[list[Action]]:
    """What the broker does about an event, turn by turn, until nothing of it is under way. No
    turn touches more words than its steps may."""
    turns, now = [], world.now
    while event is not None:
        words = count(world)
        turns.append(world.dispatch(event))
        assert words.loads + words.stores <= MOST_WORDS, f"turn {len(turns)} was too long"
        world.now = world.broker.chores.next_turn or world.now
        event = Ticked() if world.broker.chores else None
    world.broker.rows.words = world.ledger
    print(f"\n{len(turns)} turns, {(world.now - now) * 1000:.0f} ms")
    return turns


def test_a_death_costs_what_the_dead_held_and_no_turn_more_than_its_share(large_world: World) -> None:
    world = large_world
    client = holder(world)
    link, seat, held = client.link, client.seat, len(world.broker.seats.taken[client.seat].rows)
    client.die(is_seen=False)
    turns = in_turns(world, ProcessDied(seat))
    turns += in_turns(world, ReadersGone(seat))
    assert [action for actions in turns for action in actions if not isinstance(action, Cool)] == [
        Close(link.number), ProbeReaders(seat), Unwatch(seat),
    ]  # fmt: skip
    searching = SEARCHING_FOR_FEW * (1 + world.broker.rows.count // SEARCHED_PER_STEP)
    assert len(turns) <= 8 + (held + searching) // STEPS_PER_TURN
    world.run()
    world.check()


def test_a_hundred_deaths_at_once_are_one_search_and_many_turns(large_world: World) -> None:
    """Each turn is short, and the tickets of all are found together."""
    world = large_world
    dying = [client for client in world.clients if client.process.is_alive][:100]
    seats = [client.seat for client in dying]
    held = sum(len(world.broker.seats.taken[seat].rows) for seat in seats)
    for client in dying:
        client.die(is_seen=False)
    search = Mock(wraps=world.broker.rows.cells_taken_by)
    with patch.object(type(world.broker.rows), "cells_taken_by", lambda self, *which: search(*which)):
        in_turns(world, ProcessDied(seats[0]))
        for seat in seats[1:]:
            world.dispatch(ProcessDied(seat))
        in_turns(world, Ticked())
        world.run_news()
        in_turns(world, Ticked())
    searches = search.call_count / -(-world.broker.rows.count // SEARCHED_PER_STEP)
    assert searches <= 6, "for what they had open, and to settle it: the first one's, the second one's, all the others'"
    print(f"{held} holdings")
    assert not set(seats) & world.broker.seats.taken.keys()
    world.run()
    world.check()


@pytest.mark.parametrize("topic", [topic for topic in Topic if topic is not Topic.NAMES])  # nobody named anything
def test_a_question_is_answered_in_turns(large_world: World, topic: Topic) -> None:
    world = large_world
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    world.run()
    link = operator.link
    turns = in_turns(world, Received(link.number, Query(1, topic)))
    parts = [action for actions in turns for action in actions]
    assert isinstance(parts[-1], Send) and parts[-1].message.last
    assert len(turns) > 5
    operator.disconnect()
    world.run()


def test_all_who_ask_meanwhile_share_the_next_report(large_world: World) -> None:
    world = large_world
    operator = world.client(is_connected=False)
    operator.connect(Role.OPERATOR)
    world.run()
    link = operator.link
    make = Mock(wraps=world.broker.reports.make)
    with patch.object(world.broker.reports, "make", make):
        turns = [world.dispatch(Received(link.number, Query(number, Topic.STATS))) for number in range(1, 17)]
        turns += in_turns(world, Received(link.number, Query(17, Topic.STATS)))
    sent = [one.message for actions in turns for one in actions if isinstance(one, Send)]
    assert [part.request for part in sent if part.last] == list(range(1, 18))
    # The one under way, and one for all the others. (Turns do not tell: the broker's own looks come in between.)
    assert make.call_count <= 2
    operator.disconnect()
    world.run()


def test_adoption_reads_each_row_a_few_times_and_asks_for_little(large_world: World) -> None:
    world = large_world
    world.kill_broker()
    broker = world._make_broker()
    world.broker = broker
    words = count(world)
    actions = broker.adopt(world.now)
    assert words.loads + words.stores <= 6 * broker.rows.count
    assert len(actions) < 2 * CLIENTS + 1000
    world.broker.rows.words = world.ledger
    world._obey_all(actions)
    world.check()
    broker = world._make_broker()
    gc.disable()  # as the shell does
    started = time.process_time()
    broker.adopt(world.now)
    seconds = time.process_time() - started
    gc.enable()
    held = len(broker.inventory.granted)
    print(f"\nadopted {broker.rows.count} rows in {seconds * 1000:.0f} ms of CPU, of them {held} held")
    assert len(broker.inventory.granted) == len(world.broker.inventory.granted)
    assert broker.inventory.held == world.broker.inventory.held
    assert len(broker.rows.grant_words()) == broker.rows.count
    assert len(world.ledger) >= broker.rows.count * ROW_WORDS
