"""What the tests of objects share: an object through plain memory, as through a lease."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from patience import settle

from shmpool.objects import decode, encode, layout
from shmpool.stats import query


def laid_out(obj: Any, **options: Any) -> bytes:
    """The bytes that a lease would hold."""
    encoded = encode(obj, **options)
    memory = bytearray(encoded.nbytes)
    end = 0
    for offset, data in encoded.parts:
        raw = memoryview(data)
        assert offset >= end, "parts overlap"
        end = offset + raw.nbytes
        memory[offset:end] = raw.tobytes()
    return bytes(memory)


def mapped(obj: Any, **options: Any) -> memoryview:
    """The same in memory that begins with a page, and can be written only for tensors."""
    raw = laid_out(obj, **options)
    memory = mmap.mmap(-1, len(raw))
    memory[:] = raw
    view = memoryview(memory)
    return view if layout.flags_of(view) & layout.HAS_TENSORS else view.toreadonly()


def there_and_back(obj: Any, **options: Any) -> Any:
    """What a reader gets."""
    return decode(mapped(obj), **options)


def comes_back(address: str, seconds: float = 30) -> bool:
    """Whether all buffers of a broker do, within a while."""
    return not settle(lambda: query(address).active_buffers, seconds)


# --- objects of all kinds, for hypothesis ------------------------------------------------------------------

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.binary(min_size=1000, max_size=1100) | st.dates() | st.datetimes() | st.just(bytes(70 * 1024))
    | hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_side=0, max_side=12))
    | hnp.arrays(np.int64, st.tuples(st.integers(100, 300)))
)  # fmt: skip
objects = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner))


def equal(got: Any, sent: Any) -> bool:
    if isinstance(sent, np.ndarray):
        return got.dtype == sent.dtype and got.shape == sent.shape and got.tobytes() == sent.tobytes()
    if isinstance(sent, dict):
        return got.keys() == sent.keys() and all(equal(got[key], sent[key]) for key in sent)
    if isinstance(sent, list | tuple):
        return type(got) is type(sent) and len(got) == len(sent) and all(map(equal, got, sent))
    return type(got) is type(sent) and got == sent
