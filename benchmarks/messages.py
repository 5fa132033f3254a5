"""messages: What does a steady stream between two processes say to the broker?

Every message that the two clients send is counted at their sockets. The bar is none at all. What the stream can have in
flight at most was leased at once before: a producer that has to wait has as much out once in a while, and then asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shmpool.link.connection import Connection

from .bothsides import count_on_both_sides
from .options import Options
from .peers.shmpool import Shmpool
from .plan import BATCH, Plan
from .report import Bar, Column, Report, Table
from .units import KIB, MIB, size_name

SIZES = (KIB, 64 * KIB, 255 * KIB, 256 * KIB, MIB - 1)
OBJECTS = 20_000
IN_FLIGHT = 16


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    table = Table(
        f"{IN_FLIGHT} in flight, after {OBJECTS // 4:,} objects to get steady",
        [
            Column("size", "B"),
            Column("objects", "count"),
            Column("by producer", "count"),
            Column("by consumer", "count"),
        ],
    )
    for nbytes in options.sizes or SIZES:
        by_producer, by_consumer = _count(nbytes)
        table.rows.append([nbytes, OBJECTS, by_producer, by_consumer])
        report.bars.append(Bar(size_name(nbytes), 0, by_producer + by_consumer, "count", is_most=True))
    report.tables.append(table)
    return report


def _count(nbytes: int) -> tuple[int, int]:
    """Messages of the producer and of the consumer."""
    plans = [Plan(nbytes, IN_FLIGHT, False, False, objects=objects) for objects in (OBJECTS // 4, OBJECTS)]
    return count_on_both_sides(_Full(nbytes, memory_limit="256MiB", magazine_idle=3600), plans, counting)


class _Full(Shmpool):
    """A peer whose producer has had all that it can have out."""

    def __init__(self, nbytes: int, **broker: Any) -> None:
        super().__init__(**broker)
        self._nbytes = nbytes

    def begin_producer(self) -> None:
        super().begin_producer()
        for lease in [self._pool.lease(self._nbytes) for _ in range(IN_FLIGHT + BATCH)]:
            lease.release()


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Counts the messages that the clients of this process send."""
    send, sent = Connection.send, []

    def noting(connection: Connection, message: Any) -> None:
        sent.append(message)
        send(connection, message)

    Connection.send = noting  # type: ignore[method-assign]
    try:
        yield lambda: len(sent)
    finally:
        Connection.send = send  # type: ignore[method-assign]
