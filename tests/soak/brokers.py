"""`shmpoold` at one address, started, killed and started again."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import shmpool
import shmpoold

START_PATIENCE = 120.0
_ROOTS = [str(Path(shmpool.__file__).parents[1]), str(Path(shmpoold.__file__).parents[1])]


class BrokerFailed(AssertionError):
    """The broker did not start or did not end as it should."""


class Brokers:
    """The broker of one address; *log* collects what all of them write."""

    def __init__(self, address: str, log: Path, **settings: Any) -> None:
        self.address = address
        self.log = log
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        #: Seconds from start to ready of each restart.
        self.restart_seconds: list[float] = []
        self.pool_ids: set[str] = set()

    def start(self, **changes: Any) -> None:
        """Start and wait until it serves."""
        reading, writing = os.pipe()
        settings = json.dumps({"log_level": "warning", **self.settings, **changes})
        command = [sys.executable, "-W", "error", "-m", "shmpoold", "--socket", self.address]
        command += ["--settings", settings, "--ready-fd", str(writing)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_ROOTS)}
        started = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=environment, pass_fds=(writing,), stderr=log)
        os.close(writing)
        with open(reading, "rb") as pipe:
            if not select.select([pipe], [], [], START_PATIENCE)[0]:
                raise BrokerFailed("the broker did not report in time")
            report = json.loads(pipe.readline() or b"{}")
        if not report.get("ready"):
            raise BrokerFailed(f"the broker did not start: {report}; {self.log.read_text()[-2000:]}")
        if self.starts:
            self.restart_seconds.append(time.monotonic() - started)
        self.starts += 1
        self.pool_ids.add(json.loads(Path(self.address.removesuffix(".sock") + ".lock").read_text())["pool"])

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end."""
        assert self.process
        self.process.send_signal(number)
        status = self.process.wait(START_PATIENCE)
        if status not in (0, -number):
            raise BrokerFailed(f"the broker ended with {status} on {number.name}")

    def close(self) -> None:
        """Whatever happened, no process stays."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def has_ended(self) -> bool:
        """Whether there was one and it runs no more."""
        return self.process is not None and self.process.poll() is not None
