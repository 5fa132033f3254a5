"""The streams between processes, for `benchmarks.streams`: beside `multiprocessing.Pipe` and the floor.

Everything is copied in on one side and out on the other, in pieces of the same size, by two processes
that stand ready; the ways take turns."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import shmpool

from .measure import Lap, Series
from .report import Bar, Column, Table
from .units import KIB, MIB

PIECE = 256 * KIB
MESSAGE = 64 * KIB
TOTAL = 1024 * MIB
IN_RING = 4
STREAM, PIPE, FLOOR = "stream", "multiprocessing.Pipe", "a ring, a pipe for tokens"
THAN_PIPE, THAN_FLOOR, MOST_HELD = 3.0, 0.8, 2.0 * MIB

#: Sends, or receives, so many bytes: from, or into, one piece of memory.
Move = Callable[[memoryview, int], None]


class Way:
    """One way of sending. Made before the processes part."""

    def sender(self) -> Move:
        """In the parent."""
        raise NotImplementedError

    def receiver(self) -> Move:
        """In the child."""
        raise NotImplementedError


class Stream(Way):
    """A stream for each object; its handle goes through a pipe."""

    def __init__(self, address: str, pool: shmpool.Pool) -> None:
        self._address, self._pool = address, pool
        self._handles = os.pipe()
        #: The most that the pool held besides its own tables at the end of an object, in bytes.
        self.held = 0

    def sender(self) -> Move:
        def send(piece: memoryview, total: int) -> None:
            with self._pool.stream(total) as writer:
                os.write(self._handles[1], writer.handle)
                for _ in range(total // len(piece)):
                    writer.write(piece)
                memory = self._pool.stats().memory
                self.held = max(self.held, memory["held"] - memory["overhead"])

        return send

    def receiver(self) -> Move:
        pool = shmpool.connect(self._address)

        def receive(piece: memoryview, total: int) -> None:
            with pool.open_reader(os.read(self._handles[0], 24)) as reader:
                while reader.readinto(piece):
                    pass

        return receive


class Pipe(Way):
    def __init__(self) -> None:
        self._ends = multiprocessing.Pipe(duplex=False)

    def sender(self) -> Move:
        def send(piece: memoryview, total: int) -> None:
            for at in range(0, total, MESSAGE):
                self._ends[1].send_bytes(piece[at % PIECE : at % PIECE + MESSAGE])

        return send

    def receiver(self) -> Move:
        def receive(piece: memoryview, total: int) -> None:
            for at in range(0, total, MESSAGE):
                piece[at % PIECE : at % PIECE + MESSAGE] = self._ends[0].recv_bytes()

        return receive


class Ring(Way):
    """What two copies and a token cost at least: nothing is freed, nobody may die."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, IN_RING * PIECE))
        self._filled, self._emptied = os.pipe(), os.pipe()
        self._slots = [self._memory[at * PIECE : (at + 1) * PIECE] for at in range(IN_RING)]

    def sender(self) -> Move:
        def send(piece: memoryview, total: int) -> None:
            for number in range(total // PIECE):
                if number >= IN_RING:
                    os.read(self._emptied[0], 1)
                self._slots[number % IN_RING][:] = piece
                os.write(self._filled[1], b"x")
            for _ in range(min(IN_RING, total // PIECE)):
                os.read(self._emptied[0], 1)

        return send

    def receiver(self) -> Move:
        def receive(piece: memoryview, total: int) -> None:
            for number in range(total // PIECE):
                os.read(self._filled[0], 1)
                piece[:] = self._slots[number % IN_RING]
                os.write(self._emptied[1], b"x")

        return receive


def compare(rounds: int, total: int = TOTAL) -> tuple[Table, list[Bar]]:
    """The table and the bars of the streams between processes."""
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool, ExitStack() as stack:
        stream = Stream(broker.address, pool)
        ways = {STREAM: stream, FLOOR: Ring(), PIPE: Pipe()}
        runs = {name: stack.enter_context(_ready(way)) for name, way in ways.items()}
        series = {name: Series() for name in ways}
        for number in range(rounds + 1):
            for name, run in runs.items():
                lap = run(total)
                if number:  # the first fills the page tables
                    series[name].add(lap, 1)
        held = stream.held
    ours = series[STREAM]
    table = Table(
        f"{total // MIB} MiB to another process, in pieces of {PIECE // KIB} KiB, copied in and out",
        [Column("way"), Column("time", "s"), Column("to Pipe", "x"), Column("to the ring", "x")],
        [[name, one.median, one.ratio_to(series[PIPE]), one.ratio_to(series[FLOOR])] for name, one in series.items()],
    )
    return table, [
        Bar.of_ratio(f"stream to {PIPE}", THAN_PIPE, ours, series[PIPE]),
        Bar.of_ratio("stream to the ring", THAN_FLOOR, ours, series[FLOOR]),
        Bar("a stream holds", MOST_HELD, float(held), "B", is_most=True),
    ]


@contextmanager
def _ready(way: Way) -> Iterator[Callable[[int], Lap]]:
    """The processes of one way: a function that sends so many bytes and says how long it took."""
    orders, ends = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            receive, target = way.receiver(), memoryview(mmap.mmap(-1, PIECE))
            while True:
                receive(target, int.from_bytes(os.read(orders[0], 8), "little"))
                os.write(ends[1], b"x")
        finally:
            os._exit(1)
    send, source = way.sender(), memoryview(os.urandom(PIECE))

    def run(total: int) -> Lap:
        os.write(orders[1], total.to_bytes(8, "little"))
        started = time.perf_counter()
        send(source, total)
        os.read(ends[0], 1)
        return Lap(time.perf_counter() - started)

    try:
        yield run
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for fd in (*orders, *ends):
            os.close(fd)
