"""executors: How fast do arrays pass through multiprocessing's pools with `shmpool.install()`, and without, through
`shmpool.Executor`, and batches through torch's DataLoader?

Each array goes into a worker and another of the same size comes out: one worker, so that what is measured is the way
and not how many do the work. With and without take turns, each with a worker of its own: one that has received
something from an installed process is installed, and passes its results through the pool, whoever asks. A
DataLoader's two workers fill batches that its user adds up."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

import shmpool

from .measure import Lap, Series, interleave
from .options import Options
from .report import Bar, Column, Report, Table
from .units import KIB, MIB, size_name

SIZES = (10 * KIB, 1900 * KIB, 8 * MIB)
#: How many times as fast as without.
BARS = {10 * KIB: 0.9, 1900 * KIB: 2.0, 8 * MIB: 2.0}
ROUNDS, SECONDS = 5, 0.25
#: So many times with workers of their own: how fast one pickles depends on what its allocator has seen.
GENERATIONS = 3
BATCHES = (9 * MIB, 37 * MIB)
#: Batches of one lap of a DataLoader, and samples of a batch.
LAP, SAMPLES = 40, 8
LOADER_ROUNDS = 5
NOT_SLOWER = 1.0

fork = multiprocessing.get_context("fork")


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    with shmpool.Broker(memory_limit="1GiB", max_clients=64) as broker, broker.connect() as pool:
        for nbytes in options.sizes or SIZES:
            _there_and_back(report, pool, nbytes, rounds, seconds)
        if options.sizes is None:
            _loaders(report, pool, options.rounds or LOADER_ROUNDS)
    return report


def negative(array: Any) -> Any:
    """What a worker does: something of the same size, in little time."""
    return -array


# --- arrays ------------------------------------------------------------------------------------------------


def _there_and_back(report: Report, pool: shmpool.Pool, nbytes: int, rounds: int, seconds: float) -> None:
    array = np.ones(nbytes // 4, np.float32)
    series: dict[str, Series] = {}
    for _ in range(GENERATIONS):
        for name, part in _with_new_workers(pool, array, rounds, seconds).items():
            series.setdefault(name, Series()).rounds += part.rounds
    if not report.tables:
        columns = [Column("size", "B"), *(Column(name, "s") for name in series)]
        report.tables.append(Table("an array in and one out, one worker", columns))
    report.tables[0].rows.append([nbytes, *(one.median for one in series.values())])
    if nbytes in BARS:
        for name in WAYS:
            title = f"{name} with install, {size_name(nbytes)}, beside without"
            report.bars.append(Bar.of_ratio(title, BARS[nbytes], series[f"{name}, installed"], series[name]))


def _with_new_workers(pool: shmpool.Pool, array: Any, rounds: int, seconds: float) -> dict[str, Series]:
    with ExitStack() as stack:
        contestants: dict[str, Callable[[int], Lap]] = {}
        for name, way in WAYS.items():
            for behind, installed in ("", None), (", installed", pool):
                contestants[name + behind] = _lap(way(stack), array, installed)
        ours = stack.enter_context(shmpool.Executor(1, pool=pool, mp_context=fork))
        contestants["shmpool.Executor"] = _lap(partial(_mapped, ours), array, None)
        return interleave(contestants, rounds=rounds, seconds=seconds, least=8)


def _pool_map(stack: ExitStack) -> Callable[[list[Any]], list[Any]]:
    workers = stack.enter_context(fork.Pool(1))
    return lambda arrays: workers.map(negative, arrays, chunksize=1)


def _futures(stack: ExitStack) -> Callable[[list[Any]], list[Any]]:
    return partial(_mapped, stack.enter_context(ProcessPoolExecutor(1, mp_context=fork)))


def _mapped(executor: Executor, arrays: list[Any]) -> list[Any]:
    return list(executor.map(negative, arrays))


#: Each with a worker of its own.
WAYS = {"Pool.map": _pool_map, "ProcessPoolExecutor": _futures}


def _lap(way: Callable[[list[Any]], Any], array: Any, pool: shmpool.Pool | None) -> Callable[[int], Lap]:
    def lap(objects: int) -> Lap:
        if pool is not None:
            shmpool.install(pool=pool)
        arrays = [array.copy() for _ in range(min(objects, 8))]  # one object would be pickled once for many
        way(arrays)  # what the others' laps have put to rest is at work again: segments, allocators, cores
        done, started = 0, time.perf_counter()
        while done < objects:
            results = way(arrays)
            done += len(results)
            del results
        taken = time.perf_counter() - started
        if pool is not None:
            shmpool.uninstall()
        gc.collect()
        return Lap(taken * objects / done)

    return lap


# --- batches -----------------------------------------------------------------------------------------------


def _loaders(report: Report, pool: shmpool.Pool, rounds: int) -> None:
    if importlib.util.find_spec("torch") is None:
        report.absent["torch"] = "not installed"
        for nbytes in BATCHES:
            report.bars.append(Bar(f"a DataLoader, batches of {size_name(nbytes)}", NOT_SLOWER, None))
        return
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Samples(Dataset[Any]):
        def __init__(self, nbytes: int) -> None:
            self.sample = torch.ones(nbytes // SAMPLES // 4)

        def __len__(self) -> int:
            return LAP * SAMPLES

        def __getitem__(self, at: int) -> Any:
            return self.sample

    columns = [Column("size", "B"), Column("torch", "s"), Column("shmpool", "s")]
    report.tables.append(Table("a DataLoader with two workers, a batch", columns))
    for nbytes in BATCHES:
        data, series = Samples(nbytes), {"torch": Series(), "shmpool": Series()}
        loaders = {
            "torch": DataLoader(data, batch_size=SAMPLES, num_workers=2),
            "shmpool": shmpool.torch.batches(
                DataLoader(data, batch_size=SAMPLES, num_workers=2, collate_fn=shmpool.torch.collate(pool))
            ),
        }
        for _ in range(rounds):
            for name, loader in loaders.items():
                series[name].add(_load(loader), LAP)
        report.tables[-1].rows.append([nbytes, series["torch"].median, series["shmpool"].median])
        title = f"a DataLoader, batches of {size_name(nbytes)}, beside torch's own way"
        report.bars.append(Bar.of_ratio(title, NOT_SLOWER, series["shmpool"], series["torch"]))


def _load(loader: Any) -> Lap:
    """From the first batch to the last: starting the workers takes as long either way."""
    started = 0.0
    for batch in loader:
        started = started or time.perf_counter()
        float(batch.sum())
    return Lap((time.perf_counter() - started) * LAP / (LAP - 1))
