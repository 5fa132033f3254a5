"""strategies: Is a pooled buffer ever slower than one that is not pooled?

The project began from a pool that was 7.9 times slower at 256 KiB than no pool. Here one
object is in flight, copied in and out; POOLED beyond the defaults has larger tiers and the
thresholds raised, by configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contest import FRESH, SIZES, contest
from .measure import Series
from .options import Options
from .pair import Entry
from .plan import Plan
from .render import console
from .report import Bar, Column, Plot, Report, Table, Value
from .units import KIB, MIB, size_name

FORCED_SIZES = (256 * KIB, 512 * KIB, MIB, 2 * MIB)
POOLED, CHUNKED, DIRECT, ADAPTIVE = "pooled", "chunked", "direct", "adaptive"
NOT_SLOWER = 1.0

_LIMIT = {"memory_limit": "1GiB"}
#: Tiers to 2 MiB, and nothing is very large before 16.
_LARGE_TIERS = {
    **_LIMIT,
    "pooled_sizes": ["4KiB", "16KiB", "32KiB", "64KiB", "128KiB", "256KiB", "512KiB", "1MiB", "2MiB"],
    "very_large_object_threshold": "16MiB",
}
_FORCED = (
    Entry(POOLED, "shmpool", {**_LARGE_TIERS, "strategy": POOLED}),
    Entry(CHUNKED, "shmpool", {**_LARGE_TIERS, "strategy": CHUNKED}),
    Entry(DIRECT, "shmpool", {**_LARGE_TIERS, "strategy": DIRECT}),
    Entry(FRESH, "fresh"),
)
_ADAPTIVE = (Entry(ADAPTIVE, "shmpool", _LIMIT), Entry(FRESH, "fresh"))


def run(options: Options) -> Report:
    report = Report.of(__doc__, options)
    forced = [size for size in options.sizes or FORCED_SIZES if size in FORCED_SIZES]
    if forced:
        unpooled = (DIRECT, FRESH)
        _compare(report, options, "each strategy asked for by name", _FORCED, forced, (POOLED, CHUNKED), unpooled)
    sizes = options.sizes or SIZES
    _compare(report, options, "ADAPTIVE as it is by default", _ADAPTIVE, sizes, (ADAPTIVE,), (FRESH,))
    return report


def _compare(
    report: Report,
    options: Options,
    title: str,
    entries: Sequence[Entry],
    sizes: Sequence[int],
    pooled: Sequence[str],
    unpooled: Sequence[str],
) -> None:
    """A table of these contestants, and bars that nothing pooled is slower than what is not."""
    columns = [Column("size", "B"), Column("strategy"), Column("p50", "s"), Column("p99", "s")]
    columns += [Column(f"faster than {name}", "x") for name in unpooled]
    table = Table(title, columns, plot=Plot("size", ("p50",), "strategy", title), is_grouped=True)
    with contest(entries, options) as running:
        for nbytes in sizes:
            with console.status(f"{size_name(nbytes)}, {title}"):
                series = running.run(Plan(nbytes))
            table.rows += _rows(nbytes, series, unpooled)
            report.bars += [
                Bar.of_ratio(f"{size_name(nbytes)}: {mine} to {other}", NOT_SLOWER, series.get(mine), series.get(other))
                for mine in pooled
                for other in unpooled
            ]
    report.tables.append(table)
    report.absent |= running.absent


def _rows(nbytes: int, series: dict[str, Series], unpooled: Sequence[str]) -> Iterator[list[Value]]:
    for name, mine in series.items():
        ratios = [mine.ratio_to(series[other]) if other in series and other != name else None for other in unpooled]
        yield [nbytes, name, mine.percentile(50), mine.percentile(99), *ratios]
