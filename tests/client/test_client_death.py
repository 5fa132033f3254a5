"""Killed clients, with real signals: every slot comes back, and nobody reads another's bytes."""

from __future__ import annotations

import hashlib
import os
import signal

import client_workers
import pytest
from client_helpers import KIB, MIB, PATIENCE, Start, child, eventually, hear, lease_all, of_pid, out, pattern

import shmpool
from shmpool import Handle


def held_by(pool: shmpool.Pool, pid: int) -> int:
    return sum(client.bytes for client in of_pid(pool.stats(), pid))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_killed_worker_s_leases_come_back(pool: shmpool.Pool, method: str) -> None:
    sizes = [100, 100, 40_000, 200_000, 300_000, MIB - 1, MIB, 3 * MIB]
    with child(method, client_workers.lease_and_wait, pool.address, sizes) as (process, pipe):
        hear(pipe)
        assert pool.stats().active_buffers == len(sizes)
        assert process.pid
        assert held_by(pool, process.pid) >= sum(sizes)
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: out(pool.stats()) == 0, "every slot's return")
        assert pool.stats().clients[0].pid == os.getpid()
        eventually(lambda: len(pool.stats().clients) == 1, "the end of its seat")


def test_killed_worker_s_memory_is_leased_again_at_once(start: Start) -> None:
    """All of it, by somebody who waits for it."""
    broker = start(memory_limit="4MiB", pooled_sizes=["256KiB"])
    with broker.connect() as pool:
        most = fill(pool)
        with child("forkserver", client_workers.hold, broker.address, 256 * KIB, most, "pooled") as (process, pipe):
            assert hear(pipe) == "ready"
            with pytest.raises(shmpool.LeaseTimeout):
                pool.lease(200_000, timeout=0)
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            leases = [pool.lease(200_000, timeout=PATIENCE) for _ in range(most)]
            assert len({lease._slot.row for lease in leases}) == most
            for lease in leases:
                lease.release()


def fill(pool: shmpool.Pool) -> int:
    """How many of the largest slots the pool holds."""
    leases = lease_all(pool, 200_000)
    for lease in leases:
        lease.release()
    return len(leases)


@pytest.mark.parametrize("nbytes", [5000, 300_000, 2 * MIB])
def test_killed_reader_s_open_buffers_come_back_to_the_publisher(pool: shmpool.Pool, nbytes: int) -> None:
    with child("forkserver", client_workers.open_and_wait, pool.address) as (process, pipe):
        hear(pipe)
        handles, contents = [], [pattern(nbytes, seed) for seed in range(3)]
        for content in contents:
            with pool.lease(nbytes) as lease:
                lease.write(content)
                handles.append(lease.publish())
        pipe.send(handles)
        assert hear(pipe) == [hashlib.sha256(content).digest() for content in contents]
        assert pool.stats().active_buffers == 3
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: pool.stats().active_buffers == 0)
        for handle in handles:
            with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                pool.open(handle)


def test_other_reader_goes_on_when_one_is_killed(pool: shmpool.Pool) -> None:
    with pool.lease(5000) as lease:
        lease.write(pattern(5000))
        first, second, third = lease.publish_many(3)
    with (
        child("forkserver", client_workers.open_and_wait, pool.address) as (process, pipe),
        pool.open(second) as buffer,
    ):
        hear(pipe)
        pipe.send([first])
        hear(pipe)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not of_pid(pool.stats(), process.pid or 0))
        leases = [pool.lease(5000) for _ in range(5)]
        for lease in leases:
            lease.view[:] = b"!" * 5000
        assert buffer.view == pattern(5000)
        with pool.open(third) as last:
            assert last.view == pattern(5000)
        for lease in leases:
            lease.release()
    eventually(lambda: pool.stats().active_buffers == 0)


def test_publications_of_a_killed_publisher_stay_readable(pool: shmpool.Pool) -> None:
    with child("forkserver", client_workers.lease_and_wait, pool.address, [1000], 10, 4) as (process, pipe):
        handles = [Handle(raw) for raw in hear(pipe)]
        early = pool.open(handles[0])
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not of_pid(pool.stats(), process.pid or 0))
        assert pool.stats().active_buffers == 10
        for number, handle in enumerate(handles):
            if number:
                with pool.open(handle) as buffer:
                    assert bytes(buffer.view) == b"%d" % number * 1000
            with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                pool.open(handle)
        assert bytes(early.view) == b"0" * 1000
        eventually(lambda: pool.stats().active_buffers == 1)
        early.release()
    eventually(lambda: out(pool.stats()) == 0)


def test_unread_publications_of_a_killed_publisher_expire(start: Start) -> None:
    broker = start(handle_ttl="100ms")
    with broker.connect() as pool:
        with child("forkserver", client_workers.lease_and_wait, broker.address, [], 5) as (process, pipe):
            handles = [Handle(raw) for raw in hear(pipe)]
            kept = pool.open(handles[0])
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            eventually(lambda: pool.stats().active_buffers == 1)
        for handle in handles:
            with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                pool.open(handle)
        assert bytes(kept.view) == b"0" * 1000, "what is open does not expire"
        kept.release()


def test_unread_publications_of_a_living_publisher_do_not_expire(start: Start) -> None:
    broker = start(handle_ttl="20ms")
    with broker.connect() as pool, broker.connect() as gone:
        with pool.lease(100) as lease:
            lease.view[:] = b"k" * 100
            handle = lease.publish()
        with gone.lease(100) as lease:
            lease.publish()
        gone.close()
        eventually(lambda: pool.stats().active_buffers == 1, "the other one's expiry")
        with pool.open(handle) as buffer:
            assert bytes(buffer.view) == b"k" * 100


def test_stopped_client_keeps_what_it_has(pool: shmpool.Pool) -> None:
    with child("forkserver", client_workers.lease_and_wait, pool.address, [1000, MIB], 1) as (process, pipe):
        (raw,) = hear(pipe)
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pool.open(Handle(raw)) as buffer:
                assert bytes(buffer.view) == b"0" * 1000
            for _ in range(100):
                pool.lease(1000).release()
            assert pool.stats().active_buffers == 2
        finally:
            os.kill(process.pid, signal.SIGCONT)
            os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: out(pool.stats()) == 0 or pool.stats().active_buffers == 0)


@pytest.mark.parametrize("workers", [7, pytest.param(50, marks=pytest.mark.long)])
def test_workers_killed_at_any_moment_leave_nothing(start: Start, workers: int) -> None:
    """They are killed while they lease, publish, open and release as fast as they can; who dies
    between the two leaves a publication that nobody opens, and that expires."""
    pool = start(memory_limit="64MiB", max_clients=32, handle_ttl="100ms").connect()
    with pool:
        for number in range(workers):
            with child("fork", client_workers.churn, pool.address) as (process, pipe):
                for _ in range(1 + number % 7):
                    hear(pipe)
                assert process.pid
                os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: len(pool.stats().clients) == 1)
        eventually(lambda: not pool.stats().active_buffers)
        assert not pool.stats().alerts
        with pool.lease(1000) as lease:
            lease.write(b"a" * 1000)
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer.view) == b"a" * 1000
