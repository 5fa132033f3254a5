"""What is open for reading, whoever opened it and however it ends: one record for each cell."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from client_helpers import MIB, Connect, Start, eventually, pattern

import shmpool
from shmpool import Handle
from shmpool.seat import openings

SIZES = [4000, 300_000, 2 * MIB]


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


@pytest.fixture
def many_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def write_over(pool: shmpool.Pool, nbytes: int) -> None:
    """Write into all that can be had, and have the broker recall what the others have."""
    leases = []
    with contextlib.suppress(shmpool.LeaseTimeout):
        while True:
            leases.append(pool.lease(nbytes, timeout=0.05))
            leases[-1].view[:] = b"Z" * nbytes
    for lease in leases:
        lease.release()


@pytest.mark.usefixtures("many_switches")
def test_handle_opened_by_two_threads_at_once_stays_open_through_a_recall(start: Start) -> None:
    """The loser must not make the table forget what the winner has."""
    broker = start(memory_limit="16MiB")
    for _ in range(6):
        with broker.connect() as writer, broker.connect() as reader, broker.connect() as third:
            handles = [publish(writer, b"A" * 30_000) for _ in range(40)]
            own = reader.lease(5000)  # so that it is asked to give back
            got: list[shmpool.Buffer] = []
            barrier = threading.Barrier(2)

            def open_all(
                handles: list[Handle] = handles, reader: shmpool.Pool = reader, got: list[shmpool.Buffer] = got,
                barrier: threading.Barrier = barrier,
            ) -> None:  # fmt: skip
                for handle in handles:
                    barrier.wait()
                    with contextlib.suppress(shmpool.HandleUsed):
                        got.append(reader.open(handle))

            threads = [threading.Thread(target=open_all) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(got) == len(handles)
            write_over(third, 30_000)
            write_over(writer, 30_000)
            assert {bytes(buffer.view[:3]) for buffer in got} == {b"AAA"}
            own.release()
            for buffer in got:
                buffer.release()


RETURNS: list[tuple[str, Callable[[shmpool.Pool, Handle], Any]]] = [
    ("view", lambda pool, handle: pool.open(handle).view),
    ("slice", lambda pool, handle: pool.open(handle).view[:]),
    ("array", lambda pool, handle: np.frombuffer(pool.open(handle).view, np.uint8)),
    ("chunk", lambda pool, handle: pool.open(handle).chunks[0]),
]


@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize(("name", "take"), RETURNS, ids=[name for name, _ in RETURNS])
@pytest.mark.filterwarnings("ignore:a buffer of:ResourceWarning")
def test_view_of_a_buffer_that_nobody_keeps_is_good_until_it_dies(
    connect: Connect, nbytes: int, name: str, take: Callable[[shmpool.Pool, Handle], Any]
) -> None:
    pool = connect()
    view = take(pool, publish(pool, b"\x07" * nbytes))
    for _ in range(20):
        pool.discard(publish(pool, b"\x63" * nbytes))
    assert view[0] == view[len(view) - 1] == 7
    assert pool.stats().active_buffers == 1
    del view
    eventually(lambda: pool.stats().active_buffers == 0)


@pytest.mark.parametrize("nbytes", SIZES)
def test_view_of_a_lease_that_nobody_keeps_is_good_until_it_dies(connect: Connect, nbytes: int) -> None:
    pool = connect()
    with pytest.warns(ResourceWarning):
        view = pool.lease(nbytes).view
    view[:] = b"\x07" * nbytes
    for _ in range(20):
        pool.discard(publish(pool, b"\x63" * nbytes))
    assert view[0] == view[nbytes - 1] == 7
    del view
    eventually(lambda: pool.stats().active_buffers == 0)


@pytest.mark.parametrize("nbytes", [4000, 300_000])
def test_array_that_outlives_its_block_costs_no_map(connect: Connect, nbytes: int) -> None:
    """The usual code: the next object of a slot is seen at the same address."""
    pool, reader = connect(), connect()

    def receive(handle: Handle) -> tuple[int, int]:
        with reader.open(handle) as buffer:
            frame = np.frombuffer(buffer.view, np.uint8)
            assert frame[0] == 7
            return handle.row, frame.ctypes.data

    seen = {receive(publish(pool, b"\x07" * nbytes)) for _ in range(100)}
    assert len(seen) == len({row for row, _ in seen}) < 50


def test_reader_s_exporter_refuses_writes_by_itself(pool: shmpool.Pool) -> None:
    with pool.open(publish(pool, pattern(5000))) as buffer:
        frame = np.frombuffer(buffer.view, np.uint8)
        for target in (buffer.view, buffer.view.obj, memoryview(buffer.view.obj)):
            with pytest.raises(TypeError):
                target[0] = 1  # type: ignore[index]
        with pytest.raises((TypeError, BufferError)):
            (ctypes.c_char * 10).from_buffer(buffer.view.obj)  # type: ignore[arg-type]
        del target
    assert frame.tobytes() == pattern(5000)
    del frame


@pytest.mark.usefixtures("many_switches")
def test_more_cells_than_are_remembered_are_opened_by_several_threads(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that are not in use are forgotten, those in use never, and nobody is in another's way."""
    monkeypatch.setattr(openings, "MAX_RECORDS", 200)
    broker = start(memory_limit="64MiB", pooled_sizes=["4KiB"])
    with broker.connect() as writer, broker.connect() as reader:
        handles = [publish(writer, b"%05d" % number) for number in range(800)]
        kept = [reader.open(handle) for handle in handles[:80]]
        errors: list[BaseException] = []

        def read(first: int) -> None:
            try:
                for number in range(first, len(handles), 4):
                    with reader.open(handles[number]) as buffer:
                        assert bytes(buffer.view) == b"%05d" % number
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=(80 + first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        with open("/proc/self/maps") as maps:
            assert sum(f"{handles[0].pool_id:016x}-tier" in line for line in maps) < 800 + 400
        assert [bytes(buffer.view) for buffer in kept] == [b"%05d" % number for number in range(80)]
        for buffer in kept:
            buffer.release()
