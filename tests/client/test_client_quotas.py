"""Quotas with real clients: the error, what it says, and what is done before it comes."""

from __future__ import annotations

import os

import pytest
from client_helpers import KIB, MIB, PATIENCE, Start

import shmpool


def test_a_client_over_its_quota_is_refused_and_another_is_not(start: Start) -> None:
    broker = start(memory_limit="64MiB", client_quota_bytes="1MiB")
    with broker.connect() as pool, broker.connect() as other:
        leases = [pool.lease(256 * KIB - 1) for _ in range(4)]
        with pytest.raises(shmpool.QuotaExceeded, match=r"client_quota_bytes is 1 MiB, this client has 1 MiB leased"):
            pool.lease(100)
        with pytest.raises(shmpool.QuotaExceeded):
            pool.lease(2 * MIB, timeout=0)
        with other.lease(512 * KIB):
            pass
        handles = [lease.publish() for lease in leases]
        with pytest.raises(shmpool.QuotaExceeded):
            pool.lease(100)
        buffers = [other.open(handle) for handle in handles]
        pool.lease(100).release()
        with pytest.raises(shmpool.QuotaExceeded, match="open to read"):
            other.lease(100)
        for buffer in buffers:
            buffer.release()
        other.lease(100).release()


@pytest.mark.parametrize("timeout", [0, PATIENCE])
def test_idle_magazines_make_room_before_a_refusal(start: Start, timeout: float) -> None:
    broker = start(memory_limit="64MiB", client_quota_bytes="1MiB")
    with broker.connect() as pool:
        for lease in [pool.lease(64 * KIB) for _ in range(16)]:
            lease.release()
        with pool.lease(900 * KIB, timeout=timeout) as lease:
            assert lease.nbytes == 900 * KIB


def test_a_users_processes_share_its_quota(start: Start) -> None:
    broker = start(memory_limit="64MiB", uid_quota_buffers=3)
    with broker.connect() as pool, broker.connect() as other:
        lease, idle = pool.lease(100), other.lease(100)
        idle.release()
        leases = [pool.lease(size, timeout=PATIENCE) for size in (20 * KIB, 2 * MIB)]
        with pytest.raises(shmpool.QuotaExceeded, match=f"uid_quota_buffers is 3, uid {os.getuid()} has 3 leased"):
            other.lease(100)
        for one in (lease, *leases):
            one.release()
        other.lease(100, timeout=PATIENCE).release()


def test_what_is_shared_counts_for_its_maker_and_its_holders(start: Start) -> None:
    broker = start(memory_limit="64MiB", client_quota_bytes="2MiB")
    with broker.connect() as maker, broker.connect() as reader, broker.connect() as other:
        shared = maker.lease(3 * MIB // 2).publish_shared("it")
        with reader.find("it").open():
            for pool in (maker, reader):
                with pytest.raises(shmpool.QuotaExceeded, match=r"2 MiB, this client has 1.5 MiB"):
                    pool.lease(MIB)
            other.lease(MIB).release()
        reader.lease(MIB, timeout=PATIENCE).release()
        shared.release()
        maker.lease(MIB, timeout=PATIENCE).release()
