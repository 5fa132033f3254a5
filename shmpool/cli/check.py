"""``shmpool check``: is the broker well, for monitoring that runs a command and looks at its status.

A line as monitoring plugins print it: the verdict, what is the matter, and after ``|`` figures.
"""

from __future__ import annotations

import sys
from enum import IntEnum

import click

from ..addresses import resolve
from ..errors import ShmpoolError
from ..protocol.sizing import format_bytes
from ..stats import Stats, query
from .look import count, socket_option
from .sizes import Seconds


class Verdict(IntEnum):
    """By the exit status."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


@click.command("check", short_help="Exit with 0, 1 or 2 by how the broker is.")
@click.option("--timeout", type=Seconds(0.1, 3600), default=5.0, help="Seconds to wait.  [default: 5]")
@socket_option
def command(timeout: float, socket: str | None) -> None:
    """Check the broker: exit status 0 when it is well, 1 when it warns, 2 when it is critical or does not answer.

    What it warns of are its alerts (docs/alerts.md).
    """
    try:
        verdict, text = judge(query(resolve(socket), timeout=timeout))
    except ShmpoolError as error:
        verdict, text = Verdict.CRITICAL, str(error)
    click.echo(f"{verdict.name}: {text}")
    sys.exit(verdict)


def judge(stats: Stats) -> tuple[Verdict, str]:
    """By the alerts that are raised now, and by what else the broker says is the matter."""
    raised = [alert for alert in stats.alert_states if alert["cleared_seconds"] is None]
    verdict = max((Verdict[alert["severity"].upper()] for alert in raised), default=Verdict.OK)
    if stats.alerts:
        verdict = max(verdict, Verdict.WARNING)
    held, limit = stats.memory["held"], stats.memory["limit"]
    about = [f"{alert['text']} ({alert['about']})" if alert["about"] else alert["text"] for alert in raised]
    about = (
        about
        or stats.alerts
        or [f"{count(len(stats.clients), 'client')}, {format_bytes(held)} of {format_bytes(limit)}"]
    )
    figures = (
        f"held={held}B;;;0;{limit}",
        f"active={stats.active_buffers}",
        f"clients={len(stats.clients)}",
        f"misses={stats.pool_misses}c",
        f"timeouts={stats.lease_timeouts}c",
    )
    return verdict, f"{'; '.join(about)} | {' '.join(figures)}"
