"""Views: a slot is given back when its last view is gone, never before, on both sides."""

from __future__ import annotations

import ctypes
import gc
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import client_workers
import numpy as np
import pytest
from client_helpers import ENV, KIB, MIB, Connect, child, eventually, hear, out, pattern
from corners import across

import shmpool
from shmpool import Handle, LeakedView, LeaseReleased, Strategy

#: One size for each strategy.
SIZES = [4000, 300_000, 2 * MIB]

Keeper = tuple[str, Callable[[memoryview], Any]]
KEEPERS: list[Keeper] = [
    ("slice", lambda view: view[3:17]),
    ("slice of a slice", lambda view: view[1:][2:16]),
    ("cast", lambda view: view[:800].cast("Q")),
    ("second memoryview", memoryview),
    ("frombuffer", lambda view: np.frombuffer(view, dtype=np.uint8)),
    ("ndarray", lambda view: np.ndarray((10, 10), dtype=np.uint8, buffer=view)),
    ("derived array", lambda view: np.frombuffer(view, dtype=np.uint16)[4:20:2].reshape(2, 4).T),
    ("asarray", lambda view: np.asarray(view)[5:9]),
    ("PickleBuffer", lambda view: pickle.PickleBuffer(view)),
    ("raw of a PickleBuffer", lambda view: pickle.PickleBuffer(view).raw()),
    ("the exporter", lambda view: view.obj),
]
WRITERS = [
    *KEEPERS,
    ("ctypes", lambda view: (ctypes.c_char * 20).from_buffer(view)),
    ("ctypes with an offset", lambda view: ctypes.c_uint64.from_buffer(view, 8)),
    ("ctypes of an array", lambda view: np.ctypeslib.as_ctypes(np.frombuffer(view, dtype=np.uint8))),
]
READERS = [
    *KEEPERS,
    ("array interface", lambda view: np.array(np.frombuffer(view, dtype=np.uint8), copy=False)),
]


class Cycle:
    def __init__(self, thing: Any) -> None:
        self.me, self.thing = self, thing


WRITERS += [("cycle", lambda view: Cycle(view[:5]))]
READERS += [("cycle", lambda view: Cycle(view[:5]))]


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


def rows_that_come(pool: shmpool.Pool, nbytes: int, count: int = 12) -> set[int]:
    """The rows of *count* leases that are held at the same time, and then given back."""
    leases = [pool.lease(nbytes) for _ in range(count)]
    rows = set()
    for lease in leases:
        lease.view[:] = b"\xee" * nbytes  # whoever reads on in a reused slot would see it
        handle = lease.publish()
        rows.add(handle.row)
        pool.discard(handle)
    return rows


def active(pool: shmpool.Pool) -> int:
    return pool.stats().active_buffers


@pytest.mark.parametrize(("kept_by", "nbytes"), across(READERS, SIZES))
def test_reader_s_slot_is_kept_while_a_view_lives_and_comes_back_after(
    connect: Connect, nbytes: int, kept_by: Keeper
) -> None:
    name, keep = kept_by
    pool, reader = connect(), connect()
    content = pattern(nbytes)
    handle = publish(pool, content)
    with reader.open(handle) as buffer:
        kept = keep(buffer.view)
        before = bytes(kept.thing) if name == "cycle" else None
    with pytest.raises(LeaseReleased):
        _ = buffer.view
    assert active(pool) == 1
    if nbytes < 256 * KIB:
        assert handle.row not in rows_that_come(pool, nbytes)
    assert active(pool) == 1
    if isinstance(kept, np.ndarray):
        assert np.array_equal(kept, READERS_BY_NAME[name](memoryview(content)))
    if name == "cycle":
        assert bytes(kept.thing) == before == content[:5]
        gc.disable()
        del kept
        assert active(pool) == 1, "only the collector can end a cycle: the test shows nothing"
        gc.enable()
        gc.collect()
    else:
        del kept
    eventually(lambda: active(pool) == 0)
    assert reader.stats().deferred_releases == pool.stats().deferred_releases >= 1


READERS_BY_NAME = dict(READERS)


@pytest.mark.parametrize(("kept_by", "nbytes", "readers"), across(WRITERS, SIZES, (1, 3)))
def test_writer_s_slot_is_kept_after_publish_while_its_view_lives(
    connect: Connect, nbytes: int, kept_by: Keeper, readers: int
) -> None:
    _, keep = kept_by
    pool, reader = connect(), connect()
    lease = pool.lease(nbytes)
    lease.view[:] = pattern(nbytes)
    kept = keep(lease.view)
    with pytest.warns(ResourceWarning, match="still alive"):
        handles = lease.publish_many(readers) if readers > 1 else [lease.publish()]
    with pytest.raises(LeaseReleased):
        _ = lease.view
    for handle in handles:
        with reader.open(handle) as buffer:
            assert buffer.view == pattern(nbytes)
    if nbytes < MIB:
        assert handles[0].row not in rows_that_come(pool, nbytes, 4)
    else:
        assert out(pool.stats()) == 1
    del kept
    gc.collect()
    if nbytes < MIB:
        assert handles[0].row in rows_that_come(pool, nbytes, 12)
    else:
        eventually(lambda: out(pool.stats()) == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_writer_s_slot_is_kept_after_release_while_its_view_lives(pool: shmpool.Pool, nbytes: int) -> None:
    lease = pool.lease(nbytes)
    row = lease._slot.row
    kept = np.frombuffer(lease.view, dtype=np.uint8)
    with pytest.warns(ResourceWarning, match="still alive"):
        lease.release()
    with pytest.raises(LeaseReleased):
        _ = lease.view
    kept[:] = 7
    if nbytes < MIB:
        assert row not in rows_that_come(pool, nbytes, 4)
    assert kept.min() == kept.max() == 7
    assert active(pool) == 1
    del kept
    eventually(lambda: active(pool) == 0)
    if nbytes < MIB:
        assert row in rows_that_come(pool, nbytes, 6)


def test_writer_is_warned_of_its_views_once(pool: shmpool.Pool) -> None:
    kept: list[memoryview] = []
    before = pool.stats().deferred_releases
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with pool.lease(100) as lease:
                kept.append(lease.view[:1])
                pool.discard(lease.publish())
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert pool.stats().deferred_releases - before == 3
    del kept


@pytest.mark.parametrize("nbytes", SIZES)
def test_where_warnings_are_errors_a_kept_view_loses_nothing(pool: shmpool.Pool, nbytes: int) -> None:
    """The suite runs so. The lease goes on when publish raises."""
    lease = pool.lease(nbytes)
    lease.view[:3] = b"abc"
    kept = lease.view[:3]
    with pytest.raises(ResourceWarning):
        lease.publish()
    assert bytes(lease.view[:3]) == b"abc"
    del kept
    handle = lease.publish()
    with pool.open(handle) as buffer:
        assert bytes(buffer.view[:3]) == b"abc"


# --- strict mode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nbytes", "readers"), across(SIZES, (1, 2)))
def test_strict_publish_raises_and_the_lease_goes_on(connect: Connect, nbytes: int, readers: int) -> None:
    pool = connect(strict=True)

    def publish_it() -> list[Handle]:
        return lease.publish_many(readers) if readers > 1 else [lease.publish()]

    with pool.lease(nbytes) as lease:
        lease.view[:] = pattern(nbytes)
        kept = np.frombuffer(lease.view, dtype=np.uint8)
        for _ in range(2):
            with pytest.raises(LeakedView, match=r"lease\.view") as leaked:
                publish_it()
            assert isinstance(leaked.value, BufferError)
            del leaked
        assert lease.view == pattern(nbytes)
        kept[:4] = 9
        assert bytes(lease.view[:4]) == b"\x09" * 4
        del kept
        handles = publish_it()
    for handle in handles:
        with pool.open(handle) as buffer:
            assert buffer.view[4:] == pattern(nbytes)[4:]


@pytest.mark.parametrize("nbytes", SIZES)
def test_strict_release_of_a_lease_raises_and_the_slot_comes_back_with_the_view(connect: Connect, nbytes: int) -> None:
    pool = connect(strict=True)
    lease = pool.lease(nbytes)
    kept = lease.view[5:6]
    with pytest.raises(LeakedView, match="release"):
        lease.release()
    lease.release()  # it is over: nothing happens
    assert active(pool) == 1
    kept[:] = b"!"
    del kept
    eventually(lambda: active(pool) == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_strict_release_of_a_buffer_raises_and_the_slot_comes_back_with_the_view(connect: Connect, nbytes: int) -> None:
    pool, reader = connect(), connect(strict=True)
    with pytest.raises(LeakedView, match=r"buffer\.view"), reader.open(publish(pool, pattern(nbytes))) as buffer:
        kept = np.frombuffer(buffer.view, dtype=np.uint8)
    buffer.release()
    assert active(pool) == 1
    assert bytes(kept) == pattern(nbytes)
    del kept
    eventually(lambda: active(pool) == 0)


@pytest.mark.parametrize("way", ["lease", "buffer", "array", "writer", "reader"])
def test_strict_block_that_raises_says_what_it_raised(connect: Connect, way: str) -> None:
    """What is raised keeps the block's frame, and so its arrays: that they are alive must not hide it."""
    pool = connect(strict=True)
    block: Any = {
        "lease": lambda: pool.lease(1000),
        "buffer": lambda: pool.open(publish(pool, pattern(1000))),
        "array": lambda: pool.empty(1000, "u1"),
        "writer": lambda: pool.open_writer(1000),
        "reader": lambda: pool.open_reader(publish(pool, pattern(1000))),
    }[way]()

    def fail(block: Any) -> None:
        with block as one:
            kept = one.getbuffer() if way in ("writer", "reader") else getattr(one, "array", None)
            kept = one.view[:3] if kept is None else kept[:3]
            raise KeyboardInterrupt(len(kept))

    with pytest.raises(KeyboardInterrupt) as raised:
        fail(block)
    del raised, block
    eventually(lambda: active(pool) == 0)


def test_strict_mode_by_the_environment(pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, outcome in (("1", "leaked"), ("0", "published"), ("", "published")):
        monkeypatch.setenv("SHMPOOL_STRICT", value)
        monkeypatch.setenv("PYTHONWARNINGS", "ignore")
        with child("spawn", client_workers.strict_child, {"address": pool.address}) as (_, pipe):
            assert hear(pipe) == outcome
    with child("spawn", client_workers.strict_child, {"address": pool.address, "strict": True}) as (_, pipe):
        assert hear(pipe) == "leaked"


# --- reading only -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", SIZES)
def test_reader_cannot_write(connect: Connect, nbytes: int) -> None:
    pool, reader = connect(), connect()
    with reader.open(publish(pool, pattern(nbytes))) as buffer:
        with pytest.raises(TypeError):
            buffer.view[0] = 1
        with pytest.raises(TypeError):
            buffer.view[:4] = b"abcd"
        with pytest.raises(TypeError):
            buffer.view.obj[0] = 1  # type: ignore[index]
        with pytest.raises(TypeError):
            buffer.view.obj.write(b"x")  # type: ignore[attr-defined]
        with pytest.raises(TypeError):
            memoryview(buffer.view.obj)[0] = 1  # type: ignore[arg-type]
        for chunk in buffer.chunks:
            assert chunk.readonly
        del chunk
        array = np.frombuffer(buffer.view, dtype=np.uint8)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError):
            array.flags.writeable = True
        del array
        with pytest.raises((TypeError, BufferError)):
            ctypes.c_char.from_buffer(buffer.view)
        with pytest.raises((BufferError, TypeError)):
            (ctypes.c_char * 4).from_buffer(buffer.view.obj)  # type: ignore[arg-type]
        assert buffer.view == pattern(nbytes)


def test_reader_that_forces_a_write_is_stopped_by_the_kernel(pool: shmpool.Pool) -> None:
    handle = publish(pool, b"protected")
    script = """
import ctypes, faulthandler, sys, shmpool
from shmpool.system.libc import address_of
faulthandler.disable()
pool = shmpool.connect(sys.argv[1])
buffer = pool.open(shmpool.Handle(bytes.fromhex(sys.argv[2])))
print(bytes(buffer.view).decode(), flush=True)
ctypes.memset(address_of(buffer.view), 0, 4)
print("written")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, pool.address, handle.hex()], env=ENV, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (-11, "protected\n")


# --- the end of leases and buffers ------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [Strategy.POOLED, Strategy.CHUNKED, Strategy.DIRECT])
@pytest.mark.parametrize("published", [True, False])
def test_lease_that_is_over_raises(pool: shmpool.Pool, strategy: Strategy, published: bool) -> None:
    lease = pool.lease(100, strategy=strategy)
    view = lease.view
    if published:
        pool.discard(lease.publish())
    else:
        lease.release()
    for use in (
        lambda: lease.view,
        lambda: lease.chunks,
        lambda: lease.write(b"x" * 100),
        lease.publish,
        lambda: lease.publish_many(2),
    ):
        with pytest.raises(LeaseReleased) as over:
            use()
        assert isinstance(over.value, ValueError)
    with pytest.raises(ValueError, match="released"):
        view[0] = 1
    lease.release()
    assert (lease.nbytes, lease.strategy) == (100, strategy)
    assert "100" in repr(lease)
    with lease:
        pass


@pytest.mark.parametrize("nbytes", SIZES)
def test_buffer_that_is_over_raises(pool: shmpool.Pool, nbytes: int) -> None:
    buffer = pool.open(publish(pool, pattern(nbytes)))
    view = buffer.view
    buffer.release()
    for use in (lambda: buffer.view, lambda: buffer.chunks):
        with pytest.raises(LeaseReleased):
            use()
    with pytest.raises(ValueError, match="released"):
        _ = view[0]
    buffer.release()
    assert buffer.nbytes == nbytes
    assert str(nbytes) in repr(buffer)


@pytest.mark.parametrize("nbytes", SIZES)
def test_forgotten_lease_comes_back_with_a_warning(pool: shmpool.Pool, nbytes: int) -> None:
    with pytest.warns(ResourceWarning, match=f"a lease of {nbytes} bytes"):
        pool.lease(nbytes)
    eventually(lambda: active(pool) == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_forgotten_buffer_comes_back_with_a_warning(pool: shmpool.Pool, nbytes: int) -> None:
    with pytest.warns(ResourceWarning, match=f"a buffer of {nbytes} bytes"):
        pool.open(publish(pool, pattern(nbytes)))
    eventually(lambda: active(pool) == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_forgotten_buffer_in_a_cycle_comes_back_when_collected(pool: shmpool.Pool, nbytes: int) -> None:
    cycle = Cycle(pool.open(publish(pool, pattern(nbytes))))
    array = np.frombuffer(cycle.thing.view, dtype=np.uint8)
    del cycle
    with pytest.warns(ResourceWarning, match="was not released"):
        gc.collect()
    assert active(pool) == 1, "an array is left"
    assert bytes(array) == pattern(nbytes)
    del array
    eventually(lambda: active(pool) == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_block_that_raises_gives_the_lease_and_the_buffer_back(pool: shmpool.Pool, nbytes: int) -> None:
    with pytest.raises(ZeroDivisionError), pool.lease(nbytes) as lease:
        lease.view[0] = 1 // 0
    eventually(lambda: active(pool) == 0)
    handle = publish(pool, pattern(nbytes))
    with pytest.raises(ZeroDivisionError), pool.open(handle) as buffer:
        _ = buffer.view[0] // 0
    eventually(lambda: active(pool) == 0)


def test_view_released_by_the_user_is_no_error(pool: shmpool.Pool) -> None:
    lease = pool.lease(100)
    lease.view.release()
    with pool.open(lease.publish()) as buffer:
        buffer.view.release()
    lease = pool.lease(100)
    with lease.view as view:
        view[:] = b"x" * 100
    lease.release()


def test_two_buffers_of_one_slot_end_apart(connect: Connect) -> None:
    """Two readers of one process have the same slot open; a view of one outlives the other."""
    pool, reader = connect(), connect()
    with pool.lease(1000) as lease:
        lease.write(b"s" * 1000)
        handles = lease.publish_many(2)
    first, second = (reader.open(handle) for handle in handles)
    kept = first.view[:10]
    first.release()
    second.release()
    assert active(pool) == 1
    assert bytes(kept) == b"s" * 10
    del kept
    eventually(lambda: active(pool) == 0)


def test_a_later_open_of_the_same_cell_does_not_wait_for_an_old_view(connect: Connect) -> None:
    """The old view's publication was another generation, and so is its release."""
    pool, reader = connect(), connect()
    kept, rows = [], []
    for number in range(40):
        handle = publish(pool, b"%04d" % number * 25)
        rows.append(handle.row)
        with reader.open(handle) as buffer:
            if number % 4 == 0:
                kept.append((number, buffer.view[:4]))
    assert len(set(rows)) < 40, "no slot was used twice: the test shows nothing"
    assert active(pool) == 10
    assert [bytes(view) for _, view in kept] == [b"%04d" % number for number, _ in kept]
    while kept:
        kept.pop()
        eventually(lambda: active(pool) == len(kept))
