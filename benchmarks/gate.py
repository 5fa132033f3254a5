"""gate: Is anything slower than it was when the baseline was recorded?

Compares ratios, never times: ours to a reference that does about the same work in the same
run, so that another machine, or another state of it, changes both. The references: a loop of
the standard library's (see `calibration`), a pre-mapped buffer with a pipe and a fresh segment,
the bare msgpack echo. Two processes share one core: no wake-up of a halted one, no luck of where
the kernel puts them. The broker has no core of its own in the misses either.

Rounds are very short, 2 ms, and many, and the best round of each side counts: a round of that
length often runs undisturbed on the busiest machine, and among so many both sides meet its fast
state. So it sees what always costs, not what happens now and then. With four busy processes
beside it on two cores, eight runs of each measure: the ratio of the bests stayed within -9 and
+11 % (once -24 %, of a fresh segment), the median of the rounds' ratios was off by up to nine
times. What looks slower is measured again, up to three times: a regression is slower every time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

import shmpool

from .broker import miss_and_echo
from .calibration import lease_and_release, whole_cycle
from .cores import on_one_core
from .cycle import cycle_of, pair_of
from .echo import EchoServer
from .measure import Series, interleave, machine
from .misses import SETTINGS
from .options import Options
from .pair import Entry, Pair
from .plan import Plan
from .report import Bar, Column, Report, Table
from .units import KIB, size_name

#: `all` leaves it out: it judges the others' code, and says nothing new.
IS_APART = True
BASELINE = str(Path(__file__).with_name("baseline.json"))
ROUNDS = 60
SECONDS = 0.002
ATTEMPTS = 3
#: Below this part of the recorded ratio the baseline should be recorded anew, to hold what was won.
FASTER = 0.8
SIZES = (64 * KIB, 256 * KIB)
#: How many times the recorded ratio is still no regression, by reference. Python 3.12 and 3.13
#: are within 0.85 to 1.07 of 3.11; what is mostly the kernel's varies more between machines.
ALLOWED = {"standard library": 1.3, "floor": 1.3, "fresh segment": 1.6, "echo": 1.5}

PARAMETERS = [
    click.Option(["--record"], is_flag=True, help="Write the baseline anew from this run."),
    click.Option(["--baseline"], type=click.Path(dir_okay=False), help="Another baseline than the repository's."),
]

#: What is compared, by (name, reference) -> how many times longer ours takes.
Ratios = dict[tuple[str, str], float]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    path, records = Path(options.more.get("baseline") or BASELINE), options.more.get("record")
    recorded = {} if records else _read(path)
    now: Ratios = {}
    for group in (_one_process, _hand_off, _miss):
        measure = partial(group, rounds, seconds)
        now |= _measure_to_record(measure) if records else _measure(measure, recorded)
    if records:
        _write(path, now)
        recorded = now
    _judge(report, recorded, now)
    return report


def _judge(report: Report, recorded: Ratios, now: Ratios) -> None:
    table = Table(
        "times the reference's",
        [Column("measure"), Column("reference"), Column("recorded", "x"), Column("now", "x"), Column("allowed", "x")],
    )
    report.tables.append(table)
    for key, ratio in now.items():
        name, before = " / ".join(key), recorded.get(key)
        if before is None:
            table.rows.append([*key, None, ratio, None])
            report.absent[name] = "not in the baseline: run with --record"
            report.bars.append(Bar(name, 0.0, None, is_most=True))
            continue
        allowed = before * ALLOWED[key[1]]
        table.rows.append([*key, before, ratio, allowed])
        report.bars.append(Bar(name, allowed, ratio, is_most=True))
        if ratio < before * FASTER:
            report.notes.append(f"{name} is faster than recorded: record it, so that it stays so")


def _measure(measure: Callable[[], Ratios], recorded: Ratios) -> Ratios:
    """The least of each ratio, from as many attempts as it takes to find nothing slower."""
    least: Ratios = {}
    for _ in range(ATTEMPTS):
        for key, ratio in measure().items():
            least[key] = min(ratio, least.get(key, ratio))
        if all(ratio <= recorded.get(key, ratio) * ALLOWED[key[1]] for key, ratio in least.items()):
            break
    return least


def _measure_to_record(measure: Callable[[], Ratios]) -> Ratios:
    """The median of each ratio: a lucky or an unlucky one would be kept for long."""
    attempts = [measure() for _ in range(ATTEMPTS)]
    return {key: statistics.median(attempt[key] for attempt in attempts) for key in attempts[0]}


def _ratio(ours: Series, theirs: Series) -> float:
    return ours.best / theirs.best


def _one_process(rounds: int, seconds: float) -> Ratios:
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool, whole_cycle() as reference:
        contestants = {
            "pair": pair_of(pool, KIB), "its reference": lease_and_release(),
            "cycle": cycle_of(pool, KIB), "reference": reference,
        }  # fmt: skip
        pair, its_reference, cycle, cycles_reference = interleave(contestants, rounds=rounds, seconds=seconds).values()
    return {
        ("lease + release", "standard library"): _ratio(pair, its_reference),
        ("whole cycle", "standard library"): _ratio(cycle, cycles_reference),
    }


def _hand_off(rounds: int, seconds: float) -> Ratios:
    ratios: Ratios = {}
    with (
        on_one_core(),
        Pair(Entry("shmpool", "shmpool", {"memory_limit": "64MiB"})) as ours,
        Pair(Entry("floor", "floor")) as floor,
        Pair(Entry("fresh segment", "fresh")) as fresh,
    ):
        for nbytes in SIZES:
            plan = Plan(nbytes, spin=0)
            contestants = {pair.entry.label: partial(pair.lap, plan) for pair in (ours, floor, fresh)}
            series = interleave(contestants, rounds=rounds, seconds=seconds)
            for reference in ("floor", "fresh segment"):
                ratios[f"hand-off, {size_name(nbytes)}", reference] = _ratio(series["shmpool"], series[reference])
    return ratios


def _miss(rounds: int, seconds: float) -> Ratios:
    with on_one_core(), EchoServer() as echo, shmpool.Broker(memory_limit="64MiB", **SETTINGS) as broker:
        miss, bare = miss_and_echo(broker, echo, rounds, seconds)
    return {("magazine miss", "echo"): _ratio(miss, bare)}


# --- the baseline ----------------------------------------------------------------------------------


def _read(path: Path) -> Ratios:
    document = json.loads(path.read_text())
    return {(entry["measure"], entry["reference"]): entry["ratio"] for entry in document["ratios"]}


def _write(path: Path, ratios: Ratios) -> None:
    entries = [
        {"measure": measure, "reference": reference, "ratio": round(ratio, 4)}
        for (measure, reference), ratio in ratios.items()
    ]
    path.write_text(json.dumps({"machine": machine(), "ratios": entries}, indent=1) + "\n")
