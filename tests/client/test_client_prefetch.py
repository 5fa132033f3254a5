"""The next direct segment of a steady producer: granted before it is needed, and never in anybody's way."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from client_helpers import MIB, PATIENCE, Common, StartDaemon, eventually, lease_all, out, pattern

import shmpool
from shmpool import Strategy

#: A sixteenth of it is more than the segments of these tests.
SETTINGS = {"memory_limit": "64MiB", "magazine_idle": "1h"}
SIZE = 2 * MIB


@pytest.fixture(scope="module")
def patient() -> Iterator[Common]:
    one = Common(**SETTINGS)
    one.broker()
    yield one
    one.close()


@pytest.fixture
def broker(patient: Common) -> Iterator[shmpool.Broker]:
    with patient.used() as broker:
        yield broker


@pytest.fixture
def pool(broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with broker.connect() as pool:
        yield pool


def prefetched(pool: shmpool.Pool) -> int:
    """Direct segments that are granted and not leased."""
    return pool.stats().tiers[-1].idle


def pass_on(pool: shmpool.Pool, nbytes: int, number: int) -> None:
    with pool.lease(nbytes) as lease:
        lease.write(pattern(nbytes, number))
        handle = lease.publish()
    with pool.open(handle) as buffer:
        assert buffer.view == pattern(nbytes, number)


def make_steady(pool: shmpool.Pool, nbytes: int = SIZE) -> None:
    for number in range(3):
        pass_on(pool, nbytes, number)
    eventually(lambda: prefetched(pool) == 1, "a prefetched segment")


def test_who_leases_one_size_has_the_next_segment_ahead(pool: shmpool.Pool) -> None:
    make_steady(pool)
    lease = pool.lease(SIZE)
    eventually(lambda: prefetched(pool) == 1)
    assert pool.stats().tiers[-1].leased == 1
    lease.release()


def test_every_object_gets_a_segment_of_its_own(pool: shmpool.Pool) -> None:
    handles = []
    for number in range(8):
        with pool.lease(SIZE) as lease:
            lease.write(pattern(SIZE, number))
            handles.append(lease.publish())
    for number, handle in enumerate(handles):
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(SIZE, number)


def test_who_leases_many_sizes_has_nothing_ahead(pool: shmpool.Pool) -> None:
    make_steady(pool)
    for nbytes in (SIZE + 1, SIZE + 2, SIZE, SIZE + 1):
        pass_on(pool, nbytes, 0)
    eventually(lambda: out(pool.stats()) == 0)


def test_a_segment_is_asked_for_ahead_only_where_it_is_a_small_part_of_the_limit(pool: shmpool.Pool) -> None:
    for number in range(4):
        pass_on(pool, 5 * MIB, number)
    eventually(lambda: out(pool.stats()) == 0)


def test_it_goes_back_to_who_waits(pool: shmpool.Pool, broker: shmpool.Broker) -> None:
    make_steady(pool)
    with broker.connect() as other:
        leases = lease_all(other, SIZE, Strategy.DIRECT)
        assert prefetched(pool) == 1  # who does not wait recalls nothing
        leases.append(other.lease(SIZE, timeout=PATIENCE))
        assert prefetched(pool) == 0
        for lease in leases:
            lease.release()


@pytest.mark.parametrize(("nbytes", "strategy"), [(SIZE, Strategy.DIRECT), (200_000, Strategy.POOLED)])
def test_its_own_client_gets_the_memory_without_waiting(pool: shmpool.Pool, nbytes: int, strategy: Strategy) -> None:
    make_steady(pool, 4 * MIB)
    leases = lease_all(pool, nbytes, strategy)
    stats = pool.stats()
    assert stats.tiers[-1].idle == 0
    assert stats.memory["limit"] - stats.memory["held"] < SIZE
    for lease in leases:
        lease.release()


def test_it_serves_its_own_size_whatever_was_leased_meanwhile(pool: shmpool.Pool) -> None:
    """Another thread may have leased another size between the prefetch and the next lease."""
    make_steady(pool)
    session = pool._session
    assert session is not None
    session.prefetch.ask(SIZE + 1)
    pass_on(pool, SIZE + 1, 7)
    make_steady(pool)
    session.prefetch.ask(SIZE - 1)
    pass_on(pool, SIZE - 1, 8)


def test_a_stopped_broker_delays_a_lease_no_longer_than_its_timeout(daemon: StartDaemon, address: str) -> None:
    broker = daemon(**SETTINGS)
    with shmpool.connect(address) as pool:
        make_steady(pool)
        broker.process.send_signal(signal.SIGSTOP)
        try:
            pool.lease(SIZE).release()  # it was granted before; the next is asked for, and not answered
            with pytest.raises(shmpool.LeaseTimeout):
                pool.lease(SIZE, timeout=0.05)
        finally:
            broker.process.send_signal(signal.SIGCONT)
        pass_on(pool, SIZE, 9)
        eventually(lambda: out(pool.stats()) <= 1)


def test_it_goes_back_when_it_rests(patient: Common) -> None:
    with shmpool.Broker(**SETTINGS | {"magazine_idle": "20ms"}) as broker, broker.connect() as pool:
        for number in range(3):
            pass_on(pool, SIZE, number)
        eventually(lambda: out(pool.stats()) == 0)


def test_closing_leaves_nothing_of_it(broker: shmpool.Broker) -> None:
    with broker.connect() as other:
        with broker.connect() as pool:
            make_steady(pool)
        eventually(lambda: out(other.stats()) == 0)


def test_it_survives_the_broker(daemon: StartDaemon, address: str) -> None:
    first = daemon(**SETTINGS)
    with shmpool.connect(address) as pool:
        make_steady(pool)
        first.end(signal.SIGKILL)
        with pool.lease(SIZE) as lease:  # granted before: it needs no broker
            lease.write(pattern(SIZE))
            handle = lease.publish()
        daemon(**SETTINGS)
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(SIZE)
        eventually(lambda: pool.stats().epoch == 2)
        for number in range(5):
            pass_on(pool, SIZE, number)
        assert pool.stats().total_gets >= 5
        pool._session.prefetch.discard()  # type: ignore[union-attr]
        eventually(lambda: out(pool.stats()) == 0)


def test_a_reader_that_rings_late_still_gives_the_memory_back(broker: shmpool.Broker) -> None:
    with broker.connect() as writer, broker.connect() as reader:
        with writer.lease(10 * MIB) as lease:
            handle = lease.publish()
        held = writer.stats().memory["held"]
        reader.open(handle).release()
        eventually(lambda: out(writer.stats()) == 0)
        assert writer.stats().memory["held"] == held - 10 * MIB
