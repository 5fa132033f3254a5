"""Tickets that expire, are reclaimed, or are given back: nothing is held for ever by a handle that
nobody opens, and a task that failed finds its input again."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from object_helpers import comes_back

import shmpool

KIB, MIB = 1024, 1024 * 1024
SIZES = [10, 200 * KIB, 600 * KIB, 3 * MIB]


def await_(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def is_used(pool: shmpool.Pool, handle: shmpool.Handle) -> bool:
    try:
        pool.open(handle).give_back()
    except (shmpool.HandleUsed, shmpool.StaleHandle):
        return True
    return False


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_nobody_opens_within_its_ttl_is_closed_while_the_publisher_lives(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        handle = lease.publish(ttl=0.05)
    others = pool.put(np.zeros(nbytes), readers=3, ttl=0.05)
    kept = pool.put(np.zeros(nbytes))
    assert await_(lambda: is_used(pool, handle))
    assert all(await_(lambda other=other: is_used(pool, other)) for other in others)  # type: ignore[misc]
    assert pool.get(kept).nbytes == 8 * nbytes
    assert comes_back(pool.address)


def test_what_is_open_when_its_ttl_is_over_stays_open_and_is_closed_when_it_was_given_back(pool: shmpool.Pool) -> None:
    handle = pool.put(np.arange(50_000), ttl=0.02)
    with pool.open(handle) as buffer:
        later = pool.put(b"later", ttl=0.02)
        assert await_(lambda: is_used(pool, later)), "the ttl of both is over"
        assert bytes(buffer.view[-8:]) == (49_999).to_bytes(8, "little")
        buffer.give_back()
    assert await_(lambda: is_used(pool, handle))


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "3", True, 1e9])
def test_a_ttl_that_is_none_is_refused_and_nothing_is_published(pool: shmpool.Pool, ttl: object) -> None:
    with pool.lease(100) as lease, pytest.raises((TypeError, ValueError), match="ttl"):
        lease.publish(ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError), match="ttl"):
        pool.put(1, ttl=ttl)  # type: ignore[arg-type]


def test_reclaim_closes_what_was_published_here_and_not_opened(
    module_broker: shmpool.Broker, pool: shmpool.Pool
) -> None:
    handles = [pool.put(np.zeros(nbytes // 8)) for nbytes in SIZES]
    several = pool.put(b"x" * 1000, readers=3)
    opened = pool.open(several[1])
    with module_broker.connect() as other:
        theirs = other.put(np.zeros(100))
        assert pool.reclaim() == len(handles) + 2
        assert all(is_used(pool, handle) for handle in (*handles, several[0], several[2]))
        assert pool.reclaim() == 0
        opened.release()
        assert (pool.get(theirs) == 0).all()
    assert comes_back(pool.address)


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_buffer_that_is_given_back_opens_again_once_its_views_are_gone(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        lease.write(b"a" * nbytes)
        handle = lease.publish()
    for _ in range(3):
        buffer = pool.open(handle)
        assert bytes(buffer) == b"a" * nbytes
        buffer.give_back()
        buffer.release()
    buffer = pool.open(handle)
    kept = np.frombuffer(buffer.view, np.uint8)
    buffer.give_back()
    with pytest.raises(shmpool.HandleUsed):
        pool.open(handle)
    del kept
    assert await_(lambda: not is_used(pool, handle))
    pool.discard(handle)
    assert comes_back(pool.address)


def test_giving_back_waits_for_a_child_that_reads(pool: shmpool.Pool) -> None:
    handle = pool.put(np.full(50_000, 5))
    buffer = pool.open(handle)
    view = buffer.view[:]
    reading, release = os.pipe()
    child = os.fork()
    if not child:
        os.close(release)
        os.read(reading, 1)
        os._exit(len(view) == 0)
    os.close(reading)
    del view
    buffer.give_back()
    with pytest.raises(shmpool.HandleUsed):
        pool.open(handle)
    os.close(release)
    assert os.waitpid(child, 0)[1] == 0
    assert await_(lambda: not is_used(pool, handle))
    pool.discard(handle)


def test_threads_that_give_back_hand_one_ticket_around(pool: shmpool.Pool) -> None:
    handle = pool.put(np.zeros(50_000))
    turns, inside = [0] * 4, threading.Semaphore(1)
    wrong: list[str] = []

    def work(number: int) -> None:
        while turns[number] < 50:
            try:
                buffer = pool.open(handle)
            except shmpool.HandleUsed:
                continue
            if not inside.acquire(blocking=False):
                wrong.append("two have it")
            turns[number] += 1
            inside.release()
            buffer.give_back()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert turns == [50] * 4
    pool.discard(handle)


@pytest.mark.parametrize("gives_back", [True, False])
@pytest.mark.parametrize("is_publisher_gone", [True, False])
def test_the_broker_gives_a_dead_reader_s_tickets_back_where_it_is_told_to(
    gives_back: bool, is_publisher_gone: bool
) -> None:
    with shmpool.Broker(memory_limit="64MiB", max_clients=8, give_back=gives_back) as broker:
        with broker.connect() as pool:
            publisher = broker.connect()
            handles = [publisher.put(np.full(n, 3, np.uint8)) for n in SIZES]
            reading, ready = os.pipe()
            child = os.fork()
            if not child:
                buffers = [pool.open(handle) for handle in handles]
                os.write(ready, b"%d" % len(buffers))
                signal.pause()
            assert os.read(reading, 1) == b"4"
            if is_publisher_gone:
                publisher.close()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for handle in handles:
                if gives_back:
                    assert await_(lambda handle=handle: not is_used(pool, handle))  # type: ignore[misc]
                    assert (pool.get(handle) == 3).all()
            publisher.close()
            gc.collect()
            assert comes_back(broker.address)
        os.close(reading)
        os.close(ready)
