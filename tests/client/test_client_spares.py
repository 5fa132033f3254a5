"""The memory of a steady producer's direct segments is used again, and nobody sees that."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from client_helpers import MIB, Common, eventually, pattern

import shmpool
from shmpool.protocol.names import direct_name

SETTINGS = {"memory_limit": "128MiB"}


@pytest.fixture(scope="module")
def plenty() -> Iterator[Common]:
    one = Common(**SETTINGS)
    one.broker()
    yield one
    one.close()


@pytest.fixture
def pool(plenty: Common) -> Iterator[shmpool.Pool]:
    with plenty.used() as broker, broker.connect() as pool:
        yield pool


def inode_of(handle: shmpool.Handle) -> int:
    return os.stat(f"/dev/shm/{direct_name(handle.pool_id, handle.row, handle.generation)}").st_ino


def test_memory_is_used_again_and_every_reader_sees_its_own_object(pool: shmpool.Pool) -> None:
    inodes, stale = [], []
    for number in range(16):
        nbytes = (4 + number * 7 % 4) * MIB // 4 + number
        with pool.lease(nbytes) as lease:
            lease.write(pattern(nbytes, number))
            handle = lease.publish()
        inodes.append(inode_of(handle))
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(nbytes, number)
        stale.append(handle)
    assert len(set(inodes)) < len(inodes) // 2
    for handle in stale:
        with pytest.raises(LookupError):
            pool.open(handle)


def test_a_view_that_lives_on_keeps_its_segment_to_itself(pool: shmpool.Pool) -> None:
    kept = []
    for number in range(8):
        with pool.lease(MIB) as lease:
            lease.write(pattern(MIB, number))
            handle = lease.publish()
        with pool.open(handle) as buffer:
            kept.append(buffer.view[:4096])
    for number, view in enumerate(kept):
        assert view == pattern(MIB, number)[:4096]


def test_memory_is_the_hosts_again_soon(pool: shmpool.Pool) -> None:
    before = pool.stats().memory["held"]
    for number in range(8):
        with pool.lease(2 * MIB) as lease:
            lease.view[-1] = number
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.view[-1] == number
    pool.lease(1).release()
    eventually(lambda: pool.stats().tiers[-1].warm == 0, "no segment left")
    assert pool.stats().memory["held"] - before <= MIB
