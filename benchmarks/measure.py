"""Measuring on small, noisy machines: rounds that interleave the contestants, medians and
their spread, ratios within one run. Nothing here compares with a time of another run."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

KIB = 1024
MIB = 1024 * KIB
console = Console(width=int(os.environ.get("COLUMNS", "118")), highlight=False)


@dataclass
class Series:
    """What one contestant measured: seconds for each object, one figure a round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def best(self) -> float:
        return min(self.rounds)

    def ratio_to(self, other: Series) -> tuple[float, float, float]:
        """(median, low, high) of other / self, round by round: above 1, self is faster."""
        ratios = sorted(theirs / mine for theirs, mine in zip(other.rounds, self.rounds, strict=True))
        return statistics.median(ratios), ratios[0], ratios[-1]


def interleave(contestants: dict[str, Callable[[int], float]], objects: int, rounds: int) -> dict[str, Series]:
    """Run every contestant once a round, so that a noisy phase hits all alike. Each takes a
    number of objects and returns the seconds that they took; one warm-up run is dropped."""
    series = {name: Series() for name in contestants}
    for run in contestants.values():
        run(max(1, objects // 4))
    for _ in range(rounds):
        for name, run in contestants.items():
            series[name].rounds.append(run(objects) / objects)
    return series


def timed(body: Callable[[], object]) -> float:
    """Seconds that *body* takes."""
    started = time.perf_counter()
    body()
    return time.perf_counter() - started


def size_name(nbytes: int) -> str:
    return f"{nbytes // MIB} MiB" if nbytes >= MIB and nbytes % MIB == 0 else f"{nbytes / KIB:g} KiB"


def micros(seconds: float) -> str:
    return f"{seconds * 1e6:,.2f} us" if seconds < 1e-4 else f"{seconds * 1e6:,.0f} us"


def ratio(figures: tuple[float, float, float]) -> str:
    return f"{figures[0]:.2f} ({figures[1]:.2f}-{figures[2]:.2f})"


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def machine() -> str:
    """One line about where this was measured."""
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
