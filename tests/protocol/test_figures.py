"""A seat's block of counters: no two figures share a word."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.protocol import figures
from shmpool.protocol.sizing import STRATEGY_OF_KIND, SizeCategory


def test_no_two_counters_share_a_word() -> None:
    kinds = len(figures.STRATEGIES) * len(figures.CATEGORIES)
    words = [figures.LEASES + n for n in range(kinds)]
    words += [
        figures.MISSES,
        figures.DEFERRED,
        figures.TIMEOUTS,
        figures.HELD_BY_VIEWS,
        figures.PAST_POOL,
        figures.TICKETS_ASKED,
    ]
    for category in range(len(figures.CATEGORIES)):
        timed = figures.LATENCIES + figures.LATENCY_WORDS * category
        words += [timed, *(timed + to_bucket for to_bucket in sorted(set(figures.TO_BUCKET)))]
    assert len(set(words)) == len(words)
    assert max(words) == figures.USED_COUNTERS - 1 < figures.COUNTER_WORDS


@pytest.mark.parametrize("nanoseconds", [0, 1, 255, 256, 257, 999, 1023, 1024, 10**6, 2**32 - 1, 2**32, 10**12, 2**63])
def test_a_latency_lies_in_the_bucket_that_ends_behind_it(nanoseconds: int) -> None:
    bucket = figures.TO_BUCKET[nanoseconds.bit_length()] - 1
    ends = [0, *figures.BUCKET_ENDS_NS, float("inf")]
    assert len(ends) == figures.BUCKETS + 1
    assert ends[bucket] <= nanoseconds < ends[bucket + 1]


@given(st.lists(st.integers(0, 2**36), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_one_it_stands_for(latencies: list[int], share: float) -> None:
    counts = [0] * figures.BUCKETS
    for latency in latencies:
        counts[figures.TO_BUCKET[latency.bit_length()] - 1] += 1
    found = figures.quantile(counts, share)
    ranked = sorted(latencies)[max(0, math.ceil(share * len(latencies)) - 1)]
    bucket = figures.TO_BUCKET[ranked.bit_length()] - 1
    ends = [0, *figures.BUCKET_ENDS_NS]
    assert ends[bucket] <= found <= (ends[bucket + 1] if bucket + 1 < len(ends) else ends[bucket])


def test_quantiles_are_spread_over_their_bucket() -> None:
    counts = [0, 100, *[0] * (figures.BUCKETS - 2)]
    assert [figures.quantile(counts, share) for share in (0, 0.5, 1)] == [256, 384, 512]
    assert figures.quantile([0] * figures.BUCKETS, 0.5) == 0


def test_names_are_those_of_the_enums_in_their_order() -> None:
    assert [category.value for category in SizeCategory] == list(figures.CATEGORIES)
    assert [strategy.value for strategy in STRATEGY_OF_KIND] == list(figures.STRATEGIES)


def test_the_sampling_is_by_a_mask() -> None:
    """The hot path asks whether a counter's low bits are zero."""
    assert figures.SAMPLE_EVERY.bit_count() == 1


@given(st.lists(st.one_of(st.integers(0, 2**40), st.integers(0, 40).map((2).__pow__)), max_size=60), st.floats(0, 0.99))
def test_many_latencies_are_spread_as_they_are_one_by_one(latencies: list[int], fraction: float) -> None:
    expected = Counter(figures.TO_BUCKET[latency.bit_length()] for latency in latencies)
    found: Counter[int] = Counter()
    for bucket, count in figures.spread([latency + fraction for latency in latencies]):
        found[bucket] += count
    assert found == expected
