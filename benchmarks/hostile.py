"""hostile: Are others held up while hostile peers attack the broker?

One client leases warm and with a miss (a broker round trip); meanwhile a process attacks as
fast as it can, in phases interleaved with quiet ones of the same round. In a quiet phase a
process of the same appetite spins instead, so that what is compared is the broker's doing, and
not that a core is taken. Every attack is at full speed: a real peer of this kind costs less."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import shmpool

from .attacks import ATTACKS, Steps
from .crew import Answer, Crew, start_time, wait_until
from .measure import Lap, Series
from .misses import SETTINGS, Misses
from .options import Options
from .report import Bar, Column, Report, Table

ROUNDS = 7
SECONDS = 0.4
BAR = 2.0
WARM, MISS = "warm cycle", "miss"
NBYTES = 64 * 1024


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    columns = [Column("attack"), Column("steps/s", "1/s"), Column("operation")]
    columns += [Column(f"{when} {what}", "s") for what in ("p50", "p99") for when in ("quiet", "attacked")]
    table = Table("latency of others", [*columns, Column("attacked / quiet", "x")], is_grouped=True)
    report.tables.append(table)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    for name in ATTACKS:
        rate, quiet, attacked = _measure(name, rounds, seconds)
        for operation in (WARM, MISS):
            before, during = quiet[operation], attacked[operation]
            ratio = during.ratio_to(before)
            slower = (1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
            figures = [series.percentile(percent) for percent in (50, 99) for series in (before, during)]
            table.rows.append([name, rate, operation, *figures, slower])
            bar = f"{name}: {operation} while attacked / quiet"
            report.bars.append(Bar(bar, BAR, slower[0], is_most=True, spread=(slower[1], slower[2])))
    report.notes.append(
        "The ratio is of the medians of each round's two phases; in brackets its spread over the rounds."
    )
    return report


def _measure(name: str, rounds: int, seconds: float) -> tuple[float, dict[str, Series], dict[str, Series]]:
    """The attack's steps a second, and what others measured without and with it."""
    quiet, attacked = ({operation: Series() for operation in (WARM, MISS)} for _ in range(2))
    rates = []
    lead = seconds / 2  # the attack is well under way when the others begin
    with (
        shmpool.Broker(memory_limit="512MiB", max_clients=1100, **SETTINGS) as broker,
        Crew(1, lambda _place: _attacker(broker.address)) as crew,
        broker.connect() as pool,
        broker.connect() as other,
    ):
        misses = Misses(pool)

        def measure(start: float, series: dict[str, Series]) -> None:
            wait_until(start)
            _add(series[WARM], list(_warm_cycles(other, start + seconds / 2)))
            _add(series[MISS], misses.run(1 << 30, start + seconds))

        for _ in range(rounds):
            for attack, series in (("", quiet), (name, attacked)):
                start = start_time()
                question = attack, start, lead + seconds
                (steps,) = crew.ask(question, meanwhile=partial(measure, start + lead, series))
                if attack:
                    rates.append(steps / (lead + seconds))
    return sorted(rates)[len(rates) // 2], quiet, attacked


def _add(series: Series, samples: list[float]) -> None:
    """A round's figure is its median: a core that is taken away for a while is not the broker's doing."""
    series.add(Lap(sorted(samples)[len(samples) // 2], samples), 1)


def _warm_cycles(pool: shmpool.Pool, until: float) -> Iterator[float]:
    clock = time.perf_counter
    while (started := clock()) < until:
        with pool.lease(NBYTES) as lease:
            handle = lease.publish()
        pool.open(handle).release()
        yield clock() - started


@contextmanager
def _attacker(address: str) -> Iterator[Answer]:
    def attack(question: tuple[str, float, float]) -> int:
        name, start, seconds = question
        wait_until(start)
        steps, until = 0, time.perf_counter() + seconds
        attacking: Steps = ATTACKS[name](address) if name else _spinning()
        for _ in attacking:
            steps += 1
            if time.perf_counter() >= until:
                break
        attacking.close()  # type: ignore[attr-defined]
        return steps

    yield attack


def _spinning() -> Steps:
    while True:
        yield
