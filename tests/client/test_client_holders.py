"""A reader that keeps what it opened fills the pool: whoever is refused is told of it, not of
the writers, and its arrays stay right."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import client_workers
import pytest
from client_helpers import PATIENCE, Start, child, eventually, hear, of_pid
from corners import corner

import shmpool

MOST = 1000


def hand_over(pool: shmpool.Pool, size: int, queue: Any) -> Iterator[int]:
    """Publish and send, until there is nothing left to lease."""
    for count in range(1, MOST):
        with pool.lease(size) as lease:
            lease.write(bytes([(count - 1) % 251]) * size)
            queue.put(bytes(lease.publish()))
        yield count


@pytest.mark.parametrize("size", corner(100_000, 300_000, 2 << 20))
def test_a_lease_timeout_names_the_reader_that_keeps_everything(start: Start, size: int) -> None:
    broker = start(memory_limit="16MiB", lease_timeout="1s")
    queue: Any = multiprocessing.get_context("spawn").SimpleQueue()
    sent: list[int] = []
    with broker.connect() as pool:
        with child("forkserver", client_workers.hoard, broker.address, queue) as (process, pipe):
            hear(pipe)
            with pytest.raises(shmpool.LeaseTimeout) as refused:
                sent.extend(hand_over(pool, size, queue))
            assert f"pid {process.pid} " in str(refused.value)
            assert "open for reading" in str(refused.value)
            count, stats = len(sent), pool.stats()
            (reader,), (writer,) = of_pid(stats, process.pid or 0), of_pid(stats, os.getpid())
            assert reader.reads == count and reader.read_bytes >= count * size
            assert (reader.leases, writer.reads) == (0, 0)
            assert reader.held_by_views == stats.held_by_views == count
            queue.put(None)
            assert hear(pipe) is True, "the bytes of kept arrays have changed"
        with pool.lease(size, timeout=PATIENCE):
            pass


@pytest.mark.filterwarnings("ignore:a view of a published or released buffer")
def test_what_only_views_hold_is_counted_while_they_live(pool: shmpool.Pool) -> None:
    views = []
    before = pool.stats().deferred_releases
    for size in (100, 300_000, 2 << 20):
        with pool.lease(size) as lease:
            lease.write(bytes(size))
            handle = lease.publish()
        with pool.open(handle) as buffer:
            views.append(buffer.view[:10])
        with pool.lease(size) as lease:
            views.append(lease.view[:10])
    stats = pool.stats()
    assert (stats.held_by_views, of_pid(stats, os.getpid())[0].held_by_views) == (6, 6)
    assert stats.deferred_releases == before + 6
    views.clear()
    eventually(lambda: not pool.stats().held_by_views, "the end of what views held")
    assert pool.stats().deferred_releases == before + 6
