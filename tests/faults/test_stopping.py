"""Every order of stopping ends silently, with status 0 and with nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from corners import corner
from fault_helpers import ENV, PATIENCE, Daemon, eventually

import shmpool
from shmpool import launch
from shmpool.stats import query

#: How a broker starts is a part of how it ends here.
pytestmark = pytest.mark.fresh

PR_SET_CHILD_SUBREAPER = 36

#: A parent with a private broker and two workers that lease, publish and open all the time; with
#: *polite*, SIGTERM raises SystemExit in parent and workers, and all that is open is closed then.
GROUP = """
import multiprocessing, os, signal, sys, time
import shmpool

def work(address):
    pool = shmpool.connect(address)
    mine = os.write(1, b"%d\\n" % os.getpid())
    while True:
        with pool.lease(5000) as lease:
            handle = lease.publish()
        with pool.open(handle) as buffer:
            buffer.view[0]

if sys.argv[1] == "polite":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
broker = shmpool.Broker(memory_limit="16MiB", max_clients=8)
os.write(1, b"%d\\n" % broker._running.process.pid)
workers = [multiprocessing.get_context("fork").Process(target=work, args=(broker.address,)) for _ in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
while True:  # until it is told as well: a handler that raises while the interpreter exits is another matter
    time.sleep(1)
"""


@pytest.fixture
def subreaper() -> Iterator[None]:
    """This process inherits the children of its children: their statuses are seen."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def end_a_group(manner: str, rng: random.Random, tmp_path: Path) -> None:
    """One SIGTERM to each of parent, workers and broker, in any order, at any time."""
    errors = tmp_path / "stderr"
    with open(errors, "wb") as file:
        parent = subprocess.Popen(
            [sys.executable, "-c", GROUP, manner],
            env={**ENV, "TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": ""}, stdout=subprocess.PIPE, stderr=file,
        )  # fmt: skip
    assert parent.stdout
    broker = int(parent.stdout.readline())
    pids = [broker, parent.pid, *(int(parent.stdout.readline()) for _ in range(2))]
    time.sleep(rng.uniform(0, 0.02))  # wherever they are then
    rng.shuffle(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        time.sleep(rng.choice((0, 0.02)))  # who sends them is interrupted, and nobody misses anybody
    parent.wait(PATIENCE)
    parent.stdout.close()
    if manner == "polite":
        assert parent.returncode == 0
        with contextlib.suppress(ChildProcessError):
            assert os.waitstatus_to_exitcode(os.waitpid(broker, 0)[1]) == 0
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(broker, 0)[1]) == 0, "the private broker"
    eventually(lambda: not any(_is_there(pid) for pid in pids), "everybody's end")
    assert errors.read_text() == ""
    assert os.listdir(tmp_path) == ["stderr"]


def _is_there(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # else it was reaped already, or is not ours
        os.waitpid(pid, os.WNOHANG)
    return os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    ("runs", "manner"),
    [
        (1, "abrupt"),
        (1, "polite"),
        *(pytest.param(10, how, marks=pytest.mark.long) for how in ("abrupt", "polite")),
        *(pytest.param(100, how, marks=pytest.mark.exhaustive) for how in ("abrupt", "polite")),
    ],
)
def test_one_sigterm_to_parent_workers_and_private_broker_leaves_nothing(
    manner: str, runs: int, tmp_path: Path, subreaper: None
) -> None:
    rng = random.Random(runs)
    for run in range(runs):
        directory = tmp_path / str(run)
        directory.mkdir()
        end_a_group(manner, rng, directory)


def test_private_broker_that_is_told_to_stop_before_it_serves_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inherits a mask until it can end in an orderly way: the signal waits."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    real = launch.subprocess.Popen
    brokers: list[subprocess.Popen[bytes]] = []

    def start_and_stop(*args: object, **options: object) -> subprocess.Popen[bytes]:
        brokers.append(real(*args, **options))  # type: ignore[call-overload]
        brokers[-1].send_signal(signal.SIGTERM)
        return brokers[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", start_and_stop)
    try:
        shmpool.Broker(memory_limit="16MiB", max_clients=8).close()
    except shmpool.BrokerUnavailable:
        pass  # it had ended already
    (broker,) = brokers
    assert broker.wait(PATIENCE) == 0
    assert os.listdir(tmp_path) == []


LEAVING = """
import os, sys, time, shmpool
pool = shmpool.connect(sys.argv[1])
leases = [pool.lease(500) for _ in range(1500)]
os.write(1, b"ready\\n")
sys.stdin.readline()
os.execv("/bin/sleep", ["sleep", "100"])
"""


@pytest.mark.parametrize("seed", corner(0, *range(1, 6)))
def test_sigterm_while_a_seat_that_was_found_free_is_settled(tmp_path: Path, seed: int) -> None:
    """Its client called exec and lives, so its byte stays locked by the broker until it is cleared."""
    rng, address = random.Random(seed), str(tmp_path / "broker.sock")
    daemon = Daemon(address, memory_limit="64MiB", max_clients=16, on_stop="remove", log_level="warning")
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", LEAVING, address], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for _ in range(4)
        ]
        for client in clients:
            stack.callback(client.kill)
        pool = stack.enter_context(shmpool.connect(address))
        for client in clients:
            assert client.stdout and client.stdout.readline() == b"ready\n"
        for client in clients:
            assert client.stdin
            client.stdin.write(b"\n")
            client.stdin.flush()
        eventually(lambda: len(query(address).clients) < 5 or rng.random() < 0.05, "somebody's end")
        daemon.end(signal.SIGTERM)
        assert daemon.process.returncode == 0
        assert daemon.logged() == ""
        with pytest.raises(shmpool.ShmpoolError):
            pool.stats()
