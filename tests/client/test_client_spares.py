"""The memory of a steady producer's direct segments is used again, and nobody sees that."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest
from client_helpers import MIB, PATIENCE, Common, eventually, pattern

import shmpool
from shmpool.live_lease import LiveLease
from shmpool.protocol.names import direct_name
from shmpool.seat import segments
from shmpool.stats import query
from shmpoold.core.memory.spares import LIFETIME

SETTINGS = {"memory_limit": "128MiB"}


@pytest.fixture(scope="module")
def plenty() -> Iterator[Common]:
    one = Common(**SETTINGS)
    one.broker()
    yield one
    one.close()


def has_nothing_out(pool: shmpool.Pool) -> bool:
    """Whether the broker has all direct segments again: one that is done is idle until it has looked."""
    tier = pool.stats().tiers[-1]
    return tier.published == tier.idle == 0


@pytest.fixture
def pool(plenty: Common) -> Iterator[shmpool.Pool]:
    with plenty.used() as broker, broker.connect() as pool:
        yield pool


def inode_of(handle: shmpool.Handle) -> int:
    """Of the row's segment: its name says the generation of its making."""
    (path,) = glob.glob(f"/dev/shm/{direct_name(handle.pool_id, handle.row, 0)[:-1]}*")
    return os.stat(path).st_ino


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


def test_a_look_of_the_helper_while_a_segment_is_being_kept_loses_it_not(plenty: Common) -> None:
    """At every other line of the publish that keeps it. What is lost would keep the seat of its closed pool."""
    with plenty.used() as broker:
        for n in itertools.count(1, 2):
            left = n
            with broker.connect() as pool:

                def look(frame: FrameType, event: str, _: object) -> Any:
                    nonlocal left
                    if frame.f_code.co_name == "_kept_by_others":  # thousands of lines that store nothing
                        return None
                    if event == "line" and frame.f_code.co_filename == segments.__file__:
                        left -= 1
                        if left == 0:
                            sys.settrace(None)
                            bool(pool._session.segments)  # type: ignore[union-attr]
                    return look

                for number in range(2):
                    lease = pool.lease(MIB)
                    if number:  # it follows the first one soon, so it is kept
                        sys.settrace(look)
                    try:
                        handle = lease.publish()
                    finally:
                        sys.settrace(None)
                    pool.open(handle).release()
            if left > 0:
                break
        eventually(lambda: not query(broker.address).clients, "every seat has gone")


def paths_of(pool: shmpool.Pool) -> list[str]:
    return glob.glob(f"/dev/shm/{direct_name(int(pool.name, 16), 0, 0)[:-3]}*")


def test_a_steady_producers_next_object_costs_no_message_and_no_map(pool: shmpool.Pool) -> None:
    """Row and name stay, and what a reader saw it through."""
    rows, records, generations = set(), set(), []
    for number in range(12):
        with pool.lease(MIB + number) as lease:
            lease.write(pattern(MIB + number, number))
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(MIB + number, number)
            window = id(buffer._record.window)
        if number > 2:
            rows.add(handle.row)
            records.add(window)
            generations.append(handle.generation)
    assert len(rows) <= 2 and len(records) <= 2
    assert sorted(generations)[-1] > 4


def test_what_one_producer_is_done_with_serves_the_next_as_it_lies(
    plenty: Common, pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Producers of one object each: the broker hands the segment on, and readers' maps stay. It does so where three
    of them ask within a quarter of a second, which a busy machine may leave to the next six."""
    monkeypatch.setattr("shmpool.seat.deferred.IDLE_PAUSE", 60.0)  # they would go if this took long
    seen, deadline = 0, time.monotonic() + PATIENCE
    while seen < 3 and time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            producers = [stack.enter_context(plenty.broker().connect()) for _ in range(6)]
            seen += _hand_on(pool, producers)
    assert seen >= 3, "no three of them asked soon enough after one another"


def _hand_on(pool: shmpool.Pool, producers: list[shmpool.Pool]) -> int:
    """How often a producer got the segment of the one before."""
    asked, stale, times = list[float](), list[shmpool.Handle](), 0
    inode_before: int | None = None
    window_before: Any = None
    for number, producer in enumerate(producers):
        content = pattern(2 * MIB - number, number)
        asked.append(time.monotonic())
        lease = producer.lease(len(content))
        is_soon = number > 1 and time.monotonic() - asked[-3] < LIFETIME
        lease.write(content)
        handle = lease.publish()
        inode = inode_of(handle)
        with pool.open(handle) as buffer:
            assert buffer.view == content
            window = weakref.ref(buffer._record.window)  # kept, it would be a view
        if is_soon:
            assert inode == inode_before, "another segment"
            assert window() is not None and window() is window_before(), "another map"
            times += 1
        inode_before, window_before = inode, window
        stale.append(handle)
        eventually(lambda: has_nothing_out(pool), "the broker has it again")
    for handle in stale:
        with pytest.raises(LookupError):
            pool.open(handle)
    return times


def test_nothing_of_a_lone_object_is_kept(pool: shmpool.Pool) -> None:
    with pool.lease(2 * MIB) as lease:
        handle = lease.publish()
    pool.open(handle).release()
    eventually(lambda: not paths_of(pool), "no segment left")


def test_no_more_than_a_share_is_kept(pool: shmpool.Pool) -> None:
    """An eighth of the limit, in use or not; what is beyond it is the broker's at publish."""
    for _ in range(3):
        leases = [pool.lease(3 * MIB) for _ in range(10)]
        handles = [lease.publish() for lease in leases]
        for handle in handles:
            pool.open(handle).release()
    kept = [slot for shelf in pool._session.segments.in_use for slot in (*shelf.ready, *shelf.published)]
    assert 0 < sum(slot.size for slot in kept) <= 128 * MIB // 8


def test_all_seats_together_keep_no_more_than_the_share(plenty: Common, pool: shmpool.Pool) -> None:
    with plenty.broker().connect() as other:
        for _ in range(3):
            for one in (pool, other):
                leases = [one.lease(3 * MIB) for _ in range(5)]
                for lease in leases:
                    pool.open(lease.publish()).release()
        kept = [shelf.size for one in (pool, other) for shelf in one._session.segments.in_use
                for _ in (*shelf.ready, *shelf.published)]  # fmt: skip
    assert 0 < sum(kept) <= 128 * MIB // 8


def steady(pool: shmpool.Pool, nbytes: int) -> None:
    """From here on *pool* keeps a segment of that size."""
    for _ in range(4):
        with pool.lease(nbytes) as lease:
            lease.write(bytes(nbytes))
            pool.open(lease.publish()).release()
    assert pool._session.segments


def test_what_is_kept_is_leased_like_any_slot(pool: shmpool.Pool) -> None:
    """For several readers, for many, released, filled from a file, shortened, written in parts, with a view left."""
    nbytes, data = 2 * MIB, pattern(2 * MIB, 7)
    steady(pool, nbytes)
    with pool.lease(nbytes) as lease:
        assert lease.strategy is shmpool.Strategy.DIRECT and lease.category is shmpool.SizeCategory.VERY_LARGE
        lease.write_parts([(0, data[:MIB]), (MIB, data[MIB:])])
        for handle in lease.publish_many(3):
            with pool.open(handle) as buffer:
                assert buffer.view == data
    pool.lease(nbytes).release()
    with tempfile.TemporaryFile() as file:
        file.write(data)
        with pool.lease(nbytes) as lease:
            assert lease.readinto_from(file.fileno(), 0) == nbytes
            lease.shorten(nbytes - 1)
            with pool.open(lease.publish()) as buffer:
                assert buffer.view == data[:-1]
    lease = pool.lease(nbytes)
    lease.write(bytes(nbytes))
    left = np.frombuffer(lease.view, np.uint8)
    with pytest.warns(ResourceWarning):
        pool.open(lease.publish()).release()
    with pool.lease(nbytes) as lease:
        lease.write(data)
        assert not left.any()
        del left
        with lease.publish_shared() as shared, shared.open() as buffer:
            assert buffer.view == data


def test_kept_segments_of_a_pool_that_is_closed_are_its_readers(plenty: Common, pool: shmpool.Pool) -> None:
    data = pattern(2 * MIB, 3)
    with plenty.broker().connect() as other:
        steady(other, 2 * MIB)
        with other.lease(2 * MIB) as lease:
            lease.write(data)
            handle = lease.publish()
    with pool.open(handle) as buffer:
        assert buffer.view == data


def test_sizes_that_change_all_the_time_leave_nothing(pool: shmpool.Pool) -> None:
    for number in range(300):
        nbytes = MIB + 4096 * number
        with pool.lease(nbytes) as lease:
            lease.view[-1] = number % 256
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.view[-1] == number % 256 and len(buffer) == nbytes
    eventually(lambda: not paths_of(pool), "no segment left")


def test_kept_segments_are_summed_where_the_pool_asks_for_checksums() -> None:
    with shmpool.Broker(**SETTINGS, checksums=True) as broker, broker.connect() as pool:
        steady(pool, MIB)
        with pool.lease(MIB) as lease:
            lease.write(pattern(MIB, 1))
            slot = lease._slot
            handle = lease.publish()
        window: Any = slot.window
        window[4096:4097] = bytes([window[4096] ^ 1])
        with pytest.raises(shmpool.ChecksumError):
            pool.open(handle)


def test_who_waits_gets_what_is_kept(plenty: Common, pool: shmpool.Pool) -> None:
    for _ in range(4):
        leases = [pool.lease(5 * MIB) for _ in range(3)]
        for lease in leases:
            pool.open(lease.publish()).release()
    memory = pool.stats().memory
    with plenty.broker().connect() as other, other.lease(memory["limit"] - memory["overhead"] - 4 * MIB) as lease:
        assert lease.nbytes > 100 * MIB


def test_who_does_not_wait_gets_what_lies_kept_here(pool: shmpool.Pool) -> None:
    for _ in range(4):
        for lease in [pool.lease(5 * MIB) for _ in range(3)]:
            pool.open(lease.publish()).release()
    memory = pool.stats().memory
    with pool.lease(memory["limit"] - memory["overhead"] - 4 * MIB, timeout=0) as lease:
        assert lease.nbytes > 100 * MIB


def test_memory_goes_back_although_readers_still_map_it(pool: shmpool.Pool) -> None:
    """The host's own account of the segment's inode, held open here, says so."""
    for _ in range(4):
        with pool.lease(4 * MIB) as lease:
            lease.write(pattern(4 * MIB, 1))
            handle = lease.publish()
        buffer = pool.open(handle)
        assert buffer.view[0] == pattern(1, 1)[0]
        record = buffer._record
        buffer.release()
    assert record.window is not None
    files = [os.open(path, os.O_RDONLY) for path in paths_of(pool)]
    try:
        assert files and sum(os.fstat(fd).st_blocks for fd in files)
        eventually(lambda: not sum(os.fstat(fd).st_blocks for fd in files), "its pages are the host's")
    finally:
        for fd in files:
            os.close(fd)


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


def test_a_row_whose_ticket_is_closed_while_it_is_published_is_stored_to_no_more(
    pool: shmpool.Pool,
) -> None:
    """Another thread reclaims what was published just now, the broker grants the row to somebody else: nothing more
    is stored there, and the row is not taken for our own."""
    other = shmpool.connect(pool.address)
    store, others, theirs = LiveLease._store_publication, list[shmpool.Lease](), list[shmpool.Handle]()

    def interrupted(self: LiveLease, tickets: int, *, is_kept: bool = False) -> list[shmpool.Handle]:
        row = self._slot.row
        handles = store(self, tickets, is_kept=is_kept)
        pool.reclaim()
        while not others or others[-1]._slot.row != row:
            others.append(other.lease(4096, strategy="direct"))
        others[-1].write(pattern(4096))
        patch.undo()
        theirs.append(others[-1].publish())
        return handles

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveLease, "_store_publication", interrupted)
        (handle,) = pool.lease(4096, strategy="direct").publish_many(1)
    with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
        other.open(handle)
    with other.open(theirs[0]) as buffer:
        assert buffer.view == pattern(4096)
    while others:
        others.pop().release()
    other.close()
