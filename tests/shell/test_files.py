"""Whose the files beside the socket are: others', copies, links, and those of another version."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corners import across
from shell_helpers import PATIENCE, BrokerProcess, Wire, new_pool_id, segments_of

import shmpool
from shmpool.protocol.codes import Code
from shmpool.protocol.framing import encode_frame
from shmpool.protocol.messages import Fault, Hello, Role, encode
from shmpool.protocol.names import header_name, ledger_name, lock_path, seats_path, tickets_path
from shmpool.protocol.sizing import MIB, make_tiers
from shmpoold.core.header import format_header
from shmpoold.core.settings import Settings
from shmpoold.shell import cleanup
from shmpoold.shell.segments import Access, PoolIsServed, SegmentStore

StartBroker = Callable[..., BrokerProcess]
Connect = Callable[[], Wire]

PATHS = {"lock": lock_path, "tickets": tickets_path, "seats": seats_path}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file, or be another user")
GOLDEN = Path(__file__).parents[1] / "protocol" / "golden"


def golden(version: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"version{version}.json").read_text())
    return found


@pytest.mark.parametrize(
    ("which", "what"),
    [*across(tuple(PATHS), ("of another user", "open to all", "a link", "a directory")), ("lock", "open to a group")],
)
def test_lock_file_that_is_not_ours_alone_is_refused_and_left_alone(
    start_broker: StartBroker, address: str, which: str, what: str, tmp_path: Path
) -> None:
    if what == "of another user" and os.geteuid() != 0:
        pytest.skip("only root can make another user's file")
    path = PATHS[which](address)
    os.makedirs(os.path.dirname(address))
    note = {"pool": f"{new_pool_id():016x}", "pid": 1}
    if what == "a directory":
        os.mkdir(path)
    elif what == "a link":
        (tmp_path / "elsewhere").write_text(json.dumps(note))
        os.symlink(tmp_path / "elsewhere", path)
    else:
        Path(path).write_text(json.dumps(note))
        os.chmod(path, {"open to all": 0o666, "open to a group": 0o640}.get(what, 0o600))
    if what == "of another user":
        os.chown(path, 65534, 65534)
    before = os.lstat(path)
    broker = start_broker()
    broker.wait()
    assert broker.process.returncode == 2
    text = broker.report["message"]
    assert path in text and f"uid {before.st_uid} with mode {before.st_mode & 0o7777:04o}" in text
    assert os.lstat(path) == before
    assert not os.path.exists(address)


@needs_root
def test_socket_of_another_user_is_refused_and_left_alone(start_broker: StartBroker, address: str) -> None:
    os.makedirs(os.path.dirname(address))
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(address)
    os.chown(address, 65534, 65534)
    before = os.lstat(address)
    broker = start_broker()
    broker.wait()
    assert broker.process.returncode == 2
    assert f"{address} is a socket of uid 65534, and this broker runs as uid {os.geteuid()}" in broker.report["message"]
    assert os.lstat(address) == before


@needs_root
def test_who_may_not_look_into_a_pool_is_told_so_by_cleanup_and_goes_on(start_broker: StartBroker) -> None:
    broker = start_broker()
    # Imported before: the interpreter may lie where another user cannot read.
    as_nobody = "import os; from shmpoold.cli import main; os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    command = [sys.executable, "-c", as_nobody, "--cleanup", "--socket", "/none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pool {broker.pool_id:016x}: kept, it cannot be seen whether anybody uses it" in done.stdout


def test_copy_of_a_directory_gets_a_pool_of_its_own_and_the_first_keeps_its(
    start_broker: StartBroker, connect: Connect, address: str, tmp_path: Path
) -> None:
    first = start_broker()
    before = segments_of(first.pool_id)
    copy = tmp_path / "copy"
    shutil.copytree(os.path.dirname(address), copy, ignore=shutil.ignore_patterns("*.sock"))
    second = BrokerProcess(str(copy / "broker.sock"), "--set", "memory_limit=32MiB", "--set", "max_clients=8")
    assert second.pool_id != first.pool_id
    assert segments_of(first.pool_id) == before
    log = second.signal(signal.SIGTERM)
    assert "is a copy of another broker's directory" in log and f"{first.pool_id:016x}" in log
    with shmpool.connect(address) as pool:
        pool.lease(2 * MIB).release()
    deadline = time.monotonic() + PATIENCE
    while segments_of(first.pool_id) != before:  # the direct segment goes when the broker comes to it
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_copy_leaves_a_kept_pool_to_the_directory_that_it_was_copied_from(
    start_broker: StartBroker, connect: Connect, address: str, tmp_path: Path
) -> None:
    first = start_broker("--set", "on_stop=keep")
    kept, files = first.pool_id, os.path.dirname(address)
    first.signal(signal.SIGTERM)
    copy = tmp_path / "copy"
    shutil.copytree(files, copy)
    BrokerProcess(str(copy / "broker.sock"), "--set", "memory_limit=32MiB").signal(signal.SIGTERM)
    start_broker()
    welcome = connect().hello()
    assert (welcome.pool_id, welcome.epoch) == (kept, 2)


def test_pool_has_one_broker_whatever_path_it_came_by() -> None:
    store = SegmentStore.create(new_pool_id(), make_tiers(4 * MIB, Settings().sizing), 4, Access())
    try:
        format_header(store.header, store.pool_id, store.tiers, 4, Settings())  # type: ignore[arg-type]
        with pytest.raises(PoolIsServed, match=f"{store.pool_id:016x} is served by a living broker"):
            SegmentStore.adopt(store.pool_id, Access())
        store.close()
        SegmentStore.adopt(store.pool_id, Access()).close()
    finally:
        store.remove_all()


def test_lock_files_are_found_beside_the_socket_that_was_dialled_links_resolved(
    start_broker: StartBroker, address: str, tmp_path: Path
) -> None:
    start_broker()
    os.symlink(address, tmp_path / "link.sock")
    os.symlink(os.path.dirname(address), tmp_path / "directory")
    for path in (tmp_path / "link.sock", tmp_path / "directory" / "broker.sock"):
        with shmpool.connect(path) as pool:
            handle = pool.lease(100).publish()
            with pool.open(handle) as buffer:
                assert len(buffer.view) == 100


def test_other_lock_files_beside_the_socket_are_refused(start_broker: StartBroker, address: str) -> None:
    """They would exclude nobody: two readers could open one ticket."""
    start_broker()
    path = tickets_path(address)
    shutil.copy(path, path + ".copy")
    os.rename(path, path + ".own")
    os.rename(path + ".copy", path)
    with pytest.raises(shmpool.BrokerUnavailable, match="is not the file that the broker locks"):
        shmpool.connect(address)
    os.rename(path + ".own", path)
    shmpool.connect(address).close()


def test_new_pool_gets_new_lock_files(start_broker: StartBroker, address: str) -> None:
    """Who had the last one may still hold bytes of the old ones."""
    inodes = []
    for _ in range(2):
        broker = start_broker()
        inodes.append({os.stat(path(address)).st_ino for path in (tickets_path, seats_path)})
        assert all(
            int.from_bytes(Path(path(address)).read_bytes(), "little") == broker.pool_id
            for path in (tickets_path, seats_path)
        )
        broker.signal(signal.SIGKILL)
        os.truncate(f"/dev/shm/{header_name(broker.pool_id)}", 64)  # and nobody can take the pool up
    with open(tickets_path(address)), open(seats_path(address)):  # meanwhile their numbers are not used again
        start_broker()
        inodes.append({os.stat(path(address)).st_ino for path in (tickets_path, seats_path)})
    assert not inodes[1] & inodes[2]


# --- versions --------------------------------------------------------------------------------------------------


def leave_a_pool_of_version_1(address: str) -> int:
    """As a broker of 0.1.0 that was killed has left it."""
    old, pool_id = golden(1), new_pool_id()
    words = [int(old["header"].get(str(at), "0"), 16) for at in range(old["header_bytes"] // 8)]
    words[2] = pool_id
    Path(f"/dev/shm/{header_name(pool_id)}").write_bytes(b"".join(word.to_bytes(8, "little") for word in words))
    Path(f"/dev/shm/{ledger_name(pool_id)}").write_bytes(bytes(old["ledger_bytes"]))
    for name in segments_of(pool_id):
        os.chmod(f"/dev/shm/{name}", 0o600)
    os.makedirs(os.path.dirname(address), mode=0o700)
    for path in (lock_path, tickets_path):
        os.close(os.open(path(address), os.O_CREAT | os.O_WRONLY, 0o600))
    note = {"pool": f"{pool_id:016x}", "pid": 1, "tickets": os.stat(tickets_path(address)).st_ino}
    Path(lock_path(address)).write_text(json.dumps(note))
    return pool_id


def test_pool_of_the_version_before_is_left_as_it_is_and_what_to_do_is_said(
    start_broker: StartBroker, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = leave_a_pool_of_version_1(address)
    before = {name: Path(f"/dev/shm/{name}").read_bytes() for name in segments_of(old)}
    broker = start_broker()
    assert broker.pool_id != old
    assert {name: Path(f"/dev/shm/{name}").read_bytes() for name in segments_of(old)} == before
    log = broker.signal(signal.SIGTERM)
    assert f"pool {old:016x} is of another shmpool: its ledger's version is 1, this broker reads 2" in log
    assert "Restart the processes that still use it, then remove it with `shmpoold --cleanup`" in log
    monkeypatch.setattr(cleanup, "leftover_pools", lambda: {old: sorted(segments_of(old))})
    assert next(cleanup.clean_up(address)).startswith(f"pool {old:016x}: removed 2 segments")
    assert segments_of(old) == set()


@pytest.mark.parametrize(
    ("version", "what"),
    [(1, "restart the process with the broker's version"), (3, "restart the broker with the process's version")],
)
def test_client_of_another_version_is_told_who_is_to_be_restarted(
    start_broker: StartBroker, connect: Connect, version: int, what: str
) -> None:
    start_broker()
    wire = connect()
    hello = Hello("shmpool", version, Role.WORKER, 7, 0, 0)
    if version == 1:
        wire.socket.sendall(encode_frame(bytes.fromhex(golden(1)["messages"]["Hello"])))
    else:
        wire.send(hello)
    fault = wire.receive()
    assert isinstance(fault, Fault)
    assert (fault.code, what in fault.text) == (Code.WRONG_VERSION, True), fault.text


def test_broker_of_another_version_is_told_of_by_its_client(tmp_path: Path) -> None:
    """What a broker of 0.1.0 answers, word for word."""
    address = str(tmp_path / "b.sock")
    refusal = Fault(Code.WRONG_VERSION, "this broker speaks shmpool protocol 1, not shmpool 2")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(encode_frame(encode(refusal)))

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(shmpool.ShmpoolError, match="whichever of the two runs the older shmpool must be restarted"):
            shmpool.connect(address)
        thread.join()


# --- whose settings ----------------------------------------------------------------------------------------------


def test_pool_keeps_its_checksums_while_its_clients_live(start_broker: StartBroker, address: str) -> None:
    broker = start_broker("--set", "on_stop=keep")
    old = broker.pool_id
    with shmpool.connect(address) as writer:
        handles = [writer.lease(5000).publish() for _ in range(2)]
        broker.signal(signal.SIGTERM)
        broker = start_broker("--set", "on_stop=keep", "--set", "checksums=true")
        handles.append(writer.lease(5000).publish())
        with shmpool.connect(address) as reader:
            for handle in handles:
                reader.open(handle).release()
    log = broker.signal(signal.SIGTERM)
    assert f"pool {old:016x} has living clients and keeps what it was made with: checksums = false" in log
    broker = start_broker("--set", "checksums=true")
    assert broker.pool_id != old, "nobody lived in it, so there is another, with checksums"
    with shmpool.connect(address) as pool, pool.open(pool.lease(5000).publish()) as buffer:
        assert len(buffer.view) == 5000


def test_limit_below_the_tables_of_a_pool_that_is_kept_is_raised_and_said_so(
    start_broker: StartBroker, address: str
) -> None:
    broker = start_broker("--set", "on_stop=keep", "--set", "memory_limit=1GiB")
    with shmpool.connect(address) as pool:
        broker.signal(signal.SIGTERM)
        broker = start_broker("--set", "memory_limit=4MiB")
        with shmpool.connect(address) as other, other.lease(4096) as lease:
            assert len(lease.view) == 4096
            with pytest.raises(shmpool.ShmpoolError) as refused:
                other.lease(64 * MIB)
            assert "-" not in str(refused.value).split("can ever hold")[-1]
        assert pool.stats().memory["limit"] >= pool.stats().memory["held"]
    assert "memory_limit = 4 MiB is less than the tables of pool" in broker.signal(signal.SIGTERM)
