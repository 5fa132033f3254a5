"""shmpool on an event loop: the verbs of a pool, awaitable.

::

    async with shmpool.aio.connect() as pool:
        async with pool.lease(len(data)) as lease:
            lease.write(data)
            handle = lease.publish()

What needs no waiting is done at once, without giving the loop its turn; only waits suspend, and no thread waits
for them. A task that is cancelled gives everything back. A pool belongs to the loop in which it was made.
"""

from __future__ import annotations

from .acquiring import Acquiring
from .pool import Pool, connect
from .queue import Queue

__all__ = ["Acquiring", "Pool", "Queue", "connect"]
