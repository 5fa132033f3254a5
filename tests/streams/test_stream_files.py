"""A lease and a buffer as files: like Python's own, and what people open with them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmpool

KIB = 1024


def published(pool: shmpool.Pool, data: bytes) -> shmpool.Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


def test_what_is_written_is_what_is_read(pool: shmpool.Pool) -> None:
    with pool.open_writer(100_000) as file:
        assert file.handle is None
        file.write(b"abc" * 1000)
        assert file.tell() == file.nbytes == 3000
    assert file.handle is not None
    assert file.handle.nbytes == 3000
    with pool.open_reader(file.handle) as reader:
        assert reader.nbytes == 3000
        assert reader.read() == b"abc" * 1000
        assert reader.read(1) == b""


@pytest.mark.parametrize("nbytes", [10, 5000, 300_000, 2_000_000])
def test_a_file_of_every_strategy_is_shortened_to_what_was_written(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.open_writer(nbytes) as file:
        file.write(b"x" * (nbytes // 2))
    assert file.handle is not None
    with pool.open(file.handle) as buffer:
        assert bytes(buffer.view) == b"x" * (nbytes // 2)


def test_a_file_of_unknown_size_grows(pool: shmpool.Pool) -> None:
    data = bytes(range(256)) * 8000
    with pool.open_writer() as file:
        for at in range(0, len(data), 30_000):
            file.write(data[at : at + 30_000])
    assert file.handle is not None
    with pool.open(file.handle) as buffer:
        assert buffer.view == data


def test_writing_past_the_end_is_an_error_that_writes_nothing(pool: shmpool.Pool) -> None:
    with pool.open_writer(10) as file:
        file.write(b"12345678")
        with pytest.raises(OSError, match="11 bytes are more than the 10") as caught:
            file.write(b"abc")
        assert caught.value.errno == errno.ENOSPC
        assert file.getvalue() == b"12345678"
        file.write(b"90")
    with pool.open_reader(file.handle) as reader:  # type: ignore[arg-type]
        assert reader.read() == b"1234567890"


def test_an_exception_in_the_block_gives_the_lease_back_unpublished(pool: shmpool.Pool) -> None:
    def fail() -> None:
        with file:
            file.write(b"x")
            raise KeyError

    file = pool.open_writer(10)
    with pytest.raises(KeyError):
        fail()
    assert file.handle is None
    assert file.closed


def test_a_file_that_nobody_closed_publishes_nothing(pool: shmpool.Pool) -> None:
    file = pool.open_writer(10)
    file.write(b"x")
    del file
    assert pool.stats().active_buffers == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_file_whose_pool_was_closed_says_so(module_broker: shmpool.Broker) -> None:
    pool = module_broker.connect()
    file = pool.open_writer(10)
    file.write(b"x")
    pool.close()
    for use in (lambda: file.write(b"y"), file.read, file.getvalue):
        with pytest.raises(shmpool.LeaseReleased, match="over"):
            use()
    file.discard()


def test_closed_files_raise_as_python_s_own_do(pool: shmpool.Pool) -> None:
    with pool.open_writer(10) as writer:
        writer.write(b"x")
    with pool.open_reader(writer.handle) as reader:  # type: ignore[arg-type]
        with pytest.raises(io.UnsupportedOperation):
            reader.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            reader.detach()
    for file in (writer, reader):
        file.close()
        assert file.closed
        for use in (file.read, file.tell, file.readable, file.getbuffer, file.readline):
            with pytest.raises(ValueError, match="closed file"):
                use()
    with pytest.raises(ValueError, match="closed file"):
        writer.write(b"x")


def test_memory_taken_by_getbuffer_outlives_the_file(pool: shmpool.Pool) -> None:
    with pool.open_reader(published(pool, b"y" * 5000)) as reader:
        view = reader.getbuffer()
    assert bytes(view) == b"y" * 5000
    assert view.readonly


# --- what people open with it ---------------------------------------------------------------------------


def test_numpy_saves_and_loads(pool: shmpool.Pool) -> None:
    array = np.arange(10_000.0).reshape(100, 100)
    with pool.open_writer(array.nbytes + 4096) as file:
        np.save(file, array)
    with pool.open_reader(file.handle) as reader:  # type: ignore[arg-type]
        assert (np.load(reader) == array).all()


def test_json_and_text(pool: shmpool.Pool) -> None:
    thing = {"a": [1, 2, 3], "ü": "ß\n" * 3000}
    with pool.open_writer() as file:
        text = io.TextIOWrapper(file, "utf-8", write_through=True)
        json.dump(thing, text)
        text.detach()
    with pool.open_reader(file.handle) as reader:  # type: ignore[arg-type]
        assert json.load(reader) == thing


def test_zip_and_tar(pool: shmpool.Pool, tmp_path: Path) -> None:
    member = tmp_path / "member"
    member.write_bytes(b"m" * 100_000)
    with pool.open_writer() as file, zipfile.ZipFile(file, "w") as archive:
        archive.write(member, "member")
    with pool.open_reader(file.handle) as reader, zipfile.ZipFile(reader) as archive:  # type: ignore[arg-type]
        assert archive.read("member") == b"m" * 100_000
    with pool.open_writer() as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
        tar.add(member, "member")
    with pool.open_reader(file.handle) as reader, tarfile.open(fileobj=reader) as tar:  # type: ignore[arg-type]
        assert tar.extractfile("member").read() == b"m" * 100_000  # type: ignore[union-attr]


def test_arrow_reads_a_stream_from_it(pool: shmpool.Pool) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"n": np.arange(50_000)})
    with pool.open_writer() as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pool.open_reader(file.handle) as reader:  # type: ignore[arg-type]
        assert pa.ipc.open_stream(reader).read_all().equals(table)


def test_pillow_saves_and_opens(pool: shmpool.Pool) -> None:
    image = pytest.importorskip("PIL.Image")
    with pool.open_writer() as file:
        image.new("RGB", (300, 200), "red").save(file, "TIFF")
    with pool.open_reader(file.handle) as reader:  # type: ignore[arg-type]
        assert image.open(reader).getpixel((10, 10)) == (255, 0, 0)


# --- like io.BytesIO --------------------------------------------------------------------------------------


BOTH = [
    "testInit", "testRead", "testReadNoArgs", "testSeek", "testTell", "test_detach", "test_flush", "test_getvalue",
    "test_instance_dict_leak", "test_iterator", "test_read", "test_read1", "test_readinto", "test_readline",
    "test_readlines", "test_relative_seek", "test_seek", "test_tell",
]  # fmt: skip
WRITING = [
    "test_bytes_array", "test_flags", "test_overseek", "test_truncate", "test_unicode", "test_write", "test_writelines",
    "test_writelines_error",
]  # fmt: skip


def cpythons(module: str) -> Any:
    return pytest.importorskip(f"test.{module}", reason="this CPython is installed without its own tests")


def run_cpythons(name: str, make: Any) -> None:
    """One of CPython's own tests of `io.BytesIO`, on files that *make* makes of bytes. Left out are
    those of its constructor, of pickling it, and that it cannot grow under a `getbuffer` (ours can:
    the memory of the old view stays)."""

    class Suite(cpythons("test_memoryio").PyBytesIOTest):  # type: ignore[misc]
        ioclass = staticmethod(make)

    suite = Suite()
    suite.setUp()
    getattr(suite, name)()


@pytest.mark.parametrize("name", BOTH)
def test_a_reader_passes_cpython_s_tests_of_bytesio(pool: shmpool.Pool, name: str) -> None:
    with contextlib.ExitStack() as opened:
        run_cpythons(name, lambda data=b"": opened.enter_context(pool.open_reader(published(pool, bytes(data)))))


@pytest.mark.parametrize("name", BOTH + WRITING)
def test_a_writer_passes_cpython_s_tests_of_bytesio(pool: shmpool.Pool, name: str) -> None:
    def make(data: bytes = b"") -> Any:
        files.append(pool.open_writer())
        files[-1].write(bytes(data))
        files[-1].seek(0)
        return files[-1]

    files: list[Any] = []
    run_cpythons(name, make)
    for file in files:
        file.discard()
        if file.handle is not None:
            pool.discard(file.handle)


#: Of `io.BufferedReader`: those that are about reading, not about its buffer, its raw file and its repr.
BUFFERED = [
    "test_context_manager", "test_invalid_args", "test_multi_close", "test_read_all", "test_read_on_closed",
    "test_read_past_eof", "test_readinto", "test_readinto1_array", "test_readinto_array", "test_readlines",
    "test_truncate_on_read_only",
]  # fmt: skip


@pytest.mark.parametrize("name", BUFFERED)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_reader_passes_cpython_s_tests_of_bufferedreader(pool: shmpool.Pool, name: str, is_stream: bool) -> None:
    """Over a buffer, and over a stream."""
    if is_stream and name == "test_invalid_args":
        pytest.skip("it seeks")

    def make(raw: Any, *_: Any, **buffer: Any) -> Any:
        content = b"".join(filter(None, raw._read_stack)) if hasattr(raw, "_read_stack") else raw.read()
        if not is_stream:
            return opened.enter_context(pool.open_reader(published(pool, content)))
        with pool.stream() as writer:
            writer.write(content)
        return opened.enter_context(pool.open_reader(writer.handle))

    test_io = cpythons("test_io")

    class Suite(test_io.BufferedReaderTest):  # type: ignore[misc,name-defined]
        tp = BufferedReader = staticmethod(make)
        BytesIO = io.BytesIO
        MockRawIO, MockFileIO = test_io.CMockRawIO, test_io.CMockFileIO
        FileIO, UnsupportedOperation = io.FileIO, io.UnsupportedOperation

    with contextlib.ExitStack() as opened:
        suite = Suite(name)
        suite.setUp()
        getattr(suite, name)()
        suite.doCleanups()


@given(st.data())
def test_reading_is_bytesio_s_reading(data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=300) | st.just(b"line\n" * 4000))
    ours, theirs = MEMORY.of(content), io.BytesIO(content)
    sizes = st.none() | st.integers(-1, 400) | st.just(9000)
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["read", "read1", "readline", "seek", "readinto", "readlines"])):
            case "seek":
                where, whence = data.draw(st.integers(0, 400)), data.draw(st.sampled_from([0, 1, 2]))
                assert ours.seek(where, whence) == theirs.seek(where, whence)
            case "readinto":
                first, second = bytearray(50), bytearray(50)
                assert ours.readinto(first) == theirs.readinto(second)
                assert first == second
            case "readlines":
                assert ours.readlines() == theirs.readlines()
            case name:
                size = data.draw(sizes)
                assert getattr(ours, name)(size) == getattr(theirs, name)(size)
        assert ours.tell() == theirs.tell()
    ours.close()


class Memory:
    """Readers without a pool: the reading is the same over any memoryview."""

    nbytes = 0
    view = memoryview(b"")

    def of(self, content: bytes) -> Any:
        from shmpool.streams import BufferFile

        buffer = Memory()
        buffer.view, buffer.nbytes = memoryview(content), len(content)
        return BufferFile(buffer)  # type: ignore[arg-type]

    def _release_after(self, kind: type[BaseException] | None) -> None:
        self.view.release()


MEMORY = Memory()
