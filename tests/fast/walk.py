"""A random walk through the hot paths, the same for the same seed, and what the ledger says after each step."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import sys
from typing import Any

import numpy as np

import shmpool
from shmpool.protocol.figures import DEFERRED

SIZES = (0, 1, 100, 4096, 4097, 20_000, 32 * 1024, 100_000, 256 * 1024 - 1, 256 * 1024, 300_000, 700_000)


def walk(seed: int, steps: int, **settings: Any) -> list[str]:
    """What each step gave, with a digest of the ledger's rows."""
    chance = random.Random(seed)
    told: list[str] = []
    # Nothing comes back by itself, and nothing is timed: the ledger is what the steps have made it.
    gc.disable()
    with (
        shmpool.Broker(memory_limit="64MiB", magazine_idle="1h", **settings) as broker,
        broker.connect() as pool,
    ):
        leases: list[Any] = []
        handles: list[Any] = []
        buffers: list[Any] = []
        views: list[Any] = []
        session = pool._session
        assert session is not None
        rows = session.tiers[-1].base * 16  # but for direct segments, whose custody passes at the broker's leisure
        # A digest that takes less than a millisecond: the words' sum, each times its own odd number.
        weights = np.random.default_rng(0).integers(0, 1 << 63, rows, dtype=np.uint64) << 1 | 1
        aside = 0  # releases that the helper found while a view was left, or was too late for
        for _ in range(steps):
            what, deferred = chance.choice(STEPS), session.words[session.counters + DEFERRED]
            try:
                outcome = what(chance, pool, leases, handles, buffers, views)
            except Exception as error:
                outcome = type(error).__name__
            session.deferred.look_at_all()  # what the helper may do at any time is done
            words = int(np.dot(np.asarray(session.words[:rows]), weights))
            counters = session.words[session.counters : session.counters + 16].tolist()
            if what is leave:
                aside += counters[DEFERRED] - deferred
            counters[DEFERRED] -= aside
            told.append(f"{what.__name__} {outcome} {words:x} {counters}")
        views.clear()
        for ended in (*buffers, *leases):
            ended.release()
        for handle in handles:
            pool.discard(handle)
    return told


def lease(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    size = chance.choice(SIZES)
    if len(leases) < 20:
        leases.append(pool.lease(size, **chance.choice(({}, {}, {}, {"timeout": 5}, {"timeout": 0}))))
        return f"{len(leases[-1].view)} {leases[-1].strategy.value}"
    return "enough"


def write(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    one = chance.choice(leases)
    data = chance.choice((b"x" * one.nbytes, bytearray(one.nbytes), memoryview(b"y" * (one.nbytes + 1))))
    one.write(data)
    return str(bytes(one.view[:3]))


def publish(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    one = leases.pop(chance.randrange(len(leases)))
    if len(handles) > 30:
        one.release()
        return "enough"
    handles.append(one.publish())
    return handles[-1].hex()[16:]


def publish_many(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    one = leases.pop(chance.randrange(len(leases)))
    made = one.publish_many(chance.choice((1, 2, 13, 14)))
    handles.extend(made)
    return str([handle.hex()[16:] for handle in made])


def give_up(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    one = leases.pop(chance.randrange(len(leases)))
    with one:
        pass
    return repr(one)


def again(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    """Ends what has ended."""
    with pool.lease(100) as one:
        handle = one.publish()
    one.release()
    with pool.open(handle) as buffer:
        content = len(buffer.view)
    buffer.release()
    try:
        pool.open(handle)
    except shmpool.HandleUsed:
        return f"{content} used"
    return "opened twice"


def open_(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    handle = handles.pop(chance.randrange(len(handles)))
    if chance.random() < 0.3:
        handle = bytes(handle)
    buffers.append(pool.open(handle))
    return f"{buffers[-1].nbytes} {len(buffers[-1].view)} {buffers[-1].view.readonly}"


def release(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    one = buffers.pop(chance.randrange(len(buffers)))
    if chance.random() < 0.5:
        one.release()
    else:
        with one:
            pass
    return repr(one)


def keep(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    """A view that outlives its buffer."""
    one = buffers.pop(chance.randrange(len(buffers)))
    views.append(one.view[:1] if chance.random() < 0.5 else memoryview(one.view))
    one.release()
    return str(len(views))


def keep_written(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    """A view that outlives its lease."""
    one = leases.pop(chance.randrange(len(leases)))
    if len(handles) > 30:
        one.release()
        return "enough"
    views.append(one.view[:1] if chance.random() < 0.5 else memoryview(one.view))
    handles.append(one.publish())
    return handles[-1].hex()[16:]


def leave(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    """A buffer that nobody keeps, with a view that somebody may; the next open looks at it. (So may the helper, just
    before: nothing is leased in between.)"""
    handle = handles.pop(chance.randrange(len(handles)))
    with pool.lease(100) as one:
        other = one.publish()
    try:
        view = memoryview(pool.open(handle).view)
    except shmpool.ShmpoolError:
        pool.discard(other)
        raise
    if chance.random() < 0.5:
        views.append(view)
    del view
    with pool.open(other) as buffer:
        return str(buffer.nbytes)


def get(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    array = np.arange(chance.choice((1, 200, 5000, 20_000, 50_000)), dtype=chance.choice(("<u2", "<f8")))
    if len(views) > 10:
        return let_go(chance, pool, leases, handles, buffers, views)
    got = pool.get(pool.put(array.reshape(-1, 1) if chance.random() < 0.3 else array),
                   **chance.choice(({}, {"copy": False}, {"copy": True}, {"allow": ()})))  # fmt: skip
    views.append(got)
    is_copied = type(got.base) is bytes
    return f"{got.dtype} {got.shape} {got.flags.writeable} {is_copied} {hashlib.md5(got).hexdigest()}"


def let_go(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    views.clear()
    pool._session.deferred.look_at_all()
    return "none"


def discard(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    pool.discard(handles.pop(chance.randrange(len(handles))))
    return "discarded"


def nonsense(chance: random.Random, pool: Any, leases: Any, handles: Any, buffers: Any, views: Any) -> str:
    wrong = chance.choice((
        lambda: pool.lease(-1), lambda: pool.lease(1.5), lambda: pool.lease(True), lambda: pool.lease(1 << 70),
        lambda: pool.lease(10, timeout="1"), lambda: pool.lease(10, timeout=-1), lambda: pool.lease(10, strategy="no"),
        lambda: pool.open(None), lambda: pool.open(b"x"), lambda: pool.open(b"x" * 24), lambda: pool.lease(),
    ))  # fmt: skip
    wrong()
    return "accepted"


STEPS = (lease, lease, lease, write, publish, publish, publish_many, give_up, again, open_, open_, release, release,
         keep, keep_written, leave, get, let_go, discard, nonsense)  # fmt: skip

if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps(walk(int(sys.argv[1]), int(sys.argv[2]), **json.loads(sys.argv[3]))))
