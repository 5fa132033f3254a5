"""What the counters add up to, under the names that `metrics` declares: for the broker's reports, and for
whoever reads the ledger of a broker that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .census import Census, Tally, Use
from .figures import (
    CATEGORIES,
    DEFERRED,
    HELD_BY_VIEWS,
    LATENCIES,
    LATENCY_WORDS,
    LEASES,
    MISSES,
    PAST_POOL,
    STRATEGIES,
    TICKETS_ASKED,
    TIMEOUTS,
    quantile,
)

#: What a seat keeps; what it has shared nobody keeps alone.
_USES: Final = (Use.LEASED, Use.UNREAD, Use.OPEN, Use.HELD, Use.IDLE)
_NOTHING: Final = Tally()


def counted(
    totals: list[int], census: Census, at_least: Callable[[str, int], int] = lambda name, value: value
) -> dict[str, Any]:
    """The figures that follow from the counters of all seats and a census. *at_least*: by a counter's name
    and its value what is to be told, where it is a difference of two figures of different moments."""
    operations = {
        strategy: dict(zip(CATEGORIES, totals[LEASES + 4 * index :], strict=False))
        for index, strategy in enumerate(STRATEGIES)
    }
    strategies = {strategy: sum(of.values()) for strategy, of in operations.items()}
    gets, misses = sum(strategies.values()), totals[MISSES]
    return {
        "total_gets": gets,
        "total_puts": at_least("total_puts", gets - census.active),
        "pool_hits": at_least("pool_hits", strategies["pooled"] + strategies["chunked"] - misses),
        "pool_misses": misses,
        "active_buffers": census.active,
        "deferred_releases": totals[DEFERRED],
        "held_by_views": totals[HELD_BY_VIEWS],
        "lease_timeouts": totals[TIMEOUTS],
        "past_pool": totals[PAST_POOL],
        "tickets_asked": totals[TICKETS_ASKED],
        "operations": {name: sum(of[name] for of in operations.values()) for name in CATEGORIES},
        "strategies": strategies,
        "operations_by_strategy": operations,
        **_latencies(totals),
        "memory_efficiency": census.payload / census.active_bytes if census.active_bytes else 1.0,
    }


def _latencies(totals: list[int]) -> dict[str, Any]:
    sums, counts = {}, {}
    for index, name in enumerate(CATEGORIES):
        sums[name], *counts[name] = totals[LATENCIES + LATENCY_WORDS * index :][:LATENCY_WORDS]
    return {
        "average_latency_ns": {name: sums[name] // max(1, sum(counts[name])) for name in CATEGORIES},
        "p50_latency_ns": {name: quantile(counts[name], 0.50) for name in CATEGORIES},
        "p99_latency_ns": {name: quantile(counts[name], 0.99) for name in CATEGORIES},
        "latency_histogram": {name: {"counts": counts[name], "sum_ns": sums[name]} for name in CATEGORIES},
    }


def kept_by(seat: int, census: Census, held_by_views: int) -> dict[str, int]:
    """What a client's line says of what it keeps."""
    leased, unread, opened, held, idle = (census.kept.get((seat, use), _NOTHING) for use in _USES)
    return {
        "leases": leased.buffers + unread.buffers,
        "bytes": leased.nbytes + unread.nbytes + idle.nbytes,
        "unread": unread.buffers,
        "unread_bytes": unread.nbytes,
        "reads": opened.buffers + held.buffers,
        "read_bytes": opened.nbytes + held.nbytes,
        "held_by_views": held_by_views,
    }
