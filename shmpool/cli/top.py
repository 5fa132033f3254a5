"""``shmpool top``: the figures live, by tier, process or lease, in a terminal of 80 columns or more.

`Screen` is what is shown and which keys change it, without a terminal; `command` is the loop around
it. With rich's Live, which is here anyway: textual would be a second and much larger library, for a
table and five keys.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..addresses import resolve
from ..errors import ShmpoolError
from ..protocol.sizing import format_bytes
from ..stats import Stats, query, query_leases
from .look import age, bar, console, count, microseconds, number, printable, reading, socket_option, table
from .sizes import Seconds

#: Lines besides the table's rows: the head, the table's own, the keys.
_OTHER_LINES: Final = 12
#: Columns of the terminal that a bar of memory takes.
_BAR: Final = 30


class Column(NamedTuple):
    """One column: its head as `look.table` takes it, its cell, what it is sorted by (the most first,
    text by the alphabet)."""

    head: str
    cell: Callable[[Any], str | Text]
    key: Callable[[Any], Any]


_KINDS: Final = ("pooled", "chunk", "direct")
_TIERS: Final = (
    Column("tier", lambda tier: _tier_name(tier), lambda tier: (_KINDS.index(tier.kind), tier.size)),
    Column(
        "in use", lambda tier: bar(_used(tier) / max(1, tier.warm), 10), lambda tier: -_used(tier) / max(1, tier.warm)
    ),
    Column("warm>", lambda tier: number(tier.warm), lambda tier: -tier.warm),
    Column("free>", lambda tier: number(tier.free), lambda tier: -tier.free),
    Column("idle>", lambda tier: number(tier.idle), lambda tier: -tier.idle),
    Column("leased>", lambda tier: number(tier.leased), lambda tier: -tier.leased),
    Column("published>", lambda tier: number(tier.published), lambda tier: -tier.published),
)
_PROCESSES: Final = (
    Column("pid>", lambda client: str(client.pid), lambda client: client.pid),
    Column("uid>", lambda client: str(client.uid), lambda client: client.uid),
    Column("leases>", lambda client: number(client.leases), lambda client: -client.leases),
    Column("memory>", lambda client: format_bytes(client.bytes), lambda client: -client.bytes),
    Column("unread>", lambda client: number(client.unread), lambda client: -client.unread),
    Column("reads>", lambda client: number(client.reads), lambda client: -client.reads),
    Column("reading>", lambda client: format_bytes(client.read_bytes), lambda client: -client.read_bytes),
    Column("command~", lambda client: _command(client), lambda client: client.command),
)
_LEASES: Final = (
    Column("pid>", lambda lease: str(lease["pid"] or "-"), lambda lease: lease["pid"] or 0),
    Column("state", lambda lease: lease["state"], lambda lease: lease["state"]),
    Column("buffers>", lambda lease: number(lease["buffers"]), lambda lease: -lease["buffers"]),
    Column("memory>", lambda lease: format_bytes(lease["bytes"]), lambda lease: -lease["bytes"]),
    Column("oldest>", lambda lease: _age(lease), lambda lease: -(lease["age_seconds"] or 0)),
    Column("command~", lambda lease: _reading(lease), lambda lease: lease["command"]),
)


class View(NamedTuple):
    """One table, its key, and the column that it is sorted by at first."""

    title: str
    key: str
    columns: tuple[Column, ...]
    sorted_by: int


VIEWS: Final = (
    View("Tiers", "t", _TIERS, 0),
    View("Processes", "p", _PROCESSES, 3),
    View("Leases", "l", _LEASES, 3),
)


@dataclass
class Screen:
    """What is shown. Keys: a view's letter; ``s`` and ``S`` the next or last column to sort by; ``r`` the
    other way round; ``q`` the end."""

    view: int = 1
    sorted_by: list[int] = field(default_factory=lambda: [view.sorted_by for view in VIEWS])
    is_reversed: bool = False
    #: The last figures and those before them, with their times.
    now: tuple[float, Stats] | None = None
    before: tuple[float, Stats] | None = None
    leases: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    def press(self, key: str) -> bool:
        """Whether to go on."""
        columns = len(VIEWS[self.view].columns)
        step = {"s": 1, "S": -1}.get(key, 0)
        self.sorted_by[self.view] = (self.sorted_by[self.view] + step) % columns
        self.is_reversed ^= key == "r"
        self.view = next((at for at, view in enumerate(VIEWS) if view.key == key), self.view)
        return key not in ("q", "Q", "\x1b", "\x03")

    def look(self, address: str) -> None:
        """Ask the broker; one that does not answer is said, and asked again."""
        try:
            stats = query(address)
            self.leases = query_leases(address) if VIEWS[self.view].columns is _LEASES else {}
        except ShmpoolError as error:
            self.failure = str(error)
            return
        self.failure = ""
        self.before, self.now = self.now, (time.monotonic(), stats)

    def render(self, height: int) -> RenderableType:
        """For a terminal of so many lines."""
        parts: list[RenderableType] = []
        if self.now is not None:
            parts += [self._head(self.now[1]), self._table(self.now[1], max(1, height - _OTHER_LINES))]
        if self.failure:
            parts.append(Text("no answer: ", style="bold red") + printable(self.failure))
        parts.append(Text(" ".join(f"[{view.key}]{view.title[1:].lower()}" for view in VIEWS), style="dim"))
        parts[-1] += Text("  [s]ort by the next column  [r]everse  [q]uit", style="dim")  # type: ignore[operator]
        return Group(*parts)

    def _head(self, stats: Stats) -> Text:
        memory = stats.memory
        share = memory["held"] / memory["limit"]
        lines = Text.assemble(
            ("pool ", "bold"), f"{stats.pool_id}, epoch {stats.epoch}, {count(len(stats.clients), 'client')}\n",
            ("held ", "bold"), bar(share, _BAR, warns=False),
            f" {format_bytes(memory['held'])} of {format_bytes(memory['limit'])}, pressure {memory['pressure']}\n",
            ("now  ", "bold"), f"{number(stats.active_buffers)} buffers active, {self._rates(stats)}\n",
        )  # fmt: skip
        p99 = [
            f"{category.replace('_', ' ')} {microseconds(stats.p99_latency_ns[category])}"
            for category, count in stats.operations.items()
            if count
        ]
        lines += Text.assemble(("p99  ", "bold"), ", ".join(p99) or "nothing leased yet", "\n")
        for alert in stats.alerts[:2]:
            lines += Text("alert: ", style="yellow") + printable(alert) + Text("\n")
        return lines

    def _rates(self, stats: Stats) -> str:
        if self.before is None or self.now is None:
            return "rates with the next look"
        seconds = self.now[0] - self.before[0]
        last = self.before[1]
        gets = (stats.total_gets - last.total_gets) / seconds
        hits, misses = stats.pool_hits - last.pool_hits, stats.pool_misses - last.pool_misses
        rate = f", {hits / (hits + misses):.1%} hits" if hits + misses else ""
        return f"{number(gets)} leases/s{rate}"

    def _table(self, stats: Stats, lines: int) -> RenderableType:
        view, at = VIEWS[self.view], self.sorted_by[self.view]
        rows: list[Any] = self.leases.get("leases", [])
        if view.columns is not _LEASES:
            rows = list(stats.tiers if view.columns is _TIERS else stats.clients)
        heads = [f"{'*' if index == at else ''}{column.head}" for index, column in enumerate(view.columns)]
        shown = table(view.title, *heads)
        for row in sorted(rows, key=view.columns[at].key, reverse=self.is_reversed)[:lines]:
            shown.add_row(*(column.cell(row) for column in view.columns))
        return Group(shown, Text(f"and {len(rows) - lines} more")) if len(rows) > lines else shown


@click.command("top", short_help="Show the figures live.")
@click.option("--interval", type=Seconds(0.2, 3600), default=2.0, help="Seconds from look to look.  [default: 2]")
@socket_option
def command(interval: float, socket: str | None) -> None:
    """Show tiers, processes or leases live, the most first. Keys: t, p, l; s sorts; q ends."""
    address = resolve(socket)
    out = console()
    if not (out.is_terminal and sys.stdin.isatty()):
        raise click.UsageError("top needs a terminal; `shmpool stats --watch` prints to pipes")
    screen = Screen()
    screen.look(address)
    if screen.failure:
        raise click.ClickException(screen.failure)
    with _keys() as next_key, Live(screen.render(out.height), console=out, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + interval
        while True:
            key = next_key(max(0.0, due - time.monotonic()))
            if key and not screen.press(key):
                return
            if key in [view.key for view in VIEWS] or time.monotonic() >= due:
                screen.look(address)
                due = time.monotonic() + interval
            live.update(screen.render(out.height), refresh=True)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key; empty when none came."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def next_key(seconds: float) -> str:
        ready = select.select([fd], [], [], seconds)[0]
        return os.read(fd, 1).decode("latin-1") if ready else ""

    tty.setcbreak(fd)
    try:
        yield next_key
    except KeyboardInterrupt:
        pass  # how one leaves it, no error
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _used(tier: Any) -> int:
    return int(tier.leased + tier.published)


def _tier_name(tier: Any) -> str:
    return str(tier.kind) if tier.kind == "direct" else f"{tier.kind} {format_bytes(tier.size)}"


def _reading(lease: dict[str, Any]) -> Text:
    return reading(lease["command"] or "?", lease["children"])


def _command(client: Any) -> Text:
    shown = reading(client.command or "?", client.children)
    return shown if client.connected else Text.assemble(("away ", "yellow"), shown, overflow="ellipsis", no_wrap=True)


def _age(lease: dict[str, Any]) -> str:
    return "-" if lease["age_seconds"] is None else age(lease["age_seconds"])
