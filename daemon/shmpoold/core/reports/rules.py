"""The alert rules: one table, each rule with the figure that it judges, when it is raised and cleared,
and what to do. ``python -m shmpoold.core.reports.rules`` prints it as docs/alerts.md has it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple


class Severity(IntEnum):
    """How bad an alert is, as `shmpool check` exits."""

    WARNING = 1
    CRITICAL = 2


class Rule(NamedTuple):
    """Raised when the figure has reached *bound* and stayed there for *after* seconds; cleared when it
    is below *calm*. *unit*: how the figure is said."""

    name: str
    severity: Severity
    figure: str
    bound: float
    calm: float
    after: float
    unit: str
    advice: str


_WARNING, _CRITICAL = Severity.WARNING, Severity.CRITICAL

#: How an alert that was cleared stays visible, in seconds.
LINGERS: Final = 300.0

RULES: Final = (
    Rule("misses", _WARNING, "the share of leases that needed a round trip to the broker", 0.2, 0.1, 30.0, "%",
         "raise magazine_bytes, memory_limit or magazine_idle; look at `shmpool leases` for who keeps what"),
    Rule("waiting", _WARNING, "how long a request has waited for memory, the oldest of now", 1.0, 0.1, 0.0, "s",
         "see who keeps most with `shmpool leases`; raise memory_limit"),
    Rule("timeouts", _CRITICAL, "leases that ended in LeaseTimeout since the last look", 1.0, 1.0, 0.0, "",
         "see who keeps most with `shmpool leases`; raise memory_limit, or lease_timeout where waiting is right"),
    Rule("latency", _WARNING, "how long leases take, compared with what they took before", 4.0, 2.0, 30.0, "times",
         "look at pressure and misses in `shmpool stats`, and at what else this host does"),
    Rule("leaks", _WARNING, "buffers that are leased, unread or kept by a view for longer than leak_age", 1.0, 1.0, 0.0,
         "", "`shmpool leases --leaks` names process and age; with SHMPOOL_TRACE=1 the line of code too"),
    Rule("pressure", _WARNING, "the level of memory pressure, 1 elevated and 2 critical", 1.0, 1.0, 0.0, "",
         "give this host or cgroup more memory, or lower memory_limit"),
    Rule("pressure_critical", _CRITICAL, "the same", 2.0, 2.0, 0.0, "",
         "the pool does not grow now: free memory on this host, or raise its cgroup's limit"),
    Rule("quarantine", _CRITICAL, "rows that a client scribbled on and that are not given out again", 1.0, 1.0, 0.0, "",
         "find the process that writes where it may not; restarting all clients gives the rows back"),
    Rule("full", _WARNING, "the share of the pool's memory that is leased, unread or open", 0.9, 0.8, 10.0, "%",
         "raise memory_limit before leases have to wait"),
    Rule("fallback", _WARNING, "requests that got a direct segment as no tier had anything, since the last look", 1.0,
         1.0, 0.0, "", "raise memory_limit, or see with `shmpool stats` which tier is short of slots"),
    Rule("reader", _WARNING, "the share of the pool's memory that one process has open", 0.5, 0.4, 10.0, "%",
         "have it release what it has read, copy what it keeps, or bound it with client_quota_bytes"),
    Rule("away", _WARNING, "clients that lost their connection and keep slots", 1.0, 1.0, 30.0, "",
         "a process is stopped, or cannot reach the socket: see `shmpool stats`"),
)  # fmt: skip

NAMES: Final = tuple(rule.name for rule in RULES)


def said(rule: Rule, value: float) -> str:
    """A figure with its unit."""
    if rule.unit == "%":
        return f"{value:.0%}"
    return f"{value:.3g} {rule.unit}" if rule.unit else f"{value:,.0f}"


def table() -> str:
    """For the documentation."""
    lines = [
        "| alert | severity | figure | raised at | for | cleared below | what to do |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule in RULES:
        after = f"{rule.after:g} s" if rule.after else "at once"
        bound, calm = said(rule, rule.bound), said(rule, rule.calm)
        lines.append(
            f"| `{rule.name}` | {rule.severity.name.lower()} | {rule.figure} | {bound} | {after} | {calm} |"
            f" {rule.advice} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
