"""A broker that cannot be reached: the error says why, and what this user can do about it."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import ENV, PATIENCE, script
from corners import corner

import shmpool
from shmpool.addresses import SYSTEM_SOCKET, own_socket, resolve
from shmpoold.config.declaration import default_socket

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
#: A user and a group that need not have names.
ANN, STAFF = 54321, 54322


def refusal(address: object, timeout: float = 0.0) -> str:
    with pytest.raises(shmpool.ShmpoolError) as refused:
        shmpool.connect(str(address), timeout=timeout)
    assert refused.value.__cause__ is None, "a chain of tracebacks"
    return str(refused.value)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


#: The interpreter may lie where another user cannot read, so all that is needed is imported first.
BECOME = """
import asyncio.unix_events, encodings.idna, grp, os, pwd, shmpool, shmpool.hints, shmpoold.cli, signal, sys, time
import traceback
os.setgroups([]); os.setresgid({gid}, {gid}, {gid}); os.setresuid({uid}, {uid}, {uid})
"""


def as_user(code: str, uid: int = ANN, gid: int = STAFF, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BECOME.format(uid=uid, gid=gid) + code],
        env={**ENV, **environment}, capture_output=True, text=True, timeout=PATIENCE, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CONNECT = """
import shmpool, sys
try: shmpool.connect({address!r}, timeout=0)
except shmpool.ShmpoolError as error: print(error)
"""


# --- nobody there ------------------------------------------------------------------------------------


def test_no_socket_says_how_to_start_a_broker_there(tmp_path: Path) -> None:
    said = refusal(tmp_path / "none" / "broker.sock")
    assert f"`shmpoold --socket {tmp_path}/none/broker.sock`" in said
    assert "autostart=True" in said


def test_a_socket_that_nobody_serves_says_that_its_broker_has_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "broker.sock"))
    assert "its broker has ended" in refusal(tmp_path / "broker.sock")


def test_a_file_that_is_no_socket_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "broker.sock").touch()
    assert "it is no socket" in refusal(tmp_path / "broker.sock")


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    assert "at most 107 bytes" in refusal(tmp_path / ("x" * 120))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_another_program_s_socket_is_said_to_be_no_broker_s(tmp_path: Path, answer: bytes | None) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                if answer is None:
                    peer.recv(1)  # the client gives up
                else:
                    peer.sendall(answer)
                while peer.recv(1000):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        said = refusal(path)
        server.join()
    assert str(path) in said
    assert "another program listens there" in said or "is what listens at" in said


# --- not for this user -------------------------------------------------------------------------------


@as_root
def test_no_permission_names_the_group_or_the_owner(place: Path) -> None:
    address = str(place / "broker.sock")
    with shmpool.Broker(socket=address, memory_limit="16MiB", group=str(STAFF + 1)):
        said = as_user(CONNECT.format(address=address))
        assert f"{address} is for the group gid {STAFF + 1}" in said
        assert "usermod -aG" in said
    with shmpool.Broker(socket=address, memory_limit="16MiB"):
        said = as_user(CONNECT.format(address=address))
        assert f"{address} is root's alone" in said
        assert "`group`" in said
        place.chmod(0o700)  # what is in the way now is the directory
        assert f"{place} is root's alone" in as_user(CONNECT.format(address=address))


@as_root
@pytest.mark.skipif(os.path.exists("/run/shmpool"), reason="this host has had a broker of root's")
def test_who_may_not_make_a_socket_there_is_told_of_a_path_that_works() -> None:
    said = as_user(CONNECT.format(address="/run/shmpool/broker.sock"), XDG_RUNTIME_DIR="")
    assert f"`shmpoold` (it serves /tmp/shmpool-{ANN}/broker.sock)" in said


# --- where a user's own broker is ----------------------------------------------------------------------


@pytest.fixture
def alone_with_ann() -> Iterator[None]:
    """Her folder in /tmp has one name: one test at a time, of whatever run. One that was killed has left it there."""
    with open(f"/tmp/shmpool-tests-{ANN}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shutil.rmtree(f"/tmp/shmpool-{ANN}", ignore_errors=True)
        yield


@as_root
@pytest.mark.usefixtures("alone_with_ann")
@pytest.mark.parametrize("runtime", corner("", "/nowhere", "/root"))
def test_without_a_runtime_directory_daemon_and_client_agree_on_another(runtime: str) -> None:
    """As after `su`, in cron or in a container."""
    home = Path(f"/tmp/shmpool-{ANN}")
    try:
        said = as_user(
            "daemon = os.fork()\n"
            "if daemon == 0: shmpoold.cli.main(['--set', 'memory_limit=16MiB', '--set', 'log_level=error'])\n"
            "try:\n"
            "    while not os.path.exists(shmpool.addresses.own_socket()): time.sleep(0.01)\n"  # else root's is meant
            f"    with shmpool.connect(timeout={PATIENCE / 2}) as pool, pool.lease(100) as lease:\n"
            "        lease.write(bytes(100)); print(pool.address)\n"
            "finally: os.kill(daemon, signal.SIGTERM); assert os.waitpid(daemon, 0)[1] == 0",
            XDG_RUNTIME_DIR=runtime, SHMPOOL_SOCKET="",
        )  # fmt: skip
        assert said == str(home / "broker.sock")
        assert home.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(home, ignore_errors=True)


@as_root
@pytest.mark.usefixtures("alone_with_ann")
def test_a_directory_that_somebody_else_made_for_us_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(f"/tmp/shmpool-{ANN}")
    home.mkdir()
    try:
        (home / "broker.sock").touch()
        os.chown(home, ANN + 1, STAFF)
        ask = "from shmpool.addresses import resolve; print(resolve())"
        assert as_user(ask, XDG_RUNTIME_DIR="", SHMPOOL_SOCKET="") == SYSTEM_SOCKET
        os.chown(home, ANN, STAFF)
        assert as_user(ask, XDG_RUNTIME_DIR="", SHMPOOL_SOCKET="") == str(home / "broker.sock")
    finally:
        shutil.rmtree(home)


def test_daemon_and_client_look_at_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMPOOL_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert own_socket() == str(tmp_path / "shmpool" / "broker.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_socket() == own_socket()
    (tmp_path / "shmpool").mkdir()
    Path(own_socket()).touch()
    assert resolve() == (own_socket() if os.getuid() in (0, 1000) else SYSTEM_SOCKET)


# --- a child that is started for a pool ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_child_whose_broker_is_gone_prints_one_line(method: str) -> None:
    done = script(
        "import multiprocessing, shmpool\n"
        "broker = shmpool.Broker(memory_limit='16MiB')\n"
        "pool = broker.connect(timeout=0.5)\n"
        "broker.close()\n"
        f"child = multiprocessing.get_context('{method}').Process(target=print, args=[pool])\n"
        "child.start(); child.join(); print(child.exitcode)\n"
        "pool.close()"
    )
    assert done.stdout == "1\n"
    assert done.stderr.startswith("shmpool: no broker answers at") and done.stderr.count("\n") == 1, done.stderr
