"""objects: What does an object cost from put to the end of its last array, beside pickling it, and what
one that many processes share?

An array of float32 goes there and back in one process, so that no switch between processes is
measured: by `put` and `get`, through a pickle in memory and over a pipe, through a fresh SharedMemory,
through joblib's memmap, and through Plasma's and Ray's put and get, where those install. A get is also
compared with what it stands on, an open and a release. Then a large table goes to many processes, and many
ask at once for what one of them has to make."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import os
import pickle
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

import shmpool

from . import plasma_environment
from .measure import Contestant, Lap, Series, interleave
from .messages import counting
from .options import Options
from .peers.base import Absent
from .report import Bar, Column, Report, Table
from .stores import Store
from .units import KIB, MIB, size_name

SIZES = (4 * KIB, 64 * KIB, 192 * KIB, 256 * KIB, 512 * KIB, MIB, 4 * MIB, 64 * MIB)
#: How many times as fast as a pickle in memory `put` and `get` have to be.
BARS = {256 * KIB: 1.0, 512 * KIB: 3.0, MIB: 1.5, 64 * MIB: 4.0}
#: The same for an array that is born in shared memory.
BORN = {64 * MIB: 20.0}
#: A get and its end, in opens and releases, at the most.
MOST_OF_AN_OPEN = 2.5
ROUNDS, SECONDS = 7, 0.03
TABLE, READERS = 200 * MIB, 40
#: So many times with processes of their own: one that opens it as the last is one figure of 40.
CROWDS = 3
MAKERS = 16
#: Messages are counted over so many objects.
COUNTED = 200

fork = multiprocessing.get_context("fork")


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    with shmpool.Broker(memory_limit="1GiB", max_clients=64) as broker, broker.connect() as pool:
        with _stores(report) as stores:
            for nbytes in options.sizes or SIZES:
                _there_and_back(report, pool, stores, nbytes, rounds, seconds)
        report.tables.append(_messages(report, pool))
        if options.sizes is None:
            report.tables.append(_to_many(report, broker))
            report.tables.append(_made_once(report, broker))
    return report


def comparisons(options: Options) -> int:
    return 2 * len(options.sizes or SIZES)


# --- one object ------------------------------------------------------------------------------------------


@contextmanager
def _stores(report: Report) -> Iterator[dict[str, Store]]:
    """The object stores of others that there are here."""
    stores: dict[str, Store] = {}
    try:
        for name, find in (("Plasma", plasma_environment.interpreter), ("Ray", lambda: sys.executable)):
            try:
                if name == "Ray" and importlib.util.find_spec("ray") is None:
                    raise Absent("not installed")
                stores[name] = Store(name, find())
            except (Absent, RuntimeError, OSError) as error:
                report.absent[name] = str(error)
        yield stores
    finally:
        for store in stores.values():
            store.close()


def _there_and_back(
    report: Report, pool: shmpool.Pool, stores: dict[str, Store], nbytes: int, rounds: int, seconds: float
) -> None:
    if not report.tables:
        report.tables.append(
            Table(
                "an array there and back, and freed",
                [Column("size", "B"), *(Column(name, "s") for name in _contestants(pool, stores, KIB))],
            )
        )
        report.tables.append(
            Table("a get and its end, beside an open and a release", [Column("size", "B"), Column("open", "s"),
                  Column("get", "s"), Column("ratio", "x")])
        )  # fmt: skip
        if importlib.util.find_spec("joblib") is None:
            report.absent["joblib"] = "not installed"
    series = interleave(_contestants(pool, stores, nbytes), rounds=rounds, seconds=seconds, least=8)
    report.tables[0].rows.append([nbytes, *(one.median for one in series.values())])
    if nbytes in BARS:
        name = f"put + get + del, {size_name(nbytes)}, beside a pickle in memory"
        report.bars.append(Bar.of_ratio(name, BARS[nbytes], series["put"], series["pickle"]))
    if nbytes in BORN:
        name = f"empty + publish + get + del, {size_name(nbytes)}, beside a pickle in memory"
        report.bars.append(Bar.of_ratio(name, BORN[nbytes], series["empty"], series["pickle"]))
    if nbytes <= pool.sizing.pooled_sizes[-1] and nbytes < pool.sizing.large_object_threshold:
        halves = _get_beside_open(pool, nbytes, rounds, seconds)
        ratio = halves["open"].ratio_to(halves["get"])
        report.tables[1].rows.append([nbytes, halves["open"].median, halves["get"].median, ratio])
        name = f"get + del, {size_name(nbytes)}, beside open + release"
        report.bars.append(Bar(name, MOST_OF_AN_OPEN, ratio.median, is_most=True, spread=(ratio.low, ratio.high)))


def _timed(step: Callable[[], object]) -> Contestant:
    def lap(objects: int) -> Lap:
        started = time.perf_counter()
        for _ in range(objects):
            step()
        return Lap(time.perf_counter() - started)

    return lap


def _contestants(pool: shmpool.Pool, stores: dict[str, Store], nbytes: int) -> dict[str, Contestant]:
    array = np.ones(nbytes // 4, np.float32)
    reading, writing = fork.Pipe(duplex=False)

    def put() -> None:
        pool.get(pool.put(array))

    def empty() -> None:
        with pool.empty(array.shape, np.float32) as born:
            handle = born.publish()
        pool.get(handle)

    def in_memory() -> None:
        pickle.loads(pickle.dumps(array, 5))

    def over_a_pipe() -> None:
        sender = threading.Thread(target=writing.send, args=(array,))
        sender.start()
        reading.recv()
        sender.join()

    def fresh() -> None:
        memory = SharedMemory(create=True, size=nbytes)
        np.ndarray(array.shape, array.dtype, memory.buf)[:] = array
        other = SharedMemory(memory.name)
        got = np.ndarray(array.shape, array.dtype, other.buf)
        del got
        other.close()
        memory.close()
        memory.unlink()

    steps: dict[str, Callable[[], object]] = {
        "put": put, "empty": empty, "pickle": in_memory, "pickle over a pipe": over_a_pipe, "SharedMemory": fresh,
    }  # fmt: skip
    if importlib.util.find_spec("joblib") is not None:
        import joblib

        path = f"/dev/shm/shmpool-benchmark-{os.getpid()}"

        def memmap() -> None:
            joblib.dump(array, path)
            got = joblib.load(path, mmap_mode="r")
            del got
            os.unlink(path)

        steps["joblib"] = memmap
    others = {name: _lap_of(store, nbytes) for name, store in stores.items()}
    return {name: _timed(step) for name, step in steps.items()} | others


def _lap_of(store: Store, nbytes: int) -> Contestant:
    return lambda objects: Lap(store.lap(nbytes, objects))


def _get_beside_open(pool: shmpool.Pool, nbytes: int, rounds: int, seconds: float) -> dict[str, Series]:
    """Only the reader's half is timed: what was put lies ready."""
    array = np.ones((nbytes - 256) // 4, np.float32)

    def half(end: Callable[[Any], object]) -> Contestant:
        def lap(objects: int) -> Lap:
            took = 0.0
            for at in range(0, objects, 8):
                handles = [pool.put(array) for _ in range(min(8, objects - at))]
                started = time.perf_counter()
                for handle in handles:
                    end(handle)
                took += time.perf_counter() - started
            return Lap(took)

        return lap

    halves = {
        "open": half(lambda handle: pool.open(handle).release()),
        "get": half(lambda handle: pool.get(handle, copy=False)),
    }
    return interleave(halves, rounds=rounds, seconds=seconds, least=64)


def _messages(report: Report, pool: shmpool.Pool) -> Table:
    """What is said to the broker."""
    array = np.ones(50_000, np.float32)
    for _ in range(COUNTED):
        pool.get(pool.put(array))
    with counting() as sent:
        for _ in range(COUNTED):
            pool.get(pool.put(array))
        by_puts = sent()
    shared = pool.share(array)
    with shmpool.connect(pool.address) as other:
        theirs = shmpool.Shared(other, *shared.__reduce__()[1][1:])
        with counting() as sent:
            kept = theirs.get()
            for _ in range(COUNTED):
                theirs.get()
            by_opens = sent()
        del kept
    shared.release()
    report.bars.append(Bar(f"messages for {COUNTED} objects, put and got", 0, by_puts, "count", is_most=True))
    report.bars.append(Bar(f"messages for {COUNTED} opens of what is shared", 1, by_opens, "count", is_most=True))
    return Table(
        "messages to the broker",
        [Column("what"), Column("how many", "count"), Column("messages", "count")],
        [["put and get", COUNTED, by_puts], ["open, of one shared object", COUNTED, by_opens]],
    )


# --- for many --------------------------------------------------------------------------------------------


def _started(work: Callable[..., None], *args: Any) -> tuple[Any, Any]:
    ours, theirs = fork.Pipe()
    process = fork.Process(target=work, args=(*args, theirs))
    process.start()
    theirs.close()
    return ours, process


def _pss(pid: int) -> int:
    """What a process has of its pages of the pool, shared ones by its share: bytes."""
    total, counts = 0, False
    with open(f"/proc/{pid}/smaps") as lines:
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                counts = "shmpool-" in line
            elif counts and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _read_all(address: str, pipe: Any) -> None:
    """Open in turn, then read all at once: who opens does not find the caches full of what another has read."""
    with shmpool.connect(address) as pool:
        pipe.recv()
        started = time.perf_counter()
        shared = pool.find("table")
        table = shared.get(copy=False)
        pipe.send(time.perf_counter() - started)
        pipe.recv()
        table.sum()
        again = []
        for _ in range(100):
            started = time.perf_counter()
            second = shared.open()
            again.append(time.perf_counter() - started)
            second.release()
        pipe.send(statistics.median(again))
        pipe.recv()
        pipe.send(_pss(os.getpid()))
        pipe.recv()
        del table


def _to_many(report: Report, broker: shmpool.Broker) -> Table:
    rows = [_to_one_crowd(broker) for _ in range(CROWDS)]
    held, first, last, again = (statistics.median(figures) for figures in zip(*rows, strict=True))
    name = f"{size_name(TABLE)} for {READERS} processes"
    report.bars += [
        Bar(f"{name}: copies in memory", 1.05, held, is_most=True),
        Bar(f"{name}: the last one's open", 1e-3, last, "s", is_most=True),
        Bar(f"{name}: another open there", 10e-6, again, "s", is_most=True),
    ]
    return Table(
        name,
        [Column("copies", "x"), Column("first open", "s"), Column("last open", "s"), Column("another", "s")],
        [[held, first, last, again]],
    )


def _to_one_crowd(broker: shmpool.Broker) -> tuple[float, float, float, float]:
    """Copies in memory, and the seconds of the first open, the last one, and another one there."""
    readers = [_started(_read_all, broker.address) for _ in range(READERS)]

    def tell(*, heard: bool = True) -> list[float]:
        for pipe, _ in readers:
            pipe.send(None)
        return [pipe.recv() for pipe, _ in readers] if heard else []

    with broker.connect() as pool, pool.share(np.ones(TABLE // 8), "table") as shared:
        opened = []
        for pipe, _ in readers:
            pipe.send(None)
            opened.append(pipe.recv())
        again = tell()
        held = sum(tell()) + _pss(os.getpid())
        tell(heard=False)
        for _, process in readers:
            process.join()
        nbytes = shared.nbytes
    return held / nbytes, opened[0], opened[-1], statistics.median(again)


def _make_or_get(address: str, name: str, start: Any, is_killed: bool, pipe: Any) -> None:
    with shmpool.connect(address) as pool:
        made = []

        def make() -> Any:
            made.append(1)
            if is_killed:
                pipe.send("making")
                signal.pause()
            time.sleep(0.05)
            return np.ones(10_000)

        if start is not None:
            start.wait()
        with closing(pipe):
            shared = pool.get_or_share(name, make)
            shared.get()
            pipe.send((len(made), time.monotonic()))
            pipe.recv()


def _made_once(report: Report, broker: shmpool.Broker) -> Table:
    rows: list[list[Any]] = []
    for is_killed in (False, True):
        name = "made again" if is_killed else "made"
        victim = _started(_make_or_get, broker.address, name, None, True) if is_killed else None
        if victim is not None:
            assert victim[0].recv() == "making"
        start = fork.Barrier(MAKERS + 1)
        makers = [_started(_make_or_get, broker.address, name, start, False) for _ in range(MAKERS)]
        start.wait()
        time.sleep(0.1 if is_killed else 0.0)
        began = time.monotonic()
        if victim is not None:
            os.kill(victim[1].pid, signal.SIGKILL)
        answers = [pipe.recv() for pipe, _ in makers]
        for pipe, process in makers:
            pipe.send(None)
            process.join()
        made = sum(count for count, _ in answers)
        rows.append(["its maker is killed" if is_killed else "all at once", made, max(at for _, at in answers) - began])
        what = f"get_or_share, {MAKERS} processes, {rows[-1][0]}"
        report.bars.append(Bar(f"{what}: made", 1, made, "count", is_most=True))
        if is_killed:
            report.bars.append(Bar(f"{what}: served after", 0.2, rows[-1][2], "s", is_most=True))
    gc.collect()
    return Table(
        f"{MAKERS} processes ask for what takes 50 ms to make",
        [Column("case"), Column("made", "count"), Column("all served after", "s")],
        rows,
    )
