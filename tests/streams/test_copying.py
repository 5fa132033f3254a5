"""`shmpool.copy` and the tee: byte for byte, whatever the files are, and with errors that say what
was copied."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpool

KIB, MIB = 1024, 1024 * 1024
DATA = bytes(range(251)) * 12_000  # 3 MB


class Source:
    """Gives what it has in pieces of *steps* bytes, None where a step is None."""

    def __init__(self, data: bytes, steps: list[int | None], fd: int | None = None) -> None:
        self.data, self.steps, self.at, self.fd = data, list(steps), 0, fd

    def _next(self, most: int) -> bytes | None:
        step = self.steps.pop(0) if self.steps else most
        if step is None:
            return None
        piece = self.data[self.at : self.at + min(step, most)]
        self.at += len(piece)
        return piece

    def fileno(self) -> int:
        if self.fd is None:
            raise OSError("no descriptor")
        return self.fd


class Reading(Source):
    def read(self, size: int) -> bytes | None:
        return self._next(size)


class Filling(Source):
    def readinto(self, room: memoryview) -> int | None:
        piece = self._next(len(room))
        if piece is None:
            return None
        room[: len(piece)] = piece
        return len(piece)


class Sink(io.RawIOBase):
    """Takes *most* bytes at a time."""

    def __init__(self, most: int = 2**62, fails_after: int | None = None) -> None:
        self.got, self.most, self.fails_after = bytearray(), most, fails_after

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.fails_after is not None and len(self.got) >= self.fails_after:
            raise OSError(28, "no space")
        took = bytes(data)[: self.most]
        self.got += took
        return len(took)


class Hashing:
    """A writer as people write them: it says nothing."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> None:
        self.digest.update(data)


@pytest.fixture
def readable() -> Iterator[int]:
    """A descriptor that is always ready to be read."""
    reading, writing = os.pipe()
    os.close(writing)
    yield reading
    os.close(reading)


def nothing_is_leased(pool: shmpool.Pool) -> bool:
    return pool.stats().active_buffers == 0


SIZES = [0, 1, 4096, 100 * KIB, 256 * KIB, 600 * KIB, MIB, 3 * MIB]


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("kind", [Reading, Filling, io.BytesIO])
def test_what_is_copied_is_the_same(pool: shmpool.Pool, nbytes: int, is_known: bool, kind: Any) -> None:
    data = DATA[:nbytes] if nbytes <= len(DATA) else DATA + DATA[: nbytes - len(DATA)]
    source: Any = io.BytesIO(data) if kind is io.BytesIO else kind(data, [])
    sink = io.BytesIO()
    assert shmpool.copy(source, sink, pool, nbytes if is_known else None) == nbytes
    assert sink.getvalue() == data
    assert nothing_is_leased(pool)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    nbytes=st.integers(0, 200_000),
    steps=st.lists(st.none() | st.integers(1, 70_000), max_size=12),
    most=st.sampled_from([1000, 4096, 65_536, 2**62]),
    is_filling=st.booleans(),
    is_known=st.booleans(),
)
def test_short_reads_pauses_and_partial_writes_change_nothing(
    pool: shmpool.Pool, nbytes: int, steps: list[int | None], most: int, is_filling: bool, is_known: bool
) -> None:
    reading, writing = os.pipe()
    os.close(writing)  # at its end it is always ready
    try:
        source = (Filling if is_filling else Reading)(DATA[:nbytes], steps, reading)
        sink = Sink(most)
        assert shmpool.copy(source, sink, pool, nbytes if is_known else None) == nbytes
        assert sink.got == DATA[:nbytes]
    finally:
        os.close(reading)


def test_a_source_that_would_block_and_has_no_descriptor_is_an_error_that_counts(pool: shmpool.Pool) -> None:
    sink = Sink()
    with pytest.raises(BlockingIOError) as caught:
        shmpool.copy(Filling(DATA[:5000], [3000, None]), sink, pool)
    assert caught.value.characters_written == len(sink.got) == 3000
    assert nothing_is_leased(pool)


def test_a_writer_that_says_nothing_took_all(pool: shmpool.Pool) -> None:
    writer = Hashing()
    assert shmpool.copy(io.BytesIO(DATA), writer, pool) == len(DATA)
    assert writer.digest.digest() == hashlib.sha256(DATA).digest()


# --- real descriptors ------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


def test_from_file_to_file_both_stand_behind_what_was_copied(pool: shmpool.Pool, path: Path, tmp_path: Path) -> None:
    with path.open("rb") as source, (tmp_path / "target").open("wb") as target:
        source.read(10)
        target.write(b"head")
        assert shmpool.copy(source, target, pool) == len(DATA) - 10
        assert (source.tell(), target.tell()) == (len(DATA), len(DATA) - 6)
        target.write(b"tail")
    assert (tmp_path / "target").read_bytes() == b"head" + DATA[10:] + b"tail"


def test_appending_and_reading_a_part(pool: shmpool.Pool, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"there")
    with path.open("rb") as source, target.open("ab") as file:
        shmpool.copy(source, file, pool)
    assert target.read_bytes() == b"there" + DATA


def test_a_file_of_proc_that_says_it_is_empty_is_copied(pool: shmpool.Pool, tmp_path: Path) -> None:
    with open("/proc/self/mounts", "rb") as source, (tmp_path / "target").open("wb") as target:
        assert shmpool.copy(source, target, pool) > 0


def test_a_compressed_file_is_copied_as_what_it_reads(pool: shmpool.Pool, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        file.write(DATA[:10_000])
    with gzip.open(tmp_path / "x.gz", "rb") as source, (tmp_path / "target").open("wb") as target:
        shmpool.copy(source, target, pool)
    assert (tmp_path / "target").read_bytes() == DATA[:10_000]
    with (tmp_path / "target").open("rb") as source, gzip.open(tmp_path / "y.gz", "wb") as target:
        shmpool.copy(source, target, pool)
    with gzip.open(tmp_path / "y.gz", "rb") as again:
        assert again.read() == DATA[:10_000]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("buffering", [0, -1])
def test_through_pipes_and_sockets(pool: shmpool.Pool, path: Path, tmp_path: Path, kind: str, buffering: int) -> None:
    if kind == "pipe":
        fds = os.pipe()
        reading, writing = os.fdopen(fds[0], "rb", buffering), os.fdopen(fds[1], "wb", buffering)
    else:
        ends = socket.socketpair()
        reading, writing = ends[0].makefile("rb", buffering), ends[1].makefile("wb", buffering)
        ends[0].close()
        ends[1].close()
    failures: list[BaseException] = []

    def feed() -> None:
        try:
            with path.open("rb") as source, writing:
                shmpool.copy(source, writing, pool)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=feed)
    thread.start()
    with reading, (tmp_path / "target").open("wb") as target:
        assert shmpool.copy(reading, target, pool) == len(DATA)
    thread.join()
    assert failures == []
    assert (tmp_path / "target").read_bytes() == DATA


# --- sizes that lie -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 4999, 5001, 3 * MIB])
def test_a_size_that_is_known_to_be_wrong_is_refused_before_anything_is_copied(
    pool: shmpool.Pool, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA[:5000])
    with path.open("rb") as file:
        for source in (file, io.BytesIO(DATA[:5000])):
            sink = Sink()
            with pytest.raises(shmpool.InvalidSize, match=rf"{size} bytes were announced, the source has 5000"):
                shmpool.copy(source, sink, pool, size)
            assert not sink.got


@pytest.mark.parametrize("kind", [Reading, Filling])
@pytest.mark.parametrize("size", [5001, 3 * MIB])
def test_a_source_that_ends_early_says_both_numbers(pool: shmpool.Pool, kind: Any, size: int) -> None:
    with pytest.raises(EOFError, match=rf"ended after 5000 bytes, {size} were announced"):
        shmpool.copy(kind(DATA[:5000], [7, 1000]), Sink(), pool, size)
    assert nothing_is_leased(pool)


@pytest.mark.parametrize("size", [-1, 1.5, "x", True])
def test_a_size_that_is_none_is_refused(pool: shmpool.Pool, size: Any) -> None:
    with pytest.raises(shmpool.InvalidSize):
        shmpool.copy(io.BytesIO(), Sink(), pool, size)


def test_a_text_source_is_refused(pool: shmpool.Pool) -> None:
    with pytest.raises(TypeError):
        shmpool.copy(io.StringIO("x"), Sink(), pool)


def test_what_the_writer_raises_comes_through_and_nothing_stays_leased(pool: shmpool.Pool) -> None:
    with pytest.raises(OSError, match="no space"):
        shmpool.copy(io.BytesIO(DATA), Sink(65_536, fails_after=200_000), pool)
    assert nothing_is_leased(pool)


# --- the tee -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reads=st.lists(st.sampled_from(["read", "readinto", "line", "all"]), min_size=1, max_size=10),
    nbytes=st.integers(0, 200_000),
    is_filling=st.booleans(),
    most=st.sampled_from([1000, 2**62]),
)
def test_everything_read_is_written_byte_for_byte(
    pool: shmpool.Pool, reads: list[str], nbytes: int, is_filling: bool, most: int
) -> None:
    data = (b"a line\n" * 30_000)[:nbytes]
    source = (Filling if is_filling else Reading)(data, [5, 70_000, 1])
    sink, got = Sink(most), bytearray()
    with shmpool.ChunkedTeeReader(source, sink, pool) as tee:
        lines = io.BufferedReader(tee)
        for how in reads:
            room = bytearray(9000)
            match how:
                case "read":
                    got += lines.read(4000)
                case "readinto":
                    got += room[: lines.readinto(room)]
                case "line":
                    got += lines.readline()
                case "all":
                    got += lines.read()
        assert tee.bytes_read == tee.bytes_written == len(sink.got) == source.at
        assert bytes(got) == data[: len(got)]
        assert sink.got == data[: source.at]
        lines.detach()


def test_the_tee_says_what_it_did_and_gives_its_chunk_back(pool: shmpool.Pool) -> None:
    sink = Sink()
    tee = shmpool.ChunkedTeeReader(io.BytesIO(DATA), sink, pool, len(DATA))
    assert tee.read() == DATA
    assert sink.got == DATA
    assert tee.bytes_read == tee.bytes_written == len(DATA)
    assert tee.chunks_used == -(-len(DATA) // (128 * KIB))
    assert pool.stats().active_buffers == 1
    tee.close()
    took = tee.elapsed
    assert 0 < took == tee.elapsed
    assert nothing_is_leased(pool)
    tee.close()
    for use in (lambda: tee.read(1), lambda: tee.readinto(bytearray(1)), tee.readable):
        with pytest.raises(ValueError, match="closed file"):
            use()


@pytest.mark.parametrize(("writer", "size"), [(5, None), (Sink(), -1)])
def test_a_tee_that_is_refused_is_collected_in_silence(pool: shmpool.Pool, writer: Any, size: int | None) -> None:
    """Python closes what is collected, and from 3.13 on prints what that raises."""
    tee = shmpool.ChunkedTeeReader.__new__(shmpool.ChunkedTeeReader)
    with pytest.raises((TypeError, shmpool.InvalidSize)):
        tee.__init__(io.BytesIO(), writer, pool, size)  # type: ignore[misc]
    tee.close()
    assert tee.closed


def test_iterating_a_tee_reads_lines(pool: shmpool.Pool) -> None:
    sink = Sink()
    with io.BufferedReader(shmpool.ChunkedTeeReader(io.BytesIO(b"a\nb\nc"), sink, pool)) as lines:
        assert list(lines) == [b"a\n", b"b\n", b"c"]
    assert sink.got == b"a\nb\nc"


@pytest.mark.parametrize("most", [2**62, 1000])
def test_a_writer_that_fails_raises_at_once_and_says_how_much_both_have(pool: shmpool.Pool, most: int) -> None:
    sink = Sink(most, fails_after=6000)
    with shmpool.ChunkedTeeReader(io.BytesIO(DATA), sink, pool) as tee:
        with pytest.raises(shmpool.TeeError, match="no space") as caught:
            list(iter(lambda: tee.read(4000), b""))
        assert (tee.bytes_read, tee.bytes_written) == (tee.bytes_read, len(sink.got))
        assert f"{tee.bytes_read} bytes were read, {len(sink.got)} of them written" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


def test_a_tee_whose_size_lies_says_both_numbers(pool: shmpool.Pool) -> None:
    with (
        shmpool.ChunkedTeeReader(io.BytesIO(DATA), Sink(), pool, 5000) as tee,
        pytest.raises(shmpool.InvalidSize, match="5000 bytes were announced"),
    ):
        tee.read()
    with (
        shmpool.ChunkedTeeReader(io.BytesIO(DATA[:5000]), Sink(), pool, 6000) as tee,
        pytest.raises(EOFError, match="ended after 5000 bytes, 6000"),
    ):
        tee.read()


def test_a_tee_through_which_copy_reads(pool: shmpool.Pool) -> None:
    hashing, sink = Hashing(), io.BytesIO()
    with shmpool.ChunkedTeeReader(io.BytesIO(DATA), hashing, pool) as tee, contextlib.closing(sink):
        assert shmpool.copy(tee, sink, pool) == len(DATA)
        assert sink.getvalue() == DATA
    assert hashing.digest.digest() == hashlib.sha256(DATA).digest()
