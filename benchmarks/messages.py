"""messages: what a steady producer -> consumer stream says to the broker, counted on both
clients' sockets: nothing."""

from __future__ import annotations

import multiprocessing
import os

import shmpool
from shmpool.connection import Connection

from .channel import Channel
from .measure import KIB, MIB, console, show, size_name
from .stream import HANDLE, IN_FLIGHT, _produce

SIZES = (KIB, 64 * KIB, 255 * KIB, 256 * KIB, MIB - 1)


def run(sizes: tuple[int, ...] = SIZES, objects: int = 20000) -> bool:
    rows, met = [], True
    with shmpool.Broker(memory_limit="256MiB", magazine_idle=3600) as broker:
        for size in sizes:
            producer, consumer = _count(broker.address, size, objects)
            met &= producer == consumer == 0
            rows.append([size_name(size), f"{objects:,}", str(producer), str(consumer)])
    show("messages: sent to the broker in the steady state", ["size", "objects", "by producer", "by consumer"], rows)
    console.print(f"bar: 0 for each object: {'met' if met else 'MISSED'}")
    return met


def _count(address: str, size: int, objects: int) -> tuple[int, int]:
    there, back, result = Channel(200e-6), Channel(200e-6), Channel(0)
    process = multiprocessing.get_context("fork").Process(target=_consume, args=(address, there, back, result))
    process.start()
    sent: list[object] = []
    with shmpool.connect(address) as pool:
        _produce(pool, size, there, back, objects // 4)
        with counting(sent):
            _produce(pool, size, there, back, objects)
        there.send(b"\0" * HANDLE)
        theirs = int.from_bytes(result.receive(8), "little")
        process.join()
    for channel in (there, back, result):
        channel.close()
    return len(sent), theirs


class counting:
    """Notes every message that a client of this process sends."""

    def __init__(self, sent: list[object]) -> None:
        self._sent = sent

    def __enter__(self) -> None:
        self._send = Connection.send
        sent, send = self._sent, self._send

        def noting(connection, message):
            sent.append(message)
            send(connection, message)

        Connection.send = noting

    def __exit__(self, *_) -> None:
        Connection.send = self._send


def _consume(address: str, there: Channel, back: Channel, result: Channel) -> None:
    sent: list[object] = []
    with shmpool.connect(address) as pool:
        seen = 0
        with counting(sent):
            while (tokens := there.receive(HANDLE * IN_FLIGHT))[:HANDLE] != b"\0" * HANDLE:
                for at in range(0, len(tokens), HANDLE):
                    pool.open(shmpool.Handle(tokens[at : at + HANDLE])).release()
                seen += len(tokens)
                back.send(b"x" * (len(tokens) // HANDLE))
            count = len(sent)
    result.send(count.to_bytes(8, "little"))
    os._exit(0)
