"""`Pool.put` and `Pool.get`: an object in one lease, and out of one buffer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from ..buffer import LiveBuffer
from ..seat import private
from . import layout
from .decoding import decode
from .encoding import PicklerClass, encode

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..protocol.handle import Handle

#: Objects below so many bytes are copied out: that takes less time than keeping their buffer open.
COPIED_BELOW: Final = 64 * 1024


def put(pool: BasePool, obj: Any, readers: int, timeout: float | None, pickler: PicklerClass | None) -> list[Handle]:
    """Pickle first: what cannot be pickled leases nothing."""
    encoded = encode(obj, pickler)
    with pool.lease(encoded.nbytes, timeout=timeout) as lease:
        lease._write_placed(encoded.parts)
        return lease.publish_many(readers)


def get(
    pool: BasePool,
    handle: Handle | bytes | bytearray | memoryview,
    writable: bool,
    copy: bool | None,
    allow: Collection[str] | None,
) -> Any:
    """The object, over the buffer's memory or a copy of it. The ticket is used up, also where the
    buffer holds no object."""
    with pool.open(handle) as buffer:
        view = buffer.view
        # Nothing but its mapping keeps a tensor from being written, and that would be a SIGSEGV.
        is_private = writable or bool(layout.flags_of(view) & layout.HAS_TENSORS)
        if copy or (copy is None and buffer.nbytes < COPIED_BELOW):
            view = memoryview(bytearray(view) if is_private else bytes(view))
            buffer.release()
        elif is_private:
            assert isinstance(buffer, LiveBuffer)
            view = buffer.view = private.show(private.reserve(buffer.nbytes), buffer, view)
        obj = decode(view, allow)
        del view
        buffer.release_to_views()
        return obj
