"""`max_concurrent_large_ops` with real clients."""

from __future__ import annotations

import os
import signal

import pytest
from client_helpers import MIB, PATIENCE, Start

import shmpool


def test_large_leases_wait_for_one_anothers_readers_and_small_ones_do_not(start: Start) -> None:
    broker = start(memory_limit="64MiB", max_concurrent_large_ops=2)
    with broker.connect() as pool, broker.connect() as other:
        run, direct = pool.lease(512 * 1024), pool.lease(2 * MIB)
        with pytest.raises(shmpool.LeaseTimeout, match=r"2 large operations \(max_concurrent_large_ops\)"):
            other.lease(512 * 1024, timeout=0.05)
        with pytest.raises(shmpool.LeaseTimeout, match="large operations"):
            other.lease(2 * MIB, timeout=0)
        other.lease(1000).release()
        handle = direct.publish()
        buffer = other.open(handle)
        with pytest.raises(shmpool.LeaseTimeout):
            other.lease(2 * MIB, timeout=0)
        buffer.release()
        other.lease(2 * MIB, timeout=PATIENCE).release()
        run.release()  # idle in a magazine, and recalled from it
        with other.lease(2 * MIB, timeout=PATIENCE), other.lease(MIB // 2, timeout=PATIENCE):
            pass


def test_the_share_of_a_killed_process_returns(start: Start) -> None:
    broker = start(memory_limit="64MiB", max_concurrent_large_ops=1)
    with broker.connect() as pool:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                lease = pool.lease(2 * MIB)
                os.write(write, b"%d" % lease.nbytes)
                signal.pause()
            finally:
                os._exit(1)
        assert os.read(read, 16)
        os.close(read)
        os.close(write)
        with pytest.raises(shmpool.LeaseTimeout):
            pool.lease(2 * MIB, timeout=0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pool.lease(2 * MIB, timeout=PATIENCE).release()


def test_a_steady_producer_at_the_bound_of_one_gets_on(start: Start) -> None:
    broker = start(memory_limit="64MiB", max_concurrent_large_ops=1)
    with broker.connect() as pool:
        for _ in range(20):
            with pool.lease(2 * MIB, timeout=PATIENCE) as lease:
                handle = lease.publish()
            with pool.open(handle) as buffer:
                assert buffer.nbytes == 2 * MIB
