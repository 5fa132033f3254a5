"""Each figure of the stats, against what real clients have done."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
from pathlib import Path

import client_workers
import pytest
from client_helpers import ENV, KIB, MIB, PATIENCE, Start, child, eventually, hear, lease_all

import shmpool
from shmpool import SizeCategory, Strategy
from shmpool.protocol.figures import CATEGORIES, SAMPLE_EVERY
from shmpool.stats import query

CATEGORY_OF = {1: "small", 1000: "small", 100 * KIB: "medium", 300 * KIB: "large", 2 * MIB: "very_large"}


@pytest.fixture
def fresh(start: Start) -> shmpool.Pool:
    """A pool that nobody has used."""
    return start(memory_limit="64MiB").connect()


def cycle(pool: shmpool.Pool, nbytes: int, times: int = 1) -> None:
    for _ in range(times):
        with pool.lease(nbytes) as lease:
            handle = lease.publish()
        pool.open(handle).release()


def timed(pool: shmpool.Pool) -> dict[str, int]:
    return {name: sum(of["counts"]) for name, of in pool.stats().latency_histogram.items()}


def test_gets_and_puts_are_what_was_leased_and_given_back(fresh: shmpool.Pool) -> None:
    with fresh:
        for nbytes in CATEGORY_OF:
            cycle(fresh, nbytes, times=3)
            with fresh.lease(nbytes):
                pass
        kept = [fresh.lease(nbytes) for nbytes in CATEGORY_OF]
        unread = [fresh.lease(1000).publish() for _ in range(2)]
        stats = fresh.stats()
        assert (stats.total_gets, stats.active_buffers) == (5 * 4 + 5 + 2, 5 + 2)
        assert stats.total_puts == 5 * 4
        for lease in kept:
            lease.release()
        for handle in unread:
            fresh.discard(handle)
        stats = fresh.stats()
        assert (stats.total_gets, stats.total_puts, stats.active_buffers) == (27, 27, 0)


def test_operations_are_told_by_category_and_strategy(fresh: shmpool.Pool) -> None:
    with fresh:
        for nbytes in CATEGORY_OF:
            cycle(fresh, nbytes)
        with fresh.lease(1000, strategy=Strategy.DIRECT), fresh.lease(100 * KIB, strategy=Strategy.CHUNKED):
            stats = fresh.stats()
    assert stats.operations == {"small": 3, "medium": 2, "large": 1, "very_large": 1}
    assert stats.strategies == {"pooled": 3, "chunked": 2, "direct": 2}
    none = dict.fromkeys(CATEGORIES, 0)
    assert stats.operations_by_strategy == {
        "pooled": {**none, "small": 2, "medium": 1},
        "chunked": {**none, "medium": 1, "large": 1},
        "direct": {**none, "small": 1, "very_large": 1},
    }


def test_a_hit_is_a_lease_that_asked_nobody(fresh: shmpool.Pool) -> None:
    with fresh:
        cycle(fresh, 1000)
        first = fresh.stats()
        assert (first.pool_hits, first.pool_misses) == (0, 1)
        cycle(fresh, 1000, times=50)
        cycle(fresh, 2 * MIB)
        stats = fresh.stats()
        assert (stats.pool_hits, stats.pool_misses) == (50, 1)


def test_a_lease_that_is_refused_is_no_get_no_hit_and_no_miss(start: Start) -> None:
    with start(memory_limit="4MiB").connect() as pool:
        leases = lease_all(pool, 200 * KIB)
        stats = pool.stats()
        assert stats.total_gets == stats.active_buffers == len(leases) == stats.pool_hits + stats.pool_misses
        assert stats.lease_timeouts == 1
        for lease in leases:
            lease.release()


@pytest.mark.parametrize(("nbytes", "held"), [(1, 4 * KIB), (3000, 4 * KIB), (100 * KIB, 128 * KIB)])
def test_efficiency_is_of_what_was_asked_for_while_it_is_leased_too(
    fresh: shmpool.Pool, nbytes: int, held: int
) -> None:
    with fresh:
        cycle(fresh, held)  # what is leased next says nothing of what was asked for last
        with fresh.lease(nbytes) as lease:
            stats = fresh.stats()
            assert stats.memory["payload"] == nbytes
            assert stats.memory_efficiency == pytest.approx(nbytes / held)
            handle = lease.publish()
        assert fresh.stats().memory["payload"] == nbytes
        fresh.discard(handle)


def test_a_lease_that_is_made_shorter_asks_for_less(fresh: shmpool.Pool) -> None:
    with fresh:
        for nbytes in (3000, 300 * KIB, 2 * MIB):
            with fresh.lease(nbytes) as lease:
                lease.write(b"a" * nbytes)
                lease.shorten(1000)
                assert fresh.stats().memory["payload"] == 1000
                handle = lease.publish()
            with fresh.open(handle) as buffer:
                assert buffer.nbytes == 1000 and bytes(buffer) == b"a" * 1000


def test_one_lease_in_so_many_is_timed(fresh: shmpool.Pool) -> None:
    with fresh:
        cycle(fresh, 1000, times=2 * SAMPLE_EVERY)
        cycle(fresh, 300 * KIB, times=2 * SAMPLE_EVERY + 1)
        cycle(fresh, 2 * MIB, times=3)
        # The first lease of a run's length finds its magazine, and is timed whatever its number. So are
        # direct segments but those that are kept, from the third on if they follow one another at once.
        assert timed(fresh) in [{"small": 2, "medium": 0, "large": 3, "very_large": count} for count in (2, 3)]


@pytest.mark.parametrize("checksums", [False, True])
def test_with_detailed_metrics_every_lease_is_timed(start: Start, checksums: bool) -> None:
    with start(memory_limit="64MiB", detailed_metrics=True, checksums=checksums).connect() as pool:
        for nbytes in CATEGORY_OF:
            cycle(pool, nbytes, times=20)
            with pool.lease(nbytes) as lease:
                assert lease.category is SizeCategory(CATEGORY_OF[nbytes])
        stats = pool.stats()
        assert timed(pool) == stats.operations == {"small": 42, "medium": 21, "large": 21, "very_large": 21}
        for name in CATEGORIES:
            histogram = stats.latency_histogram[name]
            assert 0 < stats.p50_latency_ns[name] <= stats.p99_latency_ns[name]
            assert stats.average_latency_ns[name] == histogram["sum_ns"] // sum(histogram["counts"]) > 0


def test_others_see_what_was_timed_soon(start: Start) -> None:
    """Leases are told many at once; the helper tells of those that are left."""
    broker = start(memory_limit="64MiB", detailed_metrics=True, magazine_idle="20 ms")
    with broker.connect() as pool:
        cycle(pool, 1000, times=700)

        def told() -> int:
            return sum(query(broker.address).latency_histogram["small"]["counts"])

        eventually(lambda: told() == 700, "all of them in the stats that another process asks for")
        cycle(pool, 1000, times=3)
    assert told() == 703


def test_a_lease_that_waits_is_among_the_slow_ones(start: Start) -> None:
    with start(memory_limit="4MiB", detailed_metrics=True).connect() as pool:
        cycle(pool, 100 * KIB, times=9)
        leases = lease_all(pool, 100 * KIB)
        before = timed(pool)["medium"]
        slow_before = sum(pool.stats().latency_histogram["medium"]["counts"][18:])
        timer = threading.Timer(0.25, leases.pop().release)
        timer.start()
        with pool.lease(100 * KIB, timeout=PATIENCE):
            pass
        timer.join()
        slow = pool.stats().latency_histogram["medium"]
        assert sum(slow["counts"]) == before + 1
        assert sum(slow["counts"][18:]) == slow_before + 1, "no lease took 134 ms or more"
        assert slow["sum_ns"] > 200_000_000
        for lease in leases:
            lease.release()


def test_detailed_metrics_are_switched_while_clients_work(address: str, tmp_path: Path) -> None:
    config = tmp_path / "broker.toml"
    config.write_text(f'socket = "{address}"\n')
    command = [sys.executable, "-m", "shmpoold", "--config", str(config), "--set", "log_level=warning"]
    with subprocess.Popen(command, env=ENV) as broker:
        try:
            with shmpool.connect(address, timeout=PATIENCE) as pool:
                cycle(pool, 1000, times=SAMPLE_EVERY)
                assert timed(pool)["small"] == 1
                for value, every in (("true", True), ("false", False)):
                    config.write_text(f'socket = "{address}"\ndetailed_metrics = {value}\n')
                    broker.send_signal(signal.SIGHUP)

                    def is_switched(every: bool = every) -> bool:
                        before = timed(pool)["small"]
                        cycle(pool, 1000, times=2)
                        return (timed(pool)["small"] == before + 2) == every

                    eventually(is_switched, "the new setting")
        finally:
            broker.terminate()


def test_what_the_dead_have_counted_stays(start: Start) -> None:
    broker = start(memory_limit="64MiB", detailed_metrics=True)
    with broker.connect() as pool:
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        with child("forkserver", client_workers.hoard, broker.address, queue) as (process, pipe):
            hear(pipe)
            cycle(pool, 1000, times=10)
            with pool.lease(1000) as lease:
                queue.put(bytes(lease.publish()))
            eventually(lambda: any(client.reads for client in pool.stats().clients), "the reader's open")
            before = pool.stats()
            process.kill()
            process.join()
            eventually(lambda: pool.stats().active_buffers == 0, "the end of the dead reader's ticket")
        stats = pool.stats()
        assert stats.total_gets == before.total_gets == stats.total_puts
        assert stats.latency_histogram == before.latency_histogram
