"""put and get through a real pool: without a copy, kept by what is left of the object, given back
with the last of it."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from object_helpers import comes_back, equal, objects

import shmpool

KIB, MIB = 1024, 1024 * 1024


def out(pool: shmpool.Pool) -> int:
    return pool.stats().active_buffers


def all_back(pool: shmpool.Pool) -> bool:
    return comes_back(pool.address)


SIZES = [10, 3000, 50 * KIB, 200 * KIB, 600 * KIB, 3 * MIB]


@pytest.mark.parametrize("nbytes", SIZES)
def test_an_object_of_every_size_comes_back_and_its_memory_with_its_last_array(pool: shmpool.Pool, nbytes: int) -> None:
    sent = {"a": np.arange(nbytes, dtype=np.uint8), "b": [np.ones(nbytes // 2), "x"]}
    got = pool.get(pool.put(sent))
    assert (got["a"] == sent["a"]).all()
    assert (got["b"][0] == sent["b"][0]).all()
    assert got["b"][1] == "x"
    assert got["a"].flags.writeable == (nbytes < 1024)  # small ones travel in the pickle
    kept = got["b"][0]
    is_copied = out(pool) == 0
    assert is_copied == (5 * nbytes < 64 * KIB)
    del got
    assert (kept == 1).all()
    assert is_copied or out(pool) == 1
    del kept
    assert all_back(pool)


def test_arrays_die_in_any_order_and_in_any_thread(pool: shmpool.Pool) -> None:
    for seed in range(20):
        arrays = [np.full(30_000, at) for at in range(6)]
        got = pool.get(pool.put(arrays))
        order = random.Random(seed)
        order.shuffle(got)
        threads = [threading.Thread(target=got.pop) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        assert len(set(got[0].tolist())) == 1
        for _ in range(3):  # the memory is not used again while it lives
            pool.discard(pool.put([np.full(30_000, 99) for _ in range(6)]))
        assert got[0][0] != 99
        got.clear()
    assert all_back(pool)


def test_writable_arrays_are_this_reader_s_own(pool: shmpool.Pool) -> None:
    handles = pool.put(np.zeros(200_000), readers=2)
    mine = pool.get(handles[0], writable=True)
    mine[:] = 7
    theirs = pool.get(handles[1])
    assert (theirs == 0).all()
    assert (mine == 7).all()


def test_copy_says_whether_the_memory_stays_out(pool: shmpool.Pool) -> None:
    handles = pool.put(np.arange(50_000), readers=2)
    copied = pool.get(handles[0], copy=True)
    other = pool.get(handles[1], copy=True)
    assert all_back(pool)
    assert (copied == other).all()
    small = pool.get(pool.put(np.arange(1000)), copy=False)
    assert out(pool) == 1
    del small


def test_what_cannot_be_pickled_leases_nothing(pool: shmpool.Pool) -> None:
    class Halfway:
        def __reduce__(self) -> Any:
            raise KeyError("no")

    with pytest.raises(KeyError):
        pool.put([np.arange(50_000), Halfway()])
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pool.put(lambda: None)
    assert out(pool) == 0


def test_a_handle_that_put_did_not_make_is_a_format_error(pool: shmpool.Pool) -> None:
    for nbytes in (0, 100, 100_000):
        with pool.lease(nbytes) as lease:
            lease.write(b"x" * nbytes)
            handle = lease.publish()
        with pytest.raises(shmpool.FormatError, match="was not made by put"):
            pool.get(handle)
        with pytest.raises(shmpool.HandleUsed):
            pool.get(handle)
    gc.collect()
    assert all_back(pool)


def test_strict_pools_hand_objects_over_too(module_broker: shmpool.Broker) -> None:
    with module_broker.connect(strict=True) as pool:
        got = pool.get(pool.put(np.arange(50_000)))
        assert out(pool) == 1
        del got
        assert all_back(pool)


def test_an_object_outlives_its_publisher_and_comes_to_another_process(module_broker: shmpool.Broker) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=publish, args=(module_broker.address, queue))
    process.start()
    handle = queue.get()
    process.join()
    process.close()
    queue.close()
    with module_broker.connect() as pool:
        assert pool.get(handle)["frame"].sum() == 300_000
        assert all_back(pool)


def publish(address: str, queue: Any) -> None:
    with shmpool.connect(address) as pool:
        queue.put(pool.put({"frame": np.ones(300_000, np.uint8)}))


@pytest.mark.long
def test_tensors_may_be_written_and_nobody_else_sees_it(pool: shmpool.Pool) -> None:
    torch = pytest.importorskip("torch")
    handles = pool.put({"t": torch.zeros(100_000)}, readers=2)
    first = pool.get(handles[0])["t"]
    first += 1
    assert first.sum() == 100_000
    assert pool.get(handles[1])["t"].sum() == 0


def test_puts_and_gets_in_the_steady_state_send_the_broker_nothing(pool: shmpool.Pool) -> None:
    array = np.arange(20_000)
    for _ in range(20):
        pool.get(pool.put(array))
    before = pool.stats()
    for _ in range(200):
        pool.get(pool.put(array))
    after = pool.stats()
    assert after.pool_misses == before.pool_misses
    assert after.total_gets - before.total_gets == 200


def test_writable_arrays_cost_only_the_pages_that_are_written(pool: shmpool.Pool) -> None:
    got = pool.get(pool.put(np.zeros(4 * MIB, np.uint8)), writable=True)
    assert out(pool) == 1, "it was copied out"
    got[0] = 1
    assert got.sum() == 1
    kept = got[100:200]
    del got
    assert out(pool) == 1
    del kept
    assert all_back(pool)


# --- of all kinds ------------------------------------------------------------------------------------------


def maps_of_the_pool() -> list[range]:
    """Where this process has segments of pools mapped."""
    with open("/proc/self/maps") as lines:
        bounds = [line.split("-", 1) for line in lines if "shmpool-" in line]
    return [range(int(start, 16), int(rest.split(" ", 1)[0], 16)) for start, rest in bounds]


def arrays_in(obj: Any) -> list[np.ndarray]:
    if isinstance(obj, np.ndarray):
        return [obj]
    inner = obj.values() if isinstance(obj, dict) else obj if isinstance(obj, list | tuple) else ()
    return [array for one in inner for array in arrays_in(one)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects)
def test_objects_of_all_kinds_are_equal_aligned_and_lie_in_the_pool(pool: shmpool.Pool, obj: Any) -> None:
    """Arrays from a kibibyte on are not copied: their addresses are the pool's."""
    shared = pool.share(obj)
    for got in (pool.get(pool.put(obj), copy=False), shared.get(copy=False)):
        assert equal(got, obj)
        maps = maps_of_the_pool()
        for array in arrays_in(got):
            if array.nbytes >= KIB and not array.dtype.hasobject:
                assert array.ctypes.data % 64 == 0
                assert any(array.ctypes.data in one for one in maps)
    shared.release()


class Meddles:
    """Pickling it changes something else."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change = change

    def __reduce__(self) -> tuple[Any, ...]:
        self.change()
        return int, ()


def test_an_object_that_changes_while_it_is_pickled_is_sent_as_it_was_seen_or_not_at_all(pool: shmpool.Pool) -> None:
    array, listed = np.zeros(100_000), [1]
    got = pool.get(pool.put([array, Meddles(lambda: array.fill(7)), listed, Meddles(lambda: listed.append(2))]))
    assert got[0].shape == array.shape and set(np.unique(got[0])) <= {0.0, 7.0} and got[2] == [1]
    grown, keys = bytearray(200_000), {"it": 0}
    with pytest.raises(BufferError):
        pool.put([grown, Meddles(lambda: grown.extend(b"more"))])
    keys["change"] = Meddles(lambda: keys.update(more=1))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="changed size"):
        pool.put(keys)
    del got


@pytest.mark.parametrize("allow", ["builtins.int", b"x", {int}, [1]])
def test_what_names_no_classes_is_refused_and_the_handle_stays_good(pool: shmpool.Pool, allow: Any) -> None:
    """Of a str each letter would be a name."""
    handle = pool.put({"a": np.ones(20_000)})
    with pytest.raises(TypeError, match="allow is a set of names"):
        pool.get(handle, allow=allow)
    assert pool.get(handle, allow=())["a"].sum() == 20_000
    with pool.share(1) as shared:
        with pytest.raises(TypeError, match="allow is a set of names"):
            shared.get(allow=allow)
        assert shared.get(allow=()) == 1
