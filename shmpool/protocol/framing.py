"""Framing: a four-byte little-endian length, then one message; bytes in, messages out.

Both sides use the same :class:`FrameDecoder`. A frame is at most `MAX_FRAME` bytes, so a
peer can make the other side hold at most one frame and a length.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

#: The largest message, in bytes, without its length prefix.
MAX_FRAME: Final = 64 * 1024
_LENGTH: Final = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size


class FrameError(ValueError):
    """The bytes are no frame; the connection cannot go on."""


def encode_frame(body: bytes) -> bytes:
    """One message with its length in front. Raises FrameError when it is too long."""
    if not 0 < len(body) <= MAX_FRAME:
        raise FrameError(f"a frame has 1 to {MAX_FRAME} bytes, this one has {len(body)}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts a byte stream into frames. After an error it stays broken: a stream that
    lost its place yields garbage. Not thread-safe; one for each connection."""

    __slots__ = ("_broken", "_pending")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._broken: FrameError | None = None

    @property
    def incomplete(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._pending)

    def only_frame(self, data: bytes) -> bytes | None:
        """The frame that *data* is, whole and alone, as it nearly always is. Else None, and
        then *data* is still to be fed."""
        if self._pending or self._broken or len(data) <= LENGTH_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(data)
        return data[LENGTH_BYTES:] if length == len(data) - LENGTH_BYTES <= MAX_FRAME else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that *data* completes. Raises FrameError at a bad length,
        after the frames before it."""
        if self._broken:
            raise self._broken
        pending, start = self._pending, 0
        try:
            pending += data
            while True:
                if len(pending) - start < LENGTH_BYTES:
                    break
                (length,) = _LENGTH.unpack_from(pending, start)
                if not 0 < length <= MAX_FRAME:
                    self._broken = FrameError(f"a frame has 1 to {MAX_FRAME} bytes, the peer announces {length}")
                    raise self._broken
                end = start + LENGTH_BYTES + length
                if end > len(pending):
                    break
                frame = bytes(pending[start + LENGTH_BYTES : end])
                start = end
                yield frame
        finally:
            del pending[:start]
