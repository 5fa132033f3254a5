"""``shmpool doctor``: is this host fit for a pool, and if not, what is the fix."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Final

import click
from rich.text import Text

from ..addresses import resolve
from .checks import examine
from .findings import Finding, Level
from .look import console, printable, socket_option
from .sizes import size

#: Where the text begins.
_INDENT: Final = 16
_STYLES: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command("doctor", short_help="Check this host, and say the fixes.")
@click.option(
    "--memory-limit",
    type=size,
    metavar="SIZE",
    help="For a pool so large.  [default: the answering broker's, or 256MiB]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--clean", is_flag=True, help="Remove what is left of dead pools, as `shmpoold --cleanup` does.")
@click.option("--dry-run", is_flag=True, help="With --clean: say what would be removed, and remove nothing.")
@socket_option
def command(memory_limit: int | None, as_json: bool, clean: bool, dry_run: bool, socket: str | None) -> None:
    """Check this host: memory, kernel, logind, leftovers. Each line says the fix.

    Exit status 1 when something fails; warnings do not count.
    """
    if dry_run and not clean:
        raise click.UsageError("--dry-run goes with --clean")
    address = resolve(socket)
    if clean:
        sys.exit(_clean(address, dry_run=dry_run))
    findings = examine(memory_limit, address)
    failed = False
    if as_json:
        found = list(findings)
        failed = any(finding.level is Level.FAIL for finding in found)
        click.echo(json.dumps([{**finding._asdict(), "level": finding.level.value} for finding in found], indent=2))
    else:
        out = console()
        for finding in findings:
            out.print(render(finding, out.width if out.is_terminal else 0), soft_wrap=True)
            failed = failed or finding.level is Level.FAIL
    sys.exit(1 if failed else 0)


def _clean(address: str, *, dry_run: bool) -> int:
    """By the daemon, which knows what nobody living owns. Its exit status."""
    line = [sys.executable, "-m", "shmpoold", "--cleanup", "--socket", address, *(["--dry-run"] if dry_run else [])]
    return subprocess.run(line, check=False).returncode


def render(finding: Finding, width: int = 0) -> Text:
    """What is found, in lines of *width* columns if that is given, and a line for its fix, which can be
    copied whole."""
    level = Text(f"{finding.level.value:<5}", style=_STYLES[finding.level])
    text = Text.assemble(level, (f"{finding.subject:<{_INDENT - 5}}", "bold"))
    lines = [finding.text]
    if width > 2 * _INDENT:
        lines = textwrap.wrap(finding.text, width - _INDENT, break_long_words=False, break_on_hyphens=False)
    text += Text("\n" + " " * _INDENT).join(printable(line) for line in lines)
    if finding.fix:
        label = "try" if finding.level is Level.OK else "fix"
        text.append(f"\n     {label}: ", "bold")
        text += printable(finding.fix)
    return text
