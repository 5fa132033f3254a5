"""What the broker's settings say about where objects go, as every client of it sees it."""

from __future__ import annotations

import pytest
from client_helpers import Start

import shmpool
from shmpool import Strategy

KIB, MIB = 1024, 1024 * 1024


def strategy_of(pool: shmpool.Pool, nbytes: int) -> Strategy:
    with pool.lease(nbytes) as lease:
        lease.write(b"x" * nbytes)
        strategy, handle = lease.strategy, lease.publish()
    with pool.open(handle) as buffer:
        assert buffer.view == b"x" * nbytes
    return strategy


def test_where_pooling_is_switched_off_every_lease_is_direct(start: Start) -> None:
    pool = start(memory_limit="64MiB", enabled=False).connect()
    for nbytes in (0, 1, 4 * KIB, 100 * KIB, 500 * KIB, 2 * MIB):
        assert strategy_of(pool, nbytes) is Strategy.DIRECT
    for strategy in (Strategy.POOLED, Strategy.CHUNKED):
        with pytest.raises(shmpool.PoolingRefused, match="enabled = false"):
            pool.lease(1000, strategy=strategy)
    assert pool.stats().strategies["direct"] == 6
    pool.close()


def test_large_objects_may_be_direct(start: Start) -> None:
    pool = start(memory_limit="64MiB", large_object_strategy="direct").connect()
    assert strategy_of(pool, 100 * KIB) is Strategy.POOLED
    assert strategy_of(pool, 256 * KIB) is Strategy.DIRECT
    assert strategy_of(pool, MIB) is Strategy.DIRECT
    with pool.lease(300 * KIB, strategy=Strategy.CHUNKED) as lease:
        assert lease.strategy is Strategy.CHUNKED
    pool.close()


def test_slot_sizes_outside_the_bounds_are_not_made(start: Start) -> None:
    pool = start(memory_limit="64MiB", max_buffer_size="32KiB", min_buffer_size="16KiB").connect()
    assert [tier.size for tier in pool.stats().tiers if tier.kind == "pooled"] == [16 * KIB, 32 * KIB]
    assert strategy_of(pool, 32 * KIB) is Strategy.POOLED
    assert strategy_of(pool, 33 * KIB) is Strategy.CHUNKED
    with pytest.raises(shmpool.PoolingRefused, match="max_buffer_size"):
        pool.lease(33 * KIB, strategy=Strategy.POOLED)
    pool.close()


def test_automatic_chunks_serve_what_they_are_chosen_for(start: Start) -> None:
    pool = start(
        memory_limit="64MiB", chunk_sizes="auto", large_object_threshold="512KiB", very_large_object_threshold="8MiB"
    ).connect()
    assert [tier.size for tier in pool.stats().tiers if tier.kind == "chunk"] == [128 * KIB, 256 * KIB]
    assert strategy_of(pool, 5 * MIB) is Strategy.CHUNKED
    pool.close()


def test_the_optimal_chunk_is_the_one_that_a_lease_takes(pool: shmpool.Pool) -> None:
    for nbytes in (256 * KIB, 300 * KIB, 449 * KIB, 600 * KIB, MIB - 1):
        with pool.lease(nbytes, strategy=Strategy.CHUNKED) as lease:
            size = shmpool.optimal_chunk_size(nbytes)
            leased = sum(tier.leased * tier.size for tier in pool.stats().tiers if tier.size == size)
            assert leased == -(-nbytes // size) * size
            assert lease.nbytes == nbytes
