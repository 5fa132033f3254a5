"""The suite itself: what keeps a run apart from all else on the host, and its parts from each other."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path

import pytest

import shmpool
from shmpool.protocol.names import PREFIX

TESTS = Path(__file__).parent
PATIENCE = 60


def run(*line: str, **env: str) -> str:
    """What a command prints, whatever its exit status."""
    done = subprocess.run(
        [sys.executable, *line], env={**os.environ, **env}, capture_output=True, text=True, timeout=PATIENCE
    )
    return done.stdout + done.stderr


def names(prefix: str) -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"{prefix}-shmpool-")}


def test_pools_of_another_prefix_are_neither_seen_nor_removed(tmp_path: Path) -> None:
    """A broker that was killed, as another run's may be at any time."""
    other = f"{os.environ['SHMPOOL_PREFIX']}_other"
    address = str(tmp_path / "broker.sock")
    line = [sys.executable, "-m", "shmpoold", "--socket", address, "--set", "memory_limit=4MiB", "--ready-fd", "1"]
    broker = subprocess.Popen(line, env={**os.environ, "SHMPOOL_PREFIX": other}, stdout=subprocess.PIPE)
    try:
        assert broker.stdout is not None
        assert json.loads(broker.stdout.readline()).get("ready")
    finally:
        broker.send_signal(signal.SIGKILL)
        broker.communicate(timeout=PATIENCE)
    try:
        left = names(other)
        assert left
        assert not any(name.startswith((PREFIX, "shmpool-")) for name in left)
        clean_up = ("-m", "shmpoold", "--cleanup", "--socket", str(tmp_path / "none.sock"))
        assert run(*clean_up) == "there are no segments of shmpool on this host\n"
        assert "of pools without a broker in sight" not in run("-m", "shmpool.cli", "doctor")
        assert names(other) == left
        assert "of pools without a broker in sight" in run("-m", "shmpool.cli", "doctor", SHMPOOL_PREFIX=other)
        assert f"removed {len(left)} segments" in run(*clean_up, SHMPOOL_PREFIX=other)
        assert names(other) == set()
    finally:
        for name in names(other):
            os.unlink(f"/dev/shm/{name}")


def test_everybody_a_test_starts_has_the_runs_prefix(broker: shmpool.Broker) -> None:
    with broker.connect() as pool:
        pool_id = pool.stats().pool_id
    assert PREFIX == f"{os.environ['SHMPOOL_PREFIX']}-shmpool-" != "shmpool-"
    assert {name for name in os.listdir("/dev/shm") if pool_id in name} >= {f"{PREFIX}{pool_id}-header"}


@pytest.mark.parametrize("prefix", ["a-b", "a/b", "a b", "x" * 33, "é"])
def test_a_prefix_that_could_be_taken_for_another_is_refused(prefix: str) -> None:
    assert "ConfigError: SHMPOOL_PREFIX is" in run("-c", "import shmpool", SHMPOOL_PREFIX=prefix)


@pytest.mark.long
def test_sockets_have_room_however_long_the_path_of_temporary_files_is(tmp_path: Path) -> None:
    longer = tmp_path / ("as-build-servers-make-them-" + "x" * 100)
    longer.mkdir()
    code = (
        f"import os, sys, tempfile; sys.path.insert(0, {str(TESTS)!r}); import conftest;"
        " print(tempfile.gettempdir(), os.environ['TMPDIR'], os.path.dirname(conftest.RUNTIME));"
        " conftest.pytest_unconfigure()"
    )
    assert run("-c", code, TMPDIR=str(longer)).split() == ["/tmp"] * 3
    assert run("-c", code, TMPDIR="/var/tmp").split() == ["/var/tmp"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_what_a_test_starts_does_not_ignore_signals(number: signal.Signals) -> None:
    """Though this run may have been started in the background of a script, or under nohup."""
    assert signal.getsignal(number) is not signal.SIG_IGN
    code = f"import signal; print(signal.getsignal({int(number)}) is signal.SIG_IGN)"
    assert run("-c", code) == "False\n"


def test_multiprocessing_s_server_holds_no_signal_back_whoever_starts_it() -> None:
    """The demo holds Ctrl-C back while it starts its members: no child of the server got it in any later test."""
    server = forkserver.ForkServer()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        server.ensure_running()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        status = Path(f"/proc/{server._forkserver_pid}/status").read_text()  # type: ignore[attr-defined]
        assert re.search(r"^SigBlk:\s*0+$", status, re.MULTILINE)
    finally:
        server._stop()  # type: ignore[attr-defined]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.long
def test_all_folders_can_be_named_on_one_command_line() -> None:
    """pytest imports modules outside packages by their bare names: each is one module for the whole run."""
    paths = [path for path in TESTS.rglob("*.py") if not (path.parent / "__init__.py").exists()]
    bare = Counter(path.stem for path in paths)
    assert [name for name, times in bare.items() if times > 1 and name != "conftest"] == []
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert "conftest" not in imported
