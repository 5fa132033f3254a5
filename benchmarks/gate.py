"""gate: Is anything slower than it was when the baseline was recorded?

Compares ratios, never times: each measure of ours to a reference that does about the same kinds of work
(interpreted steps, copies, system calls, round trips) in the same run, so that another machine, or
another state of it, changes both. Small, medium and large objects are pooled and cost interpreted steps, as do very
large ones whose segment is kept for the next: they are compared with a loop of the standard library's in the same
process (see `calibration`). Very large ones in a pool too small to keep any cost round trips and maps: with a bare
echo and maps of the same size. The
hand-off between two processes has the same loop, the same copies and the same pipe beside it (peer
`gauge`), the miss of a magazine the bare echo. What needs two processes has them on one core: no
wake-up of a halted one, no luck of where the kernel puts them.

What else runs on the machine is not in the ratio: a lap takes a quarter of a millisecond, right before or
after its reference's, while a busy neighbour is given a core for milliseconds at a time. So it hits few
laps, those of either side alike, and the median of some hundred ratios of neighbouring laps does not
know it. Where an object is a few wake-ups long, a lap's figure is its best object, or the processor time
of both sides. A slower machine takes longer and finds the same. What looks slower all the same is
measured again, up to three times: a regression is slower every time.

Both clients are judged, each by its own ratios: the plain one, which is the reference and serves whatever the
compiled part does not, in a process of its own, and the compiled one where it is built."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

import shmpool

from .broker import miss_and_echo
from .calibration import lease_and_release, round_trip_and_maps, whole_cycle
from .cores import on_one_core
from .cycle import cycle_of, pair_of
from .echo import EchoServer
from .measure import Contestant, Lap, Series, by_processor_time, interleave, machine
from .misses import SETTINGS
from .options import Options
from .pair import Entry, Pair
from .plan import Plan
from .report import Bar, Column, Report, Table, read
from .units import KIB, MIB, size_name

#: `all` leaves it out: it judges the others' code, and says nothing new.
IS_APART = True
BASELINE = str(Path(__file__).with_name("baseline.json"))
ROUNDS = 200
SECONDS = 0.00025
ATTEMPTS = 3
#: Below this part of the recorded ratio the baseline should be recorded anew, to hold what was won.
FASTER = 0.8
#: One of each category that the hot path serves: large ones are cut into chunks, a very large one's segment is
#: kept for the next.
POOLED = {"small": KIB, "medium": 64 * KIB, "large": 512 * KIB, "very large": MIB}
VERY_LARGE = MIB
#: Of which a segment of a very large object is more than may be kept: each is made anew.
TOO_SMALL_TO_KEEP = "7MiB"
HANDED_OFF = (64 * KIB, 512 * KIB)
CLIENT = "compiled" if shmpool.__compiled__ else "plain"
#: How many times the recorded ratio is still no regression, by reference. Python 3.12 and 3.13
#: are within 0.85 to 1.07 of 3.11; what is mostly the kernel's varies more between machines.
ALLOWED = {
    "standard library": 1.3,
    "gauge": 1.3,
    "echo": 1.5,
    "echo and maps": 1.7,
    "echo and maps at best": 2.0,
}
#: Times that, where ours are steps of C and the reference's are interpreted ones: what a processor makes of the two
#: differs more.
ALLOWED_COMPILED = 1.4

PARAMETERS = [
    click.Option(["--record"], is_flag=True, help="Write the baseline anew from this run."),
    click.Option(["--baseline"], type=click.Path(dir_okay=False), help="Another baseline than the repository's."),
]

#: What is compared, by (name, reference) -> how many times longer ours takes.
Ratios = dict[tuple[str, str], float]


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    report.tables.append(
        Table(
            "times the reference's",
            [Column("client"), Column("measure"), Column("reference"), Column("recorded", "x"), Column("now", "x"),
             Column("allowed", "x")],
        )
    )  # fmt: skip
    if shmpool.__compiled__:
        _add(report, _plain_report(options))
    rounds, seconds = options.rounds or ROUNDS, options.seconds or SECONDS
    path, records = Path(options.more.get("baseline") or BASELINE), options.more.get("record")
    recorded = {} if records else _read(path)
    now: Ratios = {}
    for group in (_pooled, _hand_off, _miss, _very_large):
        measure = partial(group, rounds, seconds)
        now |= _measure_to_record(measure) if records else _measure(measure, recorded)
    if records:
        _write(path, now)
        recorded = now
    _judge(report, recorded, now)
    return report


def _plain_report(options: Options) -> Report:
    """The same of the plain client, which only another process can have."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.json"
        command = [sys.executable, "-m", *shlex.split(options.command("gate"))[2:], "--json", str(path)]
        done = subprocess.run(command, env={**os.environ, "SHMPOOL_PURE": "1"}, capture_output=True, text=True)
        if not path.exists():
            raise RuntimeError(f"the plain client's gate ended with {done.returncode}: {done.stderr.strip()}")
        return read(path)[0]


def _add(report: Report, other: Report) -> None:
    report.tables[0].rows += other.tables[0].rows
    report.bars += other.bars
    report.absent |= other.absent
    report.notes += other.notes


def _judge(report: Report, recorded: Ratios, now: Ratios) -> None:
    for key, ratio in now.items():
        name, before = f"{CLIENT}: {' / '.join(key)}", recorded.get(key)
        if before is None:
            report.tables[0].rows.append([CLIENT, *key, None, ratio, None])
            report.absent[name] = "not in the baseline: run with --record"
            report.bars.append(Bar(name, 0.0, None, is_most=True))
            continue
        allowed = before * _allowed(key)
        report.tables[0].rows.append([CLIENT, *key, before, ratio, allowed])
        report.bars.append(Bar(name, allowed, ratio, is_most=True))
        if ratio < before * FASTER:
            report.notes.append(f"{name} is faster than recorded: record it, so that it stays so")


def _allowed(key: tuple[str, str]) -> float:
    return ALLOWED[key[1]] * (ALLOWED_COMPILED if CLIENT == "compiled" and key[1] == "standard library" else 1)


def _measure(measure: Callable[[], Ratios], recorded: Ratios) -> Ratios:
    """The least of each ratio, from as many attempts as it takes to find nothing slower."""
    least: Ratios = {}
    for _ in range(ATTEMPTS):
        for key, ratio in measure().items():
            least[key] = min(ratio, least.get(key, ratio))
        if all(ratio <= recorded.get(key, ratio) * _allowed(key) for key, ratio in least.items()):
            break
    return least


def _measure_to_record(measure: Callable[[], Ratios]) -> Ratios:
    """The median of each ratio: a lucky or an unlucky one would be kept for long."""
    attempts = [measure() for _ in range(ATTEMPTS)]
    return {key: statistics.median(attempt[key] for attempt in attempts) for key in attempts[0]}


def _ratio(ours: Series, theirs: Series) -> float:
    """How many times longer ours takes, in the median round."""
    return theirs.ratio_to(ours).median


def _fewer(rounds: int) -> int:
    """Of laps that take longer than *seconds*: some sixteen objects of two processes."""
    return max(1, rounds // 4)


def _undisturbed(contestant: Contestant) -> Contestant:
    """Its laps as if every object had taken what the best one did."""

    def lap(objects: int) -> Lap:
        return Lap(min(contestant(objects).samples) * objects)

    return lap


# --- what is measured --------------------------------------------------------------------------


def _pooled(rounds: int, seconds: float) -> Ratios:
    ratios: Ratios = {}
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        for category, nbytes in POOLED.items():
            contestants = {
                "pair": pair_of(pool, nbytes), "its reference": lease_and_release(),
                "cycle": cycle_of(pool, nbytes), "reference": whole_cycle(),
            }  # fmt: skip
            pair, its_reference, cycle, cycles_reference = interleave(
                contestants, rounds=rounds, seconds=seconds
            ).values()
            ratios[f"lease + release, {category}", "standard library"] = _ratio(pair, its_reference)
            ratios[f"whole cycle, {category}", "standard library"] = _ratio(cycle, cycles_reference)
    return ratios


def _very_large(rounds: int, seconds: float) -> Ratios:
    """The processor time of both sides, which tells all of the broker's work, also what it does when nobody
    waits for it; and the best object's time, which tells whether one waits for more than that."""
    with (
        on_one_core(),
        EchoServer() as echo,
        shmpool.Broker(memory_limit=TOO_SMALL_TO_KEEP) as broker,
        broker.connect() as pool,
        round_trip_and_maps(echo, VERY_LARGE) as reference,
    ):
        contestants = {
            "ours": by_processor_time(_each_cycle(pool, VERY_LARGE), broker.pid),
            "reference": by_processor_time(reference, echo.pid),
        }
        ours, theirs = interleave(contestants, rounds=_fewer(rounds), seconds=seconds).values()
    return {
        ("processor time of a cycle, very large, made anew", "echo and maps"): _ratio(ours, theirs),
        ("best cycle, very large, made anew", "echo and maps at best"): min(ours.samples) / min(theirs.samples),
    }


def _each_cycle(pool: shmpool.Pool, nbytes: int) -> Contestant:
    cycle = cycle_of(pool, nbytes)

    def lap(objects: int) -> Lap:
        samples = [cycle(1).seconds for _ in range(objects)]
        return Lap(sum(samples), samples)

    return lap


def _hand_off(rounds: int, seconds: float) -> Ratios:
    ratios: Ratios = {}
    with (
        on_one_core(),
        Pair(Entry("shmpool", "shmpool", {"memory_limit": "64MiB", "is_compiled": shmpool.__compiled__})) as ours,
        Pair(Entry("gauge", "gauge")) as gauge,
    ):
        for nbytes in HANDED_OFF:
            plan = Plan(nbytes, spin=0)
            contestants = {pair.entry.label: _undisturbed(partial(pair.lap, plan)) for pair in (ours, gauge)}
            series = interleave(contestants, rounds=_fewer(rounds), seconds=seconds)
            ratios[f"hand-off, {size_name(nbytes)}", "gauge"] = _ratio(series["shmpool"], series["gauge"])
    return ratios


def _miss(rounds: int, seconds: float) -> Ratios:
    with on_one_core(), EchoServer() as echo, shmpool.Broker(memory_limit="64MiB", **SETTINGS) as broker:
        miss, bare = miss_and_echo(broker, echo, _fewer(rounds), seconds, _undisturbed)
    return {("magazine miss", "echo"): _ratio(miss, bare)}


# --- the baseline ----------------------------------------------------------------------------------


def _read(path: Path) -> Ratios:
    """The ratios of this process's client."""
    document = json.loads(path.read_text())
    return {
        (entry["measure"], entry["reference"]): entry["ratio"]
        for entry in document["ratios"]
        if entry["client"] == CLIENT
    }


def _write(path: Path, ratios: Ratios) -> None:
    """Those of this process's client; the other's stay."""
    others = json.loads(path.read_text())["ratios"] if path.exists() else []
    entries = [entry for entry in others if entry["client"] != CLIENT] + [
        {"client": CLIENT, "measure": measure, "reference": reference, "ratio": round(ratio, 4)}
        for (measure, reference), ratio in ratios.items()
    ]
    path.write_text(json.dumps({"machine": machine(), "ratios": entries}, indent=1) + "\n")
