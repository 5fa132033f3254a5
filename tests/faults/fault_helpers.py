"""What the fault tests share: brokers that may be killed, worker processes, patience, and a client
that shows that others are not held up."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import preloaded
from patience import PATIENCE as PATIENCE
from patience import eventually as eventually
from patience import settle

import shmpool
import shmpoold
from shmpool.protocol.names import pool_prefix
from shmpool.stats import query, query_invariants

KIB, MIB = 1 << 10, 1 << 20
HERE = Path(__file__).parent
ROOTS = [str(Path(shmpool.__file__).parents[1]), str(Path(shmpoold.__file__).parents[1])]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *ROOTS])}


@functools.cache
def _block(seed: int) -> bytes:
    return bytes((seed * 31 + i * 7 + (i >> 8) * 13) & 0xFF for i in range(4099))


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """Content in which no two neighbouring pages are alike."""
    block = _block(seed)
    return (block * (nbytes // len(block) + 1))[:nbytes]


def publish(pool: shmpool.Pool, nbytes: int, seed: int = 1) -> shmpool.Handle:
    with pool.lease(nbytes) as lease:
        lease.write(pattern(nbytes, seed))
        return lease.publish()


def held_by(address: str, pid: int) -> list[Any]:
    """What the broker says about a process: its seats."""
    return [client for client in query(address).clients if client.pid == pid]


def out(address: str) -> int:
    """Slots that somebody has."""
    return sum(tier.idle + tier.leased + tier.published for tier in query(address).tiers)


def assert_all_is_back(address: str) -> None:
    """Nobody sits, nothing is out, free + cold is all there is, and the broker agrees."""

    def unsettled() -> list[str]:
        stats = query(address)
        wrong = [str(client) for client in stats.clients] + list(stats.alerts)
        for tier in stats.tiers:
            if tier.idle or tier.leased or tier.published or (tier.size and tier.free != tier.warm):
                wrong.append(str(tier))
        held = stats.memory["overhead"] + sum(tier.warm * tier.size for tier in stats.tiers)
        return [*wrong, *([str(stats.memory)] if stats.memory["held"] != held else [])]

    wrong = settle(unsettled)
    assert not wrong, f"after {PATIENCE} s still: {wrong}"
    assert query_invariants(address) is None


# --- brokers ---------------------------------------------------------------------------------------


class Daemon:
    """`shmpoold`, warnings being errors. *constants* are those of shell/connection.py, made
    smaller so that a test need not wait so long; *descriptors* is its RLIMIT_NOFILE; *launcher* is
    a command that forks and runs it, as `unshare` does."""

    def __init__(
        self,
        address: str,
        *,
        constants: dict[str, float] | None = None,
        descriptors: int = 0,
        launcher: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        reading, writing = os.pipe()
        self.address = address
        own = {"memory_limit": "32MiB", "max_clients": 16, "on_stop": "keep", "log_level": "info", "drain_timeout": 0}
        settings = {**own, **settings}
        self.settings = settings
        code = "from shmpoold import cli; from shmpoold.shell import connection as c;"
        if descriptors:
            code += f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}));"
        code += f"vars(c).update({constants or {}!r}); cli.main()"
        self.log = Path(address).with_suffix(f".{time.monotonic_ns()}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = preloaded.Popen(
                [*launcher, sys.executable, "-W", "error", "-c", code, "--socket", address,
                 "--settings", json.dumps(settings), "--ready-fd", str(writing)],
                env=ENV, pass_fds=(writing,), stderr=log,
            )  # fmt: skip
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert select.select([pipe], [], [], PATIENCE)[0], "the broker did not report in time"
            report = json.loads(pipe.readline() or b"{}")
        assert report.get("ready"), (report, self.log.read_text())
        self.pid = self.process.pid
        if launcher:
            self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())

    @property
    def pool(self) -> str:
        """The pool's id, by the note in the lock file."""
        return str(json.loads(Path(self.address.removesuffix(".sock") + ".lock").read_text())["pool"])

    def end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, number)
        self.process.wait(PATIENCE)

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def descriptors(self) -> dict[str, str]:
        """Its open descriptors."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[name] = os.readlink(f"/proc/{self.pid}/fd/{name}")
        return found

    def resident(self) -> int:
        """Its own memory in bytes, without what it shares."""
        with open(f"/proc/{self.pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * KIB for line in file if line.startswith("Anonymous:"))


def segments(pool: str) -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(pool_prefix(int(pool, 16)))}


# --- processes -------------------------------------------------------------------------------------


class Worker:
    """`fault_worker.py` in a process of its own, which does what it is told, line by line."""

    def __init__(self, address: str) -> None:
        self.process = preloaded.Popen(
            [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", str(HERE / "fault_worker.py"), address],
            env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        #: Processes that outlive it.
        self.orphans: list[int] = []
        assert self.hear() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, command: str, **arguments: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, command: str, **arguments: Any) -> Any:
        self.tell(command, **arguments)
        return self.hear()

    def hear(self) -> Any:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "the worker says nothing"
        line = self.process.stdout.readline()
        assert line, f"the worker has ended with {self.process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        for pid in self.orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe
                pipe.close()


@contextlib.contextmanager
def worker(address: str) -> Iterator[Worker]:
    one = Worker(address)
    try:
        yield one
    finally:
        one.close()


class Bystander:
    """A well-behaved client in a thread: it leases, publishes, opens and releases all the time,
    returning its memory so that it needs the broker, and looks at the broker's stats."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.rounds = 0
        #: The longest round trip since `reset`, in seconds.
        self.longest = 0.0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with shmpool.connect(self.address) as pool:
                while not self._stop.is_set():
                    started = time.monotonic()
                    for nbytes in (1000, 300_000, MIB + 4096):
                        with pool.open(publish(pool, nbytes)) as buffer:
                            assert buffer.view == pattern(nbytes)
                    self.longest = max(self.longest, time.monotonic() - started)
                    self.rounds += 1
                    self._stop.wait(0.01)
        except BaseException as error:
            self.error = error

    def goes_on(self, rounds: int = 3) -> None:
        """So many more rounds are made from now on. Each needs the broker, for the direct segment."""
        target = self.rounds + rounds
        eventually(lambda: self.error or self.rounds >= target, "a well-behaved client's work")
        assert self.error is None, repr(self.error)

    def __enter__(self) -> Bystander:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        if error[0] is None:
            assert self.error is None, repr(self.error)
