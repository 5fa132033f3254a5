"""Side by side: what `handoff` and `stream` have in common. All contestants, in all modes and
sizes, a table for each mode, with spinning in one column and blocking in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import click

from .contest import (
    BOTH_WAYS,
    CAVEATS,
    ENTRIES,
    MODE_NAMES,
    MODES,
    SIZES,
    Contest,
    compiled_at,
    contest,
    ours_at,
    queued_at,
)
from .measure import Contestant, Series
from .options import Options
from .parameters import Names
from .plan import SPIN, Plan
from .render import console
from .report import Bar, Column, Plot, Report, Table, Value
from .units import KIB, size_name

PARAMETERS = (
    click.Option(["--peers"], type=Names(entry.label for entry in ENTRIES), help="Only these contestants."),
    click.Option(["--modes"], type=Names(MODES), help=f"Only these modes: {', '.join(MODES)}."),
)


@dataclass(frozen=True)
class Outcome:
    """What all contestants did with one plan, and which of them took part."""

    mode: str
    plan: Plan
    series: Mapping[str, Series]
    labels: frozenset[str]

    @property
    def ours(self) -> str:
        """Which shmpool the peers are compared with at this size."""
        return ours_at(self.plan.nbytes, self.labels)

    @property
    def compiled(self) -> str:
        """Which compiled shmpool is."""
        return compiled_at(self.plan.nbytes, self.labels)

    @property
    def queued(self) -> str:
        """Which compiled shmpool with a queue is."""
        return queued_at(self.plan.nbytes, self.labels)

    def bar(self, required: float, mine: str, theirs: str) -> Iterator[Bar]:
        """*mine* is so many times as fast as *theirs*. None if the command line left one out."""
        if {mine, theirs} <= self.labels:
            waits = "" if self.plan.spin else ", blocking"
            name = f"{self.mode} {size_name(self.plan.nbytes)}{waits}: {mine} to {theirs}"
            yield Bar.of_ratio(name, required, self.series.get(mine), self.series.get(theirs))


@dataclass(frozen=True)
class Comparison:
    """One of the benchmarks."""

    in_flight: int
    title: str
    #: By mode, the figures that are shown of a contestant, the first of them plotted.
    columns: Callable[[str], tuple[Column, ...]]
    figures: Callable[[Series, Plan], tuple[Value, ...]]
    bars: Callable[[Outcome], Iterator[Bar]]
    #: What is measured along with a plan, in the runner itself.
    others: Callable[[str, Plan], Mapping[str, Contestant]] = lambda mode, plan: {}

    def run(self, report: Report, options: Options) -> Report:
        """Fill the report."""
        peers, modes = options.more.get("peers"), options.more.get("modes") or tuple(MODES)
        entries = [entry for entry in ENTRIES if peers is None or entry.label in peers]
        labels = frozenset(entry.label for entry in entries)
        tables = {mode: self._table(mode) for mode in modes}
        report.tables, report.notes = list(tables.values()), list(CAVEATS)
        with contest(entries, options) as running:
            report.absent = running.absent
            for nbytes in options.sizes or SIZES:
                for mode in modes:
                    outcomes = [
                        Outcome(mode, plan, self._series(running, mode, plan), labels)
                        for plan in self._plans(nbytes, mode)
                    ]
                    tables[mode].rows += self._rows(outcomes)
                    report.bars += [bar for outcome in outcomes for bar in self.bars(outcome)]
        return report

    def count(self, options: Options) -> int:
        """How many comparisons that are."""
        modes = options.more.get("modes") or tuple(MODES)
        return len(options.sizes or SIZES) * sum(len(list(self._plans(KIB, mode))) for mode in modes)

    def _plans(self, nbytes: int, mode: str) -> Iterator[Plan]:
        fills, drains = MODES[mode]
        for spin in (SPIN, 0.0) if mode in BOTH_WAYS else (SPIN,):
            yield Plan(nbytes, self.in_flight, fills, drains, spin)

    def _series(self, running: Contest, mode: str, plan: Plan) -> Mapping[str, Series]:
        waits = "spin" if plan.spin else "blocking"
        with console.status(f"{size_name(plan.nbytes)}, {MODE_NAMES[mode]}, {waits}"):
            return running.run(plan, self.others(mode, plan))

    def _table(self, mode: str) -> Table:
        figures = self.columns(mode)
        columns = [Column("size", "B"), Column("system")]
        for waits in ("spin", "blocking") if mode in BOTH_WAYS else ("spin",):
            columns += [Column(f"{column.name}, {waits}", column.unit) for column in figures]
            columns.append(Column(f"ratio, {waits}", "x"))
        title = f"{self.title}, {MODE_NAMES[mode]}; ratio: how many times as fast shmpool is"
        plot = Plot("size", (f"{figures[0].name}, spin",), "system", MODE_NAMES[mode])
        return Table(title, columns, plot=plot, is_grouped=True)

    def _rows(self, outcomes: list[Outcome]) -> Iterator[list[Value]]:
        """A row for each contestant, with what it did spinning and then blocking."""
        for label in dict.fromkeys(label for outcome in outcomes for label in outcome.series):
            row: list[Value] = [outcomes[0].plan.nbytes, label]
            for outcome in outcomes:
                row += self._cells(label, outcome)
            yield row

    def _cells(self, label: str, outcome: Outcome) -> list[Value]:
        mine, ours = outcome.series.get(label), outcome.series.get(outcome.ours)
        if mine is None:
            return [None] * (len(self.columns(outcome.mode)) + 1)
        ratio = None if ours is None or label == outcome.ours else ours.ratio_to(mine)
        return [*self.figures(mine, outcome.plan), ratio]
