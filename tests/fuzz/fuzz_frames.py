"""Atheris: any byte stream into the frame decoder and the schema. See README.md."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["shmpool.protocol"]):
    from shmpool.protocol.framing import LENGTH_BYTES, MAX_FRAME, FrameDecoder, FrameError, encode_frame
    from shmpool.protocol.messages import FROM_BROKER, FROM_CLIENT, MessageError, decode, encode


def understand(frame: bytes) -> None:
    """What either side may send encodes back to a frame that says the same."""
    for kinds in (FROM_CLIENT, FROM_BROKER):
        try:
            message = decode(frame, kinds)
        except MessageError:
            continue
        assert decode(encode(message), kinds) == message


def run(data: bytes) -> None:
    """The first byte says how the rest is cut, and whether it gets a sound length in front."""
    if not data:
        return
    step, stream = (data[0] >> 1) + 1, data[1:]
    if data[0] & 1 and 0 < len(stream) <= MAX_FRAME:
        stream = encode_frame(stream)
    decoder = FrameDecoder()
    try:
        for at in range(0, len(stream), step * 37):
            for frame in decoder.feed(stream[at : at + step * 37]):
                understand(frame)
            assert len(decoder._pending) < LENGTH_BYTES + MAX_FRAME
    except FrameError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
