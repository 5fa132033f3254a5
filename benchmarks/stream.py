"""stream: lease, touch, publish, token over a pipe, open, touch, release, between two
processes with 16 objects in flight, at every pooled size and a chunked one."""

from __future__ import annotations

import multiprocessing
import os
import time

import shmpool

from .channel import Channel
from .measure import KIB, Series, console, show, size_name

SIZES = (KIB, 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 255 * KIB, 512 * KIB)
IN_FLIGHT = 16
BAR_PER_SECOND = 150_000
HANDLE = 24
BATCH = 8


def run(sizes: tuple[int, ...] = SIZES, rounds: int = 7, objects: int = 60000) -> bool:
    rows, met = [], True
    with shmpool.Broker(memory_limit="256MiB") as broker:
        for size in sizes:
            before = broker_messages(broker)
            series = _stream(broker.address, size, rounds, objects)
            misses = broker_messages(broker) - before
            rate, best = 1 / series.median, 1 / series.best
            met &= rate >= BAR_PER_SECOND
            rows.append(
                [size_name(size), f"{rate:,.0f}/s", f"{best:,.0f}/s", f"{misses} of {objects * (rounds + 1):,}"]
            )
    show(
        f"stream: two processes, touch, {IN_FLIGHT} in flight, tokens over a pipe",
        ["size", "objects, median", "best", "leases that asked the broker"],
        rows,
    )
    console.print(f"bar: {BAR_PER_SECOND:,} objects/s at every pooled size: {'met' if met else 'MISSED'}")
    return met


def broker_messages(broker) -> int:
    with broker.connect() as pool:
        return pool.stats().pool_misses


def _stream(address: str, size: int, rounds: int, objects: int) -> Series:
    there, back = Channel(spin=200e-6), Channel(spin=200e-6)
    consumer = multiprocessing.get_context("fork").Process(target=_consume, args=(address, there, back))
    consumer.start()
    series = Series()
    with shmpool.connect(address) as pool:
        _produce(pool, size, there, back, objects)
        for _ in range(rounds):
            started = time.perf_counter()
            _produce(pool, size, there, back, objects)
            series.rounds.append((time.perf_counter() - started) / objects)
        there.send(b"\0" * HANDLE)
        consumer.join()
    there.close()
    back.close()
    return series


def _produce(pool, size: int, there: Channel, back: Channel, objects: int) -> None:
    lease = pool.lease
    credits, sent = IN_FLIGHT, 0
    while sent < objects:
        batch = []
        for _ in range(min(credits, BATCH, objects - sent)):
            leased = lease(size)
            leased.view[0] = 1
            batch.append(leased.publish())
        there.send(b"".join(batch))
        sent += len(batch)
        credits -= len(batch)
        if credits < BATCH:
            credits += len(back.receive(IN_FLIGHT))
    while credits < IN_FLIGHT:
        credits += len(back.receive(IN_FLIGHT))


def _consume(address: str, there: Channel, back: Channel) -> None:
    make = shmpool.Handle
    with shmpool.connect(address) as pool:
        open_ = pool.open
        while True:
            tokens = there.receive(HANDLE * IN_FLIGHT)
            if tokens[:HANDLE] == b"\0" * HANDLE:
                break
            for at in range(0, len(tokens), HANDLE):
                buffer = open_(make(tokens[at : at + HANDLE]))
                buffer.view[0]
                buffer.release()
            back.send(b"x" * (len(tokens) // HANDLE))
    os._exit(0)
