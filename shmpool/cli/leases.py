"""``shmpool leases``: who holds what."""

from __future__ import annotations

import json

import click

from ..addresses import resolve
from ..protocol.sizing import format_bytes
from ..stats import query_leases
from .look import console, duration, printable, socket_option, table


@click.command("leases")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.option("--idle", is_flag=True, help="Also what clients hold ready and do not use.")
@socket_option
def command(as_json: bool, idle: bool, socket: str | None) -> None:
    """List leases and publications, oldest first: who holds what, and since when.

    Ages are the broker's: since when it is in this client's hands.
    """
    found = query_leases(resolve(socket))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    shown = table("Leases", "pid>", "seat>", "tier", "holds>", "state", "age>", "command")
    for lease in found:
        if idle or lease["state"] not in ("idle", "returned"):
            shown.add_row(
                str(lease["pid"] or "-"),
                str(lease["seat"]),
                lease["tier"],
                format_bytes(lease["bytes"]),
                lease["state"],
                duration(lease["age_seconds"]),
                printable(lease["command"] or "(gone)"),
            )
    if not shown.row_count:
        click.echo("nobody holds anything" if idle else "nobody holds a lease or a publication")
        return
    console().print(shown)
