"""`Lease.readinto_from`: every strategy is filled straight from a descriptor, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_helpers import KIB, MIB, Common, pattern

import shmpool

#: Pooled, chunked, direct.
SIZES = (0, 1, 4097, 300 * KIB, MIB + 17)
NBYTES = 3 * MIB


@pytest.fixture(scope="module")
def plenty() -> Iterator[Common]:
    one = Common(memory_limit="64MiB")
    one.broker()
    yield one
    one.close()


@pytest.fixture
def pool(plenty: Common) -> Iterator[shmpool.Pool]:
    with plenty.used() as broker, broker.connect() as pool:
        yield pool


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filling") / "source"
    path.write_bytes(pattern(NBYTES, 3))
    return path


@pytest.fixture(params=["elsewhere", "beside the segments"])
def source(request: pytest.FixtureRequest, path: Path) -> Iterator[int]:
    """A file that the kernel may have to read, and one of which it copies the range by itself."""
    if request.param == "elsewhere":
        fd = os.open(path, os.O_RDONLY)
    else:
        fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
        os.pwrite(fd, pattern(NBYTES, 3), 0)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_a_reader_sees_is_what_the_file_has(pool: shmpool.Pool, source: int, nbytes: int) -> None:
    content = pattern(NBYTES, 3)
    for offset, at in ((5, 5), (None, 0), (None, nbytes)):
        with pool.lease(nbytes) as lease:
            assert lease.readinto_from(source, offset) == nbytes
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.view == content[at : at + nbytes]
    assert os.lseek(source, 0, os.SEEK_CUR) == 2 * nbytes


@pytest.mark.parametrize("nbytes", SIZES[1:])
def test_a_segment_that_is_mapped_or_kept_is_filled_through_its_map(
    pool: shmpool.Pool, source: int, nbytes: int
) -> None:
    for _ in range(4):
        with pool.lease(nbytes) as lease:
            lease.view[:1] = b"x"
            assert lease.readinto_from(source, 7) == nbytes
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(NBYTES, 3)[7 : 7 + nbytes]


@pytest.mark.parametrize("nbytes", SIZES[1:])
def test_a_short_file_fills_what_it_has(pool: shmpool.Pool, source: int, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        assert lease.readinto_from(source, NBYTES - 1) == 1
        lease.shorten(1)
        handle = lease.publish()
    with pool.open(handle) as buffer:
        assert buffer.view == pattern(NBYTES, 3)[-1:]
    with pool.lease(nbytes) as lease:
        assert lease.readinto_from(source, NBYTES) == lease.readinto_from(source, 2 * NBYTES) == 0


@pytest.mark.parametrize("nbytes", [4097, MIB + 17])
def test_a_pipe_fills_what_comes_also_through_signals(pool: shmpool.Pool, nbytes: int) -> None:
    there, back = os.pipe()
    content = pattern(nbytes, 5)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)

    def write() -> None:
        for at in range(0, nbytes, 60_000):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.write(back, content[at : at + 60_000])
        os.close(back)

    thread = threading.Thread(target=write)
    try:
        with pool.lease(nbytes + 10) as lease:
            thread.start()
            assert lease.readinto_from(there) == nbytes
            assert lease.view[:nbytes] == content
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        os.close(there)


@pytest.mark.parametrize("nbytes", [4097, MIB + 17])
def test_what_does_not_block_gives_what_it_has(pool: shmpool.Pool, nbytes: int) -> None:
    there, back = os.pipe()
    os.set_blocking(there, False)
    try:
        with pool.lease(nbytes) as lease:
            with pytest.raises(BlockingIOError):
                lease.readinto_from(there)
            os.write(back, b"some")
            assert lease.readinto_from(there) == 4
            assert lease.view[:4] == b"some"
    finally:
        os.close(there)
        os.close(back)


@pytest.mark.parametrize("nbytes", [4097, MIB + 17])
def test_what_cannot_be_read_is_refused_and_the_lease_goes_on(pool: shmpool.Pool, path: Path, nbytes: int) -> None:
    closed, write_only = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    os.close(closed)
    folder, (there, back) = os.open("/", os.O_RDONLY), os.pipe()
    try:
        with pool.lease(nbytes) as lease:
            for fd, offset, error in (
                (closed, None, OSError), (write_only, 0, OSError), (folder, None, IsADirectoryError),
                (there, 0, OSError), (-1, None, ValueError), (there, -1, ValueError),
                (there, 1.0, ValueError), (True, None, TypeError), ("source", None, TypeError),
            ):  # fmt: skip
                with pytest.raises(error):
                    lease.readinto_from(fd, offset)  # type: ignore[arg-type]
            lease.write(pattern(nbytes, 1))
            handle = lease.publish()
            with pytest.raises(shmpool.LeaseReleased):
                lease.readinto_from(there)
        with pool.open(handle) as buffer:
            assert buffer.view == pattern(nbytes, 1)
    finally:
        for fd in (write_only, folder, there, back):
            os.close(fd)


@pytest.mark.parametrize(
    "gibibytes", [pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.exhaustive)]
)
def test_an_object_of_several_gibibytes_is_filled_read_and_given_back(gibibytes: int) -> None:
    """Longer than one call of the kernel's moves, and on demand than 32 bits count."""
    nbytes = (gibibytes << 30) + 12345
    marks = {0, (1 << 31) - 3, (gibibytes << 30) - 3, nbytes - 6}
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    try:
        os.truncate(fd, nbytes)
        for at in marks:
            os.pwrite(fd, b"mark%02d" % (at % 97), at)
        with shmpool.Broker(memory_limit=nbytes + 64 * MIB) as broker, broker.connect() as pool:
            with pool.lease(nbytes) as lease:
                assert lease.readinto_from(fd, 0) == nbytes
                handle = lease.publish()
            with pool.open(handle) as buffer:
                assert buffer.nbytes == nbytes
                for at in marks:
                    assert buffer.view[at : at + 6] == b"mark%02d" % (at % 97)
    finally:
        os.close(fd)
