"""latency: How long do lease, open, release and the whole hand-off take, by size category, when
sizes are mixed and 1 to 8 workers share a pool, beside a fresh segment for each object?

The workers stand in a ring (see `ring`), each with one object on its way; a single one hands
over to itself. Sizes are log-normal with a median of 24 KiB, 2 % of them very large; all bytes
are copied in and out. Where there is a core for every worker, each keeps to its own and
polls for 200 us before it sleeps; else it sleeps at once, and the hand-off includes its turn to run."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import resource_tracker

import click

import shmpool

from .channel import Channel
from .crew import Crew, start_time
from .measure import percentile
from .mixes import REALISTIC
from .options import Options
from .plan import SPIN
from .report import Column, Plot, Report, Table
from .ring import CATEGORIES, STEPS, Fresh, Pooled, Samples, System, in_ring

WORKERS = (1, 2, 4, 8)
ROUNDS = 5
SECONDS = 0.4
PERCENTS = (50, 90, 99, 99.9)
PERCENTS_OF_FRESH = (50, 99)
OURS, FRESH = "shmpool", "fresh segment"

PARAMETERS = [
    click.Option(["--workers"], type=click.IntRange(1, 64), help="Only so many workers, not 1, 2, 4 and 8."),
]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    summary = Table(
        "the whole hand-off, all sizes",
        [Column("workers", "count"), *_columns()],
        plot=Plot("workers", ("p50", "p99", "fresh p50", "fresh p99"), title="hand-off, all sizes, by workers"),
    )
    report.tables.append(summary)
    workers = options.more.get("workers")
    for count in (workers,) if workers else WORKERS:
        samples = _measure(count, options.rounds or ROUNDS, options.seconds or SECONDS)
        summary.rows.append([count, *_figures(samples, CATEGORIES, "hand-off")])
        report.tables.append(_by_category(count, samples))
    report.notes.append("A percentile is left out where fewer than one sample lies beyond it.")
    return report


def _measure(count: int, rounds: int, seconds: float) -> dict[str, Samples]:
    resource_tracker.ensure_running()  # one for all, as with `multiprocessing`
    has_cores = count <= len(os.sched_getaffinity(0))
    channels = [Channel(SPIN if has_cores else 0.0) for _ in range(count)]
    samples: dict[str, Samples] = {name: _no_samples() for name in (OURS, FRESH)}
    with shmpool.Broker(memory_limit="512MiB") as broker:
        ring = in_ring(channels, _systems(broker.address), REALISTIC, has_cores=has_cores)
        with Crew(count, ring) as crew:
            for name in samples:  # what becomes warm does so now
                crew.ask((name, start_time(), seconds))
            for _ in range(rounds):
                for name, noted in samples.items():
                    for answer in crew.ask((name, start_time(), seconds)):
                        for key, times in answer.items():
                            noted[key].extend(times)
    for channel in channels:
        channel.close()
    return samples


def _no_samples() -> Samples:
    return {(category, step): array("d") for category in CATEGORIES for step in STEPS}


def _systems(address: str) -> Callable[[], AbstractContextManager[dict[str, System]]]:
    @contextmanager
    def systems() -> Iterator[dict[str, System]]:
        with shmpool.connect(address) as pool:
            yield {OURS: Pooled(pool), FRESH: Fresh()}

    return systems


def _columns() -> list[Column]:
    ours = [Column(f"p{percent:g}", "s") for percent in PERCENTS]
    fresh = [Column(f"fresh p{percent:g}", "s") for percent in PERCENTS_OF_FRESH]
    return [Column("samples", "count"), *ours, *fresh]


def _by_category(count: int, samples: dict[str, Samples]) -> Table:
    table = Table(
        f"{count} worker{'s' * (count > 1)}", [Column("category"), Column("step"), *_columns()], is_grouped=True
    )
    for category in CATEGORIES:
        for step in STEPS:
            table.rows.append([category, step, *_figures(samples, [category], step)])
    return table


def _figures(samples: dict[str, Samples], categories: Iterable[str], step: str) -> list[float | None]:
    """How many samples we have of a step, and the percentiles of both systems."""
    keys = [(category, step) for category in categories]
    ours, fresh = (sorted(time for key in keys for time in samples[of][key]) for of in (OURS, FRESH))
    return [len(ours), *_percentiles(ours, PERCENTS), *_percentiles(fresh, PERCENTS_OF_FRESH)]


def _percentiles(times: list[float], percents: Iterable[float]) -> list[float | None]:
    """None where a percentile would be the largest sample or so."""
    return [percentile(times, percent) if len(times) * (100 - percent) >= 100 else None for percent in percents]
