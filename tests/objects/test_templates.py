"""Plain arrays go without pickling: what lies before their bytes is what a pickle would say, and is
believed only as a whole."""

from __future__ import annotations

import numpy as np
import pytest
from object_helpers import laid_out

import shmpool
from shmpool.objects import decode, layout, templates

ARRAYS = [
    np.arange(3000, dtype="f4"), np.arange(600, dtype=">i8").reshape(20, 30), np.asfortranarray(np.eye(40)),
    np.zeros((7, 0, 3)), np.ones((2, 1000), bool), np.arange(2000, dtype="c16")[:1000], np.array(5.0),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_with_a_template_and_without_it_comes_out_the_same(array: np.ndarray) -> None:
    raw = memoryview(laid_out(array))
    template = templates.find(raw) if len(raw) >= templates.SMALLEST else None
    assert (template is None) == (array.nbytes < templates.SMALLEST)
    unpickled = decode(raw)
    for got in [unpickled] if template is None else [unpickled, template.array(raw, template.offset)]:
        assert (got.shape, got.dtype, got.tobytes()) == (array.shape, array.dtype, array.tobytes())
        assert got.flags.f_contiguous == array.flags.f_contiguous
        assert not got.size or not got.flags.writeable or got.nbytes < templates.SMALLEST


def test_a_dtype_with_metadata_is_another_than_its_equal_without() -> None:
    units = np.dtype("f8", metadata={"unit": "m"})
    arrays = np.ones(3210), np.ones(3210, units), np.ones(3211, units), np.ones(3211)
    for _ in range(3):
        for array in arrays:
            raw = memoryview(laid_out(array))
            template = templates.find(raw)
            got = decode(raw) if template is None else template.array(raw, template.offset)
            templates.learn(got)
            assert got.dtype.metadata == array.dtype.metadata


def test_a_reader_learns_a_template_by_unpickling_two_and_forgets_when_there_are_too_many() -> None:
    raw = memoryview(laid_out(np.arange(777.0)))
    templates._by_kind.clear()
    templates._by_head.clear()
    templates._seen_once.clear()
    for is_known in (False, True):
        assert templates.find(raw) is None
        templates.learn(decode(raw))
        assert (templates.find(raw) is not None) == is_known
    for length in range(200, 200 + 2 * templates.MOST):
        templates.learn(np.zeros(length))
    assert len(templates._seen_once) <= templates.MOST
    for length in range(200, 200 + 2 * templates.MOST):
        laid_out(np.zeros(length))
    assert len(templates._by_head) == len(templates._by_kind) <= templates.MOST


def test_no_byte_before_the_array_may_be_another() -> None:
    raw = bytearray(laid_out(np.arange(500.0)))
    template = templates.find(memoryview(raw))
    assert template is not None
    for at in range(len(template.head)):
        for bit in (1, 0x80):
            raw[at] ^= bit
            assert templates.find(memoryview(raw)) is None
            raw[at] ^= bit
    assert templates.find(memoryview(raw)[:-8]) is None
    assert templates.find(memoryview(bytes(raw) + b"\0")) is None
    raw[layout.PICKLE_NBYTES] = b"\xff" * 8
    assert templates.find(memoryview(raw)) is None
    with pytest.raises(shmpool.FormatError):
        decode(memoryview(raw))


def test_who_reduces_arrays_in_his_own_way_is_asked_first() -> None:
    shmpool.register_reducer(np.ndarray, lambda array: (np.zeros, (array.size,)))
    try:
        assert (decode(memoryview(laid_out(np.ones(500)))) == np.zeros(500)).all()
    finally:
        shmpool.register_reducer(np.ndarray, None)  # type: ignore[arg-type]
    assert (decode(memoryview(laid_out(np.ones(500)))) == 1).all()
