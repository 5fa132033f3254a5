"""What is evidence of death and what is not: a pid that cannot be seen, or another start time, is not;
the byte of a seat is, for the next broker, for --cleanup and for who looks for pools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_helpers import ENV, Daemon, eventually, pattern, segments

import shmpool
from shmpool.errors import LeaseTimeout
from shmpool.stats import query

ELSEWHERE = {
    "pid namespace": ("unshare", "--pid", "--fork", "--mount-proc"),
    "time namespace": ("unshare", "--time", "--boottime", "100000", "--fork"),
}
NBYTES = 300_000
CLIENT = (
    f"import sys, shmpool; pool = shmpool.connect(sys.argv[1]); lease = pool.lease({NBYTES});"
    "print(flush=True); sys.stdin.read(); lease.release(); pool.close()"
)

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can make namespaces, with unshare"
)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "broker.sock")


@pytest.fixture
def start(address: str) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(**options: object) -> Daemon:
        started.append(Daemon(address, **{"memory_limit": "16MiB", "max_clients": 8, **options}))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for daemon in started:
        daemon.end(signal.SIGTERM)
    if os.path.exists(os.path.splitext(address)[0] + ".lock"):  # the pool was kept
        Daemon(address, on_stop="remove").end(signal.SIGTERM)


@contextmanager
def leasing(address: str, launcher: Sequence[str] = ()) -> Iterator[int]:
    """The pid of a process that has leased, and holds what it has until the end of the block."""
    client = subprocess.Popen(
        [*launcher, sys.executable, "-c", CLIENT, address], env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert client.stdout and client.stdout.readline()
        yield int(Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text()) if launcher else client.pid
    finally:
        client.send_signal(signal.SIGCONT)
        client.communicate()


def take_all(pool: shmpool.Pool) -> list[shmpool.Lease]:
    leases = [pool.lease(NBYTES)]  # the broker may know of its return before the pool does
    try:
        while True:
            leases[-1].view[:] = b"Z" * NBYTES
            leases.append(pool.lease(NBYTES, timeout=0))
    except LeaseTimeout:
        return leases


@needs_namespaces
@pytest.mark.parametrize("where", ELSEWHERE)
def test_next_broker_in_another_namespace_takes_nothing_from_the_living(
    start: Callable[..., Daemon], address: str, where: str
) -> None:
    first = start()
    with shmpool.connect(address) as pool, shmpool.connect(address) as other, leasing(address) as client:
        lease = pool.lease(NBYTES)
        lease.view[:] = pattern(NBYTES)
        first.end(signal.SIGTERM)
        os.kill(client, signal.SIGSTOP)  # it does not come back for now
        start(launcher=ELSEWHERE[where])
        assert query(address).pool_id == first.pool
        eventually(lambda: sum(seat.connected for seat in query(address).clients) == 2, "the return of both pools")
        leases = take_all(other)
        assert lease.view == pattern(NBYTES), "a living client's lease was given to another"
        (stopped,) = [seat for seat in query(address).clients if not seat.connected]
        assert (stopped.seen, stopped.leases) == (False, 1)
        for each in leases:
            each.release()
        handle = lease.publish()
        lease.release()
        with other.open(handle) as buffer:
            assert buffer.view == pattern(NBYTES)
        os.kill(client, signal.SIGKILL)
        eventually(lambda: len(query(address).clients) == 2, "the end of who was out of sight")


@needs_namespaces
def test_pool_of_a_client_in_another_namespace_is_not_cleaned_up(start: Callable[..., Daemon], address: str) -> None:
    broker = start()
    with leasing(address, ELSEWHERE["pid namespace"]):
        broker.end(signal.SIGKILL)
        cleanup = [*ELSEWHERE["pid namespace"], sys.executable, "-m", "shmpoold", "--cleanup", "--socket", address]
        said = subprocess.run(cleanup, env=ENV, capture_output=True, text=True, check=True).stdout
        assert f"pool {broker.pool}: kept, a living process has a seat in it" in said
        assert segments(broker.pool)
    said = subprocess.run(cleanup, env=ENV, capture_output=True, text=True, check=True).stdout
    assert f"pool {broker.pool}: removed" in said
    assert not segments(broker.pool)


@needs_namespaces
def test_pool_of_a_broker_in_another_namespace_is_not_cleaned_up(start: Callable[..., Daemon], address: str) -> None:
    broker = start(launcher=ELSEWHERE["pid namespace"])
    cleanup = [*ELSEWHERE["pid namespace"], sys.executable, "-m", "shmpoold", "--cleanup", "--socket", address + "2"]
    said = subprocess.run(cleanup, env=ENV, capture_output=True, text=True, check=True).stdout
    assert f"pool {broker.pool}: kept, a living broker serves it" in said


@needs_namespaces
def test_clients_in_another_namespace_are_served_and_their_end_is_seen(
    start: Callable[..., Daemon], address: str
) -> None:
    start()
    with leasing(address, ELSEWHERE["pid namespace"]) as client:
        assert query(address).active_buffers == 1
        os.kill(client, signal.SIGKILL)
        eventually(lambda: not query(address).clients, "the end of its seat")
        assert query(address).active_buffers == 0
