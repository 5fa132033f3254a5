"""One object through lease, write, publish, open and release, at every size and strategy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from client_helpers import KIB, MIB, PATIENCE, Start, lease_all, out, pattern

import shmpool
from shmpool import SizeCategory, Strategy

BOUNDARIES = [
    (0, Strategy.POOLED, SizeCategory.SMALL),
    (1, Strategy.POOLED, SizeCategory.SMALL),
    (4096, Strategy.POOLED, SizeCategory.SMALL),
    (4097, Strategy.POOLED, SizeCategory.SMALL),
    (32 * KIB - 1, Strategy.POOLED, SizeCategory.SMALL),
    (32 * KIB, Strategy.POOLED, SizeCategory.MEDIUM),
    (32 * KIB + 1, Strategy.POOLED, SizeCategory.MEDIUM),
    (256 * KIB - 1, Strategy.POOLED, SizeCategory.MEDIUM),
    (256 * KIB, Strategy.CHUNKED, SizeCategory.LARGE),
    (MIB - 1, Strategy.CHUNKED, SizeCategory.LARGE),
    (MIB, Strategy.DIRECT, SizeCategory.VERY_LARGE),
    (5_000_000, Strategy.DIRECT, SizeCategory.VERY_LARGE),
]
SIZES = [nbytes for nbytes, _, _ in BOUNDARIES]


def there_and_back(pool: shmpool.Pool, nbytes: int, strategy: Strategy, *, by_write: bool) -> None:
    content = pattern(nbytes, seed=nbytes % 251)
    with pool.lease(nbytes, strategy=strategy) as lease:
        assert lease.nbytes == nbytes
        if by_write:
            lease.write(content)
        assert (lease.view.nbytes, lease.view.format, lease.view.ndim) == (nbytes, "B", 1)
        assert not lease.view.readonly
        if not by_write:
            lease.view[:] = content
        assert b"".join(lease.chunks) == content
        handle = lease.publish()
    assert handle.nbytes == nbytes
    with pool.open(handle) as buffer:
        assert (buffer.nbytes, buffer.view.nbytes, buffer.view.format) == (nbytes, nbytes, "B")
        assert buffer.view.readonly
        assert buffer.view == content
        assert b"".join(buffer.chunks) == content


@pytest.mark.parametrize(("nbytes", "strategy", "category"), BOUNDARIES)
def test_adaptive_takes_the_strategy_of_the_table(
    pool: shmpool.Pool, nbytes: int, strategy: Strategy, category: SizeCategory
) -> None:
    for _ in range(3):  # the first is a miss, the next are hits
        with pool.lease(nbytes) as lease:
            assert (lease.strategy, lease.category) == (strategy, category)
    before = pool.stats()
    there_and_back(pool, nbytes, Strategy.ADAPTIVE, by_write=True)
    there_and_back(pool, nbytes, Strategy.ADAPTIVE, by_write=False)
    after = pool.stats()
    assert after.strategies[strategy.value] - before.strategies[strategy.value] == 2
    assert after.operations[category.value] - before.operations[category.value] == 2


@pytest.mark.parametrize("by_write", [True, False])
@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("strategy", [Strategy.CHUNKED, Strategy.DIRECT])
def test_chunked_and_direct_work_at_any_size(
    pool: shmpool.Pool, nbytes: int, strategy: Strategy, by_write: bool
) -> None:
    there_and_back(pool, nbytes, strategy, by_write=by_write)
    with pool.lease(nbytes, strategy=strategy) as lease:
        assert lease.strategy is strategy


@pytest.mark.parametrize("nbytes", [n for n in SIZES if n < 256 * KIB] + [256 * KIB])
def test_pooled_works_up_to_the_largest_pooled_slot(pool: shmpool.Pool, nbytes: int) -> None:
    there_and_back(pool, nbytes, Strategy.POOLED, by_write=True)
    with pool.lease(nbytes, strategy=Strategy.POOLED) as lease:
        assert lease.strategy is Strategy.POOLED


@pytest.mark.parametrize("nbytes", [256 * KIB + 1, MIB - 1, MIB, 5_000_000])
def test_pooled_is_refused_above_the_largest_slot_and_nothing_is_leased(pool: shmpool.Pool, nbytes: int) -> None:
    with pytest.raises(shmpool.PoolingRefused, match=str(nbytes)) as refused:
        pool.lease(nbytes, strategy=Strategy.POOLED)
    assert isinstance(refused.value, ValueError)
    assert out(pool.stats()) == 0


def test_very_large_threshold_wins_over_a_pooled_slot_that_would_fit(start: Start) -> None:
    broker = start(very_large_object_threshold="128KiB", large_object_threshold="64KiB", max_buffer_size="128KiB")
    with broker.connect() as pool:
        with pool.lease(128 * KIB - 1, strategy=Strategy.POOLED) as lease:
            assert lease.strategy is Strategy.POOLED
        with pytest.raises(shmpool.PoolingRefused, match="131072"):
            pool.lease(128 * KIB, strategy=Strategy.POOLED)


@pytest.mark.parametrize(
    ("nbytes", "error"),
    [
        (-1, shmpool.InvalidSize),
        (-(2**70), shmpool.InvalidSize),
        (2**40, shmpool.InvalidSize),
        (2**40 - 1, shmpool.InvalidSize),
        (2**200, shmpool.InvalidSize),
        (64 * MIB, shmpool.InvalidSize),
        (np.int64(-5), shmpool.InvalidSize),
        (True, TypeError),
        (False, TypeError),
        (1.0, TypeError),
        (float("nan"), TypeError),
        ("1", TypeError),
        (b"1", TypeError),
        (None, TypeError),
        (np.float64(4.0), TypeError),
        (np.bool_(True), TypeError),
        ([1], TypeError),
    ],
)
@pytest.mark.parametrize("strategy", list(Strategy))
def test_absurd_size_is_refused_at_once_and_nothing_is_leased(
    pool: shmpool.Pool, nbytes: Any, error: type[Exception], strategy: Strategy
) -> None:
    expected: tuple[type[Exception], ...] = (error,)
    if strategy is Strategy.POOLED and error is shmpool.InvalidSize:
        expected = (error, shmpool.PoolingRefused)
    with pytest.raises(expected) as refused:
        pool.lease(nbytes, strategy=strategy)
    assert isinstance(refused.value, TypeError if error is TypeError else ValueError)
    assert len(str(refused.value)) > 10
    stats = pool.stats()
    assert (out(stats), stats.active_buffers) == (0, 0)
    with pool.lease(10) as lease:  # and the pool goes on
        lease.write(b"0123456789")


@pytest.mark.parametrize("strategy", ["fast", None, 3])
def test_unknown_strategy_is_refused(pool: shmpool.Pool, strategy: Any) -> None:
    with pytest.raises(ValueError):
        pool.lease(10, strategy=strategy)
    assert out(pool.stats()) == 0


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, np.uint64, np.intp])
def test_numpy_integers_are_sizes(pool: shmpool.Pool, kind: Any) -> None:
    with pool.lease(kind(100)) as lease:
        assert lease.nbytes == 100
        assert type(lease.nbytes) is int
        lease.write(b"n" * 100)
        handle = lease.publish()
    with pool.open(handle) as buffer:
        assert bytes(buffer.view) == b"n" * 100


@pytest.mark.parametrize("nbytes", [0, 100, 100_000, 300_000, 2 * MIB])
def test_write_of_another_length_writes_nothing(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        content = pattern(nbytes)
        lease.write(content)
        for wrong in (nbytes + 1, max(0, nbytes - 1)):
            if wrong != nbytes:
                with pytest.raises(ValueError, match=str(wrong)):
                    lease.write(b"!" * wrong)
        assert lease.view == content


@pytest.mark.parametrize("strategy", [Strategy.POOLED, Strategy.CHUNKED, Strategy.DIRECT])
def test_write_takes_any_contiguous_buffer(pool: shmpool.Pool, strategy: Strategy) -> None:
    numbers = np.arange(2000, dtype=np.float64).reshape(40, 50)
    for source in (numbers, bytearray(numbers.tobytes()), memoryview(numbers), numbers.data.cast("B")):
        with pool.lease(numbers.nbytes, strategy=strategy) as lease:
            lease.write(source)  # type: ignore[arg-type]
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert np.array_equal(np.frombuffer(buffer.view, dtype=np.float64).reshape(40, 50), numbers)


def test_non_contiguous_source_is_refused_and_the_lease_goes_on(pool: shmpool.Pool) -> None:
    numbers = np.arange(200, dtype=np.uint8)
    for strategy in (Strategy.POOLED, Strategy.DIRECT):
        with pool.lease(100, strategy=strategy) as lease:
            with pytest.raises((ValueError, TypeError, BufferError)):
                lease.write(memoryview(numbers.reshape(100, 2)[:, 0]).cast("B"))
            lease.write(numbers[:100])  # type: ignore[arg-type]
            pool.discard(lease.publish())


# --- scattered leases ---------------------------------------------------------------------------


def test_scattered_lease_is_whole_for_writer_and_reader(start: Start) -> None:
    broker = start(chunk_sizes=["64KiB"], pooled_sizes=["4KiB"])
    with broker.connect() as pool, broker.connect() as reader:
        held = lease_all(pool, 64 * KIB, Strategy.CHUNKED)
        assert len(held) > 20
        for lease in held[::2]:
            lease.release()
        # More than the cold rows at the end, which the pool's tables keep from being warmed all.
        nbytes = 20 * 64 * KIB - 100
        for seed in range(3):  # the run is recycled as it is
            content = pattern(nbytes, seed)
            lease = pool.lease(nbytes, strategy=Strategy.CHUNKED, timeout=PATIENCE)
            extents = [chunk.nbytes for chunk in lease.chunks]
            assert (sum(extents), len(extents) >= 4) == (nbytes, True), "it is not scattered: the test shows nothing"
            lease.view[:] = content
            assert b"".join(lease.chunks) == content
            handle = lease.publish()
            for other in held[1::2]:  # its neighbours are written meanwhile
                other.view[:] = b"\xff" * (64 * KIB)
            with reader.open(handle) as buffer:
                assert buffer.view == content
                assert [chunk.nbytes for chunk in buffer.chunks] == extents
                assert b"".join(buffer.chunks) == content
        for lease in held[1::2]:
            assert lease.view == b"\xff" * (64 * KIB)
            lease.release()


def test_row_that_heads_another_shape_of_run_is_mapped_anew(start: Start) -> None:
    """A reader keeps its map of a cell only as long as the run is the one it mapped."""
    broker = start(chunk_sizes=["64KiB"], pooled_sizes=["4KiB"])
    with broker.connect() as reader:
        rows = set()
        for chunks in (3, 1, 5, 2, 4, 3):
            nbytes = chunks * 64 * KIB
            with broker.connect() as pool:
                content = pattern(nbytes, chunks)
                with pool.lease(nbytes, strategy=Strategy.CHUNKED) as lease:
                    lease.write(content)
                    handle = lease.publish()
                rows.add(handle.row)
                with reader.open(handle) as buffer:
                    assert buffer.view == content
        assert len(rows) < 6, "no row came twice: the test shows nothing"
