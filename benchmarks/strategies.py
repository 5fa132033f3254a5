"""strategies: Is a pooled buffer ever slower than one that is not pooled?

The project began from a pool that was 7.9 times slower at 256 KiB than no pool. Here one
object is in flight, copied in and out; POOLED beyond the defaults has larger tiers and the
thresholds raised, by configuration."""

from __future__ import annotations

from collections.abc import Sequence

from .contest import FRESH, SIZES, contest
from .measure import Series
from .options import Options
from .pair import Entry
from .plan import Plan
from .render import console
from .report import Bar, Column, Plot, Report, Table
from .units import KIB, MIB, size_name

FORCED_SIZES = (256 * KIB, 512 * KIB, MIB, 2 * MIB)
POOLED, CHUNKED, DIRECT, ADAPTIVE = "pooled", "chunked", "direct", "adaptive"
NOT_SLOWER = 1.0

_LIMIT = {"memory_limit": "1GiB"}
#: Tiers to 2 MiB, and nothing is very large before that.
_LARGE_TIERS = {
    **_LIMIT,
    "pooled_sizes": ["4KiB", "16KiB", "32KiB", "64KiB", "128KiB", "256KiB", "512KiB", "1MiB", "2MiB"],
    "very_large_object_threshold": "16MiB",
}
_FORCED = (
    Entry(POOLED, "shmpool", {**_LARGE_TIERS, "strategy": POOLED}),
    Entry(CHUNKED, "shmpool", {**_LARGE_TIERS, "strategy": CHUNKED}),
    Entry(DIRECT, "shmpool", {**_LARGE_TIERS, "strategy": DIRECT}),
)
_FRESH = Entry(FRESH, "fresh")
_ADAPTIVE = Entry(ADAPTIVE, "shmpool", _LIMIT)


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    forced = [size for size in options.sizes or FORCED_SIZES if size in FORCED_SIZES]
    _compare(report, options, "each strategy by force", (*_FORCED, _FRESH), forced)
    _compare(report, options, "ADAPTIVE, as configured by default", (_ADAPTIVE, _FRESH), options.sizes or SIZES)
    return report


def _compare(report: Report, options: Options, title: str, entries: Sequence[Entry], sizes: Sequence[int]) -> None:
    """A table of these contestants, and bars that none is slower than the fresh segment."""
    names = [entry.label for entry in entries]
    ours = [name for name in names if name != FRESH]
    columns = [Column("size", "B"), *(Column(name, "s") for name in names)]
    columns += [Column(f"{FRESH} / {name}", "x") for name in ours]
    table = Table(f"{title}: median time of a hand-over", columns, plot=Plot("size", tuple(names), title=title))
    with contest(entries, options) as running:
        for nbytes in sizes:
            with console.status(f"{size_name(nbytes)}, {title}"):
                series = running.run(Plan(nbytes))
            table.rows.append([nbytes, *(_median(series.get(name)) for name in names)])
            bars = [Bar.of_ratio(f"{name} {size_name(nbytes)} to {FRESH}", NOT_SLOWER, series.get(name),
                                 series.get(FRESH)) for name in ours]  # fmt: skip
            table.rows[-1] += [None if bar.spread is None else (bar.measured, *bar.spread) for bar in bars]
            report.bars += bars
    if table.rows:
        report.tables.append(table)
    report.absent |= running.absent


def _median(series: Series | None) -> float | None:
    return series and series.median
