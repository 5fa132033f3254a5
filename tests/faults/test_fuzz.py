"""Bytes that nobody sent on purpose: into the frame decoder, the schema, and `Pool.open`.

The long run is tests/fuzz (atheris). Not covered: who sends frames and how fast, which is
tests/faults/test_hostile_peers.py and tests/shell.
"""

from __future__ import annotations

import contextlib
import itertools
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import shmpool
from shmpool.protocol.framing import LENGTH_BYTES, MAX_FRAME, FrameDecoder, FrameError, encode_frame
from shmpool.protocol.handle import HANDLE_BYTES, Handle, pack_handle, unpack_handle
from shmpool.protocol.ledger import NBYTES_BITS
from shmpool.protocol.messages import (
    FROM_BROKER,
    FROM_CLIENT,
    PROTOCOL_VERSION,
    Answer,
    Bell,
    Cancel,
    Direct,
    Fault,
    Goodbye,
    Grant,
    Hello,
    Message,
    MessageError,
    Query,
    Recall,
    Refill,
    Refusal,
    Return,
    decode,
    encode,
)
from shmpool.stats import query

quick = settings(derandomize=True, deadline=None, database=None, max_examples=80,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip

MESSAGES: list[Message] = [
    Hello("shmpool", PROTOCOL_VERSION, 0, 77, 0, 0), Refill(1, 0, 1, 4, True), Direct(2, 1 << 30, False), Cancel(1),
    Return([1, 2, 3]), Bell(list(range(1, 500))), Query(1, 0), Goodbye(), Grant(1, [5]), Refusal(1, 7, "no"), Recall(),
    Answer(1, True, b"{}" * 100), Fault(1, "why"),
]  # fmt: skip
STREAM = b"".join(encode_frame(encode(message)) for message in MESSAGES)

#: What msgpack can say at all, and much that the schema must refuse.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.binary(max_size=20)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.integers(0, 9) | st.text(), inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


# --- frames and messages -------------------------------------------------------------------------------


def read(chunks: list[bytes]) -> tuple[list[bytes], bool]:
    """The frames of a stream that comes in pieces, and whether it broke."""
    decoder, frames = FrameDecoder(), []
    for chunk in chunks:
        try:
            frames += list(decoder.feed(chunk))
        except FrameError:
            with pytest.raises(FrameError):
                list(decoder.feed(b"\1\0\0\0a"))
            return frames, True
        assert len(decoder._pending) < LENGTH_BYTES + MAX_FRAME
    return frames, False


def understand(frame: bytes) -> Message | None:
    """What a frame says to either side; nothing but MessageError may come of it."""
    for kinds in (FROM_CLIENT, FROM_BROKER):
        try:
            message = decode(frame, kinds)
        except MessageError as error:
            story = str(error)
        else:
            assert decode(encode(message), kinds) == message
            return message
    assert len(story) < 500
    return None


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(stream), *(place % (len(stream) + 1) for place in at)})
    return [stream[first:last] for first, last in itertools.pairwise(places)]


@quick
@given(st.lists(st.binary(max_size=200), max_size=20))
@example([b"\xff\xff\xff\xff"])
@example([b"\0\0\0\0"])
def test_any_bytes_end_in_frames_or_a_frame_error(chunks: list[bytes]) -> None:
    frames, _ = read(chunks)
    for frame in frames:
        understand(frame)


@quick
@given(st.lists(st.integers(0, 1 << 20), max_size=30))
def test_a_stream_says_the_same_wherever_it_is_cut(at: list[int]) -> None:
    frames, is_broken = read(cut(STREAM, at))
    assert not is_broken
    assert [understand(frame) for frame in frames] == MESSAGES


mutations = st.lists(
    st.tuples(st.integers(0, len(STREAM) - 1), st.sampled_from(["set", "insert", "drop"]), st.integers(0, 255)),
    min_size=1, max_size=6,
)  # fmt: skip


@quick
@given(mutations, st.lists(st.integers(0, 1 << 20), max_size=10))
def test_a_changed_stream_ends_in_messages_or_in_an_error(changes: list[tuple[int, str, int]], at: list[int]) -> None:
    stream = bytearray(STREAM)
    for place, how, value in changes:
        place %= len(stream)
        stream[place : place + (how != "insert")] = b"" if how == "drop" else bytes([value])
    frames, _ = read(cut(bytes(stream), at))
    for frame in frames:
        understand(frame)


@quick
@given(values)
@example([2, True, 0, 1, 4, True])
@example([5, [1] * 5000])
def test_any_msgpack_value_is_a_message_of_the_schema_or_a_message_error(value: object) -> None:
    understand(msgpack.packb(value))


@quick
@given(st.binary(max_size=400))
@example(b"\x91" * 400)  # nested deeper than any message
@example(b"\xdd\xff\xff\xff\xff")  # an array that announces 4 billion members
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xc9\xff\xff\xff\xff\x01")
def test_any_frame_is_a_message_of_the_schema_or_a_message_error(frame: bytes) -> None:
    understand(frame)


@pytest.mark.parametrize("start", [b"\x91", b"\xdd" + b"\xff" * 4, b"\xdc\xff\xff", b"\xc6" + b"\xff" * 4, b"\xdf\xff"])
def test_a_hostile_frame_takes_no_more_memory_than_a_few_frames(start: bytes) -> None:
    frame = (start * MAX_FRAME)[:MAX_FRAME]
    tracemalloc.start()
    try:
        assert understand(frame) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 * MAX_FRAME


# --- handles -------------------------------------------------------------------------------------------------


class Published(NamedTuple):
    """What a handle that is used again and again stands for."""

    pool: shmpool.Pool
    contents: dict[bytes, bytes]


@pytest.fixture(scope="module")
def published() -> Iterator[Published]:
    """Publications of every strategy, with tickets that are open, done and pending."""
    with shmpool.Broker(memory_limit="32MiB", max_clients=4) as broker:
        with broker.connect() as pool:
            contents: dict[bytes, bytes] = {}
            for nbytes in (0, 1, 100, 4096, 70_000, 300_000, 1_200_000):
                lease = pool.lease(nbytes)
                payload = (nbytes.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]
                lease.write(payload)
                contents.update(dict.fromkeys(map(bytes, lease.publish_many(3)), payload))
            for handle in list(contents)[::3]:
                pool.open(Handle(handle)).release()
            yield Published(pool, contents)
            for handle in contents:
                with contextlib.suppress(shmpool.HandleUsed, shmpool.StaleHandle):
                    pool.discard(Handle(handle))
        assert query(broker.address).active_buffers == 0


def try_open(published: Published, raw: bytes) -> None:
    """Only the documented errors; and what opens is what that very handle names."""
    try:
        buffer = published.pool.open(Handle.from_bytes(raw))
    except (shmpool.StaleHandle, shmpool.HandleUsed):  # InvalidHandle is a StaleHandle
        return
    with buffer:
        assert bytes(buffer.view) == published.contents[raw]


reused = settings(quick, suppress_health_check=list(HealthCheck))


@reused
@given(st.binary(max_size=40) | st.binary(min_size=HANDLE_BYTES, max_size=HANDLE_BYTES))
def test_any_bytes_are_refused_as_a_handle(published: Published, raw: bytes) -> None:
    if len(raw) != HANDLE_BYTES:
        with pytest.raises(shmpool.InvalidHandle):
            Handle.from_bytes(raw)
        with pytest.raises(shmpool.InvalidHandle):
            published.pool.open(Handle(raw))
    else:
        handle = Handle.from_bytes(raw)
        assert pack_handle(*unpack_handle(handle)) == raw
        assert repr(handle) and handle.nbytes >= 0 and 0 <= handle.ticket < 16
        try_open(published, raw)


@reused
@given(st.data())
def test_a_changed_handle_opens_nothing_else(published: Published, data: st.DataObject) -> None:
    handles = list(published.contents)
    raw = bytearray(data.draw(st.sampled_from(handles)))
    for bit in data.draw(st.lists(st.integers(0, HANDLE_BYTES * 8 - 1), min_size=1, max_size=4)):
        raw[bit >> 3] ^= 1 << (bit & 7)
    try_open(published, bytes(raw))


@reused
@given(st.data())
def test_a_handle_put_together_from_others_opens_nothing_else(published: Published, data: st.DataObject) -> None:
    words = [unpack_handle(handle) for handle in published.contents]
    small = st.integers(0, 1 << 24)
    pool_id = words[0][0]
    granted = data.draw(st.sampled_from([word[1] for word in words]) | st.integers(0, (1 << 64) - 1))
    index = data.draw(st.sampled_from([word[2] >> NBYTES_BITS for word in words]) | small) & (1 << 24) - 1
    nbytes = data.draw(st.sampled_from([word[2] & (1 << NBYTES_BITS) - 1 for word in words]) | small)
    try_open(published, pack_handle(pool_id, granted, index << NBYTES_BITS | nbytes))
    other = pack_handle(pool_id ^ 1, granted, index << NBYTES_BITS | nbytes)
    with pytest.raises(shmpool.StaleHandle):
        published.pool.discard(Handle(other))
