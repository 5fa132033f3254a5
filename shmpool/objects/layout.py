"""How an object lies in its buffer, little-endian:

============== ==============================================================
bytes          content
==============  =============================================================
0-7            magic, with the version of this layout
8-11           how many out-of-band buffers there are
12-15          flags
16-23          bytes of the pickle
24-            the table: offset and length of each buffer, 16 bytes
behind it      the pickle, then each buffer at a multiple of 64 bytes
==============  =============================================================

Covers building and checking it; nothing here unpickles. What is read was written by a peer that
may write anything: every bound is checked before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..errors import FormatError
from ..system.importing import door, explained

MAGIC: Final = b"shmpobj\x01"
#: Buffers begin at multiples of so many bytes: a cache line, and what vector instructions want.
ALIGNMENT: Final = 64

#: The object has tensors, which nothing but the mapping keeps from being written.
HAS_TENSORS: Final = 1

_HEADER: Final = struct.Struct("<8sIIQ")
_ENTRY: Final = struct.Struct("<QQ")
HEADER_BYTES: Final = _HEADER.size
ENTRY_BYTES: Final = _ENTRY.size
#: Where the header says how long the pickle is.
PICKLE_NBYTES: Final = slice(16, 24)


class Plan(NamedTuple):
    """Where everything of an object goes: *prefix* is header and table, the pickle lies behind it,
    *offsets* are the buffers'. *nbytes* is the whole."""

    prefix: bytes
    offsets: list[int]
    nbytes: int


class Contents(NamedTuple):
    """What a buffer holds: the pickle and the out-of-band buffers, views of it, not copied."""

    pickle: memoryview
    buffers: list[memoryview]
    flags: int


def plan(pickle_nbytes: int, buffers: Sequence[int], flags: int) -> Plan:
    """Lay out a pickle and *buffers* of so many bytes each."""
    at = _HEADER.size + _ENTRY.size * len(buffers) + pickle_nbytes
    offsets = []
    for nbytes in buffers:
        at = -(-at // ALIGNMENT) * ALIGNMENT
        offsets.append(at)
        at += nbytes
    table = b"".join(map(_ENTRY.pack, offsets, buffers))
    return Plan(_HEADER.pack(MAGIC, len(buffers), flags, pickle_nbytes) + table, offsets, at)


def flags_of(view: memoryview) -> int:
    """The flags of an object. Raises FormatError for what `plan` did not lay out."""
    return _header(view)[1]


def read(view: memoryview) -> Contents:
    """Take an object's buffer apart. Raises FormatError for what `plan` did not lay out."""
    count, flags, pickle_nbytes = _header(view)
    table = _HEADER.size + _ENTRY.size * count
    end = table + pickle_nbytes
    if end > len(view):
        raise FormatError(f"an object's table and pickle end at byte {end}, its buffer has {len(view)}")
    pickle, buffers = view[table:end], []
    for index, (offset, nbytes) in enumerate(_ENTRY.iter_unpack(view[_HEADER.size : table])):
        if offset % ALIGNMENT or offset < end or offset + nbytes > len(view):
            raise FormatError(
                f"buffer {index} of an object lies at byte {offset}, {nbytes} long, in {len(view)} bytes of which"
                f" {end} are taken"
            )
        end = offset + nbytes
        buffers.append(view[offset:end])
    return Contents(pickle, buffers, flags)


def _header(view: memoryview) -> tuple[int, int, int]:
    if len(view) >= _HEADER.size:
        magic, count, flags, pickle_nbytes = _HEADER.unpack_from(view)
        if magic == MAGIC:
            return count, flags, pickle_nbytes
        with door, explained:
            from ..protocol.queues import MAGIC as QUEUE
        if int.from_bytes(magic, "little") == QUEUE:
            raise FormatError("this is the memory of a queue, which is no object: pool.queue(name) opens it")
    raise FormatError("this buffer holds no object: it was not made by put; open() gives its bytes")
