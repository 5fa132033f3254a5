"""Measuring on small, noisy machines: rounds that interleave the contestants, medians and
their spread, ratios within one run. Nothing here compares with a time of another run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import shmpool


class Ratio(NamedTuple):
    """How many times faster one is than the other: above 1, the first is faster."""

    median: float
    low: float
    high: float


class Lap(NamedTuple):
    """One contestant's part of one round: what it took in all, and each object if noted."""

    seconds: float
    samples: Sequence[float] = ()


#: Handles so many objects, and says how long it took.
Contestant = Callable[[int], Lap]


@dataclass
class Series:
    """What one contestant measured: seconds for each object, a figure a round, and the
    samples of all rounds where objects were timed one by one."""

    rounds: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)

    def add(self, lap: Lap, objects: int) -> None:
        self.rounds.append(lap.seconds / objects)
        self.samples.extend(lap.samples)

    @property
    def median(self) -> float:
        """The median round's."""
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        """The best round's."""
        return min(self.rounds)

    def percentile(self, percent: float) -> float | None:
        """Of the single objects; None where they were not timed."""
        return percentile(self.samples, percent) if self.samples else None

    def ratio_to(self, other: Series) -> Ratio:
        """other / self, round by round: above 1, self is faster."""
        ratios = sorted(theirs / mine for theirs, mine in zip(other.rounds, self.rounds, strict=True))
        return Ratio(statistics.median(ratios), ratios[0], ratios[-1])


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that *percent* of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * percent // 100) - 1))]


@dataclass
class Pace:
    """When a benchmark has to be done: each comparison has the same share of the time that is left, and fewer rounds
    than it was to have, one at least, where its share is used up."""

    ends: float = float("inf")
    #: How many comparisons are still to come.
    left: int = 1
    #: How many had fewer rounds, and the fewest that one had.
    shortened: int = 0
    fewest: int = 0

    def turns(self, rounds: int) -> Iterator[int]:
        """The rounds of the next comparison, which begins here."""
        until = time.monotonic() + max(0.0, self.ends - time.monotonic()) / max(1, self.left)
        self.left -= 1
        for turn in range(rounds):
            if turn and time.monotonic() >= until:
                self.fewest = min(self.fewest or turn, turn)
                self.shortened += 1
                return
            yield turn

    def notes(self) -> list[str]:
        """What there is to say of it in a report."""
        if not self.shortened:
            return []
        said = f"{self.shortened} comparisons had fewer rounds than asked for, to end in time"
        return [f"{said}; each had {self.fewest} at least."]


#: Of the benchmark that runs here.
pace = Pace()


def interleave(
    contestants: Mapping[str, Contestant], *, rounds: int, seconds: float, least: int = 16
) -> dict[str, Series]:
    """Run every contestant once a round, so that a noisy phase hits all alike. Each gets as
    many objects as it handles in *seconds*, not fewer than *least*; the runs that find out
    how many warm it up and are dropped. There are fewer *rounds* where the `pace` says so."""
    turns = pace.turns(rounds)
    first = next(turns)
    objects = {name: _warm_up(run, seconds, least) for name, run in contestants.items()}
    series = {name: Series() for name in contestants}
    turn = list(contestants.items())
    for _ in chain((first,), turns):
        for name, run in turn:
            series[name].add(run(objects[name]), objects[name])
        turn.reverse()  # what comes before one comes behind it in the next round
    return series


def _warm_up(run: Contestant, seconds: float, least: int) -> int:
    """Run it, longer each time, until a third of *seconds* is filled: objects for a round."""
    objects = least
    while True:
        took = run(objects).seconds
        if took >= seconds / 3:
            return max(least, int(objects * seconds / took))
        objects = max(objects * 2, min(objects * 16, int(objects * seconds / 2 / max(took, 1e-9))))


def timed(body: Callable[[int], object]) -> Contestant:
    """A contestant of a function that handles so many objects, timed as a whole."""

    def run(objects: int) -> Lap:
        started = time.perf_counter()
        body(objects)
        return Lap(time.perf_counter() - started)

    return run


def by_processor_time(contestant: Contestant, *pids: int) -> Contestant:
    """Its laps by the processor time of this process and of those, its samples as they are."""
    all_pids = os.getpid(), *pids

    def run(objects: int) -> Lap:
        started = cpu_seconds(*all_pids)
        samples = contestant(objects).samples
        return Lap(cpu_seconds(*all_pids) - started, samples)

    return run


def cpu_seconds(*pids: int) -> float:
    """Of these living processes since their starts."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # the kernel's number for another's clock


def machine() -> dict[str, str]:
    """Where this was measured, and which client runs where a contestant does not say it."""
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "client": "compiled" if shmpool.__compiled__ else "plain",
    }
