"""Every lease timed, where the broker's configuration asks for it (``detailed_metrics = true``).

A pool without it does not come here: a pool with it is of another class. Two looks at the clock
and two counters are all that a lease pays for it, so its hot path is written once more.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Final
from weakref import proxy

from .lease import Lease
from .link.waiting import check_timeout
from .live_lease import LiveLease
from .pool import BasePool
from .protocol.figures import LATENCIES, LATENCY_WORDS, LEASES, TO_BUCKET
from .protocol.ledger import EXTENT
from .protocol.sizing import PAGE, PAGE_SHIFT, Strategy, StrategyLike
from .system.here import HERE, OURS

_ADAPTIVE: Final = Strategy.ADAPTIVE
_PAGE_LESS_ONE: Final = PAGE - 1
_POOLED_SMALL: Final = LEASES
_POOLED_MEDIUM: Final = LEASES + 1
_CHUNKED_LARGE: Final = LEASES + 4 + 2
_SMALL: Final = LATENCIES
_MEDIUM: Final = LATENCIES + LATENCY_WORDS
_LARGE: Final = LATENCIES + 2 * LATENCY_WORDS

_new_lease = LiveLease.__new__


class DetailedPool(BasePool):
    """A pool that times each lease."""

    def lease(self, nbytes: int, *, strategy: StrategyLike = _ADAPTIVE, timeout: float | None = None) -> Lease:
        started = perf_counter_ns()
        if timeout is not None:
            timeout = check_timeout(timeout)
        session = self._session
        if (
            session is None
            or session.is_over
            or not HERE[OURS]
            or strategy is not _ADAPTIVE
            or type(nbytes) is not int
            or nbytes < 0
        ):
            return self._lease_otherwise(nbytes, strategy, timeout)
        if nbytes < session.pooled_below:
            magazine = session.pooled[nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT]
            counters = session.counters
            if nbytes < session.medium_from:
                counter, timed = counters + _POOLED_SMALL, counters + _SMALL
            else:
                counter, timed = counters + _POOLED_MEDIUM, counters + _MEDIUM
        elif nbytes < session.chunked_below and (found := session.chunked.get(nbytes + _PAGE_LESS_ONE >> PAGE_SHIFT)):
            magazine = found
            counter, timed = session.counters + _CHUNKED_LARGE, session.counters + _LARGE
        else:
            return self._lease_otherwise(nbytes, strategy, timeout)
        words = session.words
        try:
            slot = magazine.ready.pop() if magazine.ready else magazine.reap()
        except IndexError:  # another thread took it
            slot = None
        if slot is None:
            slot = session.obtain(magazine, nbytes, timeout)
            if slot.magazine is not magazine:
                other = self._make_lease(session, slot, nbytes, counter)
                session.note_latency((counter - session.counters - LEASES) % 4, perf_counter_ns() - started)
                return other
        word = slot.word
        words[word] = slot.base | session.leased
        words[word + EXTENT] = slot.extent_word | nbytes
        words[counter] += 1
        lease = _new_lease(LiveLease)
        lease._slot = slot
        slot.lease = proxy(lease)
        lease.nbytes = nbytes
        window = slot.window or session.window_for(slot)
        lease.view = memoryview(window)[:nbytes]
        took = perf_counter_ns() - started
        words[timed] += took
        words[timed + TO_BUCKET[took.bit_length()]] += 1
        return lease
