"""Alerts in a real run: raised by what real processes do, told by every command, and over when that is over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_helpers import ENV, shmpool_command
from patience import eventually

import shmpool
from shmpool.stats import query

SETTINGS = """
memory_limit = "4 MiB"
leak_age = "300 ms"
magazine_idle = "50 ms"
alerts = {full = false, misses = false, fallback = false}
"""
#: Leases the number of buffers that each line says, and keeps them until the next.
KEEPER = """
import sys, shmpool
with shmpool.connect(sys.argv[1]) as pool:
    kept = []
    print("ready", flush=True)
    for line in sys.stdin:
        while kept:
            kept.pop().release()
        try:
            while len(kept) < int(line):
                kept.append(pool.lease(200_000, timeout=0))
        except shmpool.LeaseTimeout:
            pass
        print(len(kept), flush=True)
"""


class Service:
    """A broker whose configuration can be changed."""

    def __init__(self, folder: Path) -> None:
        self.config, self.address = folder / "shmpoold.toml", str(folder / "broker.sock")
        self.config.write_text(SETTINGS)
        line = [sys.executable, "-m", "shmpoold", "--config", str(self.config), "--socket", self.address]
        self._log = ""
        self.process = subprocess.Popen(line, env=ENV, stderr=subprocess.PIPE, text=True)

    def reload(self, more: str) -> None:
        self.config.write_text(SETTINGS + more)
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> str:
        """What it has logged."""
        if not self._log:
            self.process.terminate()
            self._log = self.process.communicate()[1]
        return self._log

    def raised(self) -> dict[str, bool]:
        """By name: whether it is raised now, or was."""
        return {state["name"]: state["cleared_seconds"] is None for state in query(self.address).alert_states}

    def await_alert(self, name: str) -> None:
        eventually(lambda: self.raised().get(name) is True, f"the alert {name}")

    def await_end(self, name: str) -> None:
        eventually(lambda: self.raised().get(name) is False, f"the end of the alert {name}, which stays visible")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with shmpool.connect(service.address, timeout=20):
        pass
    yield service
    service.stop()


@contextmanager
def keeper(address: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-c", KEEPER, address]
    with subprocess.Popen(line, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def keep(process: subprocess.Popen[str], count: int) -> int:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def check(address: str) -> tuple[int, str]:
    done = shmpool_command("check", "--socket", address)
    return done.returncode, done.stdout


@pytest.mark.exhaustive  # a minute of waiting
def test_alerts_of_real_processes_are_raised_told_and_over(service: Service) -> None:
    address = service.address
    with keeper(address) as process, shmpool.connect(address) as pool:
        assert check(address)[0] == 0

        # One process keeps all: what it keeps is taken for leaked, and others wait in vain.
        assert keep(process, 10**6) > 5
        service.await_alert("leaks")
        assert check(address) == (1, check(address)[1])
        with pytest.raises(shmpool.LeaseTimeout, match=f"pid {process.pid}"):
            pool.lease(200_000, timeout=1.3)
        assert "waiting" in service.raised()
        service.await_alert("timeouts")
        status, line = check(address)
        assert status == 2 and line.startswith("CRITICAL: ") and "LeaseTimeout" in line
        shown = shmpool_command("stats", "--socket", address).stdout
        assert "leaks: " in shown and "shmpool leases --leaks" in shown
        leaks = json.loads(shmpool_command("leases", "--leaks", "--json", "--socket", address).stdout)
        assert {leak["pid"] for leak in leaks["leases"]} == {process.pid}

        # It gives them back.
        assert keep(process, 0) == 0
        for name in ("leaks", "waiting", "timeouts"):
            service.await_end(name)
        assert check(address)[0] == 0
        assert "over for " in shmpool_command("stats", "--socket", address).stdout

        # The host is said to be short of memory, and no longer.
        service.reload('pressure_free = ["100 %", "0 %"]\n')
        service.await_alert("pressure")
        assert check(address)[0] == 1
        service.reload("")
        service.await_end("pressure")
        assert check(address)[0] == 0

    log = service.stop()
    for name in ("leaks", "timeouts", "waiting", "pressure"):
        assert log.count(f"alert {name}: ") >= 1 and log.count(f"alert {name} is over") >= 1, log
