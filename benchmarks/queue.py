"""queue: What does an object through a queue cost, beside multiprocessing's and those of the package index?

Producers and consumers are processes of their own, forked for each lap; what is measured begins when all
are ready and ends when the last object was got. One in flight: a token there and back, half of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from typing import Any

import click

import shmpool
from shmpool.system import patience

from .measure import Lap, Ratio, Series, interleave, percentile
from .options import Options
from .plan import payload
from .queue_kills import KILLS, storm
from .render import console
from .report import Bar, Column, Report, Table
from .units import KIB, MIB, size_name

ROUNDS, SECONDS = 5, 0.3
QUEUE, JOINED, SIMPLE, PIPE = "shmpool.Queue", "put_many", "SimpleQueue", "Pipe"
THEIRS, KICKMSG, CLOUDTOID = "multiprocessing.Queue", "kickmsg", "cloudtoid-interprocess"
MANY = 16
PARTS = ("small", "large", "shared", "many", "flight", "kills")
#: By size: how many times multiprocessing.Queue's speed.
LARGE = {64 * KIB: 3.0, 256 * KIB: 8.0, 960 * KIB: 8.0, MIB: 4.0}
SMALL = (10, KIB)

PARAMETERS = [
    click.Option(["--parts"], help=f"Only these, separated by commas: {', '.join(PARTS)}."),
    click.Option(["--kills"], type=click.IntRange(1), help=f"How many producers and consumers to kill; {KILLS}."),
]

_context: Any = multiprocessing.get_context("fork")
_names = (f"shmpool-bench-{os.getpid()}-{number}" for number in count())


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    parts = (options.more.get("parts") or ",".join(PARTS)).split(",")
    if unknown := set(parts) - set(PARTS):
        raise click.UsageError(f"there are no parts {sorted(unknown)}: {', '.join(PARTS)}")
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for part in parts:
            with console.status(part):
                _MEASURED[part](report, options, pool)
    return report


def comparisons(options: Options) -> int:
    return len(SMALL) + len(LARGE) + len(SMALL) + 2


# --- contestants ---------------------------------------------------------------------------------------


class Channel:
    """Something that objects go through: *put* and *get* in other processes, *begin* there before the clock
    starts, *end* by who has put, *close* here."""

    def __init__(
        self,
        put: Callable[[Any], object],
        get: Callable[[], Any],
        close: Callable[[], object],
        end: Callable[[], object] = lambda: None,
        begin: Callable[[], object] = lambda: None,
    ) -> None:
        self.put, self.get, self.close, self.end, self.begin = put, get, close, end, begin


def _ours(pool: shmpool.Pool) -> Channel:
    queue = shmpool.Queue(pool=pool)
    return Channel(queue.put, queue.get, queue.close, begin=queue.qsize)


def _multiprocessing(kind: str) -> Channel:
    queue = getattr(_context, kind)()

    def end() -> None:  # its feeder has not sent everything
        queue.close()
        queue.join_thread()

    return Channel(queue.put, queue.get, queue.close, end if kind == "Queue" else lambda: None)


def _pipe() -> Channel:
    reader, writer = _context.Pipe(duplex=False)

    def close() -> None:
        reader.close()
        writer.close()

    return Channel(writer.send, reader.recv, close)


def _kickmsg() -> Channel:
    """Bytes. What it has lost, without a word, counts as got: None."""
    import kickmsg

    name = next(_names)
    config = kickmsg.Config()
    config.max_payload_size, config.pool_size, config.max_subscribers = 4096, 4096, 2
    config.sub_ring_capacity = 2048
    publisher = kickmsg.Node(f"{name}-p", name).advertise("objects", config)
    subscriber = kickmsg.Node(f"{name}-s", name).subscribe("objects")
    lost = 0

    def put(obj: bytes) -> None:
        while True:
            with suppress(BlockingIOError):
                publisher.send(obj)
                return
            os.sched_yield()

    def get() -> Any:
        nonlocal lost
        while (found := subscriber.try_receive()) is None:
            if subscriber.lost > lost:
                lost += 1
                return None
            os.sched_yield()
        return found

    return Channel(put, get, lambda: None)


def _cloudtoid() -> Channel:
    """Bytes, in one memory-mapped file."""
    import cloudtoid_interprocess as interprocess

    name, directory = next(_names), tempfile.mkdtemp(dir="/dev/shm")
    publisher = interprocess.Publisher(name, 4 * MIB, directory)
    subscriber = interprocess.Subscriber(name, 4 * MIB, directory)

    def put(obj: bytes) -> None:
        while not publisher.try_send(obj):
            os.sched_yield()

    def get() -> Any:
        while (found := subscriber.try_receive()) is None:
            os.sched_yield()
        return found

    def close() -> None:
        publisher.close()
        subscriber.close()
        shutil.rmtree(directory)

    return Channel(put, get, close)


def _channels(pool: shmpool.Pool, *names: str) -> dict[str, Callable[[], Channel]]:
    known: dict[str, Callable[[], Channel]] = {
        QUEUE: lambda: _ours(pool),
        THEIRS: lambda: _multiprocessing("Queue"),
        SIMPLE: lambda: _multiprocessing("SimpleQueue"),
        PIPE: _pipe,
        KICKMSG: _kickmsg,
        CLOUDTOID: _cloudtoid,
    }
    package = {KICKMSG: "kickmsg", CLOUDTOID: "cloudtoid_interprocess"}
    return {name: known[name] for name in names if name not in package or find_spec(package[name]) is not None}


# --- laps ------------------------------------------------------------------------------------------------


@contextmanager
def _crew(bodies: list[Callable[[], object]], *begins: Callable[[], object]) -> Iterator[Callable[[], float]]:
    """A process for each body, which first does what *begins* say; what is yielded lets them all begin, and
    says how long the longest took."""
    ready, told = os.pipe()
    begin, go = os.pipe()
    pids = []
    for body in bodies:
        pid = os.fork()
        if not pid:
            code = 1
            with suppress(BaseException):
                os.close(go)
                for first in begins:
                    first()
                os.write(told, b".")
                os.read(begin, 1)
                body()
                code = 0
            os._exit(code)
        pids.append(pid)

    def measure() -> float:
        seen = 0
        while seen < len(bodies):
            seen += len(os.read(ready, len(bodies)))
        started = time.perf_counter()
        os.write(go, b"." * len(bodies))
        codes = [os.waitstatus_to_exitcode(os.waitpid(pids.pop(0), 0)[1]) for _ in bodies]
        if any(codes):
            raise RuntimeError(f"a process of the benchmark ended with {codes}")
        return time.perf_counter() - started

    try:
        yield measure
    finally:
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        for fd in (ready, told, begin, go):
            os.close(fd)


def _through(make: Callable[[], Channel], obj: Any, crew: int, *, touch: bool = False) -> Callable[[int], Lap]:
    """Laps of *crew* producers and as many consumers."""

    def lap(objects: int) -> Lap:
        channel, each = make(), objects // crew

        def produce() -> None:
            for _ in range(each):
                channel.put(obj)
            channel.end()

        def consume() -> None:
            for _ in range(each):
                found = channel.get()
                if touch:
                    found[::4096].max()

        try:
            with _crew([produce, consume] * crew, channel.begin) as measure:
                return Lap(measure())
        finally:
            channel.close()

    return lap


def _many(pool: shmpool.Pool, obj: Any) -> Callable[[int], Lap]:
    def lap(objects: int) -> Lap:
        queue, batch = shmpool.Queue(pool=pool), [obj] * MANY

        def produce() -> None:
            for _ in range(objects // MANY):
                queue.put_many(batch)

        def consume() -> None:
            left = objects // MANY * MANY
            while left:
                left -= len(queue.get_many(min(MANY, left)))

        try:
            with _crew([produce, consume], queue.qsize) as measure:
                return Lap(measure())
        finally:
            queue.close()

    return lap


def _flight(make: Callable[[], Channel], obj: Any, *, spins: bool = True) -> Callable[[int], Lap]:
    """A token there and back; its samples are half of that, and the lap is its median one. Who does not spin
    sleeps at once."""

    def lap(objects: int) -> Lap:
        there, back = make(), make()
        spin, patience.SPIN = patience.SPIN, patience.SPIN if spins else 0.0

        def echo() -> None:
            for _ in range(objects):
                back.put(there.get())
            back.end()

        samples = []
        try:
            with _crew([echo], there.begin, back.begin) as measure:
                there_put, back_get = there.put, back.get
                there.begin()
                back.begin()
                waiting = _begin(measure)
                for _ in range(objects):
                    started = time.perf_counter()
                    there_put(obj)
                    back_get()
                    samples.append((time.perf_counter() - started) / 2)
                waiting()
        finally:
            patience.SPIN = spin
            there.close()
            back.close()
        return Lap(percentile(samples, 50) * objects, samples)

    return lap


def _begin(measure: Callable[[], float]) -> Callable[[], None]:
    """Let the crew begin, while we are one of it."""
    import threading

    thread = threading.Thread(target=measure)
    thread.start()
    return thread.join


# --- parts -----------------------------------------------------------------------------------------------


def _measure(options: Options, contestants: dict[str, Callable[[int], Lap]], least: int) -> dict[str, Series]:
    return interleave(contestants, rounds=options.rounds or ROUNDS, seconds=options.seconds or SECONDS, least=least)


def _rate(series: Series | None) -> float | None:
    return None if series is None else 1 / series.median


def _bar(name: str, required: float, ours: Series, theirs: Series | None) -> Bar:
    return Bar.of_ratio(name, required, ours, theirs)


def _table(title: str, names: tuple[str, ...]) -> Table:
    return Table(title, [Column("size", "B"), *(Column(name, "1/s") for name in names)])


def _small(report: Report, options: Options, pool: shmpool.Pool) -> None:
    names = (QUEUE, THEIRS, SIMPLE, PIPE, KICKMSG, CLOUDTOID)
    table = _table("one producer, one consumer", names)
    for nbytes in SMALL:
        obj = bytes(payload(nbytes))
        found = _channels(pool, *names)
        series = _measure(options, {name: _through(make, obj, 1) for name, make in found.items()}, 1000)
        table.rows.append([nbytes, *(_rate(series.get(name)) for name in names)])
        if nbytes == SMALL[0]:
            report.bars += [
                _bar("1x1 10 B: of multiprocessing.Queue", 2.0, series[QUEUE], series[THEIRS]),
                _bar("1x1 10 B: of SimpleQueue", 1.3, series[QUEUE], series[SIMPLE]),
            ]
            if shmpool.__compiled__:
                report.bars += [
                    _bar("1x1 10 B, compiled: of multiprocessing.Queue", 3.0, series[QUEUE], series[THEIRS]),
                    _bar("1x1 10 B, compiled: of Pipe", 1.0, series[QUEUE], series.get(PIPE)),
                ]
    report.tables.append(table)


def _large(report: Report, options: Options, pool: shmpool.Pool) -> None:
    import numpy as np

    names = (QUEUE, THEIRS)
    table = _table("one producer, one consumer, arrays that are touched", names)
    for nbytes, required in LARGE.items():
        if options.sizes is not None and nbytes not in options.sizes:
            continue
        obj = np.frombuffer(payload(nbytes), np.uint8)
        found = _channels(pool, *names)
        series = _measure(options, {name: _through(make, obj, 1, touch=True) for name, make in found.items()}, 64)
        table.rows.append([nbytes, *(_rate(series.get(name)) for name in names)])
        report.bars.append(
            _bar(f"1x1 {size_name(nbytes)}: of multiprocessing.Queue", required, series[QUEUE], series[THEIRS])
        )
    report.tables.append(table)


def _shared(report: Report, options: Options, pool: shmpool.Pool) -> None:
    names = (QUEUE, THEIRS, SIMPLE)
    table = _table("two producers, two consumers", names)
    for nbytes in SMALL:
        obj = bytes(payload(nbytes))
        found = _channels(pool, *names)
        series = _measure(options, {name: _through(make, obj, 2) for name, make in found.items()}, 1000)
        table.rows.append([nbytes, *(_rate(series.get(name)) for name in names)])
        name = f"2x2 {size_name(nbytes)}: of multiprocessing.Queue"
        report.bars.append(_bar(name, 1.5, series[QUEUE], series[THEIRS]))
    report.tables.append(table)


def _batches(report: Report, options: Options, pool: shmpool.Pool) -> None:
    names = (QUEUE, JOINED)
    table = _table(f"put_many and get_many of {MANY}", names)
    obj = bytes(payload(SMALL[0]))
    contestants = {QUEUE: _through(lambda: _ours(pool), obj, 1), JOINED: _many(pool, obj)}
    series = _measure(options, contestants, 1024)
    table.rows.append([SMALL[0], *(_rate(series[name]) for name in names)])
    if not shmpool.__compiled__:  # whose single calls take no longer than an item of a batch did
        report.bars.append(_bar("put_many and get_many 10 B: of single calls", 3.0, series[JOINED], series[QUEUE]))
    report.tables.append(table)


def _in_flight(report: Report, options: Options, pool: shmpool.Pool) -> None:
    table = Table("one in flight, 1 KiB, one way", [Column("how"), Column("p50", "s"), Column("p99", "s")])
    obj = bytes(payload(KIB))
    found = _channels(pool, QUEUE, THEIRS, PIPE)
    sleeping = "shmpool.Queue, sleeping"
    contestants = {name: _flight(make, obj) for name, make in found.items()}
    contestants[sleeping] = _flight(found[QUEUE], obj, spins=False)
    series = _measure(options, contestants, 500)
    for name, one in series.items():
        table.rows.append([name, percentile(one.samples, 50), percentile(one.samples, 99)])
    report.bars += [
        Bar("one in flight: time of Pipe's, spinning", 1.1, _times(series[QUEUE], series[PIPE]), is_most=True),
        Bar("one in flight: time of Queue's, sleeping", 0.5, _times(series[sleeping], series[THEIRS]), is_most=True),
    ]
    report.tables.append(table)


def _killed(report: Report, options: Options, pool: shmpool.Pool) -> None:
    kills = options.more.get("kills") or KILLS
    found = storm(pool, kills)
    columns = [Column("kills"), Column("objects"), Column("lost"), Column("consumers killed"), Column("pause", "s")]
    table = Table("producers and consumers are killed; none came twice or out of order", columns)
    table.rows.append([kills, found.objects, found.lost, found.consumers, found.pause])
    report.tables.append(table)
    report.bars += [
        Bar(f"the longest pause in {kills} kills, s", 0.25, found.pause, is_most=True),
        Bar("objects lost for each killed consumer", 1.0, found.lost / found.consumers, is_most=True),
    ]


def _times(mine: Series, other: Series) -> float:
    ratio: Ratio = other.ratio_to(mine)
    return ratio.median


_MEASURED: dict[str, Callable[[Report, Options, shmpool.Pool], None]] = {
    "small": _small, "large": _large, "shared": _shared, "many": _batches, "flight": _in_flight,
    "kills": _killed,
}  # fmt: skip
