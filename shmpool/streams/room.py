"""Room: the memory that a copy or a tee goes through. A lease; where the pool has none just now, as much
of this process's own: a stream never waits for the pool, nor fails for its sake."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ..errors import InvalidSize, LeaseTimeout, PoolingRefused, QuotaExceeded, SharedMemoryFull
from ..log import log
from ..protocol.figures import PAST_POOL
from ..protocol.sizing import KIB

if TYPE_CHECKING:
    from ..lease import Lease
    from ..pool import BasePool

#: What is allocated at most in the place of a lease.
_OWN: Final = 64 * KIB
#: Seconds between two lines in the log that say so.
_SAID_EVERY: Final = 60.0
_said_at: list[float] = []


class OwnRoom:
    """Memory of this process's own."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.view = memoryview(bytearray(nbytes))

    def release(self) -> None:
        self.view.release()


def take_room(pool: BasePool, nbytes: int) -> Lease | OwnRoom:
    """*nbytes* bytes of the pool, by its choice of strategy; or fewer of this process's own, counted
    (`Stats.past_pool`) and logged once a minute. What is taken is released by the caller."""
    try:
        return pool.lease(nbytes, timeout=0)
    except (LeaseTimeout, SharedMemoryFull, QuotaExceeded, PoolingRefused, InvalidSize) as error:
        pool._live_session().count(PAST_POOL)
        now = time.monotonic()
        if not _said_at or now - _said_at[-1] > _SAID_EVERY:
            _said_at[:] = [now]
            log.warning("a stream goes through memory of its own: the pool has none (%s)", error)
        return OwnRoom(min(nbytes, _OWN))
