"""Tickets by compare-and-swap: a pool says for its life how they are taken, and every process finds its way."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from client_helpers import Common, StartDaemon, assert_settles, eventually, pattern

import shmpool
from shmpool.system import atomics

#: What a process has to swap words with: whatever there is, or nothing, so that the broker does it.
WAYS = ("swaps", "asks")


@pytest.fixture(scope="module")
def swapping() -> Iterator[Common]:
    one = Common(tickets="cas")
    one.broker()
    yield one
    one.close()


@pytest.fixture
def broker(swapping: Common) -> Iterator[shmpool.Broker]:
    with swapping.used() as broker:
        yield broker


def join(address: str, way: str, monkeypatch: pytest.MonkeyPatch) -> shmpool.Pool:
    """A pool of a process that swaps, or has nothing to swap with."""
    if way == "swaps":
        return shmpool.connect(address)
    with monkeypatch.context() as patch:
        patch.setattr(atomics, "swap_of", lambda words: None)
        with pytest.warns(RuntimeWarning, match='tickets = "locks"'):
            return shmpool.connect(address)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nbytes", [100, 100_000, 300_000, 2 << 20])
def test_each_ticket_opens_once(broker: shmpool.Broker, way: str, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with broker.connect() as publisher, join(broker.address, way, monkeypatch) as pool:
        for number in range(3):
            with publisher.lease(nbytes) as lease:
                lease.write(pattern(nbytes, number))
                handles = lease.publish_many(2)
            for handle in handles:
                with pool.open(handle) as buffer:
                    assert buffer.view == pattern(nbytes, number)
                    with pytest.raises(shmpool.HandleUsed, match="is open"):
                        pool.open(handle)
                with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                    pool.open(handle)


@pytest.mark.parametrize("way", WAYS)
def test_discard_give_back_and_reclaim(broker: shmpool.Broker, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with join(broker.address, way, monkeypatch) as pool:
        with pool.lease(10) as lease:
            first, second, third = lease.publish_many(3)
        pool.discard(first)
        with pytest.raises(shmpool.HandleUsed):
            pool.discard(first)
        with pytest.raises(shmpool.HandleUsed):
            pool.open(first)
        pool.open(second).give_back()
        pool.open(second).release()
        assert pool.reclaim() == 1
        with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
            pool.open(third)


@pytest.mark.parametrize("way", WAYS)
def test_a_ttl_closes_what_nobody_opened(broker: shmpool.Broker, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with join(broker.address, way, monkeypatch) as pool:
        with pool.lease(10) as lease:
            handle = lease.publish(ttl=0.01)
        end = time.monotonic() + 30
        while True:
            try:
                pool.open(handle).give_back()  # not yet
            except shmpool.HandleUsed:
                return
            assert time.monotonic() < end
            time.sleep(0.02)


def test_what_the_broker_took_is_counted(broker: shmpool.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    with join(broker.address, "asks", monkeypatch) as pool:
        before = pool.stats().tickets_asked
        for _ in range(5):
            with pool.lease(10) as lease:
                handle = lease.publish()
            pool.open(handle).release()
        assert pool.stats().tickets_asked == before + 5


def test_an_open_that_asks_says_so_when_the_broker_is_away(
    daemon: StartDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = daemon(tickets="cas", lease_timeout=0.2, on_stop="keep")
    with join(address, "asks", monkeypatch) as pool:
        with pool.lease(10) as lease:
            handle = lease.publish()
        broker.end(signal.SIGKILL)
        with pytest.raises(shmpool.BrokerUnavailable, match="take the handle's ticket"):
            pool.open(handle)
        daemon(tickets="cas", lease_timeout=60)

        def is_opened() -> bool:  # until the new broker's welcome the old one's patience holds
            with contextlib.suppress(shmpool.BrokerUnavailable):
                pool.open(handle).release()
                return True
            return False

        eventually(is_opened)


def test_publications_of_the_dead_are_read_and_freed(broker: shmpool.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their custodian is the broker, and their cells say their seats."""
    code = (
        "import sys, shmpool\n"
        "pool = shmpool.connect(sys.argv[1])\n"
        "lease = pool.lease(20); lease.write(b'x' * 20)\n"
        "sys.stdout.buffer.write(b''.join(lease.publish_many(2))); sys.stdout.flush()\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    told = subprocess.run([sys.executable, "-c", code, broker.address], capture_output=True, timeout=60).stdout
    with broker.connect() as swapping, join(broker.address, "asks", monkeypatch) as asking:
        for pool, handle in ((swapping, told[:24]), (asking, told[24:])):
            with pool.open(handle) as buffer:
                assert buffer.view == b"x" * 20
    assert_settles(broker.address)


def test_threads_never_both_open_a_handle(broker: shmpool.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        broker.connect() as publisher,
        join(broker.address, "asks", monkeypatch) as asking,
        broker.connect() as swapping,
    ):
        handles = []
        for number in range(300):
            with publisher.lease(8) as lease:
                lease.write(struct.pack("<Q", number))
                handles.append(lease.publish())
        won: list[int] = []
        barrier = threading.Barrier(4)

        def race(pool: shmpool.Pool) -> None:
            barrier.wait()
            for handle in handles:
                try:
                    with pool.open(handle) as buffer:
                        won.append(struct.unpack("<Q", buffer.view)[0])
                except (shmpool.HandleUsed, shmpool.StaleHandle):
                    pass

        threads = [threading.Thread(target=race, args=(pool,)) for pool in (asking, asking, swapping, swapping)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == list(range(300))


def test_a_pool_keeps_its_way_while_its_clients_live(daemon: StartDaemon, address: str) -> None:
    """As its header says, whatever the next broker is told."""
    first = daemon(tickets="cas", on_stop="keep")
    with shmpool.connect(address) as pool:
        with pool.lease(10) as lease:
            handle = lease.publish()
        first.end(signal.SIGTERM)
        daemon(tickets="locks", on_stop="remove")
        pool.open(handle).release()
        session = pool._session
        assert session is not None and session.swap is not None


def test_a_broker_that_cannot_swap_says_what_it_would_need(address: str) -> None:
    code = (
        "import sys, shmpool\n"
        "from shmpool.system import atomics\n"
        "atomics.is_there = lambda: False\n"
        "from shmpoold.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "--socket", address, "--set", "tickets=cas", "--set", "memory_limit=16MiB"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert 'tickets = "cas" needs shmpool' in done.stderr and "Traceback" not in done.stderr
