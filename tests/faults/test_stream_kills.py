"""Workers and brokers die in the middle of copies, tees, files and direct objects that follow one another:
all comes back.

A worker copies, reads through a tee, writes files over leases and reads them, and produces direct
objects that are kept; it is killed wherever it happens to be. Long setting: 200 workers, 50 brokers.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import preloaded
import pytest
from corners import sizes
from fault_helpers import ENV, PATIENCE, Daemon, assert_all_is_back

WORKER = """
import io, random, sys
import shmpool
from fault_helpers import pattern

pool, chance = shmpool.connect(sys.argv[1]), random.Random(int(sys.argv[2]))
print("ready", flush=True)
class Source:
    def __init__(self, content):
        self.readinto = io.BytesIO(content).readinto
while True:
    nbytes = chance.choice([1, 5000, 200_000, 300_000, 700_000, 1 << 20, 3 << 20]) + chance.randrange(3)
    content = pattern(nbytes, 7)
    try:
        target = io.BytesIO()
        assert shmpool.copy(Source(content), target, pool, nbytes) == nbytes and target.getvalue() == content
        copied = io.BytesIO()
        with shmpool.ChunkedTeeReader(io.BytesIO(content), copied, pool, nbytes) as tee:
            assert tee.readall() == content == copied.getvalue()
        with pool.open_writer(chance.choice([nbytes, None])) as file:
            for at in range(0, nbytes, 100_000):
                file.write(content[at : at + 100_000])
        with pool.open_reader(file.handle) as file:
            assert file.read() == content
        for _ in range(3):
            with pool.lease(nbytes) as lease:
                lease.write(content)
                handle = lease.publish()
            with pool.open(handle) as buffer:
                assert buffer.view == content
    except (shmpool.BrokerUnavailable, shmpool.LeaseTimeout, shmpool.LeaseReleased, shmpool.StaleHandle):
        pass  # the broker died: the next one takes the pool up
"""


#: What a worker had published when it died, and nobody opens, goes after `handle_ttl`.
SETTINGS = {"memory_limit": "64MiB", "on_stop": "remove", "handle_ttl": 1}


class Streamer:
    """A process that streams until it is killed."""

    def __init__(self, address: str, seed: int) -> None:
        self.process = preloaded.Popen(
            [sys.executable, "-c", WORKER, address, str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        )  # fmt: skip

    def await_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]

    def kill_within(self, seconds: float) -> None:
        """At any point within so long; it has not ended by itself."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        complaints = self.process.communicate(timeout=PATIENCE)[1]
        assert self.process.returncode == -signal.SIGKILL, complaints


@pytest.fixture
def streamers() -> Iterator[list[Streamer]]:
    """None outlives its test."""
    started: list[Streamer] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[list[Daemon]]:
    """The present broker is the last."""
    daemons = [Daemon(str(tmp_path / "broker.sock"), **SETTINGS)]
    yield daemons
    for daemon in daemons:
        daemon.end(signal.SIGTERM)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kills", sizes(3, 40, 200))
def test_nothing_is_lost_of_streams_whose_workers_are_killed(
    daemon: list[Daemon], streamers: list[Streamer], kills: int
) -> None:
    chance, address = random.Random(kills), daemon[0].address
    streamers += [Streamer(address, seed) for seed in range(2)]
    for number in range(kills):
        one = streamers[0]
        one.await_ready()
        one.kill_within(chance.random() * 0.2)
        streamers.remove(one)
        if number + 2 < kills:
            streamers.append(Streamer(address, number))
    assert_all_is_back(address)


@pytest.mark.timeout(0)
@pytest.mark.long
def test_nothing_is_lost_of_streams_whose_brokers_are_killed(daemon: list[Daemon], streamers: list[Streamer]) -> None:
    chance, address = random.Random(5), daemon[0].address
    streamers += [Streamer(address, seed) for seed in range(2)]
    for one in streamers:
        one.await_ready()
    for _ in range(50):
        with pytest.raises(subprocess.TimeoutExpired):
            streamers[0].process.wait(chance.random() * 0.3)
        daemon[-1].end(signal.SIGKILL)
        daemon.append(Daemon(address, **SETTINGS))
    while streamers:
        streamers.pop().kill_within(0.2)
    assert_all_is_back(address)
