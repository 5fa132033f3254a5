"""usual: What does the usual code cost, beside the same with a `del` in the right place?

A reader's array that outlives its `with` block, a writer's that outlives its publication, and what is read without a
block at all: each against the form in which the array is deleted first, by turns in one process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np

import shmpool

from .options import Options
from .report import Bar, Column, Report, Table
from .units import KIB, size_name

SIZES: Final = (4 * KIB, 64 * KIB, 250_000, 900_000)
ROUNDS: Final = 15
CYCLES: Final = 300
#: How much longer the usual code may take.
MOST: Final = 1.3

Act = Callable[[shmpool.Pool, shmpool.Pool, int], object]


def _publish(writer: shmpool.Pool, nbytes: int) -> shmpool.Handle:
    with writer.lease(nbytes) as lease:
        return lease.publish()


def _reader_keeps(writer: shmpool.Pool, reader: shmpool.Pool, nbytes: int) -> object:
    with reader.open(_publish(writer, nbytes)) as buffer:
        frame = np.frombuffer(buffer.view, np.uint8)
        return frame[0]


def _reader_deletes(writer: shmpool.Pool, reader: shmpool.Pool, nbytes: int) -> object:
    with reader.open(_publish(writer, nbytes)) as buffer:
        frame: Any = np.frombuffer(buffer.view, np.uint8)
        first = frame[0]
        del frame
        return first


def _no_block(writer: shmpool.Pool, reader: shmpool.Pool, nbytes: int) -> object:
    frame = np.frombuffer(reader.open(_publish(writer, nbytes)).view, np.uint8)
    return frame[0]


def _writer_keeps(writer: shmpool.Pool, reader: shmpool.Pool, nbytes: int) -> object:
    with writer.lease(nbytes) as lease:
        frame = np.frombuffer(lease.view, np.uint8)
        frame[0] = 1
        handle = lease.publish()
    reader.open(handle).release()
    return frame


def _writer_deletes(writer: shmpool.Pool, reader: shmpool.Pool, nbytes: int) -> object:
    with writer.lease(nbytes) as lease:
        frame: Any = np.frombuffer(lease.view, np.uint8)
        frame[0] = 1
        del frame
        handle = lease.publish()
    reader.open(handle).release()
    return None


#: What is usual, and what it is held against.
PAIRS: Final[dict[str, tuple[Act, Act]]] = {
    "a reader's array outlives its block": (_reader_keeps, _reader_deletes),
    "opened without a block": (_no_block, _reader_deletes),
    "a writer's array outlives its block": (_writer_keeps, _writer_deletes),
}


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    table = Table(
        "a cycle", [Column("size"), Column("what"), Column("usual", "s"), Column("with del", "s"), Column("ratio", "x")]
    )
    report.tables.append(table)
    with warnings.catch_warnings(), shmpool.Broker(memory_limit="64MiB") as broker:
        warnings.simplefilter("ignore", ResourceWarning)  # a writer is told once that it keeps a view
        for nbytes in options.sizes or SIZES:
            with broker.connect() as writer, broker.connect() as reader:
                for name, acts in PAIRS.items():
                    usual, deleting = _best(acts, writer, reader, nbytes, options.rounds or ROUNDS)
                    size = size_name(nbytes)
                    table.rows.append([size, name, usual, deleting, usual / deleting])
                    report.bars.append(Bar(f"{name}, {size}", MOST, usual / deleting, is_most=True))
    return report


def _best(acts: tuple[Act, Act], writer: shmpool.Pool, reader: shmpool.Pool, nbytes: int, rounds: int) -> list[float]:
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for at, act in enumerate(acts):
            started = time.perf_counter()
            for _ in range(CYCLES):
                act(writer, reader, nbytes)
            best[at] = min(best[at], (time.perf_counter() - started) / CYCLES)
    return best
