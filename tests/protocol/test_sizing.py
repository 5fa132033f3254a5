"""Categories, strategies, tiers and runs at every boundary. Pure arithmetic: what a pool
really leases for a size is tested with the client."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.errors import ConfigError, InvalidSize, PoolingRefused, ShmpoolError
from shmpool.protocol.ledger import MAX_CHUNKS, MAX_NBYTES, MAX_ROWS
from shmpool.protocol.sizing import (
    DEFAULT_SIZING,
    DIRECT_ROWS,
    KIB,
    MAX_TIER_ROWS,
    MIB,
    PAGE,
    SizeCategory,
    Sizing,
    Strategy,
    Tier,
    TierKind,
    categorize,
    check_nbytes,
    check_pooled,
    chunk_run,
    format_bytes,
    make_tiers,
    optimal_chunk_size,
    page_round,
    pooled_tier,
    rows_of,
    select_strategy,
)

TIERS = make_tiers(256 * MIB, DEFAULT_SIZING)

BOUNDARIES = [
    (0, SizeCategory.SMALL, Strategy.POOLED),
    (1, SizeCategory.SMALL, Strategy.POOLED),
    (32 * KIB - 1, SizeCategory.SMALL, Strategy.POOLED),
    (32 * KIB, SizeCategory.MEDIUM, Strategy.POOLED),
    (256 * KIB - 1, SizeCategory.MEDIUM, Strategy.POOLED),
    (256 * KIB, SizeCategory.LARGE, Strategy.CHUNKED),
    (MIB - 1, SizeCategory.LARGE, Strategy.CHUNKED),
    (MIB, SizeCategory.VERY_LARGE, Strategy.DIRECT),
    (2**40 - 1, SizeCategory.VERY_LARGE, Strategy.DIRECT),
]


@pytest.mark.parametrize(("nbytes", "category", "strategy"), BOUNDARIES)
def test_each_boundary_has_its_category_and_strategy(nbytes: int, category: SizeCategory, strategy: Strategy) -> None:
    assert categorize(nbytes) is category
    assert select_strategy(nbytes) is strategy


@pytest.mark.parametrize("nbytes", [-1, -(2**70), 2**40, 2**64])
def test_sizes_of_no_object_are_invalid(nbytes: int) -> None:
    with pytest.raises(InvalidSize, match=str(nbytes)):
        select_strategy(nbytes)
    with pytest.raises(ValueError, match="nbytes"):
        check_nbytes(nbytes)


@pytest.mark.parametrize("nbytes", [True, False, 1.0, "4096", None, b"1", 4096.5])
def test_sizes_that_are_no_int_are_a_type_error(nbytes: object) -> None:
    with pytest.raises(TypeError, match=type(nbytes).__name__):
        select_strategy(nbytes)  # type: ignore[arg-type]


def test_thresholds_of_the_configuration_move_the_boundaries() -> None:
    sizing = Sizing(8 * KIB, 64 * KIB, 512 * KIB)
    assert categorize(8 * KIB - 1, sizing) is SizeCategory.SMALL
    assert categorize(8 * KIB, sizing) is SizeCategory.MEDIUM
    assert select_strategy(64 * KIB - 1, sizing) is Strategy.POOLED
    assert select_strategy(64 * KIB, sizing) is Strategy.CHUNKED
    assert select_strategy(512 * KIB - 1, sizing) is Strategy.CHUNKED
    assert select_strategy(512 * KIB, sizing) is Strategy.DIRECT


def test_medium_objects_beyond_the_largest_pooled_slot_are_chunked() -> None:
    sizing = Sizing(pooled_sizes=(4 * KIB, 64 * KIB))
    assert select_strategy(64 * KIB, sizing) is Strategy.POOLED
    assert select_strategy(64 * KIB + 1, sizing) is Strategy.CHUNKED


def test_equal_thresholds_leave_the_category_between_them_empty() -> None:
    sizing = Sizing(32 * KIB, 32 * KIB, 32 * KIB)
    assert select_strategy(32 * KIB - 1, sizing) is Strategy.POOLED
    assert select_strategy(32 * KIB, sizing) is Strategy.DIRECT


@given(st.integers(0, MAX_NBYTES))
def test_every_size_has_one_category_and_a_strategy_that_fits_it(nbytes: int) -> None:
    strategy = select_strategy(nbytes)
    expected = {
        SizeCategory.SMALL: Strategy.POOLED,
        SizeCategory.MEDIUM: Strategy.POOLED,
        SizeCategory.LARGE: Strategy.CHUNKED,
        SizeCategory.VERY_LARGE: Strategy.DIRECT,
    }
    assert strategy is expected[categorize(nbytes)]


# --- POOLED by name ---------------------------------------------------------------------


def test_pooled_is_refused_from_the_very_large_threshold_on() -> None:
    sizing = Sizing(pooled_sizes=(4 * KIB, 2 * MIB))
    check_pooled(MIB - 1, sizing)
    with pytest.raises(PoolingRefused, match="very_large_object_threshold"):
        check_pooled(MIB, sizing)


def test_pooled_is_refused_above_the_largest_pooled_slot() -> None:
    check_pooled(256 * KIB, DEFAULT_SIZING)
    with pytest.raises(PoolingRefused, match="pooled_sizes") as caught:
        check_pooled(256 * KIB + 1, DEFAULT_SIZING)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ShmpoolError)


# --- the configuration ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"medium_object_threshold": 0},
        {"medium_object_threshold": -1},
        {"medium_object_threshold": 512 * KIB},
        {"large_object_threshold": 2 * MIB},
        {"very_large_object_threshold": 1},
        {"very_large_object_threshold": 2**40},
        {"pooled_sizes": ()},
        {"pooled_sizes": (8 * KIB, 4 * KIB)},
        {"pooled_sizes": (4 * KIB, 4 * KIB)},
        {"pooled_sizes": (1000,)},
        {"pooled_sizes": (0, 4096)},
        {"pooled_sizes": (-4096, 4096)},
        {"chunk_sizes": ()},
        {"chunk_sizes": (100_000,)},
        {"chunk_sizes": tuple(PAGE * (n + 1) for n in range(26))},
    ],
)
def test_inconsistent_sizing_is_a_config_error_that_names_the_key(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Sizing(**fields)  # type: ignore[arg-type]


def test_sizing_is_frozen_and_hashable() -> None:
    assert hash(Sizing()) == hash(DEFAULT_SIZING)
    with pytest.raises(AttributeError):
        DEFAULT_SIZING.chunk_sizes = (4096,)  # type: ignore[misc]


# --- tiers ------------------------------------------------------------------------------


def test_default_tiers_are_pooled_then_chunks_then_direct() -> None:
    assert [(tier.kind, tier.size) for tier in TIERS] == [
        *((TierKind.POOLED, size * KIB) for size in (4, 16, 32, 64, 128, 256)),
        *((TierKind.CHUNK, size * KIB) for size in (64, 128)),
        (TierKind.DIRECT, 0),
    ]
    assert [tier.index for tier in TIERS] == list(range(9))
    assert [tier.label() for tier in TIERS[:2] + TIERS[-1:]] == ["pooled 4 KiB", "pooled 16 KiB", "direct"]
    assert TIERS[6].label() == "chunk 64 KiB"


@given(st.integers(256 * KIB, 2**42))
def test_tiers_share_the_ledger_without_gap_or_overlap(memory_limit: int) -> None:
    tiers = make_tiers(memory_limit, DEFAULT_SIZING)
    assert tiers[0].base == 1, "row 0 means 'none' in a link word"
    for tier, following in pairwise(tiers):
        assert tier.end == following.base
    for tier in tiers[:-1]:
        assert tier.capacity == min(memory_limit // tier.size, MAX_TIER_ROWS)
        assert 0 < tier.capacity * tier.size <= memory_limit
    assert tiers[-1].capacity == DIRECT_ROWS
    assert rows_of(tiers) == tiers[-1].end <= MAX_ROWS


@pytest.mark.parametrize("memory_limit", [0, 4095, 256 * KIB - 1])
def test_a_limit_below_one_slot_is_a_config_error(memory_limit: int) -> None:
    with pytest.raises(
        ConfigError, match=f"memory_limit is {re.escape(format_bytes(memory_limit))}, less than one slot of"
    ):
        make_tiers(memory_limit, DEFAULT_SIZING)


def test_as_many_tiers_as_the_sizing_allows_fit_a_ledger() -> None:
    sizes = tuple(PAGE * (n + 1) for n in range(30))
    tiers = make_tiers(2**40, Sizing(pooled_sizes=sizes, chunk_sizes=(64 * KIB,)))
    assert rows_of(tiers) <= MAX_ROWS


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [
        (0, 4 * KIB),
        (1, 4 * KIB),
        (4 * KIB, 4 * KIB),
        (4 * KIB + 1, 16 * KIB),
        (128 * KIB, 128 * KIB),
        (128 * KIB + 1, 256 * KIB),
        (256 * KIB, 256 * KIB),
    ],
)
def test_an_object_takes_the_smallest_slot_that_fits(nbytes: int, size: int) -> None:
    tier = pooled_tier(nbytes, TIERS)
    assert tier is not None
    assert (tier.kind, tier.size) == (TierKind.POOLED, size)


def test_no_pooled_tier_for_what_none_holds() -> None:
    assert pooled_tier(256 * KIB + 1, TIERS) is None


# --- runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "size", "chunks"),
    [
        (0, 64 * KIB, 1),
        (1, 64 * KIB, 1),
        (64 * KIB, 64 * KIB, 1),
        (64 * KIB + 1, 128 * KIB, 1),  # 128 KiB either way: fewer chunks win
        (128 * KIB, 128 * KIB, 1),
        (128 * KIB + 1, 64 * KIB, 3),  # less waste wins over fewer chunks
        (256 * KIB, 128 * KIB, 2),
        (256 * KIB + 1, 64 * KIB, 5),
        (320 * KIB + 1, 128 * KIB, 3),
        (MIB - 1, 128 * KIB, 8),
    ],
)
def test_a_run_wastes_least_and_ties_go_to_fewer_chunks(nbytes: int, size: int, chunks: int) -> None:
    found = chunk_run(nbytes, TIERS)
    assert found is not None
    tier, count = found
    assert (tier.kind, tier.size, count) == (TierKind.CHUNK, size, chunks)


@given(st.integers(0, 2 * MIB))
def test_no_other_run_is_better(nbytes: int) -> None:
    found = chunk_run(nbytes, TIERS)
    assert found is not None
    tier, count = found
    assert count * tier.size >= nbytes
    for other in TIERS[6:8]:
        chunks = max(1, -(-nbytes // other.size))
        assert (tier.size * count, count) <= (other.size * chunks, chunks)


def test_a_run_never_exceeds_its_tier() -> None:
    tiers = make_tiers(MIB, DEFAULT_SIZING)  # 16 chunks of 64 KiB, 8 of 128
    assert chunk_run(MIB, tiers) == (tiers[7], 8)
    assert chunk_run(MIB + 1, tiers) is None


def test_a_run_has_no_more_chunks_than_an_extent_word_can_tell() -> None:
    tiers = (Tier(0, TierKind.CHUNK, PAGE, 1, 1 << 20),)
    assert chunk_run(MAX_CHUNKS * PAGE, tiers) == (tiers[0], MAX_CHUNKS)
    assert chunk_run(MAX_CHUNKS * PAGE + 1, tiers) is None


# --- helpers ----------------------------------------------------------------------------


@pytest.mark.parametrize(("nbytes", "rounded"), [(0, 0), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)])
def test_page_round(nbytes: int, rounded: int) -> None:
    assert page_round(nbytes) == rounded


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (256 * MIB, "256 MiB"),
        (3 * 2**30, "3 GiB"),
        (2**40, "1 TiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("nbytes", "size"),
    [(1, 64), (64 * KIB, 64), (64 * KIB + 1, 128), (128 * KIB, 128), (128 * KIB + 1, 64), (300 * KIB, 64),
     (384 * KIB, 128), (900 * KIB, 64)],
)  # fmt: skip
def test_the_chunk_size_of_least_waste_and_of_fewer_chunks_is_chosen(nbytes: int, size: int) -> None:
    assert optimal_chunk_size(nbytes) == size * KIB
    run = chunk_run(nbytes, TIERS)
    assert run is not None and run[0].size == size * KIB
