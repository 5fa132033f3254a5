"""A random load on a pool that is too small for it, and what /dev/shm itself says that is used meanwhile.

Run in a mount namespace with a tmpfs of its own; prints the operations done, the most bytes that were
used at any look, the looks, and the limit.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from multiprocessing import Process
from multiprocessing.sharedctypes import RawArray
from typing import Any

import shmpool
from shmpool import Strategy
from shmpool.stats import query

KIB = 1024
SIZES = (100, 5 * KIB, 60 * KIB, 200 * KIB, 256 * KIB, 300 * KIB, 700 * KIB, 1024 * KIB, 1500 * KIB, 3000 * KIB)
#: Most objects are small, most memory is in large ones.
WEIGHTS = (30, 15, 5, 2, 2, 2, 1, 1, 1, 1)
WORKERS = 3
#: Seconds between two looks, two deaths, and until it is too late.
LOOK, DEATH, TOO_LATE = 0.0005, 0.7, 3600.0
#: How many operations are counted at a time; one lease in so many is written to, all its pages.
COUNTED, WRITTEN = 50, 4


def work(address: str, seed: int, done: Any, place: int) -> None:
    """Lease, publish, open, release and discard at random; more than there is, mostly. What is done is counted without
    a lock, in a place that is this process's alone: it is killed anywhere, and would leave it locked."""
    chance = random.Random(seed)
    leases: list[shmpool.Lease] = []
    handles: list[shmpool.Handle] = []
    buffers: list[shmpool.Buffer] = []
    count = 0
    with shmpool.connect(address) as pool:
        while True:
            count += 1
            what = chance.random()
            try:
                if what < 0.4:
                    (strategy,) = chance.choices((Strategy.ADAPTIVE, Strategy.CHUNKED, Strategy.DIRECT), (14, 1, 1))
                    (nbytes,) = chance.choices(SIZES, WEIGHTS)
                    lease = pool.lease(nbytes, strategy=strategy, timeout=chance.choice((0, 0, 0, 0, 0, 0.02)))
                    if chance.randrange(WRITTEN) == 0:
                        lease.view[:: 4 * KIB] = bytes(-(-lease.nbytes // (4 * KIB)))
                    leases.append(lease)
                elif what < 0.65 and leases:
                    lease = leases.pop(chance.randrange(len(leases)))
                    if chance.random() < 0.8:
                        handles.append(lease.publish())
                    else:
                        lease.release()
                elif what < 0.8 and handles:
                    handle = handles.pop(chance.randrange(len(handles)))
                    if chance.random() < 0.9:
                        buffers.append(pool.open(handle))
                    else:
                        pool.discard(handle)
                elif buffers:
                    buffers.pop(chance.randrange(len(buffers))).release()
            except (shmpool.LeaseTimeout, shmpool.SharedMemoryFull):
                for one in (*leases, *buffers):
                    one.release()
                leases.clear()
                buffers.clear()
            if count % COUNTED == 0:
                done[place] += COUNTED


def used() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def main(operations: int, seed: int) -> None:
    done = RawArray("q", WORKERS)
    own = used()  # the counters lie there too
    chance = random.Random(seed)
    most = looks = 0
    with shmpool.Broker(memory_limit="24MiB", max_clients=16, buffer_lifetime="200ms", magazine_idle="50ms") as broker:
        limit = query(broker.address).memory["limit"]
        workers: dict[int, Process] = {}
        ends = time.monotonic() + TOO_LATE
        next_death = time.monotonic() + DEATH
        while sum(done) < operations and time.monotonic() < ends:
            for place in set(range(WORKERS)) - workers.keys():
                given = broker.address, chance.getrandbits(32), done, place
                workers[place] = Process(target=work, args=given, daemon=True)
                workers[place].start()
            most, looks = max(most, used() - own), looks + 1
            if time.monotonic() > next_death:
                victim = workers.pop(next(iter(workers)))  # the oldest
                os.kill(victim.pid or 0, signal.SIGKILL)
                victim.join()
                next_death += DEATH
            time.sleep(LOOK)
        for worker in workers.values():
            worker.kill()
            worker.join()
        stats = query(broker.address)
        print(sum(done), most, looks, limit, stats.memory["held"], stats.ladder)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
