"""The end of a Pool: what is given back, what goes to the broker, what stays until later."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from client_helpers import MIB, Connect, Start, eventually, out, pattern

import shmpool
from shmpool import Handle, LeaseReleased, PoolClosed, Strategy
from shmpool.live_lease import LiveLease
from shmpool.seat.windows import AT_REST

SIZES = [1000, 300_000, 2 * MIB]


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


@pytest.mark.parametrize("nbytes", SIZES)
def test_closed_pool_releases_its_open_leases_with_a_warning(connect: Connect, nbytes: int) -> None:
    pool, other = connect(), connect()
    lease = pool.lease(nbytes)
    with pytest.warns(ResourceWarning, match=f"{nbytes} bytes.*open when its pool was closed"):
        pool.close()
    for use in (lambda: lease.view, lease.publish, lambda: lease.write(bytes(nbytes))):
        with pytest.raises(LeaseReleased):
            use()
    lease.release()
    eventually(lambda: out(other.stats()) == 0 and len(other.stats().clients) == 1)


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("strict", [False, True])
def test_closed_pool_keeps_its_seat_while_a_view_of_a_lease_lives(connect: Connect, nbytes: int, strict: bool) -> None:
    pool, other = connect(strict=strict), connect()
    lease = pool.lease(nbytes)
    kept = np.frombuffer(lease.view, dtype=np.uint8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool.close()
    assert any("open when its pool was closed" in str(warning.message) for warning in caught)
    kept[:] = 3
    assert other.stats().active_buffers == 1
    assert len(other.stats().clients) == 2
    with other.lease(nbytes) as mine:
        mine.view[:] = b"\xff" * nbytes
    assert (kept.min(), kept.max()) == (3, 3)
    del kept
    eventually(lambda: out(other.stats()) == 0 or other.stats().active_buffers == 0)
    eventually(lambda: len(other.stats().clients) == 1)


@pytest.mark.parametrize("nbytes", SIZES)
def test_publications_of_a_closed_pool_are_read_by_others(connect: Connect, nbytes: int) -> None:
    pool, other = connect(), connect()
    handles = [publish(pool, pattern(nbytes, seed)) for seed in range(3)]
    early = other.open(handles[0])
    pool.close()
    eventually(lambda: len(other.stats().clients) == 1)
    assert other.stats().active_buffers == 3
    for seed, handle in enumerate(handles[1:], 1):
        with other.open(handle) as buffer:
            assert buffer.view == pattern(nbytes, seed)
    assert early.view == pattern(nbytes, 0)
    early.release()
    eventually(lambda: out(other.stats()) == 0)
    for handle in handles:
        with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
            other.open(handle)


@pytest.mark.parametrize("nbytes", SIZES)
def test_buffer_opened_before_the_close_is_valid_until_its_release(connect: Connect, nbytes: int) -> None:
    pool, publisher = connect(), connect()
    buffer = pool.open(publish(publisher, pattern(nbytes)))
    pool.close()
    assert len(publisher.stats().clients) == 2
    leases = [publisher.lease(nbytes) for _ in range(3)]
    for lease in leases:
        lease.view[:] = b"\xff" * nbytes
    assert buffer.view == pattern(nbytes)
    assert b"".join(buffer.chunks) == pattern(nbytes)
    array = np.frombuffer(buffer.view, dtype=np.uint8)
    buffer.release()
    assert len(publisher.stats().clients) == 2
    assert array.tobytes() == pattern(nbytes)
    del array
    eventually(lambda: len(publisher.stats().clients) == 1)
    eventually(lambda: publisher.stats().active_buffers == 3)
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("leases_too", [True, False])
@pytest.mark.parametrize("nbytes", SIZES[:2])
def test_frozen_objects_are_not_overlooked(connect: Connect, nbytes: int, leases_too: bool) -> None:
    """``gc.freeze`` hides objects from the collector, and from whoever asks it."""
    pool, other = connect(), connect()
    lease, buffer = pool.lease(nbytes), pool.open(publish(other, pattern(nbytes)))
    lease.view[:] = pattern(nbytes, 2)
    if not leases_too:
        lease.release()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            pool.close()
        mine = [other.lease(nbytes) for _ in range(5)]
        for one in mine:
            one.view[:] = b"\xff" * nbytes
            one.release()
        assert buffer.view == pattern(nbytes)
        buffer.release()
        lease.release()
    finally:
        gc.unfreeze()
    eventually(lambda: len(other.stats().clients) == 1)


def test_closing_twice_does_nothing(connect: Connect) -> None:
    pool = connect()
    pool.close()
    pool.close()
    with pool:
        pass
    assert "closed" in repr(pool)


def test_closed_pool_refuses_everything(connect: Connect) -> None:
    pool, other = connect(), connect()
    handle = publish(other, b"x")
    pool.close()
    uses = [lambda: pool.lease(10), lambda: pool.open(handle), lambda: pool.discard(handle), pool.stats]
    uses += [lambda strategy=strategy: pool.lease(10, strategy=strategy) for strategy in Strategy]
    for use in uses:
        with pytest.raises(PoolClosed) as closed:
            use()
        assert isinstance(closed.value, ValueError)
    other.discard(handle)


def test_closed_pool_leaves_no_thread_and_no_map(connect: Connect) -> None:
    pool, other = connect(), connect()
    threads = threading.active_count()
    for nbytes in SIZES:
        pool.discard(publish(pool, pattern(nbytes)))
        with pool.open(publish(other, pattern(nbytes))):
            pass
    with other.open(publish(pool, b"last")) as buffer:
        pool.close()
        assert bytes(buffer.view) == b"last"
    assert threading.active_count() == threads - 1


def test_forgotten_pool_gives_up_its_seat(start: Start) -> None:
    broker = start()
    with broker.connect() as other:
        with pytest.warns(ResourceWarning, match="unclosed"):
            broker.connect()
        eventually(lambda: len(other.stats().clients) == 1)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_window_without_views_is_at_rest(connect: Connect) -> None:
    """What every release relies on, in this version of Python: no view, no difference."""
    pool = connect()
    with pool.lease(1000) as lease:
        slot, view = lease._slot, lease.view
        assert references(slot) == AT_REST + 1
        more = view[:10], view.cast("H"), np.frombuffer(view, dtype=np.uint8)
        assert references(slot) == AT_REST + 1, "they share the view's hold"
        second = memoryview(slot.window)  # type: ignore[arg-type]
        assert references(slot) == AT_REST + 2
        del more, second, view
        handle = lease.publish()
    assert references(slot) == AT_REST
    with pool.open(handle) as buffer:
        record = buffer._record
        assert references(record) == AT_REST + 1
    assert references(record) == AT_REST


def references(holder: Any) -> int:
    """Not in an assert: pytest would hold the window itself meanwhile."""
    return sys.getrefcount(holder.window)


def test_steady_use_defers_no_release(connect: Connect) -> None:
    """A baseline that is wrong by one would turn every release into a deferred one."""
    pool, reader = connect(), connect()
    before = pool.stats().deferred_releases
    for nbytes in SIZES * 20:
        with reader.open(publish(pool, pattern(nbytes))) as buffer:
            assert np.frombuffer(buffer.view, dtype=np.uint8)[0] == pattern(1)[0]
        pool.lease(nbytes).release()
    assert pool.stats().deferred_releases == before


def test_close_leaves_a_direct_lease_that_another_thread_writes_to_that_thread(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would write on in a segment that is somebody else's by then."""
    pool, other = connect(), connect()
    lease = pool.lease(2 * MIB)
    writing, closed = threading.Event(), threading.Event()
    pwrite = os.pwrite

    def slowly(fd: int, data: memoryview, offset: int) -> int:
        writing.set()
        assert closed.wait(20)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slowly)
    thread = threading.Thread(target=lease.write, args=(b"\x63" * (2 * MIB),))
    thread.start()
    assert writing.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pool.close()
    mine = other.lease(2 * MIB)
    mine.view[:] = b"\x07" * (2 * MIB)
    closed.set()
    thread.join()
    assert mine.view == b"\x07" * (2 * MIB)
    with other.open(lease.publish()) as buffer:
        assert buffer.view == b"\x63" * (2 * MIB)
    mine.release()
    eventually(lambda: len(other.stats().clients) == 1 and other.stats().active_buffers == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_threads_at_work_while_the_pool_closes_are_told_so(connect: Connect, nbytes: int) -> None:
    """With one of two errors, and what ended well is right."""
    wrong: list[BaseException | str] = []
    other = connect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)

        def work(pool: shmpool.Pool, number: int, barrier: threading.Barrier) -> None:
            data, reader = bytes([number]) * nbytes, pool
            barrier.wait()
            try:
                while reader is pool:
                    lease = pool.lease(nbytes)
                    lease.write(data)
                    lease.write_parts([(0, data)])
                    handle = lease.publish()
                    try:
                        buffer = pool.open(handle)
                    except shmpool.PoolClosed:
                        reader, buffer = other, other.open(handle)
                    if buffer.view != data:
                        wrong.append(f"{bytes(buffer.view[:1])!r} is not {number}")
                    buffer.release()
            except (shmpool.LeaseReleased, shmpool.PoolClosed):
                pass
            except BaseException as error:
                wrong.append(error)

        for _ in range(4):
            pool, barrier = connect(), threading.Barrier(4)
            threads = [threading.Thread(target=work, args=(pool, number, barrier)) for number in range(3)]
            for thread in threads:
                thread.start()
            barrier.wait()
            pool.lease(nbytes).release()
            pool.close()
            for thread in threads:
                thread.join()
        assert wrong == []


@pytest.mark.parametrize("nbytes", SIZES)
def test_close_leaves_a_lease_that_another_thread_publishes_to_that_thread(
    connect: Connect, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes the view away first goes on; a direct lease may not have made one yet."""
    pool, other = connect(), connect()
    lease = pool.lease(nbytes)
    lease.write(pattern(nbytes))
    publishing, closed = threading.Event(), threading.Event()
    store = LiveLease._store_publication

    def slowly(self: LiveLease, tickets: int) -> list[Handle]:
        publishing.set()
        assert closed.wait(20)
        return store(self, tickets)

    monkeypatch.setattr(LiveLease, "_store_publication", slowly)
    handles: list[Handle] = []
    thread = threading.Thread(target=lambda: handles.extend(lease.publish_many(2)))
    thread.start()
    assert publishing.wait(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pool.close()
    assert len(other.stats().clients) == 2, "the seat stays until the thread is done"
    closed.set()
    thread.join()
    for handle in handles:
        with other.open(handle) as buffer:
            assert buffer.view == pattern(nbytes)
    eventually(lambda: len(other.stats().clients) == 1 and other.stats().active_buffers == 0)
