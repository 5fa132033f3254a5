"""A report as text for a terminal, and as markdown for the README."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from .report import Bar, Column, Report, Table, Value
from .units import show

console = Console(width=int(os.environ.get("COLUMNS", "118")), highlight=False)

_STYLES = {"met": "green", "missed": "bold red", "absent": "yellow"}


def print_report(report: Report) -> None:
    """Print it on the terminal."""
    console.print(f"[bold]{report.name}[/]: {report.question}")
    console.print(f"[dim]{report.command}\n{', '.join(machine_words(report))}[/]\n")
    for table in report.tables:
        console.print(f"[bold]{table.title}[/]")
        console.print(_rich_table(table))
    for name, reason in report.absent.items():
        console.print(f"[yellow]absent[/] {name}: {reason}", soft_wrap=True)
    if report.bars:
        console.print("[bold]bars[/]")
        console.print(_rich_bars(report.bars))
    for note in report.notes:
        console.print(note)
    console.print()


def machine_words(report: Report) -> Iterator[str]:
    machine = report.machine
    yield machine["processor"]
    yield f"{machine['cores']} cores"
    yield machine["kernel"]
    yield f"Python {machine['python']}"
    yield f"the {machine['client']} client" if "client" in machine else "the plain client"


def _rich_table(table: Table) -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD)
    for column in table.columns:
        justify: Literal["left", "right"] = "left" if column.unit == "" else "right"
        rich.add_column(column.name.replace(", ", "\n"), justify=justify, no_wrap=True)
    group = None
    for row in table.rows:
        cells = _cells(table, row)
        if table.is_grouped and row[0] == group:
            cells[0] = ""
        elif table.is_grouped and group is not None:
            rich.add_section()
        group = row[0]
        rich.add_row(*cells)
    return rich


def _cells(table: Table, row: list[Value]) -> list[str]:
    return [show(value, column.unit) for value, column in zip(row, table.columns, strict=True)]


def _rich_bars(bars: list[Bar]) -> RichTable:
    rich = RichTable(box=box.SIMPLE_HEAD)
    for name in ("bar", "required", "measured", ""):
        rich.add_column(name, justify="right" if name in ("required", "measured") else "left")
    for bar in bars:
        rich.add_row(*_bar_cells(bar), f"[{_STYLES[bar.state]}]{bar.state}[/]")
    return rich


def _bar_cells(bar: Bar) -> tuple[str, str, str]:
    measured = show(bar.measured, bar.unit)
    if bar.measured is not None and bar.spread is not None:
        low, high = (show(value, bar.unit) for value in bar.spread)
        measured += f" ({low}-{high})"
    return bar.name, f"{'<=' if bar.is_most else '>='} {show(bar.required, bar.unit)}", measured


# --- markdown ------------------------------------------------------------------------------


def markdown(report: Report, *, picture: str | None = None, is_whole: bool = False) -> str:
    """The report as a section of a README. What is plotted line by line is shown as one table
    of sizes by systems, unless *is_whole* asks for all columns. *picture*: where its plot is."""
    lines = [f"### {report.name}", "", report.question, ""]
    lines += [f"`{report.command}` on {', '.join(machine_words(report))}.", ""]
    if picture is not None:
        lines += [f"![{report.name}]({picture})", ""]
    for table in report.tables:
        shown = table if is_whole else _crossed(table)
        lines += [f"**{shown.title}**", "", *_markdown_rows(shown), ""]
    for name, reason in report.absent.items():
        lines += [f"Absent: {name}, {reason}", ""]
    if report.bars:
        lines += ["| bar | required | measured | |", "|---|---:|---:|---|"]
        lines += [f"| {' | '.join(_bar_cells(bar))} | {_emphasised(bar.state)} |" for bar in report.bars]
        lines.append("")
    lines += [line for note in report.notes for line in (note, "")]
    return "\n".join(lines)


def _crossed(table: Table) -> Table:
    """A row for each x of the plot, a column for each of its lines."""
    plot = table.plot
    if plot is None or plot.line is None:
        return table
    units = {column.name: column.unit for column in table.columns}
    xs, lines, ys = (table.column(name) for name in (plot.x, plot.line, plot.y[0]))
    cells = {(x, line): y for x, line, y in zip(xs, lines, ys, strict=True)}
    columns = [Column(plot.x, units[plot.x]), *(Column(str(line), units[plot.y[0]]) for line in dict.fromkeys(lines))]
    rows = [[x, *(cells.get((x, line)) for line in dict.fromkeys(lines))] for x in dict.fromkeys(xs)]
    return Table(f"{plot.title}: {plot.y[0]}", columns, rows)


def _emphasised(state: str) -> str:
    return state if state == "met" else f"**{state}**"


def _markdown_rows(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(column.name for column in table.columns)} |"
    yield f"|{'|'.join('---' if column.unit == '' else '---:' for column in table.columns)}|"
    for row in table.rows:
        yield f"| {' | '.join(_cells(table, row))} |"
