"""What goes through an executor's pipes: an object in a frame, or the handle of one in the pool.

The last byte of a frame says which, so that what lies before it is aligned as the pool's memory is. What is large
goes through the pool; where that has no room, through the pipe like everything else.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from ..errors import ShmpoolError
from ..objects.decoding import decode
from ..objects.encoding import Encoded, PicklerClass, encode
from ..pools import Pool
from ..protocol.handle import HANDLE_BYTES, Handle
from ..system.outside import own
from .pickling import installed_types

#: Smaller objects go through the pipe.
INLINE_BELOW: Final = 64 * 1024
#: Of what comes from the pool, what is smaller is copied out: that takes less time than a map of its own.
_COPIED_BELOW: Final = 256 * 1024

_INLINE: Final = b"\0"
_LEASED: Final = b"\1"
#: For a worker: there is no more to do.
LAST: Final = b""
#: For the parent: the input could not be read, and nothing was begun.
UNREAD: Final = b"\2"


class TaskPickler(pickle.Pickler):
    """Pickles what multiprocessing does (locks, connections), and lets large buffers out of band."""

    def __init__(self, file: Any, protocol: int, *, buffer_callback: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, protocol, buffer_callback=buffer_callback)
        table = {**copyreg.dispatch_table, **ForkingPickler._extra_reducers}  # type: ignore[attr-defined]
        for cls in installed_types():  # all of it goes through the pool at once
            table.pop(cls, None)
        self.dispatch_table = table


def encoded(obj: Any, pickler: PicklerClass | None) -> Encoded:
    """Pickle an object. Raises what pickling raises."""
    return encode(obj, pickler or TaskPickler)


def inline(source: Encoded) -> bytes:
    """The frame that holds all of an object."""
    frame = bytearray(source.nbytes + 1)
    view = memoryview(frame)
    for offset, part in source.parts:
        piece = memoryview(part)
        view[offset : offset + piece.nbytes] = piece.cast("B") if piece.c_contiguous else piece.tobytes()
    return bytes(frame)  # the last byte says _INLINE


def leased(source: Encoded, pool: Pool, readers: int) -> list[bytes]:
    """Frames, each of which can be read once, of an object that is put into the pool, if there is room at once.
    Raises ShmpoolError, MemoryError if there is not."""
    with pool.lease(source.nbytes, timeout=0) as lease:
        lease._write_placed(source.parts)
        return [bytes(handle) + _LEASED for handle in lease.publish_many(readers)]


def unpacked(frame: bytes, pool: Callable[[], Pool]) -> Any:
    """The object of a frame. Raises what unpickling raises, and like `Pool.get`."""
    if frame[-1:] == _LEASED:
        copy = True if Handle.from_bytes(frame[:-1]).nbytes < _COPIED_BELOW else None
        return pool().get(frame[:-1], writable=True, copy=copy)
    return decode(memoryview(bytearray(frame))[:-1])


def discard(frame: bytes, pool: Pool) -> None:
    """A frame that nobody will read; one that somebody has read stays read."""
    if len(frame) == HANDLE_BYTES + 1 and frame[-1:] == _LEASED:
        try:
            pool.discard(frame[:-1])
        except own(ShmpoolError):
            pass
