"""A new broker on an old ledger: every state, and a death between any two stores."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from harness import CHUNKS, DIRECT, SMALL, Client, Crash, CrashingWords, Fuse, World, small_settings

from shmpool.protocol.header import BROKER_PID, EPOCH
from shmpool.protocol.ledger import (
    BROKER,
    CHECKSUM,
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    LINK,
    MAX_TICKETS,
    ROW_WORDS,
    SHARED,
    STATE_SHIFT,
    extent_word,
    link_word,
    seat_of,
    state_of,
)
from shmpool.protocol.states import CellState, State
from shmpoold.core.actions import WatchAdopted
from shmpoold.core.events import Event
from shmpoold.core.recovery import damage
from shmpoold.core.rows import Rows


def test_a_new_broker_counts_the_epoch_up_and_the_pool_stays(world: World) -> None:
    world.restart()
    assert (world.header[EPOCH], world.header[BROKER_PID]) == (2, 1)
    assert world.broker.pool_id == world.client().welcomes[0].pool_id


def test_the_living_keep_all_that_they_have(world: World) -> None:
    client, reader = world.client(), world.client()
    idle, leased, published, run = *client.get(count=3), *client.get(CHUNKS, 4)
    direct = client.get_direct(8192)
    client.lease(leased)
    (ticket,) = client.publish(published)
    assert reader.open(ticket)
    words = list(world.ledger)
    world.restart()
    assert list(world.ledger) == words
    assert world.broker.inventory.held == world.overhead + 3 * 4096 + 4 * 8192 + 8192
    client.reconnect()
    reader.reconnect()
    world.run()
    assert world.broker.seats.taken[client.seat].rows == {slot.row for slot in (idle, leased, published, run, direct)}
    reader.release(ticket)
    client.put_back(leased)
    client.reap()
    client.give_back(*client.ready)
    world.run()
    assert world.broker.inventory.granted == {}


def test_a_row_whose_client_works_on_while_it_is_read_is_not_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are read one after the other: some are of one publication, some of the next."""
    client, reader = world.client(), world.client()
    (slot,) = client.get()
    tickets = client.publish(slot, 3)
    read = damage._column

    def read_slowly(rows: Rows, word: int) -> list[int]:
        for ticket in tickets:
            assert reader.open(ticket)
            reader.release(ticket)
        tickets.clear()
        client.reap()
        if slot in client.ready:
            client.publish(slot, 1)
        return read(rows, word)

    monkeypatch.setattr(damage, "_column", read_slowly)
    world.restart()
    assert not world.broker.inventory.quarantined


def test_work_goes_on_while_the_broker_is_away(world: World) -> None:
    client, reader = world.client(), world.client()
    (slot,) = client.get()
    world.kill_broker()
    for _ in range(5):
        (ticket,) = client.publish(slot)
        assert reader.open(ticket)
        reader.release(ticket)
        client.reap()
    world.restart()
    client.reconnect()
    world.run()
    client.lease(slot)


def test_what_was_free_is_free_and_what_was_cold_is_cold(world: World) -> None:
    client = world.client()
    client.get(count=6)
    client.give_back(*client.ready[:4])
    world.run()
    world.restart()
    slots = world.broker.inventory.maps[SMALL]
    assert (slots.ready, slots.warm) == (4, 6)


def test_pages_that_a_crash_left_in_cold_rows_are_given_back(world: World) -> None:
    client = world.client()
    client.refill(count=4)
    world.deliver()
    world.restart(finish_shell=True)  # the pages were reserved, and nobody was told
    assert world.warm == set()
    assert world.broker.inventory.held == world.overhead


def test_idle_memory_is_not_cooled_at_once_after_a_restart(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(count=6))
    world.run()
    world.restart()
    world.pass_time(world.settings.buffer_lifetime - 1)
    assert world.states(SMALL)[State.FREE] == 6
    world.pass_time(world.settings.buffer_lifetime / 4)
    assert world.states(SMALL)[State.FREE] == 0


def test_idle_memory_over_a_limit_that_was_lowered_is_cooled(world: World) -> None:
    client = world.client()
    client.give_back(*client.get(count=8), *client.get(CHUNKS, 10))
    world.run()
    world.settings = small_settings(memory_limit=world.overhead + 40 * 1024)
    world.restart()
    assert world.broker.inventory.held <= world.settings.memory_limit
    assert world.client().get(CHUNKS, 5)


def test_who_died_while_the_broker_was_away_is_swept_before_anybody_is_served(world: World) -> None:
    client = world.client()
    idle, leased, published = client.get(count=3)
    client.lease(leased)
    (ticket,) = client.publish(published)
    world.kill_broker()
    client.die()
    world.restart()
    assert world.broker.seats.taken == {}
    assert world.state(idle.row) is world.state(leased.row) is State.FREE
    assert seat_of(world.grant(published.row)) == BROKER
    assert world.client().open(ticket)


def test_a_dead_readers_ticket_is_done_after_a_restart(world: World) -> None:
    client, reader = world.client(), world.client()
    (ticket,) = client.publish(client.get()[0])
    assert reader.open(ticket)
    world.kill_broker()
    reader.die()
    world.restart()
    assert state_of(world.cell(ticket.row)) == CellState.DONE


def test_a_process_with_the_same_pid_is_not_taken_for_the_old_one(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    world.kill_broker()
    client.die()
    reborn = world.client(is_connected=False)
    reborn.process.pid = client.process.pid
    world.restart()
    assert world.state(slot.row) is State.FREE


def test_a_living_process_is_watched_again(world: World) -> None:
    client = world.client()
    world.keep_actions = True
    world.restart()
    (watched,) = [action for action in world.actions if isinstance(action, WatchAdopted)]
    assert (watched.seat, watched.peer.pid) == (client.seat, client.process.pid)
    assert watched.peer.start_time == client.process.start_time
    client.die()
    world.run()
    world.assert_all_is_back()


def test_a_client_that_is_gone_from_its_process_is_found_by_its_lock(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    world.kill_broker()
    client._forget()  # it called exec: the process lives, the lock is free
    world.restart()
    world.pass_time(2)
    assert world.state(slot.row) is State.FREE
    assert world.broker.seats.taken == {}


def test_what_was_returned_or_handed_over_meanwhile_is_settled(world: World) -> None:
    client, other = world.client(), world.client()
    returned, handed = client.get(count=2)
    run = client.get(CHUNKS, 3)[0]
    world.kill_broker()
    client.give_back(returned, run)
    (ticket,) = client.publish(handed)
    client.goodbye()
    world.restart()
    world.pass_time(2)
    assert world.state(returned.row) is State.FREE
    assert world.states(CHUNKS)[State.FREE] == 3
    assert world.state(handed.row) is State.PUBLISHED
    other.reconnect()
    world.run()
    assert other.open(ticket)
    other.release(ticket)
    world.run()
    assert world.state(handed.row) is State.FREE


def test_a_scattered_run_is_adopted_whole(world: World) -> None:
    hoarder, client = world.client(), world.client()
    while not hoarder.refusals:
        hoarder.refill(CHUNKS, queue=False)
        world.run()
    hoarder.give_back(*hoarder.ready[::2])
    world.run()
    while not client.refusals:
        client.refill(CHUNKS, 3, queue=False)
        world.run()
    scattered = [slot for slot in client.ready if len(slot.extents) > 1]
    assert scattered
    world.restart()
    client.reconnect()
    world.run()
    for slot in scattered:
        holding = world.broker.inventory.granted[slot.row]
        assert {row for first, n in holding.extents for row in range(first, first + n)} == set(slot.rows)
    client.give_back(*client.ready)
    world.run()
    assert world.states(CHUNKS)[State.FOLLOWER] == 0


def test_followers_whose_head_has_moved_on_are_free(world: World) -> None:
    client = world.client()
    (run,) = client.get(CHUNKS, 4)
    world.kill_broker()
    follower = run.rows[2]
    words = list(world.ledger[follower * ROW_WORDS : (follower + 1) * ROW_WORDS])
    world.restart()
    client.reconnect()
    world.run()
    client.give_back(run)
    world.run()
    (again,) = client.get(CHUNKS, 2)
    assert again.row == run.row
    world.kill_broker()
    for at, word in enumerate(words):  # as if it had never been freed
        world.ledger[follower * ROW_WORDS + at] = word
    world.restart()
    assert world.state(follower) is State.FREE
    assert world.states(CHUNKS)[State.FOLLOWER] == 1


def test_direct_segments_are_adopted_and_leftovers_removed(world: World) -> None:
    client, other = world.client(), world.client()
    held = client.get_direct(20_000)
    (ticket,) = client.publish(client.get_direct(4096))
    other.ask_direct(4096)
    while world.deliver():
        pass
    world.restart(finish_shell=True)  # one was made for a grant that never came
    assert set(world.direct) == {(held.row, held.generation), ticket.publication.name}
    assert world.broker.inventory.held == world.overhead + 20_480 + 4096
    other.reconnect()
    world.run()
    assert other.open(ticket)
    other.release(ticket)
    world.run()
    assert (held.row, held.generation) in world.direct
    assert len(world.direct) == 2  # the one that was asked for again


def test_a_pool_whose_broker_died_while_it_was_made_has_all_its_direct_rows(world: World) -> None:
    for stores in itertools.count():
        world.ledger[:] = type(world.ledger)(bytearray(8 * len(world.ledger))).cast("Q")  # type: ignore[call-arg]
        world.header[:] = type(world.header)(bytearray(8 * len(world.header))).cast("Q")  # type: ignore[call-arg]
        try:
            world._make_broker(Fuse(stores))
        except Crash:
            world.restart()
            assert world.broker.inventory.maps[DIRECT].ready == world.tiers[DIRECT].capacity
        else:
            break
    assert stores > world.tiers[DIRECT].capacity
    world.client().get_direct(4096)


# --- a death between any two stores ---------------------------------------------------------------


def grant_a_slot(world: World, client: Client) -> Event:
    client.refill(count=3)
    world.deliver(client.link)
    return world._carry_out(world.shell.popleft())


def grant_a_scattered_run(world: World, client: Client) -> Event:
    hoarder = world.client()
    while not hoarder.refusals:
        hoarder.refill(CHUNKS, queue=False)
        world.run()
    hoarder.give_back(*hoarder.ready[2::3])
    world.run()
    client.refill(CHUNKS, 7)
    world.deliver(client.link)
    return world._carry_out(world.shell.popleft())


def grant_a_scattered_run_of_warm_pieces(world: World, client: Client) -> Event:
    hoarder = world.client()
    while not hoarder.refusals:
        hoarder.refill(CHUNKS, queue=False)
        world.run()
    hoarder.give_back(*hoarder.ready[2:8], *hoarder.ready[10:16])
    world.run()
    client.refill(CHUNKS, 12)
    return client.link.outbox.popleft()  # type: ignore[union-attr]


def grant_a_segment(world: World, client: Client) -> Event:
    client.ask_direct(8192)
    world.deliver(client.link)
    return world._carry_out(world.shell.popleft())


def return_runs(world: World, client: Client) -> Event:
    client.get(CHUNKS, 4)
    client.get(CHUNKS, 3)
    client.give_back(*client.ready)
    return client.link.outbox.popleft()  # type: ignore[union-attr]


def return_a_segment(world: World, client: Client) -> Event:
    client.give_back(client.get_direct(8192))
    return client.link.outbox.popleft()  # type: ignore[union-attr]


def die_with_everything(world: World, client: Client) -> Event:
    other = world.client()
    client.get(count=2)
    client.lease(client.get(CHUNKS, 3)[0])
    client.lease(client.get_direct(8192))
    client.publish(client.ready[0], 2)
    client.publish(client.get_direct(4096))
    (ticket,) = other.publish(other.get()[0])
    assert client.open(ticket)
    world.run()
    client.die()
    return world.news.popleft()


def finish_a_run_in_custody(world: World, client: Client) -> Event:
    publisher = world.client()
    (ticket,) = publisher.publish(publisher.get(CHUNKS, 4)[0])
    publisher.die()
    world.run()
    assert client.open(ticket)
    client.release(ticket)
    return client.link.outbox.popleft()  # type: ignore[union-attr]


def cool_for_another_tier(world: World, client: Client) -> Event:
    client.get(CHUNKS, 1, count=1)
    while not client.refusals:
        client.refill(CHUNKS, queue=False)
        world.run()
    client.give_back(*client.ready)
    world.run()
    client.refill(1, count=4)
    return client.link.outbox.popleft()  # type: ignore[union-attr]


def say_goodbye(world: World, client: Client) -> Event:
    client.publish(client.get(CHUNKS, 3)[0])
    client.get(count=3)
    client.goodbye()
    assert client.link is not None
    while len(client.link.outbox) > 1:
        world.deliver(client.link)
    return client.link.outbox.popleft()


def greet(world: World, client: Client) -> Event:
    newcomer = world.client(is_connected=False)
    newcomer.connect()
    world.deliver(newcomer.link)
    return newcomer.link.outbox.popleft()  # type: ignore[union-attr]


SCENES = (
    grant_a_slot, grant_a_scattered_run, grant_a_scattered_run_of_warm_pieces, grant_a_segment,
    return_runs, return_a_segment, die_with_everything,
    finish_a_run_in_custody, cool_for_another_tier, say_goodbye, greet,
)  # fmt: skip


@pytest.mark.parametrize("as_lists", [False, pytest.param(True, marks=pytest.mark.long)], ids=["memoryview", "list"])
@pytest.mark.parametrize("scene", SCENES)
def test_a_broker_killed_between_any_two_stores_loses_nothing(
    make_world: type[World], scene: Callable[[World, Client], Event], as_lists: bool
) -> None:
    for stores in itertools.count():
        world = make_world(as_lists=as_lists)
        client = world.client()
        event = scene(world, client)
        if not world.crash_during(event, stores):
            break
        world.restart()
        world.wind_down()
    assert stores > 0, "the scene has no store to be killed before"


@pytest.mark.parametrize("scene", SCENES)
def test_the_next_broker_may_be_killed_between_any_two_stores_too(
    make_world: type[World], scene: Callable[[World, Client], Event]
) -> None:
    at = 0
    for stores in itertools.count():
        world = make_world()
        client = world.client()
        at += 1 if world.crash_during(scene(world, client), at) else -at
        try:
            world.restart(crash_after=stores)
        except Crash:
            world.restart()
            world.wind_down()
        else:
            break
    assert stores > 1


def test_a_grant_is_all_or_nothing(make_world: type[World]) -> None:
    """Before the head's grant word nothing of a run is granted, with it the whole run is."""
    outcomes: list[int] = []
    for stores in itertools.count():
        world = make_world()
        client = world.client()
        if not world.crash_during(grant_a_scattered_run(world, client), stores):
            break
        world.restart()
        outcomes.append(len(world.broker.seats.taken[client.seat].rows))
        assert world.states(CHUNKS)[State.FOLLOWER] == 0
    assert set(outcomes) == {0}  # the last store is the head's grant word: after it the event is over
    assert len(outcomes) == 5 + 3 * 7  # five slots were cold, seven rows have three words each


def test_words_that_crash_are_words(world: World) -> None:
    words = CrashingWords(world.ledger, Fuse(1))
    words[5] = 7
    assert words[5] == 7 and len(words) == len(world.ledger)
    with pytest.raises(Crash):
        words[5] = 8
    assert world.ledger[5] == 7


@pytest.mark.parametrize(
    "what", ["a link of a slot", "a run that bites its tail", "a run longer than its tier", "a run of nothing"]
)
def test_shapes_that_no_broker_makes_are_set_aside(world: World, what: str) -> None:
    client = world.client()
    slot, run = client.get(SMALL)[0], client.get(CHUNKS, 3)[0]
    for one in (slot, run):
        client.lease(one)
    if what == "a link of a slot":
        damaged, at, word = slot, LINK, run.row
    elif "tail" in what:
        damaged, at, word = run, LINK, link_word(run.row, 1)
    else:
        damaged, at, word = run, EXTENT, extent_word(0, 0, 0xFFFF if "longer" in what else 0)
    kept = world.ledger[damaged.row * ROW_WORDS + at]
    world.ledger[damaged.row * ROW_WORDS + at] = word
    broker = world._make_broker(None)
    broker.adopt(world.now)
    assert broker.inventory.quarantined == set(damaged.rows)
    world.ledger[damaged.row * ROW_WORDS + at] = kept
    world.restart()


SCRIBBLES = (
    "a follower among slots", "a follower with a seat", "a follower with a mark of its generation",
    "a length beyond all memory", "a slot's length beyond all memory", "a publication of nobody's seat",
    "fewer tickets than cells", "a shared publication with a seat", "a shared publication of no kind",
    "a lease with no seat",
)  # fmt: skip


@pytest.mark.parametrize("what", SCRIBBLES)
def test_words_that_nobody_writes_are_set_aside(world: World, what: str) -> None:
    """And nothing else is."""
    client = world.client()
    slot, other = client.get(SMALL, count=2)
    (free,), (head,) = client.get(CHUNKS), client.get(CHUNKS)
    client.give_back(free, head, other)
    world.run()
    client.lease(slot)
    row, words = slot.row, {}
    if what.startswith("a follower"):
        row = other.row if "slots" in what else free.row
        word = world.grant(row) & GENERATION_FIELD | State.FOLLOWER << STATE_SHIFT
        words = {0: word | (client.seat if "seat" in what else 0), EXTENT: other.row if "slots" in what else head.row}
        if "mark" in what:
            words[FIRST_CELL] = word & GENERATION_FIELD | CellState.DONE << STATE_SHIFT
    elif what == "a length beyond all memory":
        row = client.lease(client.get_direct(8192)).row
        words = {EXTENT: extent_word(1 << 39, 0, 1)}
    elif "length" in what:
        words = {EXTENT: extent_word(1 << 39, 0, 1)}
    elif "lease" in what:
        words = {0: world.grant(row) ^ client.seat}
    else:
        client.publish(slot, 3)
        tickets = {"fewer": 2, "a sha": SHARED | 0x40 * ("no kind" in what)}.get(what[:5], 3)
        words = {EXTENT: extent_word(100, tickets, 1)}
        if "nobody's" in what:
            words = {0: world.grant(row) ^ client.seat ^ 200}
        elif "no kind" in what:
            words[0] = world.grant(row) ^ client.seat
    kept = {at: world.ledger[row * ROW_WORDS + at] for at in words}
    for at, word in words.items():
        world.ledger[row * ROW_WORDS + at] = word
    broker = world._make_broker(None)
    broker.adopt(world.now)
    assert broker.inventory.quarantined == {row}
    for at, word in kept.items():
        world.ledger[row * ROW_WORDS + at] = word
    world.restart()
    assert not world.broker.inventory.quarantined


def test_a_follower_whose_head_follows_another_by_now_is_nobodys(world: World) -> None:
    """A broker died that freed a run and was granting the head of it with another."""
    client = world.client()
    (run,), (free,) = client.get(CHUNKS, 3), client.get(CHUNKS)
    client.give_back(free)
    world.run()
    client.lease(run)
    at = free.row * ROW_WORDS
    world.ledger[at] = world.grant(free.row) & GENERATION_FIELD | State.FOLLOWER << STATE_SHIFT
    world.ledger[at + EXTENT] = run.rows[1]
    world.restart()
    assert not world.broker.inventory.quarantined
    assert world.state(free.row) in (State.FREE, State.COLD)


@pytest.mark.parametrize("tickets", [1, 2, MAX_TICKETS - 2])
def test_a_mark_of_this_publication_behind_its_last_cell_is_damage(world: World, tickets: int) -> None:
    """Fewer tickets are told than were made: who has the other one would read what is written next."""
    client = world.client()
    (slot,) = client.get()
    client.publish(slot, tickets)
    at = slot.row * ROW_WORDS
    world.ledger[at + FIRST_CELL + tickets] = world.ledger[at + FIRST_CELL]
    world.restart()
    assert world.broker.inventory.quarantined == {slot.row}


def test_a_checksum_that_looks_like_a_mark_of_its_publication_is_no_damage(world: World) -> None:
    client = world.client()
    (slot,) = client.get()
    client.publish(slot, MAX_TICKETS - 1)
    at = slot.row * ROW_WORDS
    world.ledger[at + CHECKSUM] = world.ledger[at + FIRST_CELL]
    world.restart()
    assert not world.broker.inventory.quarantined


def test_marks_of_an_earlier_publication_behind_the_last_cell_are_no_damage(world: World) -> None:
    client, reader = world.client(), world.client()
    (slot,) = client.get()
    for tickets in (3, 1):
        for ticket in client.publish(slot, tickets):
            assert reader.open(ticket)
            if tickets == 3:
                reader.release(ticket)
        client.reap()
        if tickets == 3:
            (slot,) = client.ready
    world.restart()
    assert not world.broker.inventory.quarantined
