"""From an object to the pieces that a lease is written from, without copying its large buffers.

The C pickler hands what is large (a bytes object of 64 KiB or more) to its file as it is: so the
"file" is a list, and the pieces are gathered only where they end up, in the leased memory. Buffers
of `OUT_OF_BAND` bytes and more leave the pickle by protocol 5; they need not be contiguous.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Hashable
from functools import lru_cache
from pickle import PickleBuffer
from typing import Any, Final, NamedTuple, Protocol

from . import layout, reducers, templates

#: Buffers from so many bytes on are stored apart from the pickle.
OUT_OF_BAND: Final = 1024


#: Larger pieces of the pickle are written from where they are.
_JOINED: Final = 64 * 1024


#: Type of numpy's arrays, once it is there.
_ndarray: Any = None
#: Half as much as what a named tuple's class does before it.
_new_tuple: Final = tuple.__new__


class PicklerClass(Protocol):
    """What `put(pickler=)` takes: `pickle.Pickler`, `cloudpickle.Pickler` and the like."""

    def __call__(self, file: Any, protocol: int, *, buffer_callback: Callable[[Any], Any]) -> Any: ...


class Encoded(NamedTuple):
    """An object on its way into a lease: *parts* are (offset, data), rising, without overlap."""

    nbytes: int
    parts: list[tuple[int, memoryview]]


class _Pieces(list[Any]):
    """The pickler's file."""

    __slots__ = ()

    def write(self, data: Any) -> None:
        """A bytearray comes as it is, and is held at its length until it is written."""
        self.append(data if type(data) is bytes else memoryview(data))


def encode(obj: Any, pickler: PicklerClass | None = None) -> Encoded:
    """Pickle *obj*. Raises what pickling raises; the object must not change before the parts are
    written."""
    if pickler is None:
        kind = type(obj)
        if (kind is _ndarray or kind is _array_type()) and kind not in reducers.registered:
            if (template := templates.of(obj)) is not None:
                parts = [(0, template.head), (template.offset, PickleBuffer(obj).raw())]
                return _new_tuple(Encoded, (template.nbytes, parts))
        elif kind is bytes:
            return _encode_bytes(obj)
    elif not isinstance(pickler, type) or not hasattr(pickler, "dump"):
        raise TypeError(f"a pickler is a class like pickle.Pickler, not {pickler!r}")
    pieces = _Pieces()
    base: Any = pickler or pickle.Pickler
    encoder = _encoder_of(base)(pieces)
    try:
        encoder.dump(obj)
        buffers: list[memoryview] = encoder.buffers
    finally:  # it refers to itself by its callback: until that is found, it must not keep the object
        encoder.buffers, encoder.stand_ins = [], None
        encoder.clear_memo()
    laid_out = layout.plan(sum(map(len, pieces)), [buffer.nbytes for buffer in buffers], encoder.flags)
    parts = [(0, memoryview(b"".join((laid_out.prefix, *_head(pieces)))))]
    at = parts[0][1].nbytes
    for piece in pieces:
        parts.append((at, memoryview(piece)))
        at += len(piece)
    parts += zip(laid_out.offsets, buffers, strict=True)
    return Encoded(laid_out.nbytes, parts)


def _encode_bytes(obj: bytes) -> Encoded:
    """What a pickler says of bytes, which it asks no reducer for; making one takes longer than all else here."""
    length = len(obj)
    opcode = (
        pickle.BINBYTES + length.to_bytes(4, "little")
        if length < 1 << 32
        else pickle.BINBYTES8 + length.to_bytes(8, "little")
    )
    text = pickle.PROTO + b"\x05" + opcode
    laid_out = layout.plan(len(text) + length + 1, (), 0)
    head = laid_out.prefix + text
    if length <= _JOINED:
        return Encoded(laid_out.nbytes, [(0, memoryview(head + obj + pickle.STOP))])
    end = len(head) + length
    return Encoded(
        laid_out.nbytes, [(0, memoryview(head)), (len(head), memoryview(obj)), (end, memoryview(pickle.STOP))]
    )


def _array_type() -> Any:
    """numpy's arrays; nothing while there is no numpy."""
    global _ndarray
    if _ndarray is None and (numpy := sys.modules.get("numpy")) is not None:
        _ndarray = getattr(numpy, "ndarray", None)  # not yet, where another thread is just importing it
    return _ndarray


def _head(pieces: _Pieces) -> list[Any]:
    """The small pieces at the beginning, nearly always all there are: cheaper joined than written
    one by one. They are taken away."""
    count = next((at for at, piece in enumerate(pieces) if len(piece) > _JOINED), len(pieces))
    head = pieces[:count]
    del pieces[:count]
    return head


@lru_cache(maxsize=16)
def _encoder_of(base: Hashable) -> Any:
    """A subclass of a pickler that asks `reducers` first."""
    passes_on = hasattr(base, "reducer_override")

    class Encoder(base):  # type: ignore[misc, valid-type]
        """One object's pickler."""

        def __init__(self, pieces: _Pieces) -> None:
            super().__init__(pieces, protocol=5, buffer_callback=self._keep_in_band)
            #: What has left the pickle.
            self.buffers: list[memoryview] = []
            self.flags = 0

        #: By a stand-in's id: it, and the array that it stands in for. None while there is none.
        stand_ins: dict[int, tuple[PickleBuffer, Any]] | None = None

        def _keep_in_band(self, buffer: PickleBuffer) -> bool:
            if self.stand_ins and (known := self.stand_ins.pop(id(buffer), None)):
                self.buffers.append(memoryview(known[1]))
                return False
            raw = buffer.raw()
            if raw.nbytes < OUT_OF_BAND:
                return True
            self.buffers.append(raw)
            return False

        def out_of_band(self, source: Any) -> PickleBuffer:
            """What a reducer pickles in the place of *source*, any array: the pickler itself
            refuses buffers that are not contiguous."""
            stand_in = PickleBuffer(bytearray())  # of bytes, and the reader's would be read-only
            self.stand_ins = self.stand_ins or {}
            self.stand_ins[id(stand_in)] = (stand_in, source)
            return stand_in

        def reducer_override(self, obj: Any) -> Any:
            reducer = reducers.find(type(obj))
            if reducer is not None:
                reduced = reducer(obj, self)
                if reduced is not NotImplemented:
                    return reduced
            return super().reducer_override(obj) if passes_on else NotImplemented

    return Encoder
