"""Where slots and runs cannot serve, and the limit allows it, a lease is direct; with real clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from client_helpers import KIB, PATIENCE, Start
from corners import across

import shmpool
from shmpool import Strategy

#: 16,384 chunks, and so few bytes that the limit allows more than they hold.
SIZES = {"memory_limit": "100MiB", "pooled_sizes": ["4KiB"], "chunk_sizes": ["4KiB"]}
RUN = 512 * KIB


@contextmanager
def all_chunks_leased(pool: shmpool.Pool) -> Iterator[list[shmpool.Lease]]:
    leases = [pool.lease(RUN) for _ in range(16384 * 4 * KIB // RUN)]
    assert {lease.strategy for lease in leases} == {Strategy.CHUNKED}
    yield leases
    for lease in leases:
        lease.release()


@pytest.mark.parametrize(
    ("timeout", "settings"), across((0, PATIENCE), ({}, {"checksums": True}, {"detailed_metrics": True}))
)
def test_a_chunked_lease_falls_back_to_a_direct_segment(
    start: Start, timeout: float, settings: dict[str, bool]
) -> None:
    broker = start(**SIZES, **settings)
    with broker.connect() as pool, all_chunks_leased(pool), broker.connect() as other:
        for _ in range(3):
            with other.lease(RUN, timeout=timeout) as lease:
                assert (lease.strategy, lease.nbytes) == (Strategy.DIRECT, RUN)
                lease.view[:11] = b"fallen back"
                handle = lease.publish()
            with pool.open(handle) as buffer:
                assert bytes(buffer.view[:11]) == b"fallen back"
        other.lease(RUN, timeout=timeout).release()
        stats = other.stats()
        assert stats.ladder["fallback"] == 4
        assert stats.strategies["direct"] == 4
        assert stats.pool_hits + stats.pool_misses == stats.total_gets - 4
        assert stats.operations["large"] == stats.strategies["chunked"] + 4


def test_without_fallback_it_is_refused_by_name(start: Start) -> None:
    broker = start(**SIZES, fallback=False)
    with broker.connect() as pool, all_chunks_leased(pool), broker.connect() as other:
        with pytest.raises(shmpool.LeaseTimeout, match="no chunk 4 KiB for 512 KiB: 0 of its 16384 chunks are free"):
            other.lease(RUN, timeout=0)
        assert other.stats().ladder["refused"] == 1


def test_a_stream_goes_on_where_its_chunks_fall_back(start: Start) -> None:
    content = bytes(range(256)) * (8 * KIB)
    broker = start(**SIZES)
    with broker.connect() as pool, broker.connect() as other, all_chunks_leased(pool):
        got: list[bytes] = []

        def read() -> None:
            with other.open_reader(writer.handle) as reader:
                got.append(reader.read())

        with pool.stream(len(content)) as writer:
            thread = threading.Thread(target=read)
            thread.start()
            for at in range(0, len(content), 1000):
                writer.write(content[at : at + 1000])
        thread.join()
        assert got == [content]
