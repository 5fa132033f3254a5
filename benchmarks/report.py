"""What a benchmark reports: tables of raw numbers with their units, bars, what was absent.

One form for all: the text, the JSON, the plots, the gate and the README come from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from .measure import Series, machine
from .options import Options

Value = str | float | tuple[float, float, float] | None
State = Literal["met", "missed", "absent"]


@dataclass(frozen=True)
class Column:
    """A name and the unit of the raw values below it (see `units.FORMATS`)."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Plot:
    """Which columns of a table make a panel: a line for each value of *line*, or for each
    column named in *y*."""

    x: str
    y: tuple[str, ...]
    line: str | None = None
    title: str = ""
    is_linear: bool = False


@dataclass
class Table:
    """Rows of raw values; None is no figure. *is_grouped*: a rule where the first column changes."""

    title: str
    columns: list[Column]
    rows: list[list[Value]] = field(default_factory=list)
    plot: Plot | None = None
    is_grouped: bool = False

    def column(self, name: str) -> list[Value]:
        """The values of one column."""
        index = [column.name for column in self.columns].index(name)
        return [row[index] for row in self.rows]


@dataclass(frozen=True)
class Bar:
    """What has to be reached. *measured* None: something it needs was absent."""

    name: str
    required: float
    measured: float | None
    unit: str = "x"
    is_most: bool = False
    spread: tuple[float, float] | None = None

    @property
    def state(self) -> State:
        if self.measured is None:
            return "absent"
        is_met = self.measured <= self.required if self.is_most else self.measured >= self.required
        return "met" if is_met else "missed"

    @classmethod
    def of_ratio(
        cls, name: str, required: float, ours: Series | None, theirs: Series | None, *, is_most: bool = False
    ) -> Bar:
        """Ours is at least, or at most, *required* times as fast as theirs."""
        if ours is None or theirs is None:
            return cls(name, required, None, is_most=is_most)
        ratio = ours.ratio_to(theirs)
        return cls(name, required, ratio.median, is_most=is_most, spread=(ratio.low, ratio.high))


@dataclass
class Report:
    """One run of one benchmark."""

    name: str
    question: str
    command: str
    machine: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    #: Contestants that could not be measured, and why.
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, docstring: str | None, options: Options) -> Report:
        """An empty report of the benchmark whose module has this docstring, on this machine."""
        global begun
        name, question = name_and_question(docstring)
        begun = cls(name, question, options.command(name), machine())
        return begun

    @property
    def is_met(self) -> bool:
        """No bar was missed, and none could not be judged."""
        return all(bar.state == "met" for bar in self.bars)

    @property
    def has_plot(self) -> bool:
        return any(table.plot is not None for table in self.tables)

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        for bar, written in zip(self.bars, document["bars"], strict=True):
            written["state"] = bar.state
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Report:
        bars = [
            Bar(**{key: _tupled(value) for key, value in bar.items() if key != "state"}) for bar in document["bars"]
        ]
        return cls(**{**document, "tables": [_table(table) for table in document["tables"]], "bars": bars})


#: What is absent of one that was interrupted.
CUT_OFF = "the rest"
#: The one that is being filled, for who has to end before it is whole.
begun: Report | None = None


def name_and_question(docstring: str | None) -> tuple[str, str]:
    """What the first paragraph of a benchmark's docstring says: "name: the question"."""
    name, question = " ".join((docstring or "").split("\n\n")[0].split()).split(": ", 1)
    return name, question


def write(reports: Iterable[Report], path: str | Path) -> None:
    """Write reports as JSON; `read` reads them."""
    document = {"reports": [report.to_json() for report in reports]}
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def read(path: str | Path) -> list[Report]:
    """The reports of a file that `write` made."""
    return [Report.from_json(document) for document in json.loads(Path(path).read_text())["reports"]]


def _table(document: dict[str, Any]) -> Table:
    plot = document["plot"]
    return Table(
        title=document["title"],
        columns=[Column(**column) for column in document["columns"]],
        rows=[[_tupled(value) for value in row] for row in document["rows"]],
        plot=Plot(**{key: _tupled(value) for key, value in plot.items()}) if plot else None,
        is_grouped=document["is_grouped"],
    )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
