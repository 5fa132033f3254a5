"""streams: What do copying, reading through a tee, and objects of 1 MiB and more cost, beside what they replace?

`copy` beside `shutil.copyfileobj`, with the memory that each allocates; `ChunkedTeeReader` beside a
bare loop; a view of scattered chunks beside a fresh segment; direct objects beside the floor of
the same size, and streamed beside chunked ones; a stream between processes beside
`multiprocessing.Pipe`; `write` into a segment that was used before beside `pwrite` into a file that
has its pages. With `--against` 1 MiB also beside another source tree."""

from __future__ import annotations

import gc
import io
import mmap
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from time import perf_counter
from typing import Any

import click

import shmpool

from . import between
from .contest import CHUNKED, FLOOR, OURS, contest
from .measure import Lap, Series, interleave, timed
from .options import Options
from .pair import Entry
from .plan import Plan, paged, payload
from .render import console
from .report import Bar, Column, Report, Table
from .trees import ROOT, TreePath, measure
from .units import KIB, MIB, size_name

ROUNDS, SECONDS = 7, 0.05
#: Direct objects that are not timed at the beginning of each lap, for each that is in flight: the first
#: ones are new segments, since what rests while others have their laps goes back.
PRELUDE = 3
PARTS = ("copy", "tee", "stitched", "write", "direct", "streamed", "between", "before")

COPIED = (256 * KIB, 512 * KIB, MIB)
NOT_SLOWER, OF_ALLOCATED = 1.0, 0.7
#: How many objects are copied to see whether memory grows, and what may come and go beside them, in bytes.
MANY, MOST_GROWTH = 100_000, 16 * KIB
READ = (64 * KIB, 256 * KIB, MIB)
OF_THE_BARE_LOOP = 0.9
OF_A_FRESH_SEGMENT = 0.25
WRITTEN = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)
OF_PWRITE = 1 / 1.2
DIRECT = (MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
REFERENCE, THAN_THE_REFERENCE = 4 * MIB, 1.5
STREAMED = (MIB, 4 * MIB, 10 * MIB)
OF_CHUNKED = 0.7
THAN_BEFORE = 1 / 3

#: A kept segment of 256 MiB is within the share that a producer may keep.
_LIMIT = {"memory_limit": "4GiB"}
_ENTRIES = (
    Entry(OURS, "shmpool", _LIMIT),
    Entry(CHUNKED, "shmpool", {**_LIMIT, "very_large_object_threshold": "16MiB"}),
    Entry(FLOOR, "floor"),
)

PARAMETERS = [
    click.Option(["--parts"], help=f"Only these, separated by commas: {', '.join(PARTS)}."),
    click.Option(
        ["--objects"], type=click.IntRange(1), default=MANY, help="Objects copied to see whether memory grows."
    ),
    click.Option(["--against"], type=TreePath(), help="Measure 1 MiB beside that checkout, too."),
]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    parts = (options.more.get("parts") or ",".join(PARTS)).split(",")
    if unknown := set(parts) - set(PARTS):
        raise click.UsageError(f"there are no parts {sorted(unknown)}: {', '.join(PARTS)}")
    for part in parts:
        with console.status(part):
            _MEASURED[part](report, options)
    return report


def _series(options: Options, **contestants: Callable[[int], object]) -> dict[str, Series]:
    return interleave(
        {name: timed(body) for name, body in contestants.items()},
        rounds=options.rounds or ROUNDS, seconds=options.seconds or SECONDS, least=4,
    )  # fmt: skip


def _sizes(options: Options, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if options.sizes is None or size in options.sizes)


# --- copy --------------------------------------------------------------------------------------------


class Sink(io.RawIOBase):
    """Takes everything, keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return len(data)


def _copy(report: Report, options: Options) -> None:
    table = Table(
        "copy and shutil.copyfileobj, from memory to a writer that keeps nothing",
        [Column("size", "B"), Column("copy", "s"), Column("copyfileobj", "s"), Column("allocated by copy", "B"),
         Column("by copyfileobj", "B")],
    )  # fmt: skip
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for nbytes in _sizes(options, COPIED):
            source, sink = io.BytesIO(payload(nbytes)), Sink()

            ours, theirs = _copying(source, sink, pool), _copying(source, sink)
            series = _series(options, copy=_repeated(ours), copyfileobj=_repeated(theirs))
            mine, other = _allocated(ours), _allocated(theirs)
            table.rows.append([nbytes, series["copy"].median, series["copyfileobj"].median, mine, other])
            name = size_name(nbytes)
            report.bars += [
                Bar.of_ratio(f"copy {name}: as fast as copyfileobj", NOT_SLOWER, series["copy"], series["copyfileobj"]),
                Bar(f"copy {name}: allocated, of copyfileobj's", OF_ALLOCATED, mine / other, is_most=True),
            ]
        nbytes, objects = COPIED[0], options.more.get("objects") or MANY
        growth = _growth(pool, nbytes, objects)
        report.bars.append(
            Bar(f"copy {size_name(nbytes)}: growth over {objects:,}", MOST_GROWTH, growth, "B", is_most=True)
        )
    report.tables.append(table)


def _copying(source: io.BytesIO, sink: Sink, pool: shmpool.Pool | None = None) -> Callable[[], None]:
    def body() -> None:
        source.seek(0)
        if pool is not None:
            shmpool.copy(source, sink, pool)
        else:
            shutil.copyfileobj(source, sink)

    return body


def _repeated(body: Callable[[], None]) -> Callable[[int], None]:
    def run(objects: int) -> None:
        for _ in range(objects):
            body()

    return run


def _allocated(body: Callable[[], None]) -> float:
    """The peak of what Python allocates for one object, in bytes."""
    body()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        body()
        return float(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()


def _growth(pool: shmpool.Pool, nbytes: int, objects: int) -> float:
    source, sink = io.BytesIO(payload(nbytes)), Sink()
    tracemalloc.start()
    try:
        for number in range(objects):
            if number == min(100, objects // 2):
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
            source.seek(0)
            shmpool.copy(source, sink, pool)
        gc.collect()
        return float(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()


# --- tee ---------------------------------------------------------------------------------------------


def _tee(report: Report, options: Options) -> None:
    table = Table(
        "reading through ChunkedTeeReader into one buffer, and readinto + write with it",
        [Column("size of a read", "B"), Column("tee", "s"), Column("bare loop", "s")],
    )
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for nbytes in _sizes(options, READ):
            source, sink, buffer = io.BytesIO(payload(nbytes)), Sink(), paged(nbytes)
            with shmpool.ChunkedTeeReader(source, sink, pool) as tee:
                series = _series(options, tee=_read(source, tee.readinto), bare=_read(source, _bare(source, sink)))
                del buffer
            table.rows.append([nbytes, series["tee"].median, series["bare"].median])
            name = f"tee, reads of {size_name(nbytes)}: of the bare loop"
            report.bars.append(Bar.of_ratio(name, OF_THE_BARE_LOOP, series["tee"], series["bare"]))
    report.tables.append(table)


def _bare(source: io.BytesIO, sink: Sink) -> Callable[[memoryview], int]:
    def readinto(buffer: memoryview) -> int:
        filled = source.readinto(buffer)
        sink.write(buffer[:filled])
        return filled

    return readinto


def _read(source: io.BytesIO, readinto: Callable[[Any], int | None]) -> Callable[[int], None]:
    buffer = paged(source.getbuffer().nbytes)

    def run(objects: int) -> None:
        for _ in range(objects):
            source.seek(0)
            readinto(buffer)

    return run


# --- a stitched view -----------------------------------------------------------------------------------


def _stitched(report: Report, options: Options) -> None:
    nbytes, chunk = MIB, 64 * KIB
    resource_tracker.ensure_running()
    with shmpool.Broker(memory_limit="64MiB", chunk_sizes=["64KiB"]) as broker, broker.connect() as pool:
        leases = [pool.lease(chunk, strategy="chunked") for _ in range(2 * nbytes // chunk)]
        extents = [lease._slot.extents[0] for lease in leases[::2]]
        session = leases[0]._slot.session

        def stitch() -> None:
            pieces = [session.piece(row, count, writable=True) for row, count in extents]
            window = session.windows.make(pieces, mmap.PROT_READ | mmap.PROT_WRITE)
            _touch(memoryview(window))

        def fresh() -> None:
            segment = SharedMemory(create=True, size=nbytes)
            assert segment.buf is not None
            _touch(segment.buf)
            segment.close()
            segment.unlink()

        series = _series(options, stitched=_repeated(stitch), fresh=_repeated(fresh))
    table = Table(f"a view of {nbytes // chunk} extents, and a fresh segment; each page touched", [
        Column("size", "B"), Column("stitched view", "s"), Column("fresh segment", "s"),
    ])  # fmt: skip
    table.rows.append([nbytes, series["stitched"].median, series["fresh"].median])
    report.tables.append(table)
    ratio = Bar.of_ratio(
        "stitched view, 1 MiB: of a fresh segment", 1 / OF_A_FRESH_SEGMENT, series["stitched"], series["fresh"]
    )
    report.bars.append(ratio)


def _touch(view: memoryview) -> None:
    pages = slice(None, None, mmap.PAGESIZE)
    view[pages] = bytes(len(view[pages]))


# --- writing ---------------------------------------------------------------------------------------------


def _write(report: Report, options: Options) -> None:
    table = Table(
        "write into a segment that served an object before, and pwrite into a file that has its pages",
        [Column("size", "B"), Column("write", "s"), Column("pwrite", "s")],
    )
    with shmpool.Broker(**_LIMIT) as broker, broker.connect() as pool:
        for nbytes in _sizes(options, WRITTEN):
            source, fd = payload(nbytes), os.memfd_create("written")
            try:
                os.pwrite(fd, source, 0)
                series = interleave(
                    {"write": _writing(pool, source), "pwrite": _pwriting(fd, source)},
                    rounds=options.rounds or ROUNDS, seconds=options.seconds or SECONDS, least=8,
                )  # fmt: skip
            finally:
                os.close(fd)
            table.rows.append([nbytes, series["write"].median, series["pwrite"].median])
            name = f"write {size_name(nbytes)} into a spare: as fast as pwrite"
            report.bars.append(Bar.of_ratio(name, OF_PWRITE, series["write"], series["pwrite"]))
    report.tables.append(table)


def _writing(pool: shmpool.Pool, source: bytes) -> Callable[[int], Lap]:
    nbytes = len(source)

    def run(objects: int) -> Lap:
        seconds = 0.0
        for _ in range(objects):
            lease = pool.lease(nbytes)
            started = perf_counter()
            lease.write(source)
            seconds += perf_counter() - started
            pool.open(lease.publish()).release()
        return Lap(seconds)

    return run


def _pwriting(fd: int, source: bytes) -> Callable[[int], Lap]:
    def run(objects: int) -> Lap:
        seconds = 0.0
        for _ in range(objects):
            started = perf_counter()
            os.pwrite(fd, source, 0)
            seconds += perf_counter() - started
        return Lap(seconds)

    return run


# --- direct objects ----------------------------------------------------------------------------------------


def _direct(report: Report, options: Options) -> None:
    table = Table(
        "one in flight, copied in and out",
        [Column("size", "B"), Column(OURS, "s"), Column(FLOOR, "s"), Column("times the floor", "x")],
    )
    ratios: dict[int, float] = {}
    with contest([_ENTRIES[0], _ENTRIES[2]], options) as running:
        for nbytes in _sizes(options, DIRECT):
            series = running.run(Plan(nbytes, prelude=PRELUDE))
            if len(series) < 2:
                break
            ratio = series[FLOOR].ratio_to(series[OURS]).median
            ratios[nbytes] = ratio
            table.rows.append([nbytes, series[OURS].median, series[FLOOR].median, ratio])
        report.absent |= running.absent
    report.tables.append(table)
    reference = ratios.get(REFERENCE)
    for nbytes in _sizes(options, DIRECT):
        if nbytes != REFERENCE:
            name = f"{size_name(nbytes)}, one in flight: times the floor, of {size_name(REFERENCE)}'s"
            measured = None if reference is None or nbytes not in ratios else ratios[nbytes] / reference
            report.bars.append(Bar(name, THAN_THE_REFERENCE, measured, is_most=True))


def _streamed(report: Report, options: Options) -> None:
    table = Table(
        "16 in flight",
        [Column("size", "B"), Column("mode"), Column(OURS, "s"), Column(CHUNKED, "s")],
        is_grouped=True,
    )
    with contest(_ENTRIES[:2], options) as running:
        for nbytes in _sizes(options, STREAMED):
            for mode, copies in (("touch", False), ("copy", True)):
                series = running.run(Plan(nbytes, 16, copies, copies, prelude=16 * PRELUDE))
                table.rows.append([nbytes, mode, series[OURS].median, series[CHUNKED].median])
                name = f"{mode} {size_name(nbytes)}, streamed: of chunked"
                report.bars.append(Bar.of_ratio(name, OF_CHUNKED, series[OURS], series[CHUNKED]))
    report.tables.append(table)


def _before(report: Report, options: Options) -> None:
    other = options.more.get("against")
    if other is None:
        return
    for nbytes, name, ours, theirs in _cycles(options, other):
        if name == "whole cycle":
            measured = min(ours.best / theirs.best, ours.median / theirs.median)
            report.bars.append(
                Bar(f"{size_name(nbytes)}, one in flight: of the time of {other}", THAN_BEFORE, measured, is_most=True)
            )


def _cycles(options: Options, other: Any) -> Iterator[tuple[int, str, Series, Series]]:
    yield from measure((ROOT, other), (MIB,), options.rounds or 12, 0.01)


def _between(report: Report, options: Options) -> None:
    """A stream from process to process, beside a pipe and the floor."""
    table, bars = between.compare(options.rounds or ROUNDS)
    report.tables.append(table)
    report.bars += bars


_MEASURED: dict[str, Callable[[Report, Options], None]] = {
    "copy": _copy,
    "tee": _tee,
    "stitched": _stitched,
    "write": _write,
    "direct": _direct,
    "streamed": _streamed,
    "between": _between,
    "before": _before,
}
