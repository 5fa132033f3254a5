"""``shmpool stats``: the broker's figures, once or again and again."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..addresses import resolve
from ..errors import BrokerUnavailable
from ..protocol.sizing import format_bytes
from ..stats import QueueStats, Stats, query
from ..unanswered import read_stats
from .look import age, bar, console, count, microseconds, number, printable, reading, socket_option, table
from .sizes import Seconds


@click.command("stats", short_help="Show the figures of a broker.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--watch", is_flag=True, help="Show them until Ctrl-C; with --json an object a line.")
@click.option("--prometheus", is_flag=True, help="Print them in Prometheus' text format.")
@click.option("--interval", type=Seconds(0.1, 3600), default=1.0, help="Seconds for --watch.  [default: 1]")
@socket_option
def command(as_json: bool, watch: bool, prometheus: bool, interval: float, socket: str | None) -> None:
    """Show the figures of a broker: gets, hits, memory, tiers, clients."""
    if prometheus and (as_json or watch):
        raise click.UsageError("--prometheus goes with neither --json nor --watch")
    address = resolve(socket)
    if watch:
        (_watch_json if as_json else _watch)(address, interval)
    elif prometheus:
        from ..exposition import text  # an extra, for whoever asks for it

        click.echo(text(query(address)), nl=False)
    elif as_json:
        click.echo(json.dumps(_look(address).to_dict(), indent=2))
    else:
        console().print(render(_look(address)))


def _look(address: str) -> Stats:
    """From the pool's memory, where its broker does not answer: then the alerts say so."""
    try:
        return query(address)
    except BrokerUnavailable as error:
        return read_stats(address, error)


def _watch_json(address: str, interval: float) -> None:
    with suppress(KeyboardInterrupt):
        while True:
            click.echo(json.dumps(_look(address).to_dict(), separators=(",", ":")))
            sys.stdout.flush()
            time.sleep(interval)


def _watch(address: str, interval: float) -> None:
    """Ends with Ctrl-C, which is no error here, or when the broker is gone."""
    out = console()
    try:
        if out.is_terminal:
            with Live(render(_look(address)), console=out, auto_refresh=False) as live:
                while True:
                    time.sleep(interval)
                    live.update(render(_look(address)), refresh=True)
        while True:
            out.print(render(_look(address)))
            sys.stdout.flush()  # whoever reads the pipe reads it now
            time.sleep(interval)
    except KeyboardInterrupt:
        pass


def render(stats: Stats) -> RenderableType:
    """All figures, for people."""
    parts: list[RenderableType] = [_head(stats), _operations(stats), _tiers(stats), _clients(stats)]
    if stats.queues:
        parts.append(queues(stats.queues))
    parts += [Text("alert: ", style="yellow") + printable(alert) for alert in stats.alerts]
    parts += [_alert(state) for state in stats.alert_states]
    return Group(*parts)


def _alert(state: dict[str, Any]) -> Text:
    """One that a rule has raised, and what to do; or that it is over."""
    about = f" ({state['about']})" if state["about"] else ""
    if state["cleared_seconds"] is not None:
        return Text(f"over for {age(state['cleared_seconds'])}: ", style="dim") + printable(f"{state['text']}{about}")
    style = "bold red" if state["severity"] == "critical" else "yellow"
    return Text(f"{state['name']}: ", style=style) + printable(f"{state['text']}{about}; {state['advice']}")


def _head(stats: Stats) -> Text:
    memory = stats.memory
    slot_gets = stats.pool_hits + stats.pool_misses
    rate = f" ({stats.pool_hits / slot_gets:.1%})" if slot_gets else ""
    return Text.assemble(
        ("pool    ", "bold"),
        f"{stats.pool_id}, epoch {stats.epoch}, {count(len(stats.clients), 'client')}\n",
        ("held    ", "bold"),
        bar(memory["held"] / memory["limit"], 20, warns=False),
        f" {format_bytes(memory['held'])} of {format_bytes(memory['limit'])},",
        f" efficiency {stats.memory_efficiency:.0%}" if stats.active_buffers else " nothing in use",
        "\n" if memory["pressure"] == "normal" else f", pressure {memory['pressure']}\n",
        ("buffers ", "bold"),
        f"{number(stats.total_gets)} gets, {number(stats.total_puts)} puts, {number(stats.active_buffers)} active",
        f", {number(stats.held_by_views)} of them held by views\n" if stats.held_by_views else "\n",
        ("hits    ", "bold"),
        f"{number(stats.pool_hits)}{rate}, {number(stats.pool_misses)} misses (leases that waited for the broker)\n",
    )


def _operations(stats: Stats) -> RenderableType:
    shown = table("Leases, and how long they took", "category", "leases>", "average>", "p50>", "p99>")
    for category, leases in stats.operations.items():
        timed = sum(stats.latency_histogram[category]["counts"])
        latencies = (stats.average_latency_ns, stats.p50_latency_ns, stats.p99_latency_ns)
        shown.add_row(
            category.replace("_", " "),
            number(leases),
            *(microseconds(latency[category]) if timed else "-" for latency in latencies),
        )
    by_strategy = ", ".join(f"{name} {number(leases)}" for name, leases in stats.strategies.items())
    rungs = ", ".join(f"{name} {number(served)}" for name, served in stats.ladder.items() if served)
    served = f"beyond magazines: {rungs}\n" if rungs else ""
    return Group(shown, Text(f"by strategy: {by_strategy}\n{served}"))


def _tiers(stats: Stats) -> RenderableType:
    columns = ("capacity", "warm", "free", "idle", "leased", "published")
    shown = table("Tiers, in slots", "tier", "in use", *(f"{column}>" for column in columns))
    for tier in stats.tiers:
        label = tier.kind if tier.kind == "direct" else f"{tier.kind} {format_bytes(tier.size)}"
        used = bar((tier.leased + tier.published) / max(1, tier.warm), 8)
        shown.add_row(label, used, *(number(getattr(tier, column)) for column in columns))
    return shown


def _clients(stats: Stats) -> RenderableType:
    """Writers and readers apart. Who holds what, in which state and since when: `shmpool leases`."""
    shown = table("Clients", "seat>", "pid>", "uid>", "leases>", "memory>", "reads>", "reading>", "command~")
    for client in stats.clients:
        command = reading(client.command or "?", client.children)
        if not client.connected:
            command = Text.assemble(("away ", "yellow"), command, overflow="ellipsis", no_wrap=True)
        if not client.seen:
            command = Text.assemble(("unseen ", "yellow"), command, overflow="ellipsis", no_wrap=True)
        shown.add_row(
            str(client.seat),
            str(client.pid),
            str(client.uid),
            number(client.leases),
            format_bytes(client.bytes),
            number(client.reads),
            format_bytes(client.read_bytes),
            command,
        )
    return shown


def queues(found: list[QueueStats]) -> RenderableType:
    """A line for each: also for `shmpool leases --queues`."""
    columns = ("name|", "row>", "memory>", "items>", "of>", "dropped>", "wait to put, get", "members|", "at its locks|")
    shown = table("Queues", *columns)
    for queue in found:
        kind = "joinable" if queue.joinable else ""
        how = ", ".join(
            filter(None, (kind, queue.overflow.replace("_", " ").removeprefix("block"), "shut" * queue.shut))
        )
        shown.add_row(
            Text.assemble(printable(queue.name or "-"), f" ({how})" if how else ""),
            str(queue.row),
            format_bytes(queue.bytes),
            number(queue.items),
            number(queue.capacity),
            number(queue.dropped),
            f"{queue.waiting_putters}, {queue.waiting_getters}",
            ", ".join(map(str, queue.members)),
            ", ".join(map(str, sorted({*queue.putting, *queue.getting}))),
        )
    return shown
