"""broker: What does a lease cost that misses the magazine, for how many clients at a time,
and what do the stats cost those who lease?

A miss is one `Pool.lease` whose magazine is empty: one message to the broker, one back, a
window made over the slot (see `misses`). Its measure is the bare msgpack echo (see `echo`),
interleaved with it. A producer that begins with nothing and keeps what it leases misses once for each batch: what that
is for each of its leases is shown beside. Each client is a process of its own. Given-back slots are part of what
the broker does for each lease, so its CPU time is for a Refill, a Grant and a share of a
Return; they are not in the latencies."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

import shmpool
from shmpool.stats import query

from . import measure
from .cores import on_one_core
from .crew import Crew, start_time, wait_until
from .echo import EchoClient, EchoServer
from .measure import Contestant, Lap, Series, interleave, percentile
from .misses import NBYTES, REFILL, SETTINGS, Misses, check_all_missed
from .options import Options
from .report import Bar, Column, Plot, Report, Table

CLIENTS = (1, 4, 16, 64)
#: Those who lease while the stats are asked for.
LOADED_BY = 4
#: How often the stats are asked for, and the seconds from an answer to the next question.
STATS_PAUSES = {"never": None, "every 0.1 s": 0.1, "without a pause": 0.0}
ROUNDS = 7
SECONDS = 0.25
MOST_OF_AN_ECHO = 1.6
#: Slots that a producer grows to: those of its first two batches, and some of its third.
GROWN = 16


def comparisons(options: Options) -> int:
    return 2 + 2 + len(CLIENTS) + 1


def run(options: Options) -> Report:
    """What has a bar comes first: whoever has little time has it."""
    report = Report.of(__doc__, options)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    with EchoServer() as echo:
        with shmpool.Broker(memory_limit="256MiB", buffer_lifetime=3600) as broker:
            _add_growing(report, broker, echo, rounds, seconds)
        with shmpool.Broker(memory_limit="256MiB", **SETTINGS) as broker:
            _add_miss(report, broker, echo, rounds, seconds)
            _add_clients(report, broker, echo, rounds, seconds)
            _add_stats(report, broker, echo, rounds, seconds)
            check_all_missed(query(broker.address))
    return report


# --- one client ------------------------------------------------------------------------------


def _add_miss(report: Report, broker: shmpool.Broker, echo: EchoServer, rounds: int, seconds: float) -> None:
    table = Table(
        "one client: a lease that misses, and a bare msgpack echo",
        [Column("cores"), Column("miss", "s"), Column("p99", "s"), Column("echo", "s"), Column("echo's p99", "s"),
         Column("miss / echo", "x")],
    )  # fmt: skip
    apart = miss_and_echo(broker, echo, rounds, seconds)
    with on_one_core(broker.pid, echo.pid):
        together = miss_and_echo(broker, echo, rounds, seconds)
    for cores, (miss, bare) in {"where the kernel puts them": apart, "both on one core": together}.items():
        of_echo = bare.ratio_to(miss)
        table.rows.append([cores, miss.median, miss.percentile(99), bare.median, bare.percentile(99), of_echo])
        name = f"magazine miss, times a bare echo, {cores}"
        report.bars.append(Bar(name, MOST_OF_AN_ECHO, of_echo.median, is_most=True, spread=(of_echo.low, of_echo.high)))
    report.tables.append(table)


def _add_growing(report: Report, broker: shmpool.Broker, echo: EchoServer, rounds: int, seconds: float) -> None:
    table = Table(
        f"a producer that grows from nothing to {GROWN} slots: each of its leases, and a bare msgpack echo",
        [Column("cores"), Column("lease", "s"), Column("echo", "s"), Column("lease / echo", "x")],
    )
    client = EchoClient(echo.address)
    contestants = {
        "growing": _lapped(lambda objects, _: _grow(broker, objects)),
        "echo": _lapped(lambda objects, until: _echo(client, objects, until)),
    }

    def measure() -> tuple[Series, Series]:
        series = interleave(contestants, rounds=rounds, seconds=seconds, least=GROWN)
        return series["growing"], series["echo"]

    apart = measure()
    with on_one_core(broker.pid, echo.pid):
        together = measure()
    client.close()
    for cores, (growing, bare) in {"where the kernel puts them": apart, "both on one core": together}.items():
        of_echo = bare.ratio_to(growing)
        table.rows.append([cores, growing.median, bare.median, of_echo])
        name = f"a growing producer's lease, times a bare echo, {cores}"
        report.bars.append(Bar(name, MOST_OF_AN_ECHO, of_echo.median, is_most=True, spread=(of_echo.low, of_echo.high)))
    report.tables.append(table)


def _grow(broker: shmpool.Broker, objects: int) -> list[float]:
    """At least so many leases of producers that each begin with nothing: the seconds of each."""
    clock, samples = time.perf_counter, []
    while len(samples) < objects:
        with broker.connect() as pool:
            pool.lease(NBYTES + 1).release()  # of another size: what comes once for each process
            held = []
            for _ in range(GROWN):
                started = clock()
                held.append(pool.lease(NBYTES))
                samples.append(clock() - started)
            for lease in held:
                lease.release()
    return samples[:objects]


def miss_and_echo(
    broker: shmpool.Broker,
    echo: EchoServer,
    rounds: int,
    seconds: float,
    judged: Callable[[Contestant], Contestant] = lambda contestant: contestant,
) -> tuple[Series, Series]:
    """Both by this process, interleaved; *judged* may look at their laps' samples."""
    with _client(broker.address, echo.address) as run:
        contestants: dict[str, Contestant] = {what: judged(_lapped(run[what])) for what in run}
        series = interleave(contestants, rounds=rounds, seconds=seconds)
    return series["miss"], series["echo"]


def _lapped(run: Callable[[int, float], list[float]]) -> Contestant:
    def lap(objects: int) -> Lap:
        samples = run(objects, math.inf)
        return Lap(sum(samples), samples)

    return lap


@contextmanager
def _client(pool_address: str, echo_address: str) -> Iterator[dict[str, Callable[[int, float], list[float]]]]:
    """Does so many of either, or as many as until a moment, but one at least: the seconds of each."""
    with shmpool.connect(pool_address) as pool:
        misses, client = Misses(pool), EchoClient(echo_address)
        try:
            yield {"miss": misses.run, "echo": lambda objects, until: _echo(client, objects, until)}
        finally:
            client.close()


def _echo(client: EchoClient, objects: int, until: float) -> list[float]:
    clock, samples = time.perf_counter, []
    while not samples or (len(samples) < objects and time.perf_counter() < until):
        started = clock()
        client.call(REFILL)
        samples.append(clock() - started)
    return samples


# --- many clients ------------------------------------------------------------------------------


@dataclass
class Load:
    """What several clients did together, a figure a round."""

    rates: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    #: Seconds of CPU that the server used, and for how many operations.
    cpu: float = 0.0
    operations: int = 0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu_each(self) -> float:
        return self.cpu / self.operations

    def ratio_to(self, other: Load) -> tuple[float, float, float]:
        """Its rate as a part of the other's, round by round: median, low, high."""
        ratios = sorted(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))
        return statistics.median(ratios), ratios[0], ratios[-1]


def _client_crew(count: int, pool_address: str, echo_address: str) -> Crew:
    @contextmanager
    def start(_: int) -> Iterator[Callable[[Any], Any]]:
        with _client(pool_address, echo_address) as run:

            def answer(question: tuple[str, float, float]) -> list[float]:
                what, begin, seconds = question
                wait_until(begin)
                return run[what](10**9, begin + seconds)

            yield answer

    return Crew(count, start)


def _load(
    crew: Crew, load: Load, what: str, server: int, seconds: float, meanwhile: Callable[[float], object] | None = None
) -> None:
    """One round: all clients do it for so long; *meanwhile* gets the moment of the end."""
    process, begin = psutil.Process(server), start_time()
    before = _cpu_of(process)
    answers = crew.ask((what, begin, seconds), meanwhile=meanwhile and (lambda: meanwhile(begin + seconds)))
    took = time.perf_counter() - begin
    samples = [sample for answer in answers for sample in answer]
    load.cpu += _cpu_of(process) - before
    load.operations += len(samples)
    load.rates.append(len(samples) / took)
    load.samples += samples


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _add_clients(report: Report, broker: shmpool.Broker, echo: EchoServer, rounds: int, seconds: float) -> None:
    table = Table(
        "clients at a time, a process each; CPU is the server's for each",
        [Column("clients", "count"), Column("misses", "1/s"), Column("p50", "s"), Column("p99", "s"),
         Column("CPU", "s"), Column("echoes", "1/s"), Column("echo p99", "s"), Column("echo CPU", "s"),
         Column("misses / echoes", "x")],
        plot=Plot("clients", ("misses", "echoes"), title="a second, by clients at a time"),
    )  # fmt: skip
    for clients in CLIENTS:
        miss, bare = Load(), Load()
        with _client_crew(clients, broker.address, echo.address) as crew:
            for _ in measure.pace.turns(rounds):
                _load(crew, miss, "miss", broker.pid, seconds)
                _load(crew, bare, "echo", echo.pid, seconds)
        table.rows.append([
            clients, miss.rate, percentile(miss.samples, 50), percentile(miss.samples, 99), miss.cpu_each,
            bare.rate, percentile(bare.samples, 99), bare.cpu_each, miss.ratio_to(bare),
        ])  # fmt: skip
    report.tables.append(table)


# --- the stats -----------------------------------------------------------------------------------


def _add_stats(report: Report, broker: shmpool.Broker, echo: EchoServer, rounds: int, seconds: float) -> None:
    table = Table(
        f"asked for the stats meanwhile, {LOADED_BY} clients",
        [Column("asked"), Column("misses", "1/s"), Column("of the undisturbed", "x"), Column("p99", "s"),
         Column("stats", "s"), Column("longest", "s")],
    )  # fmt: skip
    loads = {often: Load() for often in STATS_PAUSES}
    asked: dict[str, list[float]] = {often: [] for often in STATS_PAUSES}
    with _client_crew(LOADED_BY, broker.address, echo.address) as crew:
        alone = [_ask_stats(broker.address) for _ in range(10 * rounds)]
        for _ in measure.pace.turns(rounds):
            for often, pause in STATS_PAUSES.items():
                ask = _asker(broker.address, pause, asked[often])
                _load(crew, loads[often], "miss", broker.pid, seconds, ask)
    table.rows.append(["nobody leases", None, None, None, statistics.median(alone), max(alone)])
    for often, load in loads.items():
        took = asked[often]
        table.rows.append([
            often, load.rate, load.ratio_to(loads["never"]), percentile(load.samples, 99),
            statistics.median(took) if took else None, max(took, default=None),
        ])  # fmt: skip
    report.tables.append(table)


def _asker(address: str, pause: float | None, took: list[float]) -> Callable[[float], object] | None:
    if pause is None:
        return None

    def ask(until: float) -> None:
        while time.perf_counter() < until:
            took.append(_ask_stats(address))
            time.sleep(min(pause, max(0.0, until - time.perf_counter())))

    return ask


def _ask_stats(address: str) -> float:
    started = time.perf_counter()
    query(address)
    return time.perf_counter() - started
