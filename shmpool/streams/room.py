"""Room: the memory that a stream goes through. By the strategy that the pool prefers; where that cannot be
had at once, by the next: a file or a stream to another process by another strategy, which counts under its own
name, before it waits in line; a copy or a tee, which never waits for the pool nor fails for its sake, by as much
of this process's own memory. Each is logged once a minute at most.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .. import log
from ..errors import (
    BrokerUnavailable,
    InvalidSize,
    LeaseTimeout,
    PoolingRefused,
    QuotaExceeded,
    SharedMemoryFull,
    ShmpoolError,
)
from ..link.waiting import WORD, check_timeout
from ..protocol.figures import PAST_POOL
from ..protocol.sizing import KIB, Strategy
from ..system.outside import own

if TYPE_CHECKING:
    from ..lease import Lease
    from ..pool import BasePool

#: What is allocated at most in the place of a lease.
_OWN: Final = 64 * KIB
#: Seconds between two lines in the log that say the same.
_SAID_EVERY: Final = 60.0
_said_at: dict[str, float] = {}
#: Why a lease cannot be had as it was asked for.
_NOT_SO: Final = (LeaseTimeout, SharedMemoryFull, PoolingRefused, InvalidSize)
#: What is tried in the place of what the pool prefers.
_OTHERS: Final = (Strategy.CHUNKED, Strategy.DIRECT, Strategy.POOLED)


class OwnRoom:
    """Memory of this process's own."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.view = memoryview(bytearray(nbytes))

    def release(self) -> None:
        self.view.release()


def take_room(pool: BasePool, nbytes: int) -> Lease | OwnRoom:
    """*nbytes* bytes of the pool, by its choice of strategy; or fewer of this process's own, counted
    (`Stats.past_pool`). What is taken is released by the caller. Raises PoolClosed."""
    try:
        return pool.lease(nbytes, timeout=0)
    except own(*_NOT_SO, QuotaExceeded, BrokerUnavailable) as error:
        try:
            pool._live_session(0).count(PAST_POOL)
        except own(ShmpoolError):
            pass  # without a broker there is no seat to count at
        _say("a stream goes through memory of its own: the pool has none", error)
        return OwnRoom(min(nbytes, _OWN))


def lease_by_any(pool: BasePool, nbytes: int, timeout: float | None, *, pooled: int = 0) -> Lease:
    """A lease by the strategy that the pool prefers, else by the first other one that can be had at once,
    else in line for the preferred one, *timeout* seconds at most. A slot of *pooled* bytes serves too.
    Raises like `Pool.lease`."""
    started = time.monotonic()
    if timeout is not None:
        timeout = check_timeout(timeout)  # where nothing is waited for, too
    try:
        return pool.lease(nbytes, timeout=0)
    except own(*_NOT_SO) as error:
        refused = error
    except own(BrokerUnavailable, QuotaExceeded):
        if timeout == 0:
            raise
        return pool.lease(nbytes, timeout=timeout)
    for strategy in _OTHERS:
        if timeout is not None and time.monotonic() - started >= max(timeout, WORD):
            break  # each try of a broker that says nothing takes as long as that
        try:
            size = min(nbytes, pooled or nbytes) if strategy is Strategy.POOLED else nbytes
            lease = pool.lease(size, strategy=strategy, timeout=0)
            _say(f"a stream is served {lease.strategy.value}: its strategy could not be had", refused)
            return lease
        except own(*_NOT_SO, QuotaExceeded):
            pass
    left = None if timeout is None else max(0.0, started + timeout - time.monotonic())
    if left == 0:
        try:
            raise refused
        finally:
            del refused  # or it and this frame keep one another
    return pool.lease(nbytes, timeout=left)


def _say(what: str, why: Exception) -> None:
    now = time.monotonic()
    if now - _said_at.get(what, float("-inf")) > _SAID_EVERY:
        _said_at[what] = now
        log.warning("%s (%s)", what, why)
