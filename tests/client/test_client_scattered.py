"""Large leases where no place is large enough: as many pieces as it takes, stitched in every view."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from client_helpers import KIB, Common, pattern
from hypothesis import given, settings
from hypothesis import strategies as st

import shmpool
from shmpool.stats import TierStats

CHUNK = 16 * KIB
SETTINGS = {
    "memory_limit": "16MiB", "max_clients": 8, "pooled_sizes": ["4KiB"], "chunk_sizes": ["16KiB"],
    "medium_object_threshold": "2KiB", "large_object_threshold": "4KiB", "very_large_object_threshold": "16MiB",
}  # fmt: skip


@pytest.fixture(scope="module")
def little() -> Iterator[Common]:
    one = Common(**SETTINGS)
    one.broker()
    yield one
    one.close()


def all_chunks(pool: shmpool.Pool) -> Iterator[shmpool.Lease]:
    with contextlib.suppress(shmpool.LeaseTimeout):
        while True:
            yield pool.lease(CHUNK, timeout=0)


def chunk_tier(pool: shmpool.Pool) -> TierStats:
    return next(tier for tier in pool.stats().tiers if tier.kind == "chunk")


@pytest.mark.parametrize("more", [65, 300])
def test_a_lease_of_many_pieces_is_one_view_for_writer_and_reader(little: Common, more: int) -> None:
    """With every second chunk leased, by somebody else; the limit leaves the last ones free in a row."""
    with little.used() as broker, broker.connect() as hoarder, broker.connect() as pool, broker.connect() as reader:
        leases = list(all_chunks(hoarder))
        for lease in leases[::2]:
            lease.release()
        nbytes = (chunk_tier(pool).largest_run + more) * CHUNK - 100
        for number in range(2):
            with pool.lease(nbytes) as lease:
                assert len(lease.chunks) > 64
                assert b"".join(map(bytes, lease.chunks)) == lease.view
                lease.write(pattern(nbytes, number))
                handle = lease.publish()
            assert chunk_tier(pool).scattered == 1
            with reader.open(handle) as buffer:
                assert buffer.view == pattern(nbytes, number)
                assert b"".join(map(bytes, buffer.chunks)) == buffer.view
        for lease in leases[1::2]:
            lease.release()


def test_what_is_written_over_borders_of_chunks_is_what_is_read(little: Common) -> None:
    """Pieces anywhere, read in slices and as a file."""
    near_borders = st.builds(lambda chunk, by: max(0, chunk * CHUNK + by), st.integers(0, 150), st.integers(-9, 9))
    with little.used() as broker, broker.connect() as hoarder, broker.connect() as pool:
        leases = list(all_chunks(hoarder))
        for lease in leases[::2]:
            lease.release()
        nbytes = (chunk_tier(pool).largest_run + 70) * CHUNK

        @settings(max_examples=20)
        @given(st.lists(near_borders, max_size=6, unique=True), st.lists(near_borders, min_size=1, max_size=6))
        def check(writes: list[int], reads: list[int]) -> None:
            writes = [at for at in writes if at < nbytes]
            expected = bytearray(nbytes)
            ends = [*sorted(writes)[1:], nbytes]
            parts = [(at, pattern(min(end - at, 20_000), at)) for at, end in zip(sorted(writes), ends, strict=False)]
            for at, part in parts:
                expected[at : at + len(part)] = part
            with pool.lease(nbytes) as lease:
                lease.write_parts(parts)
                handle = lease.publish()
            with pool.open_reader(handle) as file:
                for at in reads:
                    file.seek(at)
                    assert file.read(CHUNK + 1) == expected[at : at + CHUNK + 1]
                assert file.getbuffer() == expected

        check()
        for lease in leases[1::2]:
            lease.release()
