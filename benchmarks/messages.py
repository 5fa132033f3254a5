"""messages: What does a steady stream between two processes say to the broker?

Every message that the two clients send is counted at their sockets. The bar is none at all."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Control
from typing import Any

from shmpool.connection import Connection

from .channel import Channel
from .loop import consuming, producing
from .options import Options
from .peers.shmpool import Shmpool
from .plan import SPIN, Plan
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
    peer = Shmpool(memory_limit="256MiB", magazine_idle=3600)
    there, back = Channel(SPIN), Channel(SPIN)
    control, theirs = multiprocessing.Pipe()
    plans = [Plan(nbytes, IN_FLIGHT, False, False, objects=objects) for objects in (OBJECTS // 4, OBJECTS)]
    process = multiprocessing.get_context("fork").Process(target=_consume, args=(peer, plans, there, back, theirs))
    process.start()
    peer.begin_producer()
    for plan in plans:
        control.recv()
        with counting() as sent:
            producing(peer, plan, there, back)()
    by_consumer = control.recv()
    process.join()
    peer.end_producer()
    there.close()
    back.close()
    return len(sent), by_consumer


def _consume(peer: Shmpool, plans: list[Plan], there: Channel, back: Channel, control: Control) -> None:
    peer.begin_consumer()
    for plan in plans:
        with counting() as sent:
            control.send("ready")
            consuming(peer, plan, there, back)()
    control.send(len(sent))
    peer.end_consumer()
    os._exit(0)


@contextmanager
def counting() -> Iterator[list[Any]]:
    """A list of every message that a client of this process sends from now on."""
    send, sent = Connection.send, []

    def noting(connection: Connection, message: Any) -> None:
        sent.append(message)
        send(connection, message)

    Connection.send = noting  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        Connection.send = send  # type: ignore[method-assign]
