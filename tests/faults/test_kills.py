"""Real kills under load: workers and brokers die at random, and the account closes.

The engine is `tests.soak`, in a process of its own; this is its CI setting.
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
#: A run of the CI setting, in minutes.
CI_MINUTES = 0.3


def soak(minutes: float, *options: str) -> dict[str, Any]:
    """Run the engine; its account."""
    command = [sys.executable, "-W", "error", "-m", "tests.soak", "--json", "--minutes", str(minutes), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=minutes * 60 + 180)
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
def test_account_closes_when_workers_and_brokers_are_killed_under_load(soak_minutes: float | None) -> None:
    account = soak(
        soak_minutes or CI_MINUTES, "--workers", "6", "--kill-workers", "--kill-broker",
        "--worker-interval", "0.12", "--broker-interval", "4",
    )  # fmt: skip
    deeds, figures = account["deeds"], account["figures"]
    died = sum(count for name, count in figures.items() if name.startswith("died_"))
    assert deeds["workers_killed"] + died >= 40
    assert deeds["workers_stopped"] >= 5
    assert deeds["broker_killed"] >= 2
    assert figures["verified"] >= 1000, "that was no load"
    assert min(figures["pooled"], figures["chunked"], figures["direct"]) >= 10


@pytest.mark.timeout(0)
def test_account_closes_when_nobody_is_killed() -> None:
    """The control: nothing in the engine needs a death to come out even."""
    account = soak(0.05, "--workers", "3")
    figures = account["figures"]
    assert account["deeds"] == {"workers_started": 3}
    assert figures["unread_at_the_end"] == 0
    assert figures["handles"] == figures["verified"] + figures["discarded"]
