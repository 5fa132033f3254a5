"""soak: Is everything as it was after minutes of mixed load, with workers that come and go?

A long-lived client and some visitors trade objects of mixed sizes. A visitor stays for some
seconds; one in four leaves without closing its pool. Memory is what broker and client have for
themselves (resident, not shared): slots that a client touches for the first time are no leak.
It is fitted over the second half of the run. Descriptors and names in /dev/shm are counted after the
first half and at the end, each time with nobody but the idle client there. Nobody is killed here:
`python -m tests.soak` does that."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

import click
import psutil

import shmpool
from shmpool.stats import query

from .crew import Answer, Crew
from .exchange import Exchange
from .options import Options
from .report import Bar, Column, Report, Table
from .trend import BLOCKS, trend_of
from .units import KIB, MIB

#: `all` leaves it out: it takes minutes and is judged by itself.
IS_APART = True
MINUTES = 2.0
VISITORS = 3
#: How long a visitor stays, in seconds.
STAY = (0.3, 3.0)
#: Of so many visitors one leaves without a word.
SILENT = 4
WARM_UP = 0.5
SAMPLE_EVERY = 0.5
#: What may surely be added in the second half: caches that fill (a client keeps a record of each
#: ticket's place that it has opened) and an allocator's steps, and so much more for each hour.
MOST_ADDED = 256 * KIB
MOST_ADDED_AN_HOUR = 2 * MIB
#: How long the broker has to notice that all are gone, in seconds.
PATIENCE = 10.0
#: A descriptor is still open when its connection has just ended: the fewest of some looks count.
LOOKS = 10
PAUSE = 0.02
#: Seconds after which nothing lies spare any more.
SPARES_GO = 2.0

PARAMETERS = [
    click.Option(["--minutes"], type=click.FloatRange(0.2), help="How long, 2 by default."),
    click.Option(["--visitors"], type=click.IntRange(1), help="Workers that come and go, 3 at a time by default."),
]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    seconds = 60 * (options.more.get("minutes") or MINUTES)
    with shmpool.Broker(memory_limit="256MiB") as broker:
        exchange = Exchange(broker.address)
        try:
            with Crew(1, _resident(exchange)) as crew:
                soak = _Soak(broker, exchange, crew, options.more.get("visitors") or VISITORS)
                soak.load(seconds * WARM_UP)
                before, soak.samples = soak.count(), []
                soak.load(seconds * (1 - WARM_UP))
                while len(soak.samples) < BLOCKS:  # a short one on a busy machine
                    soak.load(seconds * WARM_UP)
                after = soak.count()
        finally:
            exchange.close()
    _add_memory(report, soak.samples)
    _add_counts(report, before, after)
    report.bars.append(Bar("visitors that failed", 0, soak.failed, "count", is_most=True))
    report.notes.append(
        f"{soak.made:,} objects by the long-lived client, {soak.came} visitors. Caches fill and an allocator grows in"
        " steps: a run of minutes takes that for a slope, an hour does not."
    )
    return report


def _resident(exchange: Exchange):
    """The long-lived client: trades until the moment that it is told, or takes all that is left."""

    @contextmanager
    def start(_: int) -> Iterator[Answer]:
        with exchange.trader(seed=0) as trader:
            yield lambda until: trader.take_all() if until is None else trader.trade_until(until)

    return start


def _visit(exchange: Exchange, seed: int, until: float) -> None:
    with exchange.trader(seed) as trader:
        trader.trade_until(until)
        if seed % SILENT == 0:
            os._exit(0)


@dataclass(frozen=True)
class _Sample:
    moment: float
    broker: int
    client: int


@dataclass
class _Soak:
    broker: shmpool.Broker
    exchange: Exchange
    crew: Crew
    most_visitors: int
    samples: list[_Sample] = field(default_factory=list)
    made: int = 0
    came: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self._visitors: list[BaseProcess] = []
        self._random = random.Random(0)
        self._processes = [psutil.Process(self.broker.pid), psutil.Process(self.crew.processes[0].pid)]

    def load(self, seconds: float) -> None:
        """Everybody trades for so long; then the visitors have left, and nothing is on its way."""
        until = time.perf_counter() + seconds
        self.made += sum(self.crew.ask(until, meanwhile=lambda: self._receive_visitors(until)))
        for visitor in self._visitors:
            visitor.join()
        self._see_off()
        self.crew.ask(None)
        self._await_quiet()

    def _receive_visitors(self, until: float) -> None:
        while (now := time.perf_counter()) < until:
            self._see_off()
            while len(self._visitors) < self.most_visitors:
                self._invite(min(until, now + self._random.uniform(*STAY)))
            self.samples.append(_Sample(now, *(_own_memory(process) for process in self._processes)))
            time.sleep(min(SAMPLE_EVERY, max(0.0, until - now)))

    def _invite(self, until: float) -> None:
        self.came += 1
        visitor = multiprocessing.get_context("fork").Process(target=_visit, args=(self.exchange, self.came, until))
        visitor.start()
        self._visitors.append(visitor)

    def _see_off(self) -> None:
        self.failed += sum(visitor.exitcode not in (0, None) for visitor in self._visitors)
        self._visitors = [visitor for visitor in self._visitors if visitor.exitcode is None]

    def _await_quiet(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while (stats := query(self.broker.address)).active_buffers or len(stats.clients) > 1:
            if time.monotonic() > deadline:
                break  # the counts will show it
            time.sleep(0.05)

    def count(self) -> dict[str, int]:
        """What must be the same whenever it is quiet."""
        stats = query(self.broker.address)
        broker, client = (_fewest_descriptors(process) for process in self._processes)
        return {
            "descriptors of the broker": broker,
            "descriptors of the client": client,
            "names in /dev/shm": _fewest_names(stats.pool_id),
            "seats taken": len(stats.clients),
            "buffers not given back": stats.active_buffers,
        }


def _fewest_descriptors(process: psutil.Process) -> int:
    looks = []
    for _ in range(LOOKS):
        time.sleep(PAUSE)
        looks.append(process.num_fds())
    return min(looks)


def _fewest_names(pool_id: str) -> int:
    """Once what lay spare for a moment has gone, which a steady producer's next object would have taken."""
    looks = []
    for _ in range(LOOKS):
        time.sleep(SPARES_GO / LOOKS)
        looks.append(sum(pool_id in name for name in os.listdir("/dev/shm")))
    return min(looks)


def _own_memory(process: psutil.Process) -> int:
    memory = process.memory_info()
    return memory.rss - memory.shared


def _add_memory(report: Report, samples: list[_Sample]) -> None:
    table = Table(
        "resident memory of its own",
        [Column("process"), Column("first", "B"), Column("last", "B"), Column("most", "B"),
         Column("KiB an hour", "count"), Column("+-", "count")],
    )  # fmt: skip
    moments = [sample.moment for sample in samples]
    seconds = moments[-1] - moments[0]
    most = MOST_ADDED + MOST_ADDED_AN_HOUR * seconds / 3600
    for name, values in {
        "broker": [sample.broker for sample in samples],
        "long-lived client": [sample.client for sample in samples],
    }.items():
        trend, hour = trend_of(moments, values), 3600 / KIB
        few = len(values) // BLOCKS
        first, last = (sum(part) / few for part in (values[:few], values[-few:]))
        table.rows.append([name, first, last, max(values), trend.slope * hour, trend.uncertainty * hour])
        report.bars.append(
            Bar(f"{name}: surely added in the second half", most, max(0.0, trend.at_least * seconds), "B", is_most=True)
        )
    report.tables.append(table)


def _add_counts(report: Report, before: dict[str, int], after: dict[str, int]) -> None:
    table = Table(
        "when it is quiet", [Column(""), Column("after the first half", "count"), Column("at the end", "count")]
    )
    for name, count in before.items():
        table.rows.append([name, count, after[name]])
        report.bars.append(Bar(f"more {name}", 0, after[name] - count, "count", is_most=True))
    report.tables.append(table)
