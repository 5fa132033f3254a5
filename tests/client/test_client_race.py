"""One handle, several openers at the same moment: exactly one wins, every time."""

from __future__ import annotations

import threading
from typing import Any

import client_workers
import pytest
from client_helpers import Connect, child, hear, pattern
from corners import corner
from patience import rounds

import shmpool
from shmpool import Handle
from shmpool.protocol.handle import unpack_handle
from shmpool.seat import records

MIB = 1 << 20

BATCHES, BATCH = 20, 200


def publish_batch(pool: shmpool.Pool, number: int) -> list[Handle]:
    handles = []
    for which in range(BATCH):
        with pool.lease(16) as lease:
            lease.write(b"%08d%08d" % (number, which))
            handles.append(lease.publish())
    return handles


@pytest.mark.parametrize("method", corner("fork", "spawn"))
def test_two_processes_never_both_open_a_handle(connect: Connect, method: str) -> None:
    pool = connect()
    opener = client_workers.open_all
    with child(method, opener, pool.address) as (_, left), child(method, opener, pool.address) as (_, right):
        assert [hear(left), hear(right)] == ["ready", "ready"]
        shares: list[int] = []
        for number in rounds(BATCHES, lambda: 0 < sum(shares) < len(shares) * BATCH):
            handles = publish_batch(pool, number)
            for pipe in (left, right):
                pipe.send(handles)
            first, second = dict(hear(left)), dict(hear(right))
            assert first.keys().isdisjoint(second.keys())
            won = first | second
            assert won == {which: b"%08d%08d" % (number, which) for which in range(BATCH)}
            shares.append(len(first))
        for pipe in (left, right):
            pipe.send(None)


def test_threads_of_one_pool_never_both_open_a_handle(connect: Connect) -> None:
    publisher, pool = connect(), connect()
    for number in range(5):
        handles = publish_batch(publisher, number)
        wins: list[int] = []
        losses: list[Exception] = []
        barrier = threading.Barrier(6)

        def race(handles: list[Handle] = handles, wins: list[int] = wins, barrier: threading.Barrier = barrier,
                 losses: list[Exception] = losses) -> None:  # fmt: skip
            barrier.wait()
            for which, handle in enumerate(handles):
                try:
                    with pool.open(handle) as buffer:
                        assert bytes(buffer.view[8:]) == b"%08d" % which
                        wins.append(which)
                except (shmpool.HandleUsed, shmpool.StaleHandle) as error:
                    losses.append(error)

        threads = [threading.Thread(target=race) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(wins) == list(range(BATCH))
        assert len(losses) == 5 * BATCH


@pytest.mark.parametrize("nbytes", [300_000, 2 * 1024 * 1024])
def test_threads_of_several_pools_race_for_runs_and_segments(connect: Connect, nbytes: int) -> None:
    publisher, pools = connect(), [connect() for _ in range(3)]
    for number in range(15):
        with publisher.lease(nbytes) as lease:
            lease.write(pattern(nbytes, number))
            handle = lease.publish()
        won: list[bool] = []
        barrier = threading.Barrier(6)

        def race(pool: shmpool.Pool, handle: Handle = handle, won: list[bool] = won,
                 barrier: threading.Barrier = barrier, number: int = number) -> None:  # fmt: skip
            barrier.wait()
            try:
                with pool.open(handle) as buffer:
                    won.append(buffer.view == pattern(nbytes, number))
            except (shmpool.HandleUsed, shmpool.StaleHandle):
                pass

        threads = [threading.Thread(target=race, args=(pool,)) for pool in pools for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [True]


def test_open_against_discard_has_one_winner(connect: Connect) -> None:
    pool, other = connect(), connect()
    outcomes: list[str] = []
    for number in rounds(5, lambda: len(set(outcomes)) == 2):
        handles = publish_batch(pool, number)
        barrier = threading.Barrier(2)

        def closing(handles: list[Handle] = handles, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for handle in handles:
                try:
                    other.discard(handle)
                    outcomes.append("discarded")
                except (shmpool.HandleUsed, shmpool.StaleHandle):
                    pass

        thread = threading.Thread(target=closing)
        thread.start()
        barrier.wait()
        for handle in reversed(handles):
            try:
                pool.open(handle).release()
                outcomes.append("opened")
            except (shmpool.HandleUsed, shmpool.StaleHandle):
                pass
        thread.join()
        assert len(outcomes) == (number + 1) * BATCH


def test_who_opens_while_another_thread_maps_anew_never_looks_through_the_old_map(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A direct segment's row and cell come back with another segment behind them. A thread that lost
    the race for the last one has left its map there."""
    reader, other = connect(), connect()

    def publish(byte: bytes, nbytes: int) -> Handle:
        """By a publisher that keeps nothing: the broker's spare is too short for the longer one."""
        with connect() as publisher, publisher.lease(nbytes) as lease:
            lease.write(byte * nbytes)
            return lease.publish()

    old = publish(b"A", 2 * MIB)
    _, granted, tail = unpack_handle(old)
    reader._session.openings.find(granted, tail)  # type: ignore[union-attr]  # as a loser does, before it loses
    other.open(old).release()
    while (handle := publish(b"B", 5 * MIB)).row != old.row:
        other.open(handle).release()
    is_mapping, may_go_on, seen = threading.Event(), threading.Event(), []
    map_direct = records._map_direct

    def slowly(*what: Any) -> Any:
        is_mapping.set()
        may_go_on.wait()
        return map_direct(*what)

    def read() -> None:
        try:
            with reader.open(handle) as buffer:
                seen.append(bytes(buffer.view[:1]))
        except shmpool.HandleUsed:
            pass

    monkeypatch.setattr(records, "_map_direct", slowly)
    threads = [threading.Thread(target=read) for _ in range(2)]
    threads[0].start()
    assert is_mapping.wait(60)
    threads[1].start()
    threads[1].join(0.2)  # it has to wait for the first one
    may_go_on.set()
    for thread in threads:
        thread.join()
    assert seen == [b"B"]
