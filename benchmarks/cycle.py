"""cycle: What do lease + release, and the whole cycle, cost in one process, plain and compiled, or `--against` another
source tree, or `--beside` so many clients, or with `--detailed` metrics?

Both clients are measured in one run: each in a process of its own with a broker of its own, one lap of each by
turns. The ratio of the best laps and the median of the rounds' ratios are shown, the smaller of both is
judged. So neither the machine's state nor a neighbour is in it. In the same way the plain clients of two trees are
compared, or with `--compiled` their compiled ones; the same tree twice tells the noise. In the same
way a pool in which seats are held by others is measured beside one that is alone, and one whose clients time
every lease beside one whose clients time one in 64."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import product
from pathlib import Path

import click

import shmpool
from shmpool._fast import WHY_PLAIN

from . import seats
from .measure import Contestant, Lap, Ratio, Series, interleave
from .operations import Operation, lease_and_release, whole_cycle
from .options import Options
from .report import Bar, Column, Report, Table
from .trees import ROOT, TreePath, measure
from .units import KIB, MIB, size_name

SIZES = (KIB, 4 * KIB, 64 * KIB, 255 * KIB, 512 * KIB)
ROUNDS = 7
SECONDS = 0.05
MOST_FOR_A_PAIR = 2e-6

#: Of two trees: a category each, and the smallest there is.
SIZES_AGAINST = (KIB, 64 * KIB, 512 * KIB, MIB)
ROUNDS_AGAINST = 60
SECONDS_AGAINST = 0.002
#: Times the other tree's: more than the same tree twice shows. Direct leases wait for the broker.
MOST_OF_THE_OTHER = 1.05
MOST_OF_THE_OTHER_DIRECT = 1.15

#: Beside other clients.
SIZES_BESIDE = (KIB, 64 * KIB)
#: Times what it costs alone.
MOST_BESIDE = 1.10

#: Times what the cycle costs without: two looks at the clock are most of that.
MOST_DETAILED = 1.05
SIZES_DETAILED = (KIB, 64 * KIB)
ROUNDS_DETAILED = 300

#: The whole cycle of the compiled client, times the plain one's, at the smallest size.
MOST_COMPILED = 0.2

PARAMETERS = [
    click.Option(["--against"], type=TreePath(), help="Measure this tree and that checkout in one run."),
    click.Option(["--detailed"], is_flag=True, help="Measure with `detailed_metrics` and without."),
    click.Option(
        ["--compiled"], is_flag=True, help="With --against: the compiled clients of both, not the plain ones."
    ),
    click.Option(["--beside"], type=click.IntRange(1, 16_000), help="Measure beside so many seats that others hold."),
]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    other, beside = options.more.get("against"), options.more.get("beside")
    if other is not None:
        _measure_against(report, options, other)
    elif beside is not None:
        _measure_beside(report, options, beside)
    elif options.more.get("detailed"):
        _measure_detailed(report, options)
    elif shmpool.__compiled__:
        _measure_both(report, options)
    else:
        _measure_plain(report, options)
    return report


def _measure_plain(report: Report, options: Options) -> None:
    table = Table(
        "one process, a warm magazine; the whole cycle is lease, touch, publish, open, touch, release",
        [Column("size", "B"), Column("lease + release", "s"), Column("best", "s"), Column("whole cycle", "s")],
    )
    with shmpool.Broker(memory_limit="256MiB") as broker, broker.connect() as pool:
        for size in options.sizes or SIZES:
            contestants = {"pair": pair_of(pool, size), "cycle": cycle_of(pool, size)}
            series = interleave(
                contestants, rounds=options.rounds or ROUNDS, seconds=options.seconds or SECONDS, least=1000
            )
            pair, cycle = series["pair"], series["cycle"]
            table.rows.append([size, pair.median, pair.best, cycle.median])
            name = f"lease + release, {size_name(size)}"
            report.bars.append(Bar(name, MOST_FOR_A_PAIR, pair.median, "s", is_most=True))
    report.tables.append(table)
    report.absent["compiled"] = WHY_PLAIN
    report.bars.append(Bar(f"compiled whole cycle, {size_name(KIB)}", MOST_COMPILED, None, is_most=True))


def _measure_against(report: Report, options: Options, other: Path) -> None:
    rounds, seconds = options.rounds or ROUNDS_AGAINST, options.seconds or SECONDS_AGAINST
    table = Table(
        f"this tree and {other}: the best of {rounds} rounds, and the rounds' ratios",
        [Column("size", "B"), Column("operation"), Column("this", "s"), Column("other", "s"),
         Column("best / best", "x"), Column("round by round", "x")],
        is_grouped=True,
    )  # fmt: skip
    report.tables.append(table)
    both = ({"SHMPOOL_PURE": "" if options.more.get("compiled") else "1"},) * 2
    for size, name, ours, theirs in measure((ROOT, other), options.sizes or SIZES_AGAINST, rounds, seconds, both):
        of_bests, of_rounds = ours.best / theirs.best, _round_by_round(ours, theirs)
        table.rows.append([size, name, ours.best, theirs.best, of_bests, of_rounds])
        # What is slower is so in both; a lucky lap, or a burst of other work, is only in one.
        slower = min(of_bests, of_rounds.median)
        report.bars.append(Bar(f"{name}, {size_name(size)}", _allowed(size), slower, is_most=True))


def _measure_both(report: Report, options: Options) -> None:
    rounds, seconds = options.rounds or ROUNDS_AGAINST, options.seconds or SECONDS_AGAINST
    table = Table(
        f"one process, a warm magazine; plain, tickets under locks, and compiled, tickets by compare-and-swap: the best"
        f" of {rounds} rounds, and their ratios",
        [Column("size", "B"), Column("operation"), Column("plain", "s"), Column("compiled", "s"),
         Column("best / best", "x"), Column("round by round", "x")],
        is_grouped=True,
    )  # fmt: skip
    report.tables.append(table)
    sizes, both = options.sizes or SIZES, ({"SHMPOOL_PURE": ""}, {"SHMPOOL_PURE": "1"})
    for size, name, compiled, plain in measure((ROOT, ROOT), sizes, rounds, seconds, both):
        of_bests, of_rounds = compiled.best / plain.best, _round_by_round(compiled, plain)
        table.rows.append([size, name, plain.best, compiled.best, of_bests, of_rounds])
        if name == "lease + release":
            report.bars.append(Bar(f"{name}, {size_name(size)}", MOST_FOR_A_PAIR, plain.median, "s", is_most=True))
        if name == "whole cycle" and size == KIB:
            slower = min(of_bests, of_rounds.median)
            report.bars.append(Bar(f"compiled {name}, {size_name(size)}", MOST_COMPILED, slower, is_most=True))


def _measure_beside(report: Report, options: Options, count: int) -> None:
    rounds, seconds = options.rounds or ROUNDS_AGAINST, options.seconds or SECONDS_AGAINST
    table = Table(
        f"beside {count:,} seats that another process holds, and alone: the best of {rounds} rounds, and their ratios",
        [Column("size", "B"), Column("operation"), Column("beside", "s"), Column("alone", "s"),
         Column("best / best", "x"), Column("round by round", "x")],
        is_grouped=True,
    )  # fmt: skip
    report.tables.append(table)
    settings = {"memory_limit": "256MiB", "max_clients": count + 16}
    with (
        shmpool.Broker(**settings) as crowded,
        shmpool.Broker(**settings) as empty,
        seats.held(crowded.address, count),
        crowded.connect() as ours,
        empty.connect() as theirs,
    ):
        for size, (name, of) in product(options.sizes or SIZES_BESIDE, OPERATIONS_BESIDE.items()):
            contestants = {"beside": of(ours, size), "alone": of(theirs, size)}
            series = interleave(contestants, rounds=rounds, seconds=seconds)
            beside, alone = series["beside"], series["alone"]
            of_bests, of_rounds = beside.best / alone.best, _round_by_round(beside, alone)
            table.rows.append([size, name, beside.best, alone.best, of_bests, of_rounds])
            slower = min(of_bests, of_rounds.median)
            report.bars.append(Bar(f"{name}, {size_name(size)}", MOST_BESIDE, slower, is_most=True))


def _measure_detailed(report: Report, options: Options) -> None:
    rounds, seconds = options.rounds or ROUNDS_DETAILED, options.seconds or SECONDS_AGAINST
    table = Table(
        f"the whole cycle with detailed_metrics and without: the best of {rounds} rounds, and their ratios",
        [Column("size", "B"), Column("with", "s"), Column("without", "s"),
         Column("best / best", "x"), Column("round by round", "x")],
    )  # fmt: skip
    report.tables.append(table)
    with (
        shmpool.Broker(memory_limit="256MiB", detailed_metrics=True) as timing,
        shmpool.Broker(memory_limit="256MiB") as sampling,
        timing.connect() as ours,
        sampling.connect() as theirs,
    ):
        for size in options.sizes or SIZES_DETAILED:
            contestants = {"with": cycle_of(ours, size), "without": cycle_of(theirs, size)}
            series = interleave(contestants, rounds=rounds, seconds=seconds)
            with_, without = series["with"], series["without"]
            of_bests, of_rounds = with_.best / without.best, _round_by_round(with_, without)
            table.rows.append([size, with_.best, without.best, of_bests, of_rounds])
            slower = min(of_bests, of_rounds.median)
            report.bars.append(Bar(f"detailed_metrics, {size_name(size)}", MOST_DETAILED, slower, is_most=True))


def _allowed(size: int) -> float:
    return MOST_OF_THE_OTHER if size < MIB else MOST_OF_THE_OTHER_DIRECT


def _round_by_round(ours: Series, theirs: Series) -> Ratio:
    """How many times longer ours takes: the median round and the quartiles."""
    ratios = [mine / other for mine, other in zip(ours.rounds, theirs.rounds, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return Ratio(median, low, high)


def pair_of(pool: shmpool.Pool, size: int) -> Contestant:
    return partial(_lap, lease_and_release, pool, size)


def cycle_of(pool: shmpool.Pool, size: int) -> Contestant:
    return partial(_lap, whole_cycle, pool, size)


OPERATIONS_BESIDE = {"lease + release": pair_of, "whole cycle": cycle_of}


def _lap(operation: Operation, pool: shmpool.Pool, size: int, objects: int) -> Lap:
    return Lap(sum(operation(pool, size, objects).values()))
