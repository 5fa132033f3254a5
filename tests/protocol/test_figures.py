"""A seat's block of counters: no two figures share a word."""

from __future__ import annotations

from shmpool.protocol import figures
from shmpool.protocol.sizing import STRATEGY_OF_KIND, SizeCategory


def test_no_two_counters_share_a_word() -> None:
    kinds = len(figures.STRATEGIES) * len(figures.CATEGORIES)
    words = [figures.LEASES + n for n in range(kinds)]
    words += [figures.MISSES, figures.DEFERRED, figures.TIMEOUTS]
    words += [first + n for first in (figures.SAMPLES, figures.SAMPLED_NS) for n in range(len(figures.CATEGORIES))]
    assert len(set(words)) == len(words)
    assert max(words) < figures.COUNTER_WORDS


def test_names_are_those_of_the_enums_in_their_order() -> None:
    assert [category.value for category in SizeCategory] == list(figures.CATEGORIES)
    assert [strategy.value for strategy in STRATEGY_OF_KIND] == list(figures.STRATEGIES)


def test_the_sampling_is_by_a_mask() -> None:
    """The hot path asks whether a counter's low bits are zero."""
    assert figures.SAMPLE_EVERY.bit_count() == 1
