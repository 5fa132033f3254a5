"""Objects in memory: what comes back is equal, aligned, and over the same bytes."""

from __future__ import annotations

import collections
import datetime
import gc
import pickle
import struct
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_helpers import equal, laid_out, mapped, objects, there_and_back

import shmpool
from shmpool.objects import decode, encode, layout

KIB = 1024


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def assert_same(got: Any, sent: Any) -> None:
    assert type(got) is type(sent)
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    np.testing.assert_array_equal(got, sent)


def assert_over(got: Any, view: memoryview) -> None:
    """That an array's bytes lie in *view*, at a multiple of 64."""
    start = address(np.frombuffer(view, np.uint8))
    assert start <= address(got) < start + len(view)
    assert address(got) % 64 == 0
    assert not got.flags.writeable


LAYOUTS = {
    "contiguous": np.arange(4000.0),
    "fortran": np.asfortranarray(np.arange(4000.0).reshape(40, 100)),
    "transposed": np.arange(4000).reshape(40, 100).T,
    "crop": np.arange(10000).reshape(100, 100)[3:90, 5:80],
    "every second": np.arange(8000)[::2],
    "backwards": np.arange(4000)[::-1],
    "real part": np.exp(1j * np.arange(3000)).real,
    "dates": np.arange(3000).astype("datetime64[s]"),
    "every second date": np.arange(6000).astype("datetime64[ns]")[::2],
    "durations": np.arange(3000).astype("timedelta64[ms]").reshape(30, 100).T,
    "structured": np.zeros(500, [("x", "<f4"), ("y", "<i8")]),
    "structured crop": np.zeros((50, 50), [("x", "<f4"), ("y", "<i8")])[2:40, ::3],
    "one field": np.ones(900, [("x", "<f4"), ("y", "<i8")])["y"],
    "texts": np.array(["grün", "blue"] * 500),
    "big endian": np.arange(3000, dtype=">f8"),
    "half": np.arange(3000).astype(np.float16),
    "complex": np.exp(1j * np.arange(3000)),
    "booleans": np.arange(3000) % 3 == 0,
    "raw": np.frombuffer(bytes(range(256)) * 16, "V16"),
}
SMALL = {
    "nothing": np.array([]),
    "no rows": np.zeros((0, 7)),
    "0-d": np.array(3.5),
    "0-d date": np.array("2026-01-01", "datetime64[D]"),
    "small dates": np.arange(3).astype("datetime64[D]"),
    "small crop": np.arange(16).reshape(4, 4)[1:3, 1:3],
    "objects": np.array([{"a": 1}, None, "x"], dtype=object),
    "no bytes an element": np.zeros(3, "V0"),
    "read-only": np.frombuffer(b"abc", np.uint8),
}


@pytest.mark.parametrize("array", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_of_every_layout_travel_out_of_the_pickle_and_come_without_a_copy(array: Any) -> None:
    view = mapped([array, "beside"])
    got, _ = decode(view)
    assert_same(got, array)
    assert_over(got, view)
    assert len(view) <= array.nbytes + 700, "the bytes are there twice"


@pytest.mark.parametrize("array", SMALL.values(), ids=SMALL)
def test_small_and_odd_arrays_come_back(array: Any) -> None:
    assert_same(there_and_back(array), array)


def test_a_broadcast_array_sends_its_real_bytes() -> None:
    array = np.broadcast_to(np.arange(1000), (1000, 1000))
    view = mapped(array)
    assert len(view) < 10 * KIB
    assert_same(decode(view), array)


def test_a_masked_array_comes_with_its_mask() -> None:
    array = np.ma.masked_greater(np.arange(5000.0), 10)
    array.set_fill_value(-1)
    got = there_and_back(array)
    assert got.filled().tolist() == array.filled().tolist()
    assert (got.mask == array.mask).all()
    assert not got.data.flags.owndata


def test_a_subclass_keeps_its_class() -> None:
    matrix = np.ones((40, 40)).view(np.matrix)
    assert_same(there_and_back(matrix), matrix)


def test_one_array_in_two_places_is_stored_once() -> None:
    array = np.arange(5000)
    view = mapped({"a": array, "b": [array]})
    got = decode(view)
    assert got["a"] is got["b"][0]
    assert len(view) < 1.5 * array.nbytes


def test_large_bytes_are_not_copied_by_the_pickler() -> None:
    data, more = bytes(200 * KIB), bytearray(100 * KIB)
    parts = [part for _, part in encode({"data": data, "more": more}).parts]
    assert any(part.obj is data for part in parts)
    assert any(part.obj is more for part in parts)
    assert there_and_back({"data": data, "more": more}) == {"data": data, "more": more}


@pytest.mark.parametrize("length", [0, 1, 255, 256, (64 << 10) - 1, 64 << 10, (64 << 10) + 1])
def test_bytes_come_back_and_are_what_a_pickler_reads(length: int) -> None:
    sent = bytes(at % 251 for at in range(length))
    raw = memoryview(laid_out(sent))
    assert decode(raw) == pickle.loads(layout.read(raw).pickle) == sent


def test_what_cannot_be_pickled_raises_as_it_does_elsewhere() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError)):
        encode(lambda: None)


@given(objects)
def test_objects_of_all_kinds_come_back_equal(obj: Any) -> None:
    assert equal(there_and_back(obj), obj)
    assert equal(there_and_back(obj, allow={"numpy.void", "numpy.dtypes"}), obj)


# --- a user's own types, other picklers ---------------------------------------------------------


class Frame:
    """Something that pickle alone would copy."""

    def __init__(self, pixels: bytearray) -> None:
        self.pixels = pixels


def test_a_registered_reducer_serves_its_class_until_it_is_taken_back() -> None:
    shmpool.register_reducer(Frame, lambda frame: (Frame, (pickle.PickleBuffer(frame.pixels),)))
    try:
        view = mapped(Frame(bytearray(b"x" * 5000)))
        got = decode(view)
        assert isinstance(got.pixels, memoryview)
        assert bytes(got.pixels) == b"x" * 5000
    finally:
        shmpool.register_reducer(Frame, None)
    assert isinstance(there_and_back(Frame(bytearray(5000))).pixels, bytearray)


@pytest.mark.parametrize(("cls", "function"), [("Frame", len), (Frame, 3)])
def test_a_reducer_that_is_none_is_refused(cls: Any, function: Any) -> None:
    with pytest.raises(TypeError):
        shmpool.register_reducer(cls, function)


def test_another_pickler_has_the_same_reducers() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    array = np.arange(6000)[::2]
    view = mapped((lambda n: n + 1, array), pickler=cloudpickle.Pickler)
    function, got = decode(view)
    assert function(1) == 2
    assert_same(got, array)
    assert_over(got, view)


# --- what is no object ----------------------------------------------------------------------------


def test_a_buffer_that_put_did_not_make_is_a_format_error() -> None:
    for raw in (b"", b"shmpobj", b"x" * 100, bytes(64)):
        with pytest.raises(shmpool.FormatError, match="was not made by put"):
            decode(memoryview(raw))


@pytest.mark.parametrize(
    ("count", "pickle_nbytes", "table"),
    [
        (2**32 - 1, 0, []),
        (0, 2**64 - 1, []),
        (1, 0, [(2**64 - 64, 128)]),
        (1, 0, [(0, 8)]),
        (1, 0, [(65, 8)]),
        (1, 0, [(64, 2**63)]),
        (2, 0, [(64, 64), (64, 64)]),
    ],
)
def test_bounds_are_checked_before_anything_is_trusted(
    count: int, pickle_nbytes: int, table: list[tuple[int, int]]
) -> None:
    raw = struct.pack("<8sIIQ", layout.MAGIC, count, 0, pickle_nbytes)
    raw += b"".join(struct.pack("<QQ", *entry) for entry in table)
    with pytest.raises(shmpool.FormatError):
        layout.read(memoryview(raw.ljust(256, b"\0")))


SOUND = laid_out({"array": np.arange(500), "text": "x" * 50, "when": datetime.date(2026, 1, 1)})


@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=20))
def test_a_damaged_object_is_a_format_error_or_another_object(at: int, noise: bytes) -> None:
    damaged = SOUND[:at] + noise + SOUND[at + len(noise) :]
    try:
        decode(memoryview(damaged), allow=())
    except (shmpool.FormatError, MemoryError):
        pass


@given(st.binary(max_size=200))
def test_garbage_in_the_place_of_the_pickle_is_a_format_error(noise: bytes) -> None:
    raw = struct.pack("<8sIIQ", layout.MAGIC, 0, 0, len(noise)) + noise
    try:
        decode(memoryview(raw), allow=())
    except (shmpool.FormatError, MemoryError):
        pass


class Stubborn:
    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        raise KeyError("no")


def test_an_object_s_own_exception_reaches_the_reader() -> None:
    with pytest.raises(KeyError, match="no"):
        there_and_back(Stubborn())


# --- who is trusted -----------------------------------------------------------------------------------


def test_with_allow_plain_data_comes_and_everything_else_is_named() -> None:
    plain = [1, "x", {2.5: b"y"}, {3}, datetime.datetime(2026, 1, 1), np.arange(1000), np.float32(1)]
    plain.append(collections.OrderedDict(a=1))
    assert equal(there_and_back(plain[:4], allow=()), plain[:4])
    assert len(there_and_back(plain, allow=())) == len(plain)
    with pytest.raises(shmpool.FormatError, match=r"needs test_encoding\.Frame, which get\(allow=\) does not name"):
        there_and_back(Frame(bytearray(1)), allow=())
    assert isinstance(there_and_back(Frame(bytearray(1)), allow={"test_encoding.Frame"}), Frame)


class Evil:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def test_with_allow_nothing_is_called_that_is_not_named() -> None:
    with pytest.raises(shmpool.FormatError, match=r"posix\.system"):
        there_and_back(Evil(), allow=())


class Kept:
    """Can be referred to weakly."""

    def __init__(self, content: Any) -> None:
        self.content = content


def test_what_was_pickled_is_kept_by_nobody() -> None:
    gc.disable()
    try:
        for obj in ({"a": np.arange(5000)}, [lambda: None]):
            kept = Kept(obj)
            gone = weakref.ref(kept)
            with suppress(Exception):
                encode(kept)
            del kept, obj
            assert gone() is None
    finally:
        gc.enable()
