"""The figures of the stats, declared once: the counters that each seat writes.

A seat's block of counters lies behind the ledger's rows. Only the seat's own process
writes it, one store for each change; the broker sums the blocks, and folds a seat's block
into its own when the seat ends. `shmpool.stats` gives them their public names.
"""

from __future__ import annotations

from typing import Final

#: A seat's whole block: behind the counters there is room for histograms (docs/protocol.md).
COUNTER_WORDS: Final = 128
#: What of it counts today; the rest is 0.
USED_COUNTERS: Final = 24

#: Leases by strategy and category: ``LEASES + 4 * strategy + category``.
LEASES: Final = 0
#: Leases of a slot or a run that needed a broker round trip.
MISSES: Final = 12
#: Releases that waited for a view to die.
DEFERRED: Final = 13
#: Leases that ended in LeaseTimeout.
TIMEOUTS: Final = 14
#: A gauge, no counter: what is released or published, and waits for a view to die. It ends with its seat.
HELD_BY_VIEWS: Final = 15
#: Sampled lease latencies by category: how many, and their sum in nanoseconds.
SAMPLES: Final = 16
SAMPLED_NS: Final = 20

STRATEGIES: Final = ("pooled", "chunked", "direct")
CATEGORIES: Final = ("small", "medium", "large", "very_large")

#: One lease in so many is timed.
SAMPLE_EVERY: Final = 64

assert LEASES + len(STRATEGIES) * len(CATEGORIES) <= MISSES
assert SAMPLED_NS + len(CATEGORIES) == USED_COUNTERS < COUNTER_WORDS
