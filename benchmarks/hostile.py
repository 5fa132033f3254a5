"""hostile: Are others held up while hostile peers attack the broker; are deaths swept; does its memory stay?

One client leases warm and with a miss (a broker round trip); meanwhile a process attacks as
fast as it can, in phases interleaved with quiet ones of the same round. In a quiet phase a
process of the same appetite spins instead, so that what is compared is the broker's doing, and
not that a core is taken. Every attack is at full speed: a real peer of this kind costs less."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import click

import shmpool
from shmpool.protocol.header import SEAT_PID, SEAT_STATE, seat_at

from .attacks import ATTACKS, LIMIT, Steps, endless, victim
from .crew import Answer, Crew, start_time, wait_until
from .measure import Lap, Series
from .misses import SETTINGS, Misses
from .options import Options
from .parameters import Names
from .report import Bar, Column, Report, Table
from .units import MIB

PARAMETERS = [
    click.Option(["--attacks"], type=Names(ATTACKS), help=f"Some of {', '.join(ATTACKS)}."),
]

ROUNDS = 7
SECONDS = 0.4
BAR = 2.0
WARM, MISS = "warm cycle", "miss"
NBYTES = 64 * 1024
#: What a process has that is killed; how long the attack goes on for it at least, and when it is given up. Seconds.
HELD = 256
SWEPT_WITHIN, GIVEN_UP = 0.1, 20.0
#: What the broker may have more while it is attacked than in quiet phases: a thousand connections are some.
MOST_GROWTH = 16 * MIB


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    columns = [Column("attack"), Column("steps/s", "1/s"), Column("operation")]
    columns += [Column(f"{when} {what}", "s") for what in ("p50", "p99") for when in ("quiet", "attacked")]
    table = Table("latency of others", [*columns, Column("attacked / quiet", "x")], is_grouped=True)
    report.tables.append(table)
    deaths = [Column(f"{when} {what}", "s") for when in ("quiet", "attacked") for what in ("p50", "max")]
    fates = Table("from a process's death to its seat's being cleared; the broker's own memory", [
        Column("attack"), *deaths, Column("quiet memory", "B"), Column("attacked memory", "B"),
    ])  # fmt: skip
    report.tables.append(fates)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    for name in options.more.get("attacks") or ATTACKS:
        rate, again, quiet, attacked = _measure(name, rounds, seconds)
        if again:
            report.notes.append(f"{name}: began anew {again} times, when the broker had ended it or kept it waiting.")
        for operation in (WARM, MISS):
            before, during = quiet.latency[operation], attacked.latency[operation]
            ratio = during.ratio_to(before)
            slower = (1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
            figures = [series.percentile(percent) for percent in (50, 99) for series in (before, during)]
            table.rows.append([name, rate, operation, *figures, slower])
            bar = f"{name}: {operation} while attacked / quiet"
            report.bars.append(Bar(bar, BAR, slower[0], is_most=True, spread=(slower[1], slower[2])))
        _add_fates(report, fates, name, quiet, attacked)
    report.notes.append(
        "The ratio is of the medians of each round's two phases; in brackets its spread over the rounds."
    )
    return report


@dataclass
class Seen:
    """What others saw in the phases of one kind."""

    latency: dict[str, Series] = field(default_factory=lambda: {WARM: Series(), MISS: Series()})
    #: Seconds until a death was swept; bytes of the broker's own memory; a figure a round.
    swept: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def _add_fates(report: Report, table: Table, name: str, quiet: Seen, attacked: Seen) -> None:
    swept = [figure for seen in (quiet, attacked) for figure in (median(seen.swept), max(seen.swept))]
    table.rows.append([name, *swept, median(quiet.memory), median(attacked.memory)])
    report.bars.append(Bar(f"{name}: a death swept within", SWEPT_WITHIN, swept[2], "s", is_most=True))
    growth = max(0, median(attacked.memory) - median(quiet.memory))
    report.bars.append(Bar(f"{name}: the broker's memory grows by", MOST_GROWTH, growth, "B", is_most=True))


def _measure(name: str, rounds: int, seconds: float) -> tuple[float, int, Seen, Seen]:
    """The attack's steps a second, how often it began anew, and what others measured without and with it."""
    quiet, attacked = Seen(), Seen()
    rates, again = [], 0
    lead = seconds / 2  # the attack is well under way when the others begin
    with (
        shmpool.Broker(memory_limit=LIMIT, max_clients=1100, **SETTINGS) as broker,
        Crew(1, lambda _place: _attacker(broker.address)) as crew,
        broker.connect() as pool,
        broker.connect() as other,
    ):
        misses = Misses(pool)

        def measure(start: float, seen: Seen, pid: int, seat: int) -> None:
            wait_until(start)
            _add(seen.latency[WARM], lambda: list(_warm_cycles(other, start + seconds / 2)))
            _add(seen.latency[MISS], lambda: misses.run(1 << 30, start + seconds))
            seen.memory.append(_own_memory(broker.pid))
            seen.swept.append(_until_swept(other, pid, seat))

        for _ in range(rounds):
            for attack, seen in (("", quiet), (name, attacked)):
                with victim(broker.address, HELD) as killed:
                    start = start_time()
                    question = attack, start, lead + seconds + SWEPT_WITHIN
                    ((steps, failures),) = crew.ask(question, meanwhile=partial(measure, start + lead, seen, *killed))
                again += failures
                if attack:
                    rates.append(steps / (lead + seconds + SWEPT_WITHIN))
    return sorted(rates)[len(rates) // 2], again, quiet, attacked


def _until_swept(pool: shmpool.Pool, pid: int, seat: int) -> float:
    """Kill a process; seconds until its seat is nobody's, or another's."""
    header, at = pool._session.header, seat_at(seat)
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while header[at + SEAT_STATE] and header[at + SEAT_PID] == pid and time.perf_counter() < killed + GIVEN_UP:
        time.sleep(0.001)
    return time.perf_counter() - killed


def _own_memory(pid: int) -> int:
    """Bytes of a process that are shared with nobody and of no file."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _add(series: Series, run: Callable[[], list[float]]) -> None:
    """A round's figure is its median: a core that is taken away for a while is not the broker's doing. That of
    one in which nothing was had at all is how long it was waited for."""
    started = time.perf_counter()
    try:
        samples = run()
    except shmpool.LeaseTimeout:
        samples = [time.perf_counter() - started]
    series.add(Lap(sorted(samples)[len(samples) // 2], samples), 1)


def _warm_cycles(pool: shmpool.Pool, until: float) -> Iterator[float]:
    clock = time.perf_counter
    while True:
        started = clock()
        with pool.lease(NBYTES) as lease:
            handle = lease.publish()
        pool.open(handle).release()
        yield clock() - started
        if clock() >= until:
            return


@contextmanager
def _attacker(address: str) -> Iterator[Answer]:
    def attack(question: tuple[str, float, float]) -> tuple[int, int]:
        name, start, seconds = question
        wait_until(start)
        steps, until, failures = 0, time.perf_counter() + seconds, itertools.count()
        attacking: Steps = endless(name, address, lambda: next(failures)) if name else _spinning()
        for _ in attacking:
            steps += 1
            if time.perf_counter() >= until:
                break
        attacking.close()  # type: ignore[attr-defined]
        return steps, next(failures)

    yield attack


def _spinning() -> Steps:
    while True:
        yield
