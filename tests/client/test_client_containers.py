"""A client in a container: other mounts, no /proc, another pid namespace. It works, or the error
says what differs. The namespaces need root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from client_helpers import ENV, KIB, MIB, PATIENCE

import shmpool
from shmpool.stats import query


def can_unshare() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_unshare(), reason="needs root and namespaces")

#: CPython 3.13 counts the helper's thread, which is stopped for a fork, as running.
FORKS = "ignore:This process:DeprecationWarning" if sys.version_info >= (3, 13) else "error"
WORK = f"""
import os, shmpool, sys
pool = shmpool.connect(sys.argv[1], timeout=5)
for nbytes in (1000, {100 * KIB}, {300 * KIB}, {2 * MIB}):
    for _ in range(3):
        with pool.lease(nbytes) as lease:
            lease.write(b"c" * nbytes)
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer.view) == b"c" * nbytes
child = os.fork()
if child == 0:
    with pool.lease(1000) as lease: lease.write(bytes(1000))
    pool.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
ENDING = """
pool.close(); print("well")
"""


def inside(address: str, shell: str, script: str, *unshare: str) -> subprocess.CompletedProcess[str]:
    """Run a script in namespaces of its own, after some preparation in the shell."""
    prepared = ["unshare", "--mount", *unshare, "sh", "-c", f'{shell} && exec "$@"', "sh"]
    return subprocess.run(
        [*prepared, sys.executable, "-W", FORKS, "-c", script, address],
        env=ENV, capture_output=True, text=True, timeout=2 * PATIENCE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shell", "options"),
    [
        pytest.param("true", (), marks=pytest.mark.long),
        ("mount -t tmpfs none /proc", ()),
        ("true", ("--pid", "--fork", "--mount-proc")),
        pytest.param("mount -t tmpfs none /proc", ("--pid", "--fork"), marks=pytest.mark.long),
        pytest.param("hostname elsewhere", ("--uts", "--net"), marks=pytest.mark.long),
    ],
    ids=["same", "no /proc", "another pid namespace", "another one without /proc", "other host and network names"],
)
def test_a_container_that_shares_memory_and_socket_works(
    broker: shmpool.Broker, shell: str, options: tuple[str, ...]
) -> None:
    done = inside(broker.address, shell, WORK + ENDING, *options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


def test_what_a_container_held_when_it_died_comes_back(broker: shmpool.Broker) -> None:
    """The broker has no pid of it that it could watch in its own namespace's /proc."""
    done = inside(
        broker.address,
        "true",
        WORK + "pool.lease(1000); keep = pool.lease(300_000); os._exit(9)",
        "--pid", "--fork", "--mount-proc",
    )  # fmt: skip
    assert done.returncode == 9
    with broker.connect() as pool:
        for _ in range(3):
            pool.lease(2 * MIB, timeout=PATIENCE).release()
    # The `broker` fixture sees that nothing is held any more.


def test_a_socket_that_is_mounted_elsewhere_works(broker: shmpool.Broker, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    home, name = os.path.split(broker.address)
    done = inside(f"{other}/{name}", f"mount --bind {home} {other} && mount -t tmpfs none {home}", WORK + ENDING)
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")


def test_a_socket_alone_says_that_its_directory_is_missing(broker: shmpool.Broker, tmp_path: Path) -> None:
    socket = tmp_path / "broker.sock"
    socket.touch()
    done = inside(str(socket), f"mount --bind {broker.address} {socket}", WORK + ENDING)
    last = done.stderr.splitlines()[-1]
    assert "BrokerUnavailable" in last
    assert "share both" in last
    assert len([line for line in done.stderr.splitlines() if line.startswith("Traceback")]) == 1
    assert query(broker.address).clients == []


def test_another_dev_shm_is_said_to_be_another(broker: shmpool.Broker) -> None:
    done = inside(broker.address, "mount -t tmpfs none /dev/shm", WORK + ENDING)
    last = done.stderr.splitlines()[-1]
    assert "BrokerUnavailable" in last
    assert "another /dev/shm than the broker" in last and "None" not in last
    assert len([line for line in done.stderr.splitlines() if line.startswith("Traceback")]) == 1
    assert query(broker.address).clients == []


def test_a_private_broker_inside_a_container_without_proc_works() -> None:
    script = (
        "import shmpool, sys\nbroker = shmpool.Broker(memory_limit='64MiB'); sys.argv[1:] = [broker.address]\n"
        + WORK.replace("pool = shmpool.connect(sys.argv[1], timeout=5)", "pool = broker.connect()")
        + "pool.close(); broker.close(); print('well')"
    )
    done = inside("", "mount -t tmpfs none /proc", script)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
