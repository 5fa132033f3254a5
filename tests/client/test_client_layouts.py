"""`write` and `write_parts`: every layout of memory at every size, and what cannot be written."""

from __future__ import annotations

import array
import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from client_helpers import KIB, MIB, out, pattern, run_script

import shmpool


def bfloat16() -> np.dtype[Any]:
    """A type of others' making: one of those that no buffer format can name."""
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


LAYOUTS: dict[str, Callable[[int], Any]] = {
    "Fortran": lambda n: np.asfortranarray(np.arange(n * 4, dtype=np.float32).reshape(n, 4)),
    "transposed": lambda n: np.arange(n * 4, dtype=np.uint8).reshape(n, 4).T,
    "crop": lambda n: np.arange((n + 2) * 24, dtype=np.uint32).astype(np.uint8).reshape(n + 2, 8, 3)[1:-1, 2:6],
    "every second": lambda n: np.arange(2 * n, dtype=np.float32)[::2],
    "every second byte": lambda n: np.arange(2 * n).astype(np.uint8)[::2],
    "backwards": lambda n: np.arange(n, dtype=np.int64)[::-1],
    "broadcast": lambda n: np.broadcast_to(np.arange(4, dtype=np.int16), (n, 4)),
    "complex": lambda n: np.arange(n) * np.complex64(1 + 2j),
    "real part": lambda n: (np.arange(n) * np.complex64(1 + 2j)).real,
    "other byte order": lambda n: np.arange(n, dtype=">f4"),
    "fields": lambda n: np.zeros(n, [("a", "i1"), ("Offset", "f8"), ("point", [("x", "f4"), ("y", "f4")])]),
    "opaque, every second": lambda n: np.arange(6 * n, dtype=np.uint32).astype(np.uint8).view("V3")[::2],
    "one field": lambda n: np.ones(n, [("a", "i1"), ("b", "f8")])["b"],
    "bool": lambda n: np.arange(n) % 3 == 0,
    "text of fixed length": lambda n: np.full(n, "shm"),
    "datetime64": lambda n: np.arange(n).astype("datetime64[s]"),
    "datetime64, every second": lambda n: np.arange(2 * n).astype("datetime64[ns]")[::2],
    "timedelta64, transposed": lambda n: np.arange(2 * n).astype("timedelta64[us]").reshape(n, 2).T,
    "bfloat16": lambda n: np.arange(n).astype(bfloat16()),
    "bfloat16, transposed": lambda n: np.arange(2 * n).astype(bfloat16()).reshape(n, 2).T,
}
#: Elements: leases of each category, and none at all.
COUNTS = [0, 2, 20_000, 100_000, 500_000]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_write_takes_every_layout_at_every_size(pool: shmpool.Pool, layout: str) -> None:
    for count in COUNTS:
        source = LAYOUTS[layout](count)
        for strategy in (shmpool.Strategy.ADAPTIVE, shmpool.Strategy.DIRECT):
            with pool.lease(source.nbytes, strategy=strategy) as lease:
                lease.write(source)
                handle = lease.publish()
            with pool.open(handle) as buffer:
                assert bytes(buffer.view) == source.tobytes(), f"{count} elements by {strategy}"


def test_what_lies_between_fields_is_written_too(pool: shmpool.Pool) -> None:
    """Else a reader would see there what the slot's last user wrote."""
    kind = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    raw = pattern(4000 * kind.itemsize)
    source = np.frombuffer(raw, kind)[::2]
    with pool.lease(source.nbytes) as lease:
        lease.write(source)
        assert bytes(lease) == np.frombuffer(raw, f"V{kind.itemsize}")[::2].tobytes()


def test_write_takes_single_values_and_foreign_buffers(pool: shmpool.Pool) -> None:
    class Point(ctypes.Structure):
        _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))

    floats = array.array("f", range(100))
    for source, expected in [
        (np.float64(2.5), np.float64(2.5).tobytes()),
        (np.array(7, np.int32), np.array(7, np.int32).tobytes()),
        (np.array("2026-01-01", "M8[D]"), np.array("2026-01-01", "M8[D]").tobytes()),
        (floats, floats.tobytes()),
        (memoryview(floats)[::3], memoryview(floats)[::3].tobytes()),
        (Point(1, 2.0), bytes(Point(1, 2.0))),
        ((ctypes.c_uint16 * 5)(1, 2, 3, 4, 5), bytes((ctypes.c_uint16 * 5)(1, 2, 3, 4, 5))),
    ]:
        for strategy in (shmpool.Strategy.POOLED, shmpool.Strategy.DIRECT):
            with pool.lease(len(expected), strategy=strategy) as lease:
                lease.write(source)  # type: ignore[arg-type]
                assert bytes(lease) == expected


class Numbers(ctypes.Structure):
    _fields_ = (("P", ctypes.c_int), ("z", ctypes.c_double))  # as pointers are called in formats


class Pointers(ctypes.Structure):
    _fields_ = (("n", ctypes.c_int), ("text", ctypes.c_char_p))


@pytest.mark.parametrize("nbytes", [16, 2 * MIB])
def test_pointers_are_refused_at_every_size(pool: shmpool.Pool, nbytes: int) -> None:
    """Their bytes are addresses in this process."""
    for kind in (ctypes.c_char_p, ctypes.c_wchar_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), Pointers):
        source = (kind * (nbytes // ctypes.sizeof(kind)))()  # type: ignore[operator]
        with pool.lease(nbytes) as lease:
            lease.view[:8] = b"as it was"[:8]
            with pytest.raises(TypeError, match="pointers"):
                lease.write(source)
            assert lease.view[:8] == b"as it was"[:8]
    for numbers in ((Numbers * (nbytes // 16))(), np.ones(nbytes // 16, "D"), np.ones(nbytes // 16, [("Z", "D")])):
        with pool.lease(nbytes) as lease:
            lease.write(numbers)  # type: ignore[arg-type]
            assert bytes(lease) == bytes(memoryview(numbers))  # type: ignore[arg-type]


class Tensor:
    """What torch's tensors are to us: no buffer, but an array for the asking."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self._values


def test_write_takes_what_numpy_can_see(pool: shmpool.Pool) -> None:
    numbers = np.arange(5000.0)
    with pool.lease(numbers.nbytes) as lease:
        lease.write(Tensor(numbers))
        assert np.array_equal(np.frombuffer(lease.view), numbers)


def test_strided_memory_is_written_without_numpy_too() -> None:
    done = run_script(
        "import array, shmpool, sys\n"
        "floats = memoryview(array.array('d', range(400_000)))[::2]\n"
        "with shmpool.Broker(memory_limit='16MiB') as broker, broker.connect() as pool:\n"
        "    for source in (floats[:500], floats):\n"
        "        with pool.lease(source.nbytes) as lease:\n"
        "            lease.write(source)\n"
        "            assert lease.view == source.tobytes()\n"
        "assert 'numpy' not in sys.modules; print('well')"
    )
    assert (done.stdout, done.stderr) == ("well\n", "")


class Broken:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("got unsupported ScalarType")


@pytest.mark.parametrize("count", [3, 20_000, 300_000])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda n: np.full(n, None), "pickle"),
        (lambda n: np.full(n, None)[::2], "pickle"),
        (lambda n: np.zeros(n, [("a", "i4"), ("b", "O")]), "pickle"),
        (lambda n: "x" * n, "encode"),
        (lambda n: [1] * n, "list"),
        (lambda n: None, "NoneType"),
        (lambda n: n, "int"),
        (lambda n: Broken(), "unsupported ScalarType"),
    ],
)
def test_what_has_no_bytes_is_one_clear_error_at_every_size(
    pool: shmpool.Pool, make: Callable[[int], Any], says: str, count: int
) -> None:
    source = make(count)
    for strategy in (shmpool.Strategy.ADAPTIVE, shmpool.Strategy.DIRECT):
        with pool.lease(getattr(source, "nbytes", count), strategy=strategy) as lease:
            before = bytes(lease)
            for write, data in ((lease.write, source), (lease.write_parts, [(0, source)])):
                with pytest.raises(TypeError, match=says) as refused:
                    write(data)
                assert "ascontiguousarray" in str(refused.value)
            assert bytes(lease) == before
    assert out(pool.stats()) <= 16  # what the magazines hold


# --- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [100, 70_000, 300_000, 2 * MIB])
def test_parts_are_written_and_gaps_are_zero(pool: shmpool.Pool, nbytes: int) -> None:
    head, body = pattern(10), np.arange(80, dtype=np.uint8).reshape(2, 40).T[:30]
    for order in (1, -1):
        with pool.lease(nbytes) as lease:
            lease.write(b"\xff" * nbytes)  # a slot is used again with what the last user wrote
            lease.write_parts([(0, head), (nbytes - 60, body), (20, b"")][::order])  # type: ignore[list-item]
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer) == head + bytes(nbytes - 70) + body.tobytes()


@pytest.mark.parametrize("strategy", [shmpool.Strategy.POOLED, shmpool.Strategy.DIRECT])
def test_parts_of_a_view_that_is_mapped_already(pool: shmpool.Pool, strategy: shmpool.Strategy) -> None:
    with pool.lease(5000, strategy=strategy) as lease:
        lease.view[:] = b"\xff" * 5000
        lease.write_parts([(4000, b"end"), (7, b"begin")])
        assert bytes(lease) == bytes(7) + b"begin" + bytes(3988) + b"end" + bytes(997)
        lease.write_parts([])
        assert bytes(lease) == bytes(5000)


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ([(0, b"abc"), (2, b"def")], ValueError, "overlaps"),
        ([(0, b"abc"), (0, b"def")], ValueError, "overlaps"),
        ([(98, b"abc")], ValueError, "do not lie within the lease's 100"),
        ([(-1, b"abc")], ValueError, "do not lie within"),
        ([(0, b"abc"), b"def"], TypeError, "a pair"),
        ([(0, b"abc"), (1.5, b"def")], TypeError, "a pair"),
        ([(0, b"abc"), (50, "text")], TypeError, "encode"),
        ([(0, b"abc"), 5], TypeError, "a pair"),
    ],
)
def test_parts_that_cannot_be_written_write_nothing(
    pool: shmpool.Pool, parts: Any, error: type[Exception], says: str
) -> None:
    for strategy in (shmpool.Strategy.POOLED, shmpool.Strategy.DIRECT):
        with pool.lease(100, strategy=strategy) as lease:
            lease.write(b"." * 100)
            with pytest.raises(error, match=says):
                lease.write_parts(parts)
            assert bytes(lease) == b"." * 100


# --- the other way: what users see -----------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [48, 48 * KIB, 480 * KIB, 3 * MIB])
def test_length_bytes_and_arrays_of_both_sides(pool: shmpool.Pool, nbytes: int) -> None:
    numbers = np.arange(nbytes // 8, dtype=np.int64)
    with pool.lease(nbytes) as lease:
        lease.ndarray("int64")[:] = numbers
        assert (len(lease), bytes(lease)) == (nbytes, numbers.tobytes())
        handle = lease.publish()
    with pool.open(handle) as buffer:
        assert (len(buffer), bytes(buffer)) == (nbytes, numbers.tobytes())
        seen = buffer.ndarray(np.int64, (2, -1))
        assert np.array_equal(seen, numbers.reshape(2, -1))
        assert not seen.flags.writeable
        assert buffer.ndarray().dtype == np.uint8
        assert buffer.ndarray(bfloat16()).nbytes == buffer.ndarray("M8[s]", (nbytes // 8,)).nbytes == nbytes
        with pytest.raises(ValueError, match="no array of float64 and shape"):
            buffer.ndarray(np.float64, (5, 7))
        with pytest.raises(ValueError, match="an element has 7"):
            buffer.ndarray("V7")
        with pytest.raises(TypeError, match="references to Python objects"):
            buffer.ndarray(object)
        del seen
    for over in (lease, buffer):
        with pytest.raises(shmpool.LeaseReleased):
            bytes(over)
        with pytest.raises(shmpool.LeaseReleased):
            over.ndarray()
        assert len(over) == nbytes


def test_nothing_at_all_is_true_and_empty(pool: shmpool.Pool) -> None:
    with pool.lease(0) as lease:
        assert (bool(lease), len(lease), lease.ndarray("f8").shape) == (True, 0, (0,))
        handle = lease.publish()
    with pool.open(handle) as buffer:
        assert (bool(buffer), bytes(buffer), buffer.ndarray("f8", (0, 3)).shape) == (True, b"", (0, 3))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes have no buffer protocol before Python 3.12")
@pytest.mark.parametrize("nbytes", [4800, 3 * MIB])
def test_lease_and_buffer_are_buffers(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        np.frombuffer(lease, np.uint8)[:] = 7  # type: ignore[call-overload]
        handle = lease.publish()
    with pool.open(handle) as buffer:
        seen = np.frombuffer(buffer, np.uint8)  # type: ignore[call-overload]
        assert not seen.flags.writeable
        with pytest.raises((BufferError, TypeError)):
            (ctypes.c_char * 10).from_buffer(buffer)  # type: ignore[arg-type]
    with pool.lease(nbytes) as other:  # `seen` keeps its memory
        other.write(bytes(nbytes))
        assert (seen == 7).all()
    del seen


@pytest.mark.parametrize("layout", ["bytes", "array", "parts"])
def test_other_threads_run_while_much_is_written(pool: shmpool.Pool, layout: str) -> None:
    """Nobody is made to give the interpreter away here, so who runs meanwhile was let to."""
    nbytes, turns, go, is_over = 16 * MIB, [0], threading.Event(), threading.Event()
    source = np.ones(nbytes // 4, np.float32)
    data = {"bytes": source.tobytes(), "array": source, "parts": [(64, source[: nbytes // 8])]}[layout]

    def count() -> None:
        while not is_over.is_set():
            go.wait()
            go.clear()
            turns[0] += 1

    other = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    with pool.lease(nbytes) as lease:
        lease.view[0] = 1  # it is mapped: nothing is left to the kernel
        write = lease.write_parts if layout == "parts" else lease.write
        other.start()
        try:
            sys.setswitchinterval(1000)
            for _ in range(200):
                before = turns[0]
                go.set()
                write(data)  # type: ignore[arg-type]
                if turns[0] != before:
                    break
            has_run = turns[0] != before
        finally:
            sys.setswitchinterval(interval)
            is_over.set()
            go.set()
            other.join()
        assert bytes(lease.view[64:68]) == source[:1].tobytes()
    assert has_run
