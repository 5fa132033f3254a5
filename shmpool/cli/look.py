"""What the commands share of their looks: consoles, tables, words for numbers."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: For output that is piped, tables are not squeezed into 80 columns.
_PIPED_WIDTH = 160

socket_option = click.option("--socket", metavar="PATH", help="The broker's socket.  [default: $SHMPOOL_SOCKET]")


def console(*, stderr: bool = False) -> Console:
    """For people; colours and width as the terminal has them."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal:
        found = Console(stderr=stderr, highlight=False, width=_PIPED_WIDTH)
    return found


def table(title: str, *columns: str) -> Table:
    """A table; a column whose name ends with ``>`` is for numbers. Where the terminal is narrow,
    one with ``~`` is cropped (if its cells are `name`), one with ``|`` takes more lines."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        made.add_column(
            column.rstrip(">~|"),
            justify="right" if column.endswith(">") else "left",
            no_wrap=not column.endswith(("~", "|")),
        )
    return made


def name(text: str) -> Text:
    """Text from outside on one line, cropped where it has to be."""
    shown = printable(text)
    shown.overflow, shown.no_wrap = "ellipsis", True
    return shown


def reading(command: str, children: Sequence[int]) -> Text:
    """A process's command, and the pids of its forks that read on."""
    return name(f"in its fork {', '.join(map(str, children))}: {command}" if children else command)


def printable(text: str) -> Text:
    """Text from outside, such as a file's name: no markup, no control characters, no
    bytes that no terminal can show."""
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in clean)
    return Text("".join(shown), overflow="fold")


def bar(share: float, width: int, *, warns: bool = True) -> Text:
    """A *share* (0 to 1) as a bar of so many columns; red when it is nearly all, if that *warns*."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    shown = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    style = "red" if warns and share >= 0.9 else "yellow" if warns and share >= 0.75 else "green"
    return Text.assemble((shown, style), ("·" * (width - len(shown)), "dim"))


def number(value: float) -> str:
    """``12,345``."""
    return f"{value:,.0f}"


def count(value: int, word: str) -> str:
    """``1 file``, ``12,345 files``, ``2 processes``."""
    plural = "es" if word.endswith("s") else "s"
    return f"{number(value)} {word}" + ("" if value == 1 else plural)


def microseconds(nanoseconds: float) -> str:
    """``0.85 us``, ``12.3 us``, ``4,500 us``: one unit, so that a column can be compared."""
    value = nanoseconds / 1000
    return f"{value:,.0f} us" if value >= 100 else f"{value:.3g} us"


def duration(seconds: float) -> str:
    """``850 ns``, ``12.3 us``, ``4.5 s``, ``3 min``."""
    for unit, size in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < 1000 * size and not (unit == "s" and seconds >= 120):
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 100 or unit == "ns" else f"{value:.3g} {unit}"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def age(seconds: float) -> str:
    """``7 s``, ``3 min``, ``2.5 h``, ``4.1 days``: as exact as the broker's looks are."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
