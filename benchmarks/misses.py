"""Leases that miss the magazine, forced with nothing but settings and held leases.

`magazine_bytes` of one slot makes every refill ask for one, and what was leased is held, so
the magazine stays empty and each lease is one round trip: Refill out, Grant in. After a burst
all leases are released and given back to the broker in one message, as an idle client's
helper does after `magazine_idle`; that and one lease which waits until the broker has read
it are not counted. All slots are warm. That every counted lease was a miss is checked
against the pool's own figures."""

from __future__ import annotations

import time

import shmpool

from .units import KIB

NBYTES = 4 * KIB
#: Leases that are held before all are given back.
BURST = 128
#: For a broker whose clients miss whenever they hold what they leased.
SETTINGS = {"magazine_bytes": NBYTES, "magazine_idle": 3600, "buffer_lifetime": 3600}
#: What a client sends for a miss, as msgpack: Refill, request 1, the first tier, 1 of 1, queue.
REFILL = [2, 1, 0, 1, 1, True]


class Misses:
    """One pool whose leases all miss. The pool is its own: nobody else may lease from it."""

    def __init__(self, pool: shmpool.Pool) -> None:
        self._pool = pool
        self.run(BURST)  # what it holds is warm from now on

    def run(self, objects: int, until: float = float("inf")) -> list[float]:
        """Miss so many times, or until then (of `time.perf_counter`), but once at least: the seconds of each."""
        samples: list[float] = []
        while not samples or (len(samples) < objects and time.perf_counter() < until):
            samples += self._burst(min(BURST, objects - len(samples)), until)
        return samples

    def _burst(self, objects: int, until: float) -> list[float]:
        lease, clock, samples = self._pool.lease, time.perf_counter, []
        held = [lease(NBYTES)]  # the broker has read what was given back before
        for _ in range(objects):
            started = clock()
            leased = lease(NBYTES)
            samples.append(clock() - started)
            held.append(leased)
            if started >= until:
                break
        for leased in held:
            leased.release()
        self._pool._session.return_all()
        return samples


def check_all_missed(stats: shmpool.Stats) -> None:
    """Raises when a lease was served by a magazine."""
    if stats.pool_hits:
        raise RuntimeError(f"{stats.pool_hits} leases of {stats.total_gets} did not miss: the figures are not a miss's")
