"""Where the preferred strategy cannot be had, a stream goes on by the next: by another of the pool's, or, a copy or
a tee, which never wait for the pool, through memory of its own."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

import shmpool
from shmpool.streams import room

CONTENT = bytes(range(256)) * 3000


@pytest.fixture
def full(pool: shmpool.Pool) -> Iterator[shmpool.Pool]:
    """Every byte of the pool is leased."""
    leases = []
    for nbytes in (1 << 20, 300_000, 100_000, 20_000, 4096):
        with suppress(shmpool.LeaseTimeout):
            while True:
                leases.append(pool.lease(nbytes, timeout=0))
    yield pool
    for lease in leases:
        lease.release()


class Source(io.BytesIO):
    read = None  # type: ignore[assignment]


@pytest.mark.parametrize("size", [5000, len(CONTENT), None])
def test_a_copy_goes_on_where_the_pool_is_full(full: shmpool.Pool, size: int | None) -> None:
    content, target = CONTENT[: size or len(CONTENT)], io.BytesIO()
    before = full.stats().past_pool
    assert shmpool.copy(Source(content), target, full, size) == len(content)
    assert target.getvalue() == content
    assert full.stats().past_pool == before + 1


def test_a_tee_goes_on_where_the_pool_is_full(full: shmpool.Pool) -> None:
    copied = io.BytesIO()
    before = full.stats().past_pool
    with shmpool.ChunkedTeeReader(io.BytesIO(CONTENT), copied, full) as tee:
        assert tee.read() == CONTENT == copied.getvalue()
    assert full.stats().past_pool == before + 1


def test_that_is_logged_once_a_minute(
    full: shmpool.Pool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_said_at", {})
    with caplog.at_level(logging.WARNING, logger="shmpool"):
        for _ in range(5):
            shmpool.copy(Source(CONTENT), io.BytesIO(), full)
    assert [record.message for record in caplog.records if "memory of its own" in record.message][1:] == []
    assert len(caplog.records) == 1


def test_a_copy_goes_on_without_a_broker() -> None:
    with shmpool.Broker(memory_limit="8MiB") as broker, broker.connect() as pool:
        os.kill(broker.pid, signal.SIGKILL)
        target = io.BytesIO()
        assert shmpool.copy(Source(CONTENT), target, pool) == len(CONTENT)
        assert target.getvalue() == CONTENT


# --- by another strategy --------------------------------------------------------------------------------


def no_segments(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no room here for a segment of its own")


def test_a_file_to_write_is_chunked_where_its_segment_cannot_be_made(
    pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "_said_at", {})
    monkeypatch.setattr("shmpool.system.memory.require", no_segments)
    before = pool.stats().strategies["chunked"]
    for _ in range(3):
        with caplog.at_level(logging.WARNING, logger="shmpool"), pool.open_writer(2 << 20) as file:
            file.write(CONTENT)
        with pool.open_reader(file.handle) as read:
            assert read.read() == CONTENT
    assert pool.stats().strategies["chunked"] == before + 3
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "served chunked" in said[0] and "no room here" in said[0]


def test_a_file_that_grows_does_too(pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmpool.system.memory.require", no_segments)
    with pool.open_writer() as file:
        for _ in range(3):
            file.write(CONTENT)
    with pool.open_reader(file.handle) as read:
        assert read.read() == 3 * CONTENT


def test_a_stream_goes_through_slots_where_chunks_are_bound() -> None:
    with (
        shmpool.Broker(memory_limit="64MiB", max_concurrent_large_ops=1) as broker,
        broker.connect() as pool,
        broker.connect() as reader,
        pool.lease(300_000),
    ):
        before = pool.stats().strategies["pooled"]
        with pool.stream() as writer:
            read = reader.open_reader(writer.handle, timeout=60)
            for _ in range(3):
                writer.write(CONTENT[:200_000])
                writer.flush()
                assert read.read(200_000) == CONTENT[:200_000]
        assert read.read() == b""
        read.close()
        assert pool.stats().strategies["pooled"] > before


def test_who_can_have_none_at_once_waits_in_line(full: shmpool.Pool) -> None:
    with pytest.raises(shmpool.LeaseTimeout):
        full.open_writer(100, timeout=0.01)
    with pytest.raises(shmpool.LeaseTimeout):
        full.open_writer(2 << 20, timeout=0)
