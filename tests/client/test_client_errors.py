"""Errors of the client: what is raised keeps nothing alive once it was handled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import shmpool
from shmpool.stats import query

MIB = 1024 * 1024


def used(pool: shmpool.Pool) -> shmpool.Handle:
    handle = pool.lease(100).publish()
    pool.open(handle).release()
    return handle


def stale(pool: shmpool.Pool) -> shmpool.Handle:
    """Of a slot that was published anew since."""
    handle = used(pool)
    while True:
        again = pool.lease(100).publish()
        pool.discard(again)
        if again.row == handle.row:
            return handle


def published_twice(pool: shmpool.Pool) -> None:
    lease = pool.lease(100)
    pool.discard(lease.publish())
    lease.publish()


def wrong_length(pool: shmpool.Pool) -> None:
    with pool.lease(100) as lease:
        lease.write(b"x")


def with_queue(pool: shmpool.Pool, act: Callable[[Any], Any]) -> None:
    queue = shmpool.Queue(1, pool=pool)
    try:
        act(queue)
    finally:
        queue.close()


def closed(pool: shmpool.Pool, act: Callable[[shmpool.Pool], Any]) -> None:
    other = shmpool.connect(pool.address)
    other.close()
    act(other)


def full(pool: shmpool.Pool, verb: Callable[[], Any]) -> None:
    leases = []
    try:
        for strategy in (shmpool.Strategy.DIRECT, shmpool.Strategy.POOLED):
            try:
                while True:
                    leases.append(pool.lease(MIB // 2, strategy=strategy, timeout=0))
            except shmpool.ShmpoolError:
                pass
        verb()
    finally:
        for lease in leases:
            lease.release()


FAILING: dict[str, Callable[[shmpool.Pool], Any]] = {
    "open used": lambda pool: pool.open(used(pool)),
    "open stale": lambda pool: pool.open(stale(pool)),
    "discard used": lambda pool: pool.discard(used(pool)),
    "get used": lambda pool: pool.get(used(pool)),
    "open garbage": lambda pool: pool.open(b"x" * 24),
    "open None": lambda pool: pool.open(None),  # type: ignore[arg-type]
    "lease too much": lambda pool: pool.lease(1 << 40),
    "lease, full": lambda pool: full(pool, lambda: pool.lease(MIB // 2, timeout=0)),
    "lease in line, full": lambda pool: full(pool, lambda: pool.lease(MIB // 2, timeout=0.01)),
    "stream, full": lambda pool: full(pool, lambda: pool.open_writer(MIB // 2, timeout=0)),
    "put, full": lambda pool: full(pool, lambda: pool.put(bytes(MIB), timeout=0)),
    "put what cannot be pickled": lambda pool: pool.put(lambda: None),
    "find": lambda pool: pool.find("nothing"),
    "share a name that is taken": lambda pool: [pool.share(at, "name") for at in range(2)],
    "write another length": wrong_length,
    "publish twice": published_twice,
    "get of an empty queue": lambda pool: with_queue(pool, lambda queue: queue.get_nowait()),
    "get in time": lambda pool: with_queue(pool, lambda queue: queue.get(timeout=0.01)),
    "put on a full queue": lambda pool: with_queue(pool, lambda queue: [queue.put(1), queue.put(2, timeout=0.01)]),
    "put on a queue what cannot be pickled": lambda pool: with_queue(pool, lambda queue: queue.put(lambda: None)),
    "connect": lambda pool: shmpool.connect(pool.address + "-nothing", timeout=0),
    "stats": lambda pool: query(pool.address + "-nothing"),
    "lease, closed": lambda pool: closed(pool, lambda other: other.lease(100)),
    "open, closed": lambda pool: closed(pool, lambda other: other.open(used(pool))),
}


class _Local:
    """What a caller has in a variable: a view, say."""


@pytest.mark.broker(memory_limit="16MiB")
@pytest.mark.parametrize("what", FAILING)
def test_an_error_that_was_handled_keeps_no_variable_of_its_callers(pool: shmpool.Pool, what: str) -> None:
    """A frame that an error went through, and those that called it, live as long as the error: in a cycle with one of
    them it kept a caller's views, and their buffers, until the next collection."""

    def handle() -> weakref.ref[_Local]:
        local = _Local()
        try:
            FAILING[what](pool)
        except Exception:
            return weakref.ref(local)
        raise AssertionError("it did not fail")

    handle()
    gc.collect()
    gc.disable()
    try:
        assert handle()() is None
    finally:
        gc.enable()
