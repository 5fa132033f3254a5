"""Real kills under load: workers and brokers die at random, and the account closes.

The engine is `tests.soak`, in a process of its own; these are its default and its long setting.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import ENV

ROOT = Path(__file__).parents[2]
#: How long it runs, in minutes.
SHORT, LONG = 0.03, 0.3
#: Of objects.
KINDS = ["pooled", "chunked", "direct", "checksummed", "mixed"]


def soak(minutes: float, *options: str) -> dict[str, Any]:
    """Run the engine; its account."""
    command = [sys.executable, "-W", "error", "-m", "tests.soak", "--json", "--minutes", str(minutes), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=minutes * 60 + 400)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        process.kill()
        process.wait()
    account: dict[str, Any] = json.loads(output)
    print(json.dumps(account, indent=1))
    assert account["violations"] == [], f"seed {account['seed']}"
    assert process.returncode == 0
    return account


@pytest.mark.timeout(0)  # the engine bounds itself
@pytest.mark.long
def test_account_closes_when_workers_and_brokers_are_killed_under_load(soak_minutes: float | None) -> None:
    account = soak(
        soak_minutes or LONG, "--workers", "6", "--kill-workers", "--kill-broker",
        "--worker-interval", "0.12", "--broker-interval", "1",
        "--at-least", "broker_killed=1", "workers_killed=3", "verified=10",
        "workers_stopped=1", "pooled=1", "chunked=1", "direct=1",
    )  # fmt: skip
    deeds, figures = account["deeds"], account["figures"]
    died = sum(count for name, count in figures.items() if name.startswith("died_"))
    assert deeds["workers_killed"] + died >= 3
    assert deeds["broker_killed"] >= 1
    assert figures["verified"] >= 10, "that was no load"
    assert deeds["workers_stopped"] >= 1
    assert min(figures["pooled"], figures["chunked"], figures["direct"]) >= 1


@pytest.mark.timeout(0)
@pytest.mark.parametrize("objects", [pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[:-1]] + KINDS[-1:])
def test_account_closes_of_workers_whose_threads_fork_and_close_and_interrupt(
    soak_minutes: float | None, objects: str
) -> None:
    account = soak(
        soak_minutes or SHORT, "--workers", "3", "--objects", objects, "--disturb",
        "--kill-workers", "--worker-interval", "0.7", "--kill-broker", "--broker-interval", "1.5",
        "--at-least", "children=1", "interrupts=1", "second_cycles=1",
        "broker_killed=1", "workers_killed=1", "verified=10",
    )  # fmt: skip
    figures = account["figures"]
    assert figures["children"] >= 1
    assert figures["interrupts"] >= 1
    assert figures["second_cycles"] >= 1
    if objects not in ("mixed", "checksummed"):
        assert figures[objects] > 0.9 * figures["leases"]


@pytest.mark.long
@pytest.mark.timeout(0)
def test_account_closes_when_nobody_is_killed() -> None:
    """The control: nothing in the engine needs a death to come out even."""
    account = soak(0.03, "--workers", "3")
    figures = account["figures"]
    assert account["deeds"] == {"workers_started": 3}
    assert figures["unread_at_the_end"] == 0
    assert figures["handles"] == figures["verified"] + figures["discarded"]
