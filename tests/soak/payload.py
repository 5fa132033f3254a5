"""Objects that prove what they are: producer, sequence number, length, and a checksum over all.

The body is cut out of one large block that every process inherits, at a place that the
sequence number chooses, so making it costs a copy and no two objects look alike.
"""

from __future__ import annotations

import random
import struct
import zlib

MAGIC = b"soaksoak"
_HEAD = struct.Struct("<8sQQQ")
_SUM = struct.Struct("<I4x")
HEAD_BYTES = _HEAD.size + _SUM.size
SMALLEST = HEAD_BYTES
_BLOCK = random.Random(7).randbytes(8 << 20)


def make(producer: int, sequence: int, nbytes: int) -> tuple[bytes, memoryview]:
    """(head, body) of an object of *nbytes* bytes."""
    length = nbytes - HEAD_BYTES
    at = (producer * 1_000_003 + sequence * 7919) % (len(_BLOCK) - length)
    body = memoryview(_BLOCK)[at : at + length]
    head = _HEAD.pack(MAGIC, producer, sequence, nbytes)
    return head + _SUM.pack(zlib.crc32(body, zlib.crc32(head))), body


def fault(view: memoryview, producer: int, sequence: int, nbytes: int) -> str | None:
    """What is wrong with an object, None if nothing."""
    if len(view) != nbytes:
        return f"{len(view)} bytes instead of {nbytes}"
    head = bytes(view[: _HEAD.size])
    (checksum,) = _SUM.unpack(view[_HEAD.size : HEAD_BYTES])
    found = _HEAD.unpack(head)
    if found != (MAGIC, producer, sequence, nbytes):
        return f"it says {found}, expected producer {producer}, sequence {sequence}, {nbytes} bytes"
    computed = zlib.crc32(view[HEAD_BYTES:], zlib.crc32(head))
    return None if computed == checksum else f"checksum {computed:#x} instead of {checksum:#x}, sequence {sequence}"
