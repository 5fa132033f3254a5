"""Arrays born in shared memory: they are there from the first, and come out as any other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from object_helpers import comes_back

import shmpool


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (5, "float64"), ((), "int8"), ((0, 3), "float32"), ((300, 200), ">i2"), ((70, 50), "datetime64[s]"),
        ((1000,), [("a", "i4"), ("b", "f8")]), ((100, 3), "(2,)f4"), ((1024, 1024), "float32"), ((40,), "S7"),
    ],
)  # fmt: skip
def test_an_array_of_every_kind_is_filled_in_place_and_read_in_place(
    pool: shmpool.Pool, shape: object, dtype: object, order: str
) -> None:
    expected = np.zeros(shape, dtype, order)  # type: ignore[call-overload]
    raw = expected.reshape(-1, order="A").view(np.uint8) if expected.size else expected
    raw[...] = np.arange(raw.size).reshape(raw.shape) % 47 if expected.size else 0
    with pool.empty(shape, dtype, order=order) as a:  # type: ignore[arg-type]
        assert a.array.dtype == expected.dtype
        assert a.array.flags.f_contiguous == expected.flags.f_contiguous
        assert a.array.ctypes.data % 64 == 0
        a.array[...] = expected
        handle = a.publish()
    got = pool.get(handle, copy=False)
    assert got.tobytes("A") == expected.tobytes("A")
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert got.strides == expected.strides or not expected.size
    assert not got.flags.writeable
    del got
    assert comes_back(pool.address)


def test_an_array_that_is_not_published_gives_its_memory_back(pool: shmpool.Pool) -> None:
    with pool.empty((300, 300)) as a:
        a.array[:] = 1
    assert not hasattr(a, "array")
    with pytest.raises(shmpool.LeaseReleased):
        a.publish()
    a.release()
    assert comes_back(pool.address)


def test_a_slice_that_is_kept_delays_the_next_use_and_in_strict_mode_the_publication(
    module_broker: shmpool.Broker, pool: shmpool.Pool
) -> None:
    a = pool.empty(50_000, "u1")
    kept = a.array[:10]
    kept[:] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        handle = a.publish()
    assert pool.get(handle, copy=True)[:10].tolist() == [1] * 10
    kept[:] = 2
    with pool.empty(50_000, "u1") as another:
        another.array[:] = 3
        assert kept.tolist() == [2] * 10
    with shmpool.connect(module_broker.address, strict=True) as strict:
        a = strict.empty((3, 4), "i8")
        kept = a.array[1]
        with pytest.raises(shmpool.LeakedView):
            a.publish()
        del kept
        a.array[:] = 4
        got = strict.get(a.publish())
        assert got.tolist() == [[4] * 4] * 3
    assert comes_back(pool.address)


@pytest.mark.parametrize(
    ("shape", "dtype"), [(3, "O"), (-1, "i4"), ((2, -2), "i4"), ("ab", "i4"), (3, "V0"), (1.5, "f4")]
)
def test_what_no_array_has_is_refused_and_nothing_is_leased(pool: shmpool.Pool, shape: object, dtype: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        pool.empty(shape, dtype)  # type: ignore[arg-type]
    assert pool.stats().active_buffers == 0


def test_readers_of_their_own(pool: shmpool.Pool) -> None:
    with pool.empty(1000, "i4") as a:
        a.array[:] = 7
        handles = a.publish_many(3)
    assert [int(pool.get(handle).sum()) for handle in handles] == [7000] * 3
