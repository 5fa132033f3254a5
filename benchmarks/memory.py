"""memory: How much of the memory that is held was asked for, and what does an object cost
the allocator, the collector and the page tables, beside a fresh segment for each object?

An allocation is obtaining a buffer, touching its pages and giving it back. Its overhead is
the time beyond touching pages that are there already."""

from __future__ import annotations

import gc
import statistics
import sys
import tracemalloc
from collections import deque
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import shmpool

from .faults import faults_of
from .measure import Series, interleave, timed
from .mixes import MIXES, Mix, sizes_of
from .options import Options
from .peers.fresh import Fresh
from .peers.shmpool import Shmpool
from .report import Bar, Column, Plot, Report, Table
from .units import KIB, MIB, size_name

SIZES = (4 * KIB, 64 * KIB, 255 * KIB, 256 * KIB, 512 * KIB, 768 * KIB, MIB, 4 * MIB)
#: From here on an object is large, and the design promises something.
LARGE = 256 * KIB
LEAST_SAVED = 0.30
ROUNDS = 7
SECONDS = 0.03
PAGE = 4096
#: Bytes of a mix that are published at a time.
ASKED = 96 * MIB
#: Objects alive at a time while Python's allocations are counted, and how many in all.
ALIVE = 16
OBJECTS = 2000
#: Objects handed over while page faults are counted.
HANDED_OVER = 200


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    sizes = options.sizes or SIZES
    report.tables = [
        _efficiency(),
        _overhead(report, sizes, options),
        _objects(sizes),
        _faults(report, sizes),
    ]
    return report


def _bar(what: str, nbytes: int, ours: float, theirs: float) -> Bar:
    return Bar(f"{what}, {size_name(nbytes)}: less than a fresh segment's", LEAST_SAVED, 1 - ours / theirs, "%")


# --- efficiency --------------------------------------------------------------------------------


def _efficiency() -> Table:
    table = Table(
        f"memory efficiency: asked / held, {size_name(ASKED)} published at a time",
        [Column("mix"), Column("mean object", "B"), Column("objects", "count"), Column("held for them", "B"),
         Column("efficiency", "%"), Column("with the tables", "%"), Column("fresh segments", "%")],
    )  # fmt: skip
    for name, mix in MIXES.items():
        table.rows.append([name, *_efficiency_of(mix)])
    return table


def _efficiency_of(mix: Mix) -> list[float]:
    sizes = _sizes_worth(mix, ASKED)
    with shmpool.Broker(memory_limit=4 * ASKED) as broker, broker.connect() as pool:
        handles = []
        for nbytes in sizes:
            with pool.lease(nbytes) as lease:
                handles.append(lease.publish())
        stats = pool.stats()
        for handle in handles:
            pool.discard(handle)
    asked, held = sum(sizes), stats.memory["payload"] / stats.memory_efficiency
    if stats.memory["payload"] != asked:
        raise RuntimeError(f"the pool says {stats.memory['payload']} bytes were asked for, it was {asked}")
    in_pages = sum(-(-nbytes // PAGE) * PAGE for nbytes in sizes)
    return [
        asked // len(sizes), len(sizes), held, stats.memory_efficiency, asked / (held + stats.memory["overhead"]),
        asked / in_pages,
    ]  # fmt: skip


def _sizes_worth(mix: Mix, nbytes: int) -> list[int]:
    sizes: list[int] = []
    for size in sizes_of(mix, nbytes // KIB):
        if nbytes < size:
            break
        nbytes -= size
        sizes.append(size)
    return sizes


# --- one process: time and Python's own memory ----------------------------------------------------


class _Allocator(NamedTuple):
    """Obtains a buffer, with a byte in each page touched, and gives it back."""

    obtain: Callable[[int], Any]
    give_back: Callable[[Any], object]


def _touch(view: memoryview, pages: bytes) -> None:
    view[::PAGE] = pages


def _ours(pool: shmpool.Pool) -> _Allocator:
    def obtain(nbytes: int) -> shmpool.Lease:
        lease = pool.lease(nbytes)
        _touch(lease.view, bytes(-(-nbytes // PAGE)))
        return lease

    return _Allocator(obtain, lambda lease: lease.release())


def _obtain_fresh(nbytes: int) -> SharedMemory:
    segment = SharedMemory(create=True, size=nbytes)
    _touch(segment.buf[:nbytes], bytes(-(-nbytes // PAGE)))
    return segment


def _give_back_fresh(segment: SharedMemory) -> None:
    segment.close()
    segment.unlink()


_FRESH = _Allocator(_obtain_fresh, _give_back_fresh)


def _resident(nbytes: int) -> _Allocator:
    """What the others are measured against: the same bytes, there already."""
    view = memoryview(bytearray(nbytes))

    def obtain(nbytes: int) -> None:
        _touch(view, bytes(-(-nbytes // PAGE)))

    return _Allocator(obtain, lambda nothing: None)


def _overhead(report: Report, sizes: tuple[int, ...], options: Options) -> Table:
    table = Table(
        "allocation overhead: the time of obtaining a buffer, touching its pages and giving it back",
        [Column("size", "B"), Column("shmpool", "s"), Column("fresh segment", "s"), Column("touching alone", "s"),
         Column("overhead saved", "%")],
        plot=Plot("size", ("shmpool", "fresh segment", "touching alone"), title="obtain, touch, give back"),
    )  # fmt: skip
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for nbytes in sizes:
            allocators = {"shmpool": _ours(pool), "fresh": _FRESH, "touching": _resident(nbytes)}
            series = interleave(
                {name: timed(_cycle(allocator, nbytes)) for name, allocator in allocators.items()},
                rounds=options.rounds or ROUNDS,
                seconds=options.seconds or SECONDS,
            )
            ours, fresh, touching = series.values()
            saved = _saved(ours, fresh, touching)
            table.rows.append([nbytes, ours.median, fresh.median, touching.median, saved])
            if nbytes >= LARGE:
                report.bars.append(_bar("allocation overhead", nbytes, 1 - saved, 1))
    return table


def _cycle(allocator: _Allocator, nbytes: int) -> Callable[[int], None]:
    def body(objects: int) -> None:
        obtain, give_back = allocator
        for _ in range(objects):
            give_back(obtain(nbytes))

    return body


def _saved(ours: Series, fresh: Series, touching: Series) -> float:
    """Part of the fresh segment's overhead that we do not have: the median of the rounds."""
    rounds = zip(ours.rounds, fresh.rounds, touching.rounds, strict=True)
    return 1 - statistics.median((mine - bare) / (theirs - bare) for mine, theirs, bare in rounds)


def _objects(sizes: tuple[int, ...]) -> Table:
    table = Table(
        f"Python's own memory for an object, {ALIVE} alive at a time",
        [Column("size", "B"), Column(""), Column("blocks", "count"), Column("bytes", "B"),
         Column("peak while made", "B"), Column("left behind", "B"), Column("collections per 1,000", "count")],
        is_grouped=True,
    )  # fmt: skip
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for nbytes in sizes:
            for name, allocator in {"shmpool": _ours(pool), "fresh segment": _FRESH}.items():
                table.rows.append([nbytes, name, *_heap_of(allocator, nbytes)])
    return table


def _heap_of(allocator: _Allocator, nbytes: int) -> list[float]:
    """Blocks and bytes of an object that is alive, the most bytes while one is made and
    freed, bytes left when it is gone, and collections for each thousand."""
    obtain, give_back = allocator
    alive = deque(obtain(nbytes) for _ in range(ALIVE))
    objects = min(OBJECTS, max(ALIVE, 400 * MIB // nbytes))
    collections = _collections()
    for _ in range(objects):
        alive.append(obtain(nbytes))
        give_back(alive.popleft())
    collections = _collections() - collections
    while alive:
        give_back(alive.popleft())
    gc.collect()
    tracemalloc.start()
    try:
        give_back(obtain(nbytes))
        start, blocks = tracemalloc.get_traced_memory()[0], sys.getallocatedblocks()
        alive.extend(obtain(nbytes) for _ in range(ALIVE))
        held, blocks = tracemalloc.get_traced_memory()[0] - start, sys.getallocatedblocks() - blocks
        while alive:
            give_back(alive.popleft())
        start = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(ALIVE):
            give_back(obtain(nbytes))
        end, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return [blocks / ALIVE, held / ALIVE, peak - start, (end - start) / ALIVE, collections * 1000 / objects]


def _collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


# --- two processes: page faults --------------------------------------------------------------------


def _faults(report: Report, sizes: tuple[int, ...]) -> Table:
    table = Table(
        "minor page faults for an object that is handed over, copied in and copied out",
        [Column("size", "B"), Column("pages", "count"), Column("producer", "count"), Column("consumer", "count"),
         Column("fresh: producer", "count"), Column("fresh: consumer", "count")],
    )  # fmt: skip
    for nbytes in sizes:
        ours = faults_of(Shmpool(memory_limit="256MiB"), nbytes, HANDED_OVER)
        fresh = faults_of(Fresh(), nbytes, HANDED_OVER)
        table.rows.append([nbytes, -(-nbytes // PAGE), *ours, *fresh])
        if nbytes >= LARGE:
            report.bars.append(_bar("page faults", nbytes, sum(ours), sum(fresh)))
    return table
