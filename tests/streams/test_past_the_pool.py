"""A stream never waits for the pool: where it has no memory, it goes through memory of its own."""

from __future__ import annotations

import io
import logging
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
    monkeypatch.setattr(room, "_said_at", [])
    with caplog.at_level(logging.WARNING, logger="shmpool"):
        for _ in range(5):
            shmpool.copy(Source(CONTENT), io.BytesIO(), full)
    assert [record.message for record in caplog.records if "memory of its own" in record.message][1:] == []
    assert len(caplog.records) == 1
