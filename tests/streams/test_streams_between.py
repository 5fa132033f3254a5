"""Streams between processes: what is written is what is read, whoever is late, leaves or dies."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corners import sizes
from hypothesis import given, settings
from hypothesis import strategies as st

import shmpool
from shmpool.stats import query

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from client_helpers import Daemon, eventually

MIB = 1 << 20
BLOCK = bytes(range(251)) * 1000


def content(nbytes: int) -> bytes:
    return (BLOCK * (nbytes // len(BLOCK) + 1))[:nbytes]


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    """Small: a chunk of a stream has 128 KiB, and what passes through has more than the pool."""
    with shmpool.Broker(memory_limit="2MiB", max_clients=8) as broker:
        yield broker


@pytest.fixture
def other(module_broker: shmpool.Broker, pool: shmpool.Pool) -> Iterator[shmpool.Pool]:
    with module_broker.connect() as other:
        yield other


@contextlib.contextmanager
def process(body: Callable[[], Any]) -> Iterator[int]:
    """A forked child that runs *body* and ends: with 0, or 1 after an exception."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_back(address: str) -> bool:
    return query(address).active_buffers == 0


@contextlib.contextmanager
def thread(body: Callable[[], Any]) -> Iterator[list[Any]]:
    """A thread that runs *body*, joined at the end; its result is in the list then."""
    results: list[Any] = []
    running = threading.Thread(target=lambda: results.append(body()))
    running.start()
    yield results
    running.join()


# --- what passes through ------------------------------------------------------------------------


def test_an_object_larger_than_the_pool_passes_through(pool: shmpool.Pool) -> None:
    data = content(9 * MIB + 12345)
    writer = pool.stream(len(data))

    def read() -> None:
        mine = shmpool.connect(pool.address)
        with mine.open_reader(writer.handle) as reader:
            assert reader.nbytes == len(data)
            assert hashlib.sha256(reader.read()).digest() == hashlib.sha256(data).digest()
            assert reader.tell() == len(data)
            assert reader.read() == b""
        mine.close()

    with process(read) as pid:
        with writer:
            assert writer.write(data) == len(data)
            assert writer.tell() == len(data)
        assert ended(pid) == 0
    eventually(lambda: is_back(pool.address))


@given(
    writes=st.lists(st.integers(0, 300_000), max_size=6),
    reads=st.lists(st.tuples(st.sampled_from(["read", "read1", "readinto", "readinto1", "readline", "peek"]),
                             st.integers(0, 200_000)), min_size=1, max_size=6),
)  # fmt: skip
@settings(max_examples=25)
def test_every_pattern_of_writing_and_reading(
    module_broker: shmpool.Broker, writes: list[int], reads: list[tuple[str, int]]
) -> None:
    data = content(sum(writes))
    with module_broker.connect() as pool, module_broker.connect() as other:
        writer = pool.stream()

        def write() -> None:
            with writer:
                at = 0
                for size in writes:
                    writer.write(data[at : at + size])
                    at += size
                    if size % 2:
                        writer.flush()

        with thread(write), other.open_reader(writer.handle) as reader:
            found = bytearray()
            while True:
                for how, size in reads:
                    found += _read(reader, how, size)
                piece = reader.read1()
                if not piece:
                    break
                found += piece
            assert found == data
            assert reader.tell() == len(data)


def _read(reader: Any, how: str, size: int) -> bytes:
    if how == "peek":
        reader.peek(size)
        return b""
    if how.startswith("readinto"):
        target = bytearray(size)
        return bytes(target[: getattr(reader, how)(target)])
    return bytes(getattr(reader, how)(size))


def test_a_writer_is_as_far_ahead_as_it_has_chunks(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    data = content(3 * MIB)
    with pool.stream(timeout=0) as writer:
        with pytest.raises(shmpool.StreamTimeout, match=r"\d+ bytes were taken"):
            writer.write(data)
        taken = writer.tell()
        assert 0 < taken < MIB
        with other.open_reader(writer.handle, timeout=0) as reader:
            assert reader.read(taken) == data[:taken]
            with pytest.raises(shmpool.StreamTimeout):
                reader.read(1)
            writer.write(b"more")
            writer.flush()
            with pytest.raises(shmpool.StreamTimeout):
                reader.read(5)
            assert reader.tell() == taken  # a call that raised has read nothing
            assert reader.read1(5) == b"more"
            writer.close()
            assert reader.read(5) == b""


def test_what_was_written_before_the_reader_came_is_read(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    with pool.stream() as writer:
        writer.write(b"line 1\nline 2\n")
    assert writer.closed
    with other.open_reader(writer.handle) as reader:
        assert list(reader) == [b"line 1\n", b"line 2\n"]
    with pytest.raises(shmpool.HandleUsed):
        other.open_reader(writer.handle)


def test_checksums_are_kept_for_what_passes_through(tmp_path: Path) -> None:
    with shmpool.Broker(memory_limit="4MiB", checksums=True) as broker, broker.connect() as pool:
        with pool.stream() as writer:
            writer.write(content(300_000))
        with broker.connect() as other, other.open_reader(writer.handle) as reader:
            assert reader.read() == content(300_000)


def test_direct_segments_serve_where_pooling_is_off() -> None:
    with shmpool.Broker(memory_limit="16MiB", enabled=False) as broker, broker.connect() as pool:
        with broker.connect() as other, pool.stream() as writer, thread(lambda: _all_of(other, writer.handle)) as read:
            writer.write(content(5 * MIB))
            writer.close()
        assert read == [content(5 * MIB)]


def _all_of(pool: shmpool.Pool, handle: shmpool.Handle) -> bytes:
    with pool.open_reader(handle) as reader:
        return reader.read()


# --- bad input ------------------------------------------------------------------------------------


def test_sizes_that_lie_are_told_with_both_numbers(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    writer = pool.stream(1000)
    with pytest.raises(OSError, match="1001 bytes are more than the 1000") as caught:
        writer.write(bytes(1001))
    assert caught.value.errno == errno.ENOSPC
    writer.write(bytes(999))
    reader = other.open_reader(writer.handle)
    with pytest.raises(ValueError, match="999 bytes were written of the 1000"):
        writer.close()
    with pytest.raises(shmpool.StreamBroken, match=r"gave the stream up; 0 bytes of 1000 were read"):
        reader.read()
    reader.close()
    with pytest.raises(shmpool.InvalidSize):
        pool.stream(-1)
    with pytest.raises(TypeError):
        pool.stream(timeout="soon")  # type: ignore[arg-type]


def test_after_the_end_both_are_closed_files(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    with pool.stream() as writer, other.open_reader(writer.handle) as reader:
        pass
    calls: list[Callable[[], Any]] = [lambda: writer.write(b"x"), writer.flush, writer.tell, writer.writable]
    calls += [lambda: reader.read(1), lambda: reader.readinto(bytearray(1)), reader.tell, reader.readable]
    for closed in calls:
        with pytest.raises(ValueError, match="closed file"):
            closed()
    writer.close()
    reader.close()


def test_a_handle_opens_once(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    with pool.stream() as writer, other.open_reader(writer.handle), pytest.raises(shmpool.HandleUsed):
        pool.open_reader(writer.handle)


@pytest.mark.parametrize("end", ["discarded", "closed unread", "closed half read"])
def test_a_writer_nobody_reads_is_told_and_all_comes_back(pool: shmpool.Pool, other: shmpool.Pool, end: str) -> None:
    writer = pool.stream()
    writer.write(content(200_000))
    if end == "discarded":
        other.discard(writer.handle)
    else:
        reader = other.open_reader(writer.handle)
        if "half" in end:
            assert reader.read(1000) == content(1000)
        reader.close()
    with pytest.raises(shmpool.StreamBroken, match="nobody reads"):
        writer.write(content(MIB))
    with pytest.raises(shmpool.StreamBroken):
        writer.close()
    eventually(lambda: is_back(pool.address))


def test_what_an_idle_writer_has_out_comes_back_when_its_reader_goes(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    writer = pool.stream()
    writer.write(content(300_000))
    writer.close()
    other.discard(writer.handle)
    eventually(lambda: is_back(pool.address))


def test_an_exception_in_the_block_gives_the_stream_up(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    with contextlib.suppress(KeyError), pool.stream() as writer:
        writer.write(content(140_000))
        reader = other.open_reader(writer.handle)
        assert reader.read(10) == content(10)
        raise KeyError
    with reader, pytest.raises(shmpool.StreamBroken, match=r"gave the stream up; \d+ bytes were read"):
        reader.read()


def test_a_writer_that_is_dropped_unclosed_gives_up(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    writer = pool.stream()
    reader = other.open_reader(writer.handle)
    dropped = [writer]
    del writer
    with pytest.warns(ResourceWarning, match="unclosed"):
        dropped.clear()
    with reader, pytest.raises(shmpool.StreamBroken):
        reader.read()


def test_closing_the_pool_gives_its_streams_up(module_broker: shmpool.Broker, other: shmpool.Pool) -> None:
    pool = module_broker.connect()
    writer = pool.stream()
    reader = other.open_reader(writer.handle)
    with pytest.warns(ResourceWarning, match="was open when its pool was closed"):
        pool.close()
    with reader, pytest.raises(shmpool.StreamBroken):
        reader.read()
    with pytest.raises(ValueError, match="closed file"):
        writer.write(b"x")


def test_a_forked_child_cannot_use_its_parents_ends(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    writer = pool.stream()
    reader = other.open_reader(writer.handle)
    writer.write(b"parent")

    def child() -> None:
        for use in (lambda: writer.write(b"child"), writer.flush, lambda: reader.read(1)):
            with pytest.raises(shmpool.LeaseReleased):
                use()
        writer.close()
        reader.close()

    with process(child) as pid:
        assert ended(pid) == 0
    with reader:
        writer.close()
        assert reader.read() == b"parent"


def test_a_stream_waits_in_the_line_like_any_lease(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    with contextlib.ExitStack() as leases:
        with contextlib.suppress(shmpool.LeaseTimeout):
            while True:
                leases.enter_context(other.lease(4096, timeout=0))
        with pytest.raises(shmpool.LeaseTimeout):
            pool.stream(timeout=0.01)
        with thread(lambda: pool.stream(timeout=60)) as made:
            leases.pop_all().close()
    made[0].close()
    other.discard(made[0].handle)


# --- interrupts and deaths --------------------------------------------------------------------------


def test_both_ends_wait_interruptibly_and_go_on(pool: shmpool.Pool, other: shmpool.Pool) -> None:
    class Ring(Exception):
        pass

    def ring(*_: object) -> None:
        raise Ring

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with pool.stream() as writer, other.open_reader(writer.handle) as reader:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Ring):
                reader.read(1)
            data, taken = content(2 * MIB), 0
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Ring):
                writer.write(data)
            taken = writer.tell()
            with thread(lambda: reader.read()) as read:
                writer.write(data[taken:])
                writer.close()
            assert read == [data]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_dead_writer_is_told_with_the_count(pool: shmpool.Pool) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        mine = shmpool.connect(pool.address)
        writer = mine.stream()
        os.write(writing, writer.handle)
        writer.write(content(100_000))
        writer.flush()
        signal.pause()

    with process(write) as pid, pool.open_reader(os.read(reading, 24)) as reader:
        assert reader.read(100_000) == content(100_000)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(shmpool.StreamBroken, match="died; 100000 bytes were read"):
            reader.read(1)
    os.close(reading)
    os.close(writing)
    eventually(lambda: is_back(pool.address))


def test_a_chunk_that_a_dead_writer_had_not_announced_comes_back(pool: shmpool.Pool) -> None:
    """It dies between publishing a chunk and saying so."""
    reading, writing = os.pipe()

    def write() -> None:
        mine = shmpool.connect(pool.address)
        writer: Any = mine.stream()
        os.write(writing, writer.handle)
        publish = writer._publish

        def publish_and_die(*arguments: Any) -> None:
            publish(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        writer._publish = publish_and_die
        writer.write(content(MIB))

    with process(write):
        reader = pool.open_reader(os.read(reading, 24))
        with pytest.raises(shmpool.StreamBroken, match="died; 0 bytes were read"):
            reader.read(1)
        reader.close()
    os.close(reading)
    os.close(writing)
    eventually(lambda: is_back(pool.address))


@pytest.mark.parametrize("strategy", ["chunked", "direct"])
def test_of_a_stream_whose_ends_both_died_nothing_waits_to_be_read(strategy: str) -> None:
    """Nobody can come to open its chunks, so they do not wait for `handle_ttl` as what has a handle does."""
    settings = {} if strategy == "chunked" else {"enabled": False}
    with shmpool.Broker(memory_limit="16MiB", **settings) as broker:
        (reading, writing), (ready, full) = os.pipe(), os.pipe()

        def write() -> None:
            writer = shmpool.connect(broker.address).stream(timeout=0.2)
            os.write(writing, writer.handle)
            os.read(ready, 1)
            with contextlib.suppress(shmpool.StreamTimeout):
                writer.write(content(4 * MIB))
            os.write(writing, b"full")
            signal.pause()

        def read() -> None:
            reader = shmpool.connect(broker.address).open_reader(handle)
            os.write(full, b"x")
            signal.pause()
            reader.close()

        with process(write) as writer:
            handle = shmpool.Handle(os.read(reading, 24))
            with process(read) as reader:
                assert os.read(reading, 4) == b"full"
                assert query(broker.address).active_buffers > 1
                os.kill(writer, signal.SIGKILL)
                os.kill(reader, signal.SIGKILL)
                eventually(lambda: is_back(broker.address))
        for fd in (reading, writing, ready, full):
            os.close(fd)


def test_a_dead_reader_is_told(pool: shmpool.Pool) -> None:
    writer = pool.stream()
    reading, writing = os.pipe()

    def read() -> None:
        mine = shmpool.connect(pool.address)
        reader = mine.open_reader(writer.handle)
        os.write(writing, reader.read(1))
        signal.pause()

    with process(read) as pid:
        writer.write(content(200_000))
        assert os.read(reading, 1) == content(1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(shmpool.StreamBroken, match="nobody reads"):
            writer.write(content(8 * MIB))
    writer.discard()
    os.close(reading)
    os.close(writing)
    eventually(lambda: is_back(pool.address))


@pytest.mark.parametrize("victim", ["reader", "writer"])
def test_a_death_is_seen_without_a_broker(tmp_path: Path, victim: str) -> None:
    address = str(tmp_path / "broker.sock")
    daemon = Daemon(address, memory_limit="4MiB")
    pool = shmpool.connect(address)
    handles, told = os.pipe(), os.pipe()

    def other() -> None:
        mine = shmpool.connect(address)
        if victim == "writer":
            end: Any = mine.stream()
            os.write(handles[1], end.handle)
            end.write(b"x")
            end.flush()
        else:
            end = mine.open_reader(os.read(handles[0], 24))
            end.read(1)
        os.write(told[1], b"x")
        signal.pause()

    with process(other) as pid:
        if victim == "reader":
            mine: Any = pool.stream()
            os.write(handles[1], mine.handle)
            mine.write(b"x")
            mine.flush()
        else:
            mine = pool.open_reader(os.read(handles[0], 24))
        os.read(told[0], 1)
        daemon.end(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with pytest.raises(shmpool.StreamBroken):
            mine.read() if victim == "writer" else mine.write(content(8 * MIB))
    daemon = Daemon(address, memory_limit="4MiB")
    with contextlib.suppress(shmpool.StreamBroken):
        mine.close()
    eventually(lambda: is_back(address))
    pool.close()
    daemon.end(signal.SIGTERM)
    for fd in (*handles, *told):
        os.close(fd)


def test_a_stream_outlives_its_broker(tmp_path: Path) -> None:
    address = str(tmp_path / "broker.sock")
    daemon = Daemon(address, memory_limit="4MiB")
    pool = shmpool.connect(address)
    data, writer = content(20 * MIB), pool.stream()

    def read() -> None:
        mine = shmpool.connect(address)
        with mine.open_reader(writer.handle) as reader:
            assert reader.read(MIB) == data[:MIB]
            assert reader.read() == data[MIB:]
        mine.close()

    with process(read) as pid:
        writer.write(data[: 4 * MIB])
        daemon.end(signal.SIGKILL)
        writer.write(data[4 * MIB : 12 * MIB])
        daemon = Daemon(address, memory_limit="4MiB")
        with writer:
            writer.write(data[12 * MIB :])
        assert ended(pid) == 0
    eventually(lambda: is_back(address))
    pool.close()
    daemon.end(signal.SIGTERM)


KILLS = sizes(4, 40, 200)


@pytest.mark.parametrize("kills", KILLS)
def test_kills_at_random_points_lose_nothing(pool: shmpool.Pool, kills: int) -> None:
    """The survivor has what was handed in, then its error; all chunks come back."""
    chance = random.Random(kills)
    data = content(4 * MIB)

    def check(reader: Any) -> None:
        count = 0
        while True:
            piece, at = reader.read1(), count % len(data)
            assert piece == (data + data)[at : at + len(piece)]
            count += len(piece)

    def write_on(writer: Any) -> None:
        while True:
            writer.write(data)

    for number in range(kills):
        reading, writing = os.pipe()

        def write(to: int = writing) -> None:
            mine = shmpool.connect(pool.address)
            with mine.stream() as writer:
                os.write(to, writer.handle)
                write_on(writer)

        def read(handle: shmpool.Handle, to: int = writing) -> None:
            mine = shmpool.connect(pool.address)
            with mine.open_reader(handle) as reader:
                os.write(to, b"!")  # who waits for a reader that never came waits for ever
                while True:
                    assert reader.read(len(data)) == data

        pause = chance.uniform(0.0, 0.03)
        if number % 2:
            with process(write) as pid:
                handle = os.read(reading, 24)
                with pool.open_reader(handle) as reader:
                    timer = threading.Timer(pause, os.kill, (pid, signal.SIGKILL))
                    timer.start()
                    with pytest.raises(shmpool.StreamBroken, match="died"):
                        check(reader)
                    timer.join()
        else:
            with pool.stream() as writer, process(lambda: read(writer.handle)) as pid:
                assert os.read(reading, 1) == b"!"
                timer = threading.Timer(pause, os.kill, (pid, signal.SIGKILL))
                timer.start()
                with pytest.raises(shmpool.StreamBroken):
                    write_on(writer)
                timer.join()
                writer.discard()
        os.close(reading)
        os.close(writing)
        eventually(lambda: is_back(pool.address))


@pytest.mark.parametrize("kills", sizes(1, 10, 50))
def test_brokers_killed_at_random_points_lose_nothing(tmp_path: Path, kills: int) -> None:
    address = str(tmp_path / "broker.sock")
    daemon = Daemon(address, memory_limit="4MiB")
    chance, data = random.Random(kills), content(MIB)
    pool = shmpool.connect(address)
    writer = pool.stream()

    def read() -> None:
        mine = shmpool.connect(address)
        with mine.open_reader(writer.handle) as reader:
            while piece := reader.read(len(data)):
                assert piece == data
        mine.close()

    with process(read) as pid:
        stop = threading.Event()

        def write() -> int:
            count = 0
            with writer:
                while not stop.is_set():
                    writer.write(data)
                    count += 1
            return count

        with thread(write) as written:
            for _ in range(kills):
                time.sleep(chance.uniform(0.0, 0.05))  # at any point of it
                daemon.end(signal.SIGKILL)
                daemon = Daemon(address, memory_limit="4MiB")
            stop.set()
        assert ended(pid) == 0
        assert written
    eventually(lambda: is_back(address))
    pool.close()
    daemon.end(signal.SIGTERM)
