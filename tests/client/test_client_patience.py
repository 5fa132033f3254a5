"""Timeouts that are kept, and brokers that are waited for: stopped, silent, gone, still to come."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_helpers import MIB, Connect, Start, StartDaemon, eventually, pattern, run_script
from corners import across, corner

import shmpool
from shmpool.link.asking import Asking

#: What the tests allow a machine that is busy, beyond the 50 ms of the promise; what they must tell
#: it from is a second and more.
SLACK = 0.6


@pytest.mark.parametrize("timeout", [math.nan, -1, -0.001, 86_401, "1", b"1", True, np.True_, object()])
def test_timeouts_that_make_no_sense_are_refused_on_a_hit_too(connect: Connect, timeout: Any) -> None:
    pool = connect()
    pool.lease(1000).release()
    for nbytes in (1000, 300_000, 2 * MIB):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            pool.lease(nbytes, timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        shmpool.connect(pool.address, timeout=timeout)
    with pytest.raises((TypeError, ValueError), match="timeout"):
        shmpool.Pool(pool.address, timeout=timeout)
    for open_file in (pool.open_writer, pool.stream):  # which wait for a lease, or not at all
        with pytest.raises((TypeError, ValueError), match="timeout"):
            open_file(1000, timeout=timeout)
    pool.lease(1000).release()


@pytest.mark.parametrize("timeout", [None, 0, 1, 86_400, math.inf, np.float32(2)])
def test_timeouts_up_to_a_day_and_infinity_are_taken(connect: Connect, timeout: Any) -> None:
    pool = connect()
    for nbytes in (1000, 300_000, 2 * MIB):
        pool.lease(nbytes, timeout=timeout).release()


@pytest.mark.parametrize(("nbytes", "timeout"), across((1000, 300_000, 2 * MIB), (0, 0.1)))
def test_a_stopped_broker_does_not_stretch_a_timeout(
    daemon: StartDaemon, address: str, nbytes: int, timeout: float
) -> None:
    broker = daemon()
    with shmpool.connect(address) as pool:
        broker.process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(shmpool.LeaseTimeout):
                pool.lease(nbytes, timeout=timeout)
            assert time.monotonic() - started < timeout + SLACK
        finally:
            broker.process.send_signal(signal.SIGCONT)
        pool.lease(nbytes, timeout=10).release()


def _stream(pool: shmpool.Pool, timeout: float) -> None:
    with pool.stream(8 * MIB, timeout=timeout) as writer:
        writer.write(bytes(8 * MIB))


@pytest.mark.parametrize("timeout", [0, 0.01])
@pytest.mark.parametrize(
    ("verb", "act"),
    [
        ("lease", lambda pool, timeout: pool.lease(5 * MIB, timeout=timeout)),
        ("lease beside kept ones", lambda pool, timeout: pool.lease(5 * MIB, timeout=timeout)),
        ("lease of a prefetched one", lambda pool, timeout: pool.lease(MIB, timeout=timeout)),
        ("open_writer", lambda pool, timeout: pool.open_writer(5 * MIB, timeout=timeout)),
        ("stream", _stream),
    ],
)
def test_a_stopped_broker_s_word_is_waited_for_once_in_a_call(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    act: Callable[[shmpool.Pool, float], object],
    timeout: float,
) -> None:
    """Each time is 40 ms, of the 50 that a call may take beyond its timeout."""
    waits: list[object] = []
    await_word = Asking._await_word

    def counted(self: Asking, request: Any) -> None:
        await_word(self, request)
        waits.append(request)

    broker = start(memory_limit="128MiB")
    with broker.connect() as pool:
        kept = [pool.lease(MIB) for _ in range(3)]  # of a size that is steady: the next one is on its way
        if verb == "lease beside kept ones":
            for more in (3, 4):  # too small for the next one
                pool.lease(more * MIB).release()
        assert broker.pid is not None
        if verb == "lease of a prefetched one":
            eventually(lambda: not pool._session.link.requests.unanswered(), "the prefetched one")
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            if verb == "lease of a prefetched one":
                kept.append(pool.lease(MIB))  # from here on the next one is asked for, and does not come
            monkeypatch.setattr(Asking, "_await_word", counted)
            with pytest.raises(shmpool.LeaseTimeout):
                act(pool, timeout)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        assert len(waits) == 1
        for lease in kept:
            lease.release()


def test_fork_and_close_wait_for_no_broker(daemon: StartDaemon, address: str) -> None:
    """It is killed, and what listens in its place does not answer."""
    broker = daemon()
    pool = shmpool.connect(address)
    pool.lease(1000).release()
    broker.end(signal.SIGKILL)
    os.unlink(address)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address)
        silent.listen(16)
        assert silent.accept()[0].close() is None  # the helper has found it
        longest = 0.0
        for _ in range(5):
            started = time.monotonic()
            if not (pid := os.fork()):
                os._exit(0)
            longest = max(longest, time.monotonic() - started)
            os.waitpid(pid, 0)
        started = time.monotonic()
        pool.close()
        assert max(longest, time.monotonic() - started) < SLACK
    os.unlink(address)


@pytest.mark.parametrize("in_the_way", ["nothing", "silence"])
def test_connect_waits_for_a_broker_that_is_still_to_come(daemon: StartDaemon, address: str, in_the_way: str) -> None:
    Path(address).parent.mkdir(exist_ok=True)
    silent = socket.socket(socket.AF_UNIX)
    if in_the_way == "silence":
        silent.bind(address)
        silent.listen(4)
    got: list[shmpool.Pool] = []
    early = threading.Thread(target=lambda: got.append(shmpool.connect(address, timeout=30)))
    early.start()
    if in_the_way == "silence":
        silent.accept()[0].close()
        os.unlink(address)
    silent.close()
    daemon()
    early.join(30)
    with got[0] as pool:
        pool.lease(1000).release()


def test_connect_gives_up_at_its_timeout_and_says_where_it_looked(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(shmpool.BrokerUnavailable, match=address):
        shmpool.connect(address, timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 0.2 + SLACK


def test_autostart_waits_for_nobody_where_nobody_listens(tmp_path: Path) -> None:
    script = (
        "import shmpool, sys, time\n"
        "started = time.monotonic()\n"
        "with shmpool.connect(sys.argv[1], autostart=True, timeout=600) as pool: pool.lease(100).release()\n"
        "print(time.monotonic() - started < 100)\n"
    )
    done = run_script(script, str(tmp_path / "nobody.sock"))
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize(("restarts", "is_away"), corner((2, True), (1, True), (1, False), (2, False)))
def test_a_view_that_outlives_its_pool_keeps_its_bytes_over_restarts(
    daemon: StartDaemon, address: str, restarts: int, is_away: bool
) -> None:
    settings = {"memory_limit": "24MiB", "handle_ttl": "100ms"}
    broker = daemon(**settings)
    writer, reader = shmpool.connect(address), shmpool.connect(address)
    with writer.lease(300_000) as lease:
        lease.write(pattern(300_000))
        handle = lease.publish()
    writer.close()
    buffer = reader.open(handle)
    array = np.frombuffer(buffer.view, dtype=np.uint8)
    if not is_away:
        reader.close()
    for _ in range(restarts):
        broker.end(signal.SIGKILL)
        if is_away:
            reader.close()
        broker = daemon(**settings)
    buffer.release()
    with shmpool.connect(address) as other:
        eventually(lambda: len(other.stats().clients) == 2, "the seat's return")
        leases = []
        try:
            while True:
                leases.append(other.lease(300_000, timeout=0.2))
                leases[-1].view[:] = b"Z" * 300_000
        except shmpool.LeaseTimeout:
            pass
        assert array.tobytes() == pattern(300_000)
        for lease in leases:
            lease.release()
        del array
        eventually(lambda: len(other.stats().clients) == 1, "the seat's end")


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is no core for a peer")
def test_who_is_pinned_to_a_core_waits_like_any_other() -> None:
    """Its peer is on another: one that sleeps at once costs each put a wake-up."""
    told = run_script("""
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from shmpool.system.patience import Patience
print(Patience(time.monotonic() + 60).spins)
""")
    assert told.stdout.split() == ["True"], told.stderr
