from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from corners import corner
from shell_helpers import ENV, PATIENCE, TEST_ENV, BrokerProcess, Wire, segments_of

import shmpool
from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Direct, Fault, Grant, Refill, Role, Setting
from shmpool.protocol.names import direct_name, header_name
from shmpoold.shell import cleanup
from shmpoold.shell.service import Parent

StartBroker = Callable[..., BrokerProcess]
Connect = Callable[[], Wire]


def files_beside(address: str) -> set[str]:
    return set(os.listdir(os.path.dirname(address)))


@pytest.mark.fresh
@pytest.mark.parametrize("number", corner(signal.SIGTERM, signal.SIGINT))
def test_orderly_stop_leaves_nothing(
    start_broker: StartBroker, connect: Connect, address: str, number: signal.Signals
) -> None:
    broker = start_broker()
    assert broker.report == {"ready": True, "address": address, "pid": broker.pid}
    wire = connect()
    pool_id = wire.hello().pool_id
    wire.send(Direct(1, 1 << 20, False), Refill(2, 0, 1, 4, False))
    assert {type(wire.receive()), type(wire.receive())} == {Grant}
    assert any("direct" in name for name in segments_of(pool_id))
    assert files_beside(address) == {"broker.sock", "broker.lock", "broker.tickets.lock", "broker.seats.lock"}
    log = broker.signal(number)
    assert broker.process.returncode == 0
    assert "ERROR" not in log
    assert "Traceback" not in log
    assert segments_of(pool_id) == set()
    assert files_beside(address) == set()
    fault = wire.receive()
    assert isinstance(fault, Fault)
    assert fault.code == Code.STOPPING
    with pytest.raises(EOFError):
        wire.receive()


def test_files_are_the_owner_s_alone(start_broker: StartBroker, address: str) -> None:
    start_broker()
    directory = os.path.dirname(address)
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert {os.stat(f"{directory}/{name}").st_mode & 0o777 for name in files_beside(address)} == {0o600}


def test_group_may_reach_the_socket_and_the_tickets(start_broker: StartBroker, address: str) -> None:
    start_broker("--set", f"group={os.getgid()}")
    directory = os.path.dirname(address)
    modes = {name: os.stat(f"{directory}/{name}").st_mode & 0o777 for name in files_beside(address)}
    assert modes == {
        "broker.sock": 0o660,
        "broker.tickets.lock": 0o660,
        "broker.seats.lock": 0o660,
        "broker.lock": 0o600,
    }
    assert os.stat(directory).st_mode & 0o777 == 0o750


def test_second_broker_is_refused_and_harms_nothing(start_broker: StartBroker, connect: Connect, address: str) -> None:
    broker = start_broker()
    before = segments_of(broker.pool_id)
    second = start_broker()
    assert second.report["error"] == "ConfigError"
    assert f"pid {broker.pid}" in second.report["message"]
    assert second.wait() == ""  # its parent says it
    assert second.process.returncode == 2
    assert segments_of(broker.pool_id) == before
    assert connect().hello().epoch == 1


def test_kept_pool_is_taken_up_with_the_next_epoch(start_broker: StartBroker, connect: Connect, address: str) -> None:
    keep = ("--set", "on_stop=keep")
    broker = start_broker(*keep)
    first = connect().hello()
    broker.signal(signal.SIGTERM)
    kept = segments_of(first.pool_id)
    assert header_name(first.pool_id) in kept
    assert files_beside(address) == {"broker.lock", "broker.tickets.lock", "broker.seats.lock"}
    broker = start_broker()  # on_stop is remove: the end of this pool
    second = connect().hello()
    assert (second.pool_id, second.epoch) == (first.pool_id, 2)
    broker.signal(signal.SIGTERM)
    assert segments_of(first.pool_id) == set()
    assert files_beside(address) == set()


def test_killed_broker_s_seat_is_taken_up_again(start_broker: StartBroker, connect: Connect, address: str) -> None:
    broker = start_broker()
    wire = connect()
    before = wire.hello()
    wire.send(Direct(1, 4096, False))
    grant = wire.receive()
    assert isinstance(grant, Grant)
    broker.signal(signal.SIGKILL)
    orphan = direct_name(before.pool_id, before.tiers[-1][2] + 77, 3)
    Path(f"/dev/shm/{orphan}").touch()
    start_broker()
    again = connect()
    again.nonce = wire.nonce
    after = again.hello(Role.WORKER, before.pool_id, before.seat)
    assert (after.pool_id, after.epoch, after.seat, after.resumed) == (before.pool_id, 2, before.seat, True)
    direct = {name for name in segments_of(before.pool_id) if "direct" in name}
    assert direct == {direct_name(before.pool_id, grant.rows[0], 0)}, "the granted one stays, the orphan goes"


def test_killed_broker_s_dead_clients_are_swept(start_broker: StartBroker, connect: Connect, address: str) -> None:
    broker = start_broker()
    code = (
        "import sys; from shell_helpers import Wire; from shmpool.protocol.messages import Direct\n"
        f"wire = Wire({address!r}); wire.hello(); wire.send(Direct(1, 4096, False)); wire.receive()\n"
        "print('granted', flush=True); sys.stdin.read()"
    )
    client = subprocess.Popen([sys.executable, "-c", code], env=TEST_ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"granted\n"
    broker.signal(signal.SIGKILL)
    client.kill()
    client.communicate(timeout=PATIENCE)
    start_broker()
    welcome = connect().hello()
    assert welcome.epoch == 2
    assert not any("direct" in name for name in segments_of(welcome.pool_id))


def test_damaged_pool_is_replaced(start_broker: StartBroker, connect: Connect, address: str) -> None:
    broker = start_broker("--set", "on_stop=keep")
    old = connect().hello().pool_id
    broker.signal(signal.SIGTERM)
    os.truncate(f"/dev/shm/{header_name(old)}", 64)
    start_broker()
    welcome = connect().hello()
    assert welcome.pool_id != old
    assert welcome.epoch == 1
    assert segments_of(old) == set()


def test_lost_tickets_file_means_a_new_pool(start_broker: StartBroker, connect: Connect, address: str) -> None:
    broker = start_broker("--set", "on_stop=keep")
    old = connect().hello().pool_id
    broker.signal(signal.SIGTERM)
    os.unlink(address.removesuffix(".sock") + ".tickets.lock")
    start_broker()
    assert connect().hello().pool_id != old
    assert segments_of(old) == set()


@pytest.mark.parametrize("has_living_client", [True, False])
def test_other_geometry_is_taken_up_only_for_the_living(
    start_broker: StartBroker, connect: Connect, address: str, has_living_client: bool
) -> None:
    broker = start_broker("--set", "on_stop=keep")
    role = Role.WORKER if has_living_client else Role.OPERATOR
    old = connect().hello(role)
    broker.signal(signal.SIGTERM)
    start_broker("--set", "memory_limit=64MiB")
    new = connect().hello()
    assert (new.pool_id == old.pool_id) == has_living_client
    assert (new.tiers == old.tiers) == has_living_client


def test_parent_s_end_is_the_private_broker_s(start_broker: StartBroker, address: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(parent.pid)
    broker = start_broker("--parent-fd", str(pidfd), "--set", "on_stop=keep", pass_fds=(pidfd,))
    os.close(pidfd)
    assert broker.report["ready"]
    parent.kill()
    parent.communicate(timeout=PATIENCE)
    broker.wait()
    assert broker.process.returncode == 0
    assert files_beside(address) == set()


def test_settings_come_as_json_from_a_parent(start_broker: StartBroker, connect: Connect) -> None:
    start_broker("--settings", json.dumps({"lease_timeout": "2min", "chunk_sizes": ["64KiB"]}))
    assert connect().hello().setting(Setting.LEASE_TIMEOUT_MS) == 120_000


def test_wrong_setting_ends_with_status_2_and_one_line(start_broker: StartBroker) -> None:
    broker = start_broker("--set", "lease_timout=3")
    assert broker.report["error"] == "ConfigError"
    assert broker.report["message"] == "lease_timout is no setting; did you mean lease_timeout?"
    assert broker.wait() == ""  # its parent says it
    assert broker.process.returncode == 2
    alone = subprocess.run([sys.executable, "-m", "shmpoold", "--set", "lease_timout=3"], env=ENV, capture_output=True)
    assert alone.returncode == 2 and alone.stderr.count(b"\n") == 1


def test_stale_socket_file_is_replaced_and_another_s_is_not(
    start_broker: StartBroker, connect: Connect, address: str
) -> None:
    os.makedirs(os.path.dirname(address))
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(address)
        foreign.listen()
        refused = start_broker()
        assert "another program listens" in refused.report["message"]
        refused.wait()
        assert files_beside(address) == {"broker.sock"}
    start_broker()
    assert connect().hello().seat == 1


def test_file_that_is_no_socket_is_left_alone(start_broker: StartBroker, address: str) -> None:
    os.makedirs(os.path.dirname(address))
    Path(address).write_text("precious")
    refused = start_broker()
    assert "no socket" in refused.report["message"]
    refused.wait()
    assert files_beside(address) == {"broker.sock"}
    assert Path(address).read_text() == "precious"


def test_socket_activation_serves_and_leaves_the_socket(tmp_path: Path, connect: Connect, address: str) -> None:
    os.makedirs(os.path.dirname(address))
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.settimeout(PATIENCE)
    notified.bind(str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX) as listener, notified:
        listener.bind(address)
        listener.listen()
        # exec keeps the pid, which LISTEN_PID has to name.
        launch = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'shmpoold', '--set', 'memory_limit=32MiB'])"
        )
        env = {**ENV, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", launch, str(fd)], env=env, pass_fds=(fd,), stderr=subprocess.PIPE
        )
        assert notified.recv(64) == b"READY=1"
        pool_id = connect().hello().pool_id
        assert segments_of(pool_id)
        process.send_signal(signal.SIGTERM)
        assert notified.recv(200).startswith(b"STATUS=0 clients; 0 buffers out; ")
        assert notified.recv(64) == b"STOPPING=1"
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert files_beside(address) == {"broker.sock"}
        assert segments_of(pool_id) == set()


def test_cleanup_removes_only_what_nobody_living_owns(start_broker: StartBroker, address: str, tmp_path: Path) -> None:
    broker = start_broker()
    dead = broker.pool_id
    broker.signal(signal.SIGKILL)
    other = BrokerProcess(str(tmp_path / "other.sock"), "--set", "memory_limit=32MiB")
    living = other.pool_id
    before = {pool_id: segments_of(pool_id) for pool_id in (dead, living)}
    files = files_beside(address)
    promised, kept = sorted(cleanup.clean_up(address, dry_run=True), key=lambda line: "kept" in line)
    assert promised.startswith(f"pool {dead:016x}: would remove {len(before[dead])} segments")
    assert {pool_id: segments_of(pool_id) for pool_id in (dead, living)} == before
    removed, kept = sorted(cleanup.clean_up(address), key=lambda line: "kept" in line)
    assert removed.startswith(f"pool {dead:016x}: removed {len(before[dead])} segments")
    assert kept == f"pool {living:016x}: kept, a living process has it open"
    assert segments_of(dead) == set()
    assert segments_of(living) == before[living]
    assert files_beside(address) == files
    other.stop()


def test_cleanup_spares_a_pool_whose_clients_live(start_broker: StartBroker, connect: Connect, address: str) -> None:
    broker = start_broker()
    pool_id = connect().hello().pool_id  # this process has a seat, and nothing open
    broker.signal(signal.SIGKILL)
    assert list(cleanup.clean_up(address)) == [f"pool {pool_id:016x}: kept, a living process has a seat in it"]
    assert segments_of(pool_id)
    start_broker()  # takes it up, and removes it at its end


def test_signs_of_life_come_from_the_loop_and_the_status_when_it_has_changed(
    tmp_path: Path, start_broker: StartBroker, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.settimeout(PATIENCE)
        notified.bind(str(tmp_path / "notify"))
        monkeypatch.setitem(ENV, "NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setitem(ENV, "WATCHDOG_USEC", "50000")
        start_broker()
        assert notified.recv(64) == b"READY=1"
        assert notified.recv(200).startswith(b"WATCHDOG=1\nSTATUS=0 clients; 0 buffers out; ")
        assert notified.recv(200) == b"WATCHDOG=1"
        with shmpool.connect(address) as pool, pool.lease(100):
            while (said := notified.recv(200)) == b"WATCHDOG=1":
                pass
            assert said.startswith(b"WATCHDOG=1\nSTATUS=1 clients; ")


def lease_for_ever(pool: shmpool.Pool) -> None:
    while True:
        pool.lease(5000, timeout=PATIENCE).release()


def test_a_stop_that_removes_the_pool_waits_for_what_is_out(start_broker: StartBroker, address: str) -> None:
    broker = start_broker("--set", "drain_timeout=1min")
    pool = shmpool.connect(address)
    lease = pool.lease(5000)
    broker.process.terminate()
    broker.await_log("stopping: SIGTERM")
    with pytest.raises(shmpool.BrokerUnavailable, match="stopping"):
        lease_for_ever(pool)  # until what it had ready is asked back
    assert broker.process.poll() is None
    lease.view[:] = b"x" * 5000
    with pool.open(lease.publish()) as buffer:
        assert bytes(buffer.view) == b"x" * 5000
    assert "stopped" in broker.wait() and broker.process.returncode == 0
    pool.close()


def test_a_second_signal_ends_it_at_once(start_broker: StartBroker, address: str) -> None:
    broker = start_broker("--set", "drain_timeout=1h")
    with shmpool.connect(address) as pool, pool.lease(5000):
        broker.process.terminate()
        broker.await_log("stopping: SIGTERM")
        broker.signal(signal.SIGTERM)
        assert broker.process.returncode == 0


def test_parent_that_has_gone_before_it_was_told_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """As one does whose interpreter ends while a daemon thread starts a broker: it is to be silent."""
    reading, writing = os.pipe()
    os.close(reading)
    with caplog.at_level(logging.WARNING):
        Parent(ready_fd=writing).tell({"ready": True})
    assert caplog.messages == []
