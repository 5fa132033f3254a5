"""Frames: any cut of the stream gives the same messages; a bad length ends the stream."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.protocol.framing import LENGTH_BYTES, MAX_FRAME, FrameDecoder, FrameError, encode_frame

bodies = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


def feed(decoder: FrameDecoder, *pieces: bytes) -> list[bytes]:
    return [frame for piece in pieces for frame in decoder.feed(piece)]


@given(bodies, st.data())
def test_any_split_of_the_stream_gives_the_same_frames(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(encode_frame, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    edges = [0, *cuts, len(stream)]
    decoder = FrameDecoder()
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    assert feed(decoder, *pieces) == frames
    assert not decoder.incomplete


@given(bodies)
def test_bytes_one_at_a_time_give_the_same_frames(frames: list[bytes]) -> None:
    stream = b"".join(map(encode_frame, frames))
    assert feed(FrameDecoder(), *(stream[n : n + 1] for n in range(len(stream)))) == frames


@pytest.mark.parametrize("size", [1, 2, MAX_FRAME - 1, MAX_FRAME])
def test_every_allowed_length_passes(size: int) -> None:
    body = bytes([size & 255]) * size
    assert encode_frame(body)[:LENGTH_BYTES] == struct.pack("<I", size)
    assert feed(FrameDecoder(), encode_frame(body)) == [body]


@given(st.one_of(st.binary(max_size=8), bodies.map(lambda frames: b"".join(map(encode_frame, frames)))))
def test_an_only_frame_is_what_would_be_fed(data: bytes) -> None:
    frame = FrameDecoder().only_frame(data)
    decoder = FrameDecoder()
    try:
        fed = feed(decoder, data)
    except FrameError:
        fed = []
    is_whole = len(fed) == 1 and not decoder.incomplete
    assert frame == (fed[0] if is_whole else None)


def test_behind_half_a_frame_or_a_bad_length_no_frame_is_alone() -> None:
    decoder, whole = FrameDecoder(), encode_frame(b"whole")
    assert feed(decoder, whole[:-1]) == []
    assert decoder.only_frame(whole) is None
    assert feed(decoder, whole[-1:]) == [b"whole"]
    assert decoder.only_frame(whole) == b"whole"
    with pytest.raises(FrameError):
        feed(decoder, bytes(4))
    assert decoder.only_frame(whole) is None


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1])
def test_what_would_be_refused_is_not_sent(size: int) -> None:
    with pytest.raises(FrameError, match=f"this one has {size}"):
        encode_frame(bytes(size))


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 2**31, 2**32 - 1])
def test_bad_lengths_are_frame_errors(length: int) -> None:
    with pytest.raises(FrameError, match=f"announces {length}"):
        feed(FrameDecoder(), struct.pack("<I", length))


def test_frames_before_a_bad_length_still_come() -> None:
    decoder = FrameDecoder()
    stream = decoder.feed(encode_frame(b"one") + encode_frame(b"two") + bytes(4) + encode_frame(b"three"))
    assert [next(stream), next(stream)] == [b"one", b"two"]
    with pytest.raises(FrameError):
        next(stream)


def test_a_broken_decoder_stays_broken() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameError) as first:
        feed(decoder, bytes(4))
    for data in (encode_frame(b"fine"), b"", bytes(4)):
        with pytest.raises(FrameError) as later:
            feed(decoder, data)
        assert later.value is first.value


def test_incomplete_says_whether_a_frame_has_begun() -> None:
    decoder = FrameDecoder()
    assert not decoder.incomplete
    assert feed(decoder, b"\x03") == []
    assert decoder.incomplete
    assert feed(decoder, b"\x00\x00\x00ab") == []
    assert decoder.incomplete
    assert feed(decoder, b"c") == [b"abc"]
    assert not decoder.incomplete


def test_a_reader_that_stops_between_frames_loses_none() -> None:
    decoder = FrameDecoder()
    stream = decoder.feed(encode_frame(b"one") + encode_frame(b"two"))
    assert next(stream) == b"one"
    stream.close()
    assert feed(decoder, encode_frame(b"three")) == [b"two", b"three"]


@given(st.binary(max_size=2000))
def test_garbage_gives_frames_or_a_frame_error(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        frames = feed(decoder, data)
    except FrameError:
        return
    assert all(0 < len(frame) <= MAX_FRAME for frame in frames)
