"""The counters that each seat writes: what of its block means what.

A seat's block lies behind the ledger's rows. Only the seat's own process writes it, one store
for each change; the broker sums the blocks, and folds a seat's block into its own when the seat
ends. What is told of them, under which names: `metrics`.
"""

from __future__ import annotations

import sys
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

#: A seat's whole block.
COUNTER_WORDS: Final = 128

STRATEGIES: Final = ("pooled", "chunked", "direct")
CATEGORIES: Final = ("small", "medium", "large", "very_large")

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
#: What was timed of leases, by category: ``LATENCIES + LATENCY_WORDS * category`` has the sum in
#: nanoseconds, the words behind it, one for each bucket, how many leases took how long.
LATENCIES: Final = 16
#: Bucket n has the latencies from 2^(7 + n) to 2^(8 + n) ns, the first all that are shorter, the
#: last all that are longer (from 4.3 s on).
BUCKETS: Final = 26
LATENCY_WORDS: Final = 1 + BUCKETS
#: From a category's sum to the word of a latency's bucket, by the latency's bits.
TO_BUCKET: Final = tuple(1 + min(max(bits - 8, 0), BUCKETS - 1) for bits in range(65))
#: Where each but the last ends, in nanoseconds.
BUCKET_ENDS_NS: Final = tuple(1 << 8 + bucket for bucket in range(BUCKETS - 1))
#: Streams that went through memory of their own, since the pool had none.
PAST_POOL: Final = LATENCIES + LATENCY_WORDS * len(CATEGORIES)
#: Tickets that the broker took for a process that cannot swap words.
TICKETS_ASKED: Final = PAST_POOL + 1
#: What of a block counts today; the rest is 0.
USED_COUNTERS: Final = TICKETS_ASKED + 1

#: One lease in so many is timed; with `detailed_metrics` each is.
SAMPLE_EVERY: Final = 64

assert LEASES + len(STRATEGIES) * len(CATEGORIES) <= MISSES
assert USED_COUNTERS < COUNTER_WORDS


#: Of a double's bytes, the one with sign and the exponent's upper bits, and the one with its lower four.
_UPPER, _LOWER = (7, 6) if sys.byteorder == "little" else (0, 1)
_LOWER_FOUR: Final = bytes(byte >> 4 for byte in range(256))
#: As it is stored. One has one bit.
_EXPONENT_OF_ONE: Final = 1023


def spread(latencies: Sequence[float]) -> Iterator[tuple[int, int]]:
    """In which words behind a category's sum these count, in nanoseconds, and how many of them in each; a
    word may come more than once. By the exponents of all at once: bit lengths one by one take three times
    as long."""
    raw = array("d", latencies).tobytes()
    upper, lower = raw[_UPPER::8], raw[_LOWER::8].translate(_LOWER_FOUR)
    while upper:
        first, alike = upper[0], lower
        if others := upper.replace(upper[:1], b""):
            alike = bytes(four for four, one in zip(lower, upper, strict=True) if one == first)
            lower = bytes(four for four, one in zip(lower, upper, strict=True) if one != first)
        for four in range(16):
            if count := alike.count(four):
                yield TO_BUCKET[max((first << 4 | four) - _EXPONENT_OF_ONE + 1, 0)], count
        upper = others


def quantile(counts: Sequence[int], share: float) -> int:
    """The latency, in nanoseconds, that a *share* (0 to 1) of those in a histogram do not pass: as
    if they were spread evenly over their bucket. 0 without any; of the last bucket, its beginning."""
    before, wanted = 0, share * sum(counts)
    for bucket, count in enumerate(counts):
        if count and before + count >= wanted:
            low = BUCKET_ENDS_NS[bucket - 1] if bucket else 0
            high = BUCKET_ENDS_NS[bucket] if bucket < len(BUCKET_ENDS_NS) else low
            return round(low + (high - low) * (wanted - before) / count)
        before += count
    return 0
