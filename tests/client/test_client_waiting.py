"""A pool that is full: who waits, who is refused, and what is lost by it (nothing)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import client_workers
import pytest
from client_helpers import KIB, MIB, PATIENCE, SOON, Common, Start, child, eventually, hear, lease_all, of_pid

import shmpool
from shmpool import LeaseTimeout, Strategy
from shmpool.seat.recalls import KEPT_FOR

KINDS = [("pooled", 256 * KIB), ("chunked", 256 * KIB), ("direct", 512 * KIB)]
SETTINGS = {"memory_limit": "4MiB", "pooled_sizes": ["256KiB"], "chunk_sizes": ["256KiB"], "magazine_idle": "50ms"}


@pytest.fixture(scope="module")
def small() -> Iterator[Common]:
    one = Common(**SETTINGS)
    one.broker()
    yield one
    one.close()


@pytest.fixture
def broker(small: Common) -> Iterator[shmpool.Broker]:
    """A small broker; everything has come back at the end of each test."""
    with small.used() as broker:
        yield broker


@pytest.fixture
def pool(broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with broker.connect() as pool:
        yield pool


def fill(pool: shmpool.Pool, nbytes: int, strategy: str) -> list[shmpool.Lease]:
    leases = lease_all(pool, nbytes, Strategy(strategy))
    assert leases
    return leases


def waiters(pool: shmpool.Pool) -> int:
    return sum(int(alert.split()[0]) for alert in pool.stats().alerts if "wait for memory" in alert)


def idle(pool: shmpool.Pool) -> int:
    return sum(tier.idle for tier in pool.stats().tiers)


class Waiting(threading.Thread):
    """A thread that blocks in `lease`; *outcome* is what it got."""

    def __init__(self, pool: shmpool.Pool, nbytes: int, strategy: str, timeout: float = 20,
                 then: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.outcome: shmpool.Lease | BaseException | None = None
        self._lease = lambda: pool.lease(nbytes, strategy=Strategy(strategy), timeout=timeout)
        self._then = then
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._lease()
            self._then()
        except BaseException as error:
            self.outcome = error

    def got(self) -> shmpool.Lease:
        self.join(15)
        assert not self.is_alive(), "it still waits"
        assert isinstance(self.outcome, shmpool.Lease), self.outcome
        return self.outcome


@pytest.mark.parametrize(("strategy", "nbytes"), KINDS)
def test_exhausted_pool_says_tier_limit_and_who_holds_most(
    broker: shmpool.Broker, pool: shmpool.Pool, strategy: str, nbytes: int
) -> None:
    with child("forkserver", client_workers.hold, broker.address, nbytes, 2, strategy) as (process, pipe):
        hear(pipe)
        eventually(lambda: not idle(pool), "the return of what the child did not use")
        leases = fill(pool, nbytes, strategy)
        before = pool.stats().lease_timeouts
        for timeout in (0, 0.05):
            started = time.monotonic()
            with pytest.raises(LeaseTimeout) as refused:
                pool.lease(nbytes, strategy=Strategy(strategy), timeout=timeout)
            assert timeout <= time.monotonic() - started < timeout + SOON
            story = str(refused.value)
            assert isinstance(refused.value, TimeoutError)
            most = max(pool.stats().clients, key=lambda client: client.bytes)
            for word in ({"chunked": "chunk"}.get(strategy, strategy), "4 MiB", "memory_limit", f"pid {most.pid}"):
                assert word in story, story
        assert waiters(pool) == 0
        assert pool.stats().lease_timeouts == before + 2
        for lease in leases:
            lease.release()
        assert process.is_alive()


def test_timeout_zero_never_queues(pool: shmpool.Pool) -> None:
    leases = fill(pool, 256 * KIB, "pooled")
    for _ in range(20):
        with pytest.raises(LeaseTimeout):
            pool.lease(1000, timeout=0)
    assert waiters(pool) == 0
    leases.pop().release()
    with pool.lease(1000, timeout=0):
        pass
    for lease in leases:
        lease.release()


def test_timeout_none_is_the_configured_one(start: Start) -> None:
    broker = start(**{**SETTINGS, "lease_timeout": "150ms"})
    with broker.connect() as pool:
        leases = fill(pool, 256 * KIB, "pooled")
        started = time.monotonic()
        with pytest.raises(LeaseTimeout):
            pool.lease(1000)
        assert 0.15 <= time.monotonic() - started < SOON
        for lease in leases:
            lease.release()


@pytest.mark.parametrize(("strategy", "nbytes"), KINDS)
def test_blocked_lease_gets_what_another_process_releases(
    broker: shmpool.Broker, pool: shmpool.Pool, strategy: str, nbytes: int
) -> None:
    with child("forkserver", client_workers.hold, broker.address, nbytes, 2, strategy) as (_, pipe):
        hear(pipe)
        eventually(lambda: not idle(pool), "the return of what the child did not use")
        leases = fill(pool, nbytes, strategy)
        waiting = Waiting(pool, nbytes, strategy)
        eventually(lambda: waiters(pool) == 1)
        pipe.send("release")
        waiting.got().release()
        eventually(lambda: waiters(pool) == 0)
        for lease in leases:
            lease.release()


@pytest.mark.parametrize(("strategy", "nbytes"), KINDS)
def test_blocked_lease_gets_what_a_reader_in_another_process_is_done_with(
    broker: shmpool.Broker, pool: shmpool.Pool, strategy: str, nbytes: int
) -> None:
    with child("forkserver", client_workers.open_and_wait, broker.address) as (_, pipe):
        hear(pipe)
        leases = fill(pool, nbytes, strategy)
        pipe.send([leases.pop().publish()])
        hear(pipe)
        waiting = Waiting(pool, nbytes, strategy)
        eventually(lambda: waiters(pool) == 1)
        pipe.send("release")
        waiting.got().release()
        assert hear(pipe) == "released"
        for lease in leases:
            lease.release()


@pytest.mark.parametrize(("strategy", "nbytes"), KINDS)
def test_blocked_lease_gets_an_own_slot_that_another_thread_releases(
    pool: shmpool.Pool, strategy: str, nbytes: int
) -> None:
    leases = fill(pool, nbytes, strategy)
    waiting = Waiting(pool, nbytes, strategy)
    eventually(lambda: waiters(pool) == 1)
    leases.pop().release()
    got = waiting.got()
    eventually(lambda: waiters(pool) == 0, "the end of a request that was served by an own slot")
    got.release()
    for lease in leases:
        lease.release()


@pytest.mark.parametrize(("strategy", "nbytes"), KINDS)
def test_blocked_lease_gets_an_own_publication_that_was_discarded(
    pool: shmpool.Pool, strategy: str, nbytes: int
) -> None:
    leases = fill(pool, nbytes, strategy)
    handle = leases.pop().publish()
    waiting = Waiting(pool, nbytes, strategy)
    eventually(lambda: waiters(pool) == 1)
    pool.discard(handle)
    waiting.got().release()
    eventually(lambda: waiters(pool) == 0)
    for lease in leases:
        lease.release()


def test_blocked_lease_gets_a_slot_whose_last_view_dies(pool: shmpool.Pool) -> None:
    leases = fill(pool, 256 * KIB, "pooled")
    kept = leases[-1].view[:10]
    with pytest.warns(ResourceWarning):
        leases.pop().release()
    waiting = Waiting(pool, 1000, "pooled")
    eventually(lambda: waiters(pool) == 1)
    del kept
    waiting.got().release()
    for lease in leases:
        lease.release()


def test_idle_slots_of_one_client_go_to_another_that_waits(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    """Recalled, well before they have rested in the magazine."""
    with broker.connect() as other:
        leases = fill(other, 256 * KIB, "pooled")
        for lease in leases:
            lease.release()
        taken = [pool.lease(256 * KIB, strategy=Strategy.POOLED, timeout=PATIENCE) for _ in leases]
        for lease in taken:
            lease.release()


def test_memory_of_one_tier_becomes_another_s(pool: shmpool.Pool) -> None:
    for strategy, nbytes in (*KINDS, *KINDS):
        leases = [pool.lease(nbytes, strategy=Strategy(strategy), timeout=PATIENCE) for _ in range(5)]
        assert pool.stats().memory["held"] <= 4 * MIB
        for lease in leases:
            lease.release()


@pytest.mark.parametrize("same_pool", [True, False])
def test_waiters_are_served_in_the_order_they_came(broker: shmpool.Broker, pool: shmpool.Pool, same_pool: bool) -> None:
    leases = fill(pool, 256 * KIB, "pooled")
    parties = [pool if same_pool else broker.connect() for _ in range(4)]
    order: list[int] = []
    waiting = []
    for number, party in enumerate(parties):
        waiting.append(Waiting(party, 256 * KIB, "pooled", then=lambda number=number: order.append(number)))  # type: ignore[misc]
        eventually(lambda number=number: waiters(pool) == number + 1)  # type: ignore[misc]
    for number in range(4):
        leases.pop().release()
        eventually(lambda number=number: len(order) == number + 1)  # type: ignore[misc]
    assert order == [0, 1, 2, 3]
    for thread in waiting:
        thread.got().release()
    for lease in leases:
        lease.release()
    if not same_pool:
        for party in parties:
            party.close()


def test_many_waiters_with_few_slots_all_get_one(pool: shmpool.Pool) -> None:
    leases = fill(pool, 256 * KIB, "pooled")
    done: list[int] = []

    def use() -> None:
        for _ in range(15):
            with pool.lease(256 * KIB, strategy=Strategy.POOLED, timeout=PATIENCE) as lease:
                lease.view[:1] = b"u"
        done.append(1)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: waiters(pool) == 8)
    leases.pop().release()
    leases.pop().release()
    for thread in threads:
        thread.join(30)
    assert len(done) == 8
    eventually(lambda: waiters(pool) == 0)
    for lease in leases:
        lease.release()


@pytest.mark.parametrize(("strategy", "nbytes"), KINDS)
def test_interrupted_lease_loses_nothing(
    broker: shmpool.Broker, pool: shmpool.Pool, strategy: str, nbytes: int
) -> None:
    """Ctrl-C in a process that waits, five times, then it leases after all."""
    leases = fill(pool, nbytes, strategy)
    with child("forkserver", client_workers.blocked_until_interrupted, broker.address, nbytes, strategy) as (
        process,
        pipe,
    ):
        for _ in range(5):
            assert hear(pipe) == "waits"
            eventually(lambda: waiters(pool) == 1)
            assert process.pid
            os.kill(process.pid, signal.SIGINT)
            assert hear(pipe) == "interrupted"
            eventually(lambda: waiters(pool) == 0)
            pipe.send("again")
        assert [client.leases for client in of_pid(pool.stats(), process.pid or 0)] == [0]
        pipe.send("go on")
        leases.pop().release()
        assert hear(pipe) == "leased"
        for lease in leases:
            lease.release()
        again = fill(pool, nbytes, strategy)
        assert len(again) >= len(leases)
        for lease in again:
            lease.release()


def test_lease_that_times_out_as_it_is_granted_loses_nothing(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    """Deadlines that meet the release: a grant that crosses the cancel joins the magazine."""
    with broker.connect() as holder:
        leases = fill(holder, 256 * KIB, "pooled")
        outcomes = set()
        for number in range(60):
            waiting = Waiting(pool, 1000, "pooled", timeout=0.004)
            for _ in range(number % 12):
                time.monotonic_ns()
                os.sched_yield()
            leases.pop().release()
            waiting.join()
            outcomes.add(type(waiting.outcome).__name__)
            if isinstance(waiting.outcome, shmpool.Lease):
                waiting.outcome.release()
            leases.append(holder.lease(256 * KIB, strategy=Strategy.POOLED, timeout=PATIENCE))
        assert outcomes <= {"LiveLease", "EndedLease", "LeaseTimeout"}
        assert waiters(pool) == 0
        for lease in leases:
            lease.release()


def test_closing_the_pool_ends_a_blocked_lease(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with broker.connect() as other:
        leases = fill(pool, 256 * KIB, "pooled")
        waiting = Waiting(other, 1000, "pooled", timeout=60)
        eventually(lambda: waiters(pool) == 1)
        other.close()
        waiting.join(10)
        assert not waiting.is_alive(), "it waits on in a closed pool"
        assert isinstance(waiting.outcome, shmpool.PoolClosed)
        eventually(lambda: waiters(pool) == 0)
        for lease in leases:
            lease.release()


def test_what_the_pool_can_never_hold_is_refused_at_once(pool: shmpool.Pool) -> None:
    for nbytes in (4 * MIB, 10 * MIB, 2**39):
        started = time.monotonic()
        with pytest.raises(shmpool.InvalidSize, match=r"MiB|fit"):
            pool.lease(nbytes, timeout=PATIENCE)
        assert time.monotonic() - started < SOON


def test_a_steady_stream_keeps_what_it_uses_when_others_wait_and_gives_back_what_it_does_not(
    pool: shmpool.Pool,
) -> None:
    session = pool._session

    def stream() -> None:
        with pool.lease(256 * KIB) as lease:
            handle = lease.publish()
        with pool.open(handle):
            pass

    for lease in [pool.lease(256 * KIB) for _ in range(8)]:
        lease.release()
    stream()
    misses, started = pool.stats().pool_misses, time.monotonic()
    for _ in range(50):  # as the broker asks, while somebody waits
        session.answer_recall()
        stream()
    seconds = time.monotonic() - started
    assert pool.stats().pool_misses - misses <= seconds / KEPT_FOR + 1
    session.answer_recall()
    session.answer_recall()  # nothing was used between the two
    assert not any(magazine.ready for magazine in session.magazines.values())
