"""``shmpool leases``: who holds what."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click
from rich.console import Group

from ..addresses import resolve
from ..protocol.census import Use
from ..protocol.sizing import format_bytes
from ..stats import Stats, query, query_buffers, query_leaks, query_leases, query_names
from .look import age, console, number, printable, reading, socket_option, table
from .stats import queues as render_queues


@click.command("leases", short_help="Show who holds what.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--each", is_flag=True, help="A line for each buffer.")
@click.option("--idle", is_flag=True, help="Also what clients hold ready and do not use.")
@click.option("--leaks", is_flag=True, help="What is kept for too long, and by which line of code.")
@click.option("--names", is_flag=True, help="The shared publications that have a name, and who holds them.")
@click.option("--queues", is_flag=True, help="The queues: how much is in each, who has it, who waits.")
@socket_option
def command(as_json: bool, each: bool, idle: bool, leaks: bool, names: bool, queues: bool, socket: str | None) -> None:
    """Show who holds what, by process: most memory first.

    leased: may be written. unread: published, and a ticket of it not opened yet. open: open for
    reading, or a view of it is still alive. shared: by its maker, for whoever holds it. held: what
    others have shared. Ages are the oldest buffer's, at least so much: the broker looks every few
    seconds.
    """
    if leaks + names + queues > 1 or ((leaks or names or queues) and (each or idle)):
        raise click.UsageError("--leaks, --names and --queues have lines of their own: leave out the others")
    address = resolve(socket)
    if queues:
        _show_queues(query(address), as_json)
        return
    if names:
        _show_names(query_names(address), as_json)
        return
    if leaks:
        _show_leaks(query_leaks(address), as_json)
        return
    found = query_buffers(address) if each else query_leases(address)
    if not idle:
        leave_out_idle(found)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not found["total"]:
        click.echo("nobody holds anything" if idle else "nobody holds a lease or a publication")
    else:
        console().print((_buffers if each else render)(found["leases"]))
        if found["shown"] < found["total"]:
            click.echo(f"{number(found['shown'])} of {number(found['total'])} are shown")


def _show_leaks(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not found["total"]:
        click.echo("nothing seems to be leaked")
    else:
        console().print(_leaks(found["leases"]))
        if not any(leak["site"] for leak in found["leases"]):
            click.echo("Start clients with SHMPOOL_TRACE=1 to be told the lines of code.")


def _show_queues(stats: Stats, as_json: bool) -> None:
    total, found = stats.shared["queues"], stats.queues
    if as_json:
        lines = [asdict(queue) for queue in found]
        click.echo(json.dumps({"total": total, "shown": len(found), "queues": lines}, indent=2))
    elif not total:
        click.echo("there is no queue")
    else:
        console().print(render_queues(found))
        if len(found) < total:
            click.echo(f"{number(len(found))} of {number(total)} are shown")


def _show_names(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif not found["total"]:
        click.echo("nothing that is shared has a name")
    else:
        shown = table("Shared by name", "name|", "memory>", "row>", "kept", "uid>", "held by|")
        for one in found["names"]:
            held_by = ", ".join(map(str, one["held_by"]))
            shown.add_row(
                printable(one["name"]),
                format_bytes(one["bytes"]),
                str(one["row"]),
                one["keep"],
                str(one["uid"]),
                held_by,
            )
        console().print(shown)


def _leaks(leaks: list[dict[str, Any]]) -> Any:
    shown = table("What seems to be leaked", "pid>", "what", "row>", "memory>", "age>", "command, line of code|")
    for leak in leaks:
        who = "" if leak["kind"] == "quarantined" else _command(leak)
        shown.add_row(
            str(leak["pid"] or "-"),
            leak["kind"],
            str(leak["row"]),
            format_bytes(leak["bytes"]),
            _age(leak),
            Group(who, printable(leak["site"])) if leak["site"] else who,
        )
    return shown


def leave_out_idle(found: dict[str, Any]) -> None:
    """What nobody uses, of a report on leases."""
    used = [lease for lease in found["leases"] if lease["state"] != Use.IDLE]
    found["total"] -= found["shown"] - len(used)
    found["leases"], found["shown"] = used, len(used)


def render(leases: list[dict[str, Any]]) -> Any:
    """A line for each process and state."""
    shown = table("Who holds what", "pid>", "state", "buffers>", "memory>", "oldest>", "tier", "command~")
    for lease in leases:
        shown.add_row(
            str(lease["pid"] or "-"),
            lease["state"],
            number(lease["buffers"]),
            format_bytes(lease["bytes"]),
            _age(lease),
            _tier(next(iter(lease["tiers"]))) if len(lease["tiers"]) == 1 else f"{len(lease['tiers'])} tiers",
            _command(lease),
        )
    return shown


def _buffers(leases: list[dict[str, Any]]) -> Any:
    shown = table("Each buffer", "row>", "state", "tier", "memory>", "age>", "by>", "open in|", "command~")
    for lease in leases:
        state = (
            f"{lease['state']}, {lease['tickets']} unread" if lease["readers"] and lease["tickets"] else lease["state"]
        )
        shown.add_row(
            str(lease["row"]),
            state,
            _tier(lease["tier"]),
            format_bytes(lease["bytes"]),
            _age(lease),
            str(lease["pid"] or "-"),
            _open_in(lease),
            _command(lease | {"children": []}),
        )
    return shown


def _open_in(lease: dict[str, Any]) -> str:
    """Who has it open, and the forked children that may read on what their parent had, it or another's."""
    readers = ", ".join(str(pid or "-") for pid in dict.fromkeys(lease["readers"]))
    children = ", ".join(map(str, lease["children"]))
    return f"{readers}, its fork {children}" if children else readers


def _age(lease: dict[str, Any]) -> str:
    return "-" if lease["age_seconds"] is None else age(lease["age_seconds"])


def _tier(label: str) -> str:
    """Most are pooled: that is not said again and again."""
    return label.removeprefix("pooled ")


def _command(lease: dict[str, Any]) -> Any:
    nobody = "(the broker)" if lease.get("state") == Use.IDLE else "(gone)"
    text = lease["command"] or ("?" if lease["pid"] else nobody)
    return reading(text, lease.get("children", []))
