"""The plots of reports: a panel for each table that names one, both axes logarithmic unless it says otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .report import Plot, Report, Table
from .units import AXES, show

#: Colour and marker of each line of a figure; told apart without colour as well.
_COLOURS = (
    "#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b",
    "#e377c2", "#17becf", "#bcbd22", "#444444", "#7fbf7f",
)  # fmt: skip
_MARKERS = "osD^v<>Pph*"


def plot(report: Report, path: str | Path) -> None:
    """Write the report's panels as one picture. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = [table for table in report.tables if table.plot is not None]
    if not tables:
        raise ValueError(f"{report.name} has nothing to plot")
    across = min(2, len(tables))
    down = math.ceil(len(tables) / across)
    figure, axes = pyplot.subplots(down, across, figsize=(6.6 * across, 4.3 * down), squeeze=False)
    styles: dict[str, dict[str, Any]] = {}
    for table, panel in zip(tables, axes.flat, strict=False):
        _draw(table, panel, styles)
    for panel in list(axes.flat)[len(tables) :]:
        panel.set_visible(False)
    handles = {
        label: line for panel in axes.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(f"{report.name} ({report.machine['processor']}, {report.machine['cores']} cores)")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)), frameon=False
    )
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw(table: Table, panel: Any, styles: dict[str, dict[str, Any]]) -> None:
    wanted = table.plot
    assert wanted is not None
    units = {column.name: column.unit for column in table.columns}
    for label, points in _lines(table, wanted):
        style = styles.setdefault(label, _style(label, styles))
        panel.plot(*zip(*sorted(points), strict=True), label=label, **style)
    panel.set(title=wanted.title or table.title)
    if wanted.is_linear:
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_formatter(lambda x, _: show(x, units[wanted.x]))
    else:
        panel.set(xscale="log", yscale="log")
        ticks = sorted({x for _, points in _lines(table, wanted) for x, _ in points})
        panel.set_xticks(ticks, [show(x, units[wanted.x]) for x in ticks], rotation=45, fontsize=8, ha="right")
        panel.minorticks_off()
    unit = units[wanted.y[0]]
    panel.yaxis.set_major_formatter(lambda y, _: show(y, unit))
    panel.set(xlabel=wanted.x, ylabel=AXES.get(unit, unit))
    panel.grid(alpha=0.3)


def _lines(table: Table, wanted: Plot) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """(label, points) of each line."""
    if wanted.line is None:
        for name in wanted.y:
            yield name, _points(table.column(wanted.x), table.column(name))
        return
    labels = table.column(wanted.line)
    for label in dict.fromkeys(labels):
        is_of = [label == other for other in labels]
        xs = [x for x, is_mine in zip(table.column(wanted.x), is_of, strict=True) if is_mine]
        ys = [y for y, is_mine in zip(table.column(wanted.y[0]), is_of, strict=True) if is_mine]
        if points := _points(xs, ys):
            yield str(label), points


def _points(xs: list[Any], ys: list[Any]) -> list[tuple[float, float]]:
    middle = [y[0] if isinstance(y, tuple) else y for y in ys]
    return [(x, y) for x, y in zip(xs, middle, strict=True) if y is not None]


def _style(label: str, styles: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The first line of a figure is the one it is about; "NAME more" looks like "NAME", dashed."""
    if (base := styles.get(label.rsplit(" ", 1)[0])) is not None:
        return {**base, "linestyle": "--"}
    index = len(styles)
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 2.2 if index == 0 else 1.2,
    }
