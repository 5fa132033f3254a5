"""``shmpool doctor``: is this host fit for a pool, and if not, what is the fix."""

from __future__ import annotations

import sys
from typing import Final

import click
from rich.text import Text

from ..addresses import resolve
from ..protocol.sizing import MIB
from .checks import Finding, Level, examine
from .look import console, printable, socket_option
from .sizes import size

_STYLES: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command("doctor", short_help="Check this host, and say the fixes.")
@click.option(
    "--memory-limit", type=size, default=str(256 * MIB), metavar="SIZE", help="For a pool so large.  [256MiB]"
)
@socket_option
def command(memory_limit: int, socket: str | None) -> None:
    """Check this host: memory, kernel, logind, leftovers. Each line says the fix.

    Exit status 1 when something fails; warnings do not count.
    """
    out = console()
    failed = False
    for finding in examine(memory_limit, resolve(socket)):
        out.print(_line(finding), soft_wrap=True)
        failed = failed or finding.level is Level.FAIL
    sys.exit(1 if failed else 0)


def _line(finding: Finding) -> Text:
    text = Text(f"{finding.level.value:<5}", style=_STYLES[finding.level])
    text += Text(f"{finding.subject:<11}", style="bold") + printable(finding.text)
    if finding.fix:
        text += Text("\n     fix: ", style="bold") + printable(finding.fix)
    return text
