"""What the tests of objects share: an object through plain memory, as through a lease."""

from __future__ import annotations

import mmap
from typing import Any

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
