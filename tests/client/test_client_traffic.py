"""What the broker is sent: nothing in the steady state; refills that grow, returns when idle."""

from __future__ import annotations

import itertools
import time
import traceback
from collections import Counter
from typing import Any

import client_workers
import pytest
from client_helpers import KIB, MIB, Connect, Start, child, eventually, hear, out
from corners import corner

from shmpool.link import sending
from shmpool.link.connection import Connection
from shmpool.system.descriptors import signal


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All messages that this process has sent, other than a question for stats."""
    messages: list[Any] = []
    send = Connection.send

    def spy(self: Connection, message: Any) -> None:
        if type(message).__name__ not in ("Query", "Hello"):
            messages.append(message)
        send(self, message)

    monkeypatch.setattr(Connection, "send", spy)
    return messages


@pytest.mark.parametrize(
    ("nbytes", "in_flight"),
    [(300_000, 6), *corner((100_000, 1), *itertools.product((1000, 100_000, 300_000, MIB - 1), (1, 6)))],
)
def test_steady_producer_and_consumer_send_the_broker_nothing(
    start: Start, sent: list[Any], nbytes: int, in_flight: int
) -> None:
    broker = start(memory_limit="32MiB", magazine_idle="1h")
    with broker.connect() as pool, child("forkserver", client_workers.consume_counting, pool.address) as (_, pipe):
        assert hear(pipe) == "ready"

        def stream(objects: int) -> None:
            flying: list[bytes] = []
            for number in range(objects):
                with pool.lease(nbytes) as lease:
                    lease.view[:8] = b"%08d" % number
                    pipe.send_bytes(lease.publish())
                flying.append(b"%08d" % number)
                if len(flying) == in_flight:
                    assert pipe.recv_bytes() == flying.pop(0)
            for expected in flying:
                assert pipe.recv_bytes() == expected

        for lease in [pool.lease(nbytes) for _ in range(in_flight + 1)]:
            lease.release()
        stream(4 * in_flight)
        pipe.send_bytes(b"count")
        assert pipe.recv_bytes() == b"counting"
        before = pool.stats()
        sent.clear()
        stream(500)
        assert sent == []
        after = pool.stats()
        pipe.send_bytes(b"end")
        assert hear(pipe) == []
    assert after.total_gets - before.total_gets == 500
    assert after.pool_misses == before.pool_misses
    assert after.pool_hits - before.pool_hits == 500


def test_steady_lease_and_release_sends_the_broker_nothing(start: Start, sent: list[Any]) -> None:
    with start(magazine_idle="1h").connect() as pool:
        for nbytes in (100, 100_000, 300_000):
            pool.lease(nbytes).release()
            sent.clear()
            for _ in range(300):
                pool.lease(nbytes).release()
            assert sent == []


@pytest.mark.parametrize("nbytes", [1000, MIB])
def test_steady_stream_leaves_the_helper_asleep(start: Start, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that it is woken it takes its turn of the interpreter from who works."""
    woken: Counter[tuple[str, ...]] = Counter()

    def note(descriptor: Any) -> None:
        woken[tuple(frame.name for frame in traceback.extract_stack(limit=5)[:-1])] += 1
        signal(descriptor)

    monkeypatch.setattr(sending, "signal", note)

    def cycle() -> None:
        with pool.lease(nbytes) as lease:
            handle = lease.publish()
        pool.open(handle).release()

    with start(memory_limit="64MiB", magazine_idle="1h").connect() as pool:
        for _ in range(10):
            cycle()
        woken.clear()
        started = time.monotonic()
        for _ in range(1000):
            cycle()
        assert woken.total() <= 50 + 20 * (time.monotonic() - started), woken


def test_refills_double_up_to_the_bound_in_bytes(start: Start, sent: list[Any]) -> None:
    broker = start(memory_limit="64MiB", magazine_bytes="1MiB", magazine_idle="1h")
    with broker.connect() as pool:
        leases = [pool.lease(64 * KIB) for _ in range(60)]
        assert [message.count for message in sent] == [1, 2, 4, 8, 16, 16, 16]
        for lease in leases:
            lease.release()
        assert len(sent) == 7
        sent.clear()
        leases = [pool.lease(1000) for _ in range(200)]
        assert [message.count for message in sent] == [8, 16, 32, 64, 64, 64]
        for lease in leases:
            lease.release()
        sent.clear()
        leases = [pool.lease(MIB - 1) for _ in range(4)]
        assert [message.count for message in sent] == [1, 1, 1, 1]
        for lease in leases:
            lease.release()


def test_first_and_largest_batch_are_settings(start: Start, sent: list[Any]) -> None:
    with start(magazine_first_batch=8, magazine_max_batch=20, magazine_idle="1h").connect() as pool:
        leases = [pool.lease(1000) for _ in range(60)]
        assert [message.count for message in sent] == [8, 16, 20, 20]
        for lease in leases:
            lease.release()


def test_idle_magazines_shrink_to_nothing(start: Start) -> None:
    broker = start(memory_limit="32MiB", magazine_idle="20ms")
    with broker.connect() as pool:
        for nbytes, count in ((1000, 100), (64 * KIB, 20), (300_000, 3)):
            leases = [pool.lease(nbytes) for _ in range(count)]
            assert sum(tier.leased for tier in pool.stats().tiers) >= count
            for lease in leases:
                lease.release()
        eventually(lambda: sum(tier.idle for tier in pool.stats().tiers) == 0)
        assert out(pool.stats()) == 0
        with pool.lease(1000) as lease:  # and it goes on
            lease.write(b"x" * 1000)


def test_idle_client_s_read_publications_come_back(start: Start) -> None:
    """A producer that stops: what was read goes back like what was never published."""
    broker = start(memory_limit="32MiB", magazine_idle="20ms")
    with broker.connect() as pool, broker.connect() as reader:
        handles = []
        for _ in range(20):
            with pool.lease(64 * KIB) as lease:
                handles.append(lease.publish())
        last = handles.pop()
        for handle in handles:
            reader.open(handle).release()
        eventually(lambda: out(pool.stats()) == 1, "the return of what was read", seconds=5)
        with reader.open(last):
            pass
        eventually(lambda: out(pool.stats()) == 0, seconds=5)


def test_idle_client_is_silent(connect: Connect, sent: list[Any]) -> None:
    pool = connect()
    eventually(lambda: out(pool.stats()) == 0)
    sent.clear()
    for _ in range(50):
        pool.stats()
    assert sent == []


def test_of_slots_whose_readers_are_done_the_oldest_is_leased_first(start: Start) -> None:
    with start().connect() as pool:
        handles = [lease.publish() for lease in [pool.lease(4 * KIB) for _ in range(8 + 16)]]  # all of two batches
        for handle in handles:
            pool.open(handle).release()
        again = [lease.publish() for lease in [pool.lease(4 * KIB) for _ in handles]]
        assert [handle.row for handle in again] == [handle.row for handle in handles]
        for handle in again:
            pool.discard(handle)


@pytest.mark.parametrize("nbytes", [512 * KIB, MIB - 1])
def test_no_more_take_turns_than_the_caches_hold(start: Start, nbytes: int) -> None:
    """However many there are: the next object lies where one of the last ones lay, as soon as it is read."""
    with start(memory_limit="64MiB", magazine_idle="1h").connect() as pool:
        handles = [lease.publish() for lease in [pool.lease(nbytes) for _ in range(20)]]
        slow = pool.open(handles.pop())
        for handle in handles:
            pool.open(handle).release()
        places = set()
        for _ in range(60):
            handle = pool.lease(nbytes).publish()
            pool.open(handle).release()
            places.add(bytes(handle)[16:])  # its row, and the length
        assert 2 <= len(places) <= 4 * MIB // nbytes
        slow.release()
        before = pool.stats().pool_misses
        for lease in [pool.lease(nbytes) for _ in range(20)]:
            lease.release()
        assert pool.stats().pool_misses == before, "the others are still there"
