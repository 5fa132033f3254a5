"""What the client's tests share: brokers that are checked when they end, processes, patience."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import select
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import preloaded
from patience import PATIENCE as PATIENCE
from patience import eventually as eventually
from patience import settle

import shmpool
import shmpoold
from shmpool.stats import query

T = TypeVar("T")

#: What waits for nothing takes no longer, on a busy machine either, and far less than what it must not wait for.
SOON = PATIENCE / 3
KIB, MIB = 1024, 1024 * 1024
ROOTS = [str(Path(shmpool.__file__).parents[1]), str(Path(shmpoold.__file__).parents[1])]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)}


@functools.cache
def _block(seed: int) -> bytes:
    return bytes((seed * 31 + i * 7 + (i >> 8) * 13) & 0xFF for i in range(4099))


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """Content in which no two neighbouring pages are alike."""
    block = _block(seed)
    return (block * (nbytes // len(block) + 1))[:nbytes]


# --- what comes back -----------------------------------------------------------------------------


def unsettled(address: str) -> list[str]:
    """What a broker without clients still has that is not nobody's; nothing when every
    slot has come back and the memory adds up."""
    stats = query(address)
    wrong = [f"{client}" for client in stats.clients]
    for tier in stats.tiers:
        if tier.idle or tier.leased or tier.published or (tier.size and tier.warm != tier.free):
            wrong.append(f"{tier}")
    held = stats.memory["overhead"] + sum(tier.warm * tier.size for tier in stats.tiers)
    if stats.memory["held"] != held:
        wrong.append(f"held is {stats.memory['held']}, overhead and warm slots are {held}")
    if stats.active_buffers:
        wrong.append(f"{stats.active_buffers} active buffers")
    return wrong + list(stats.alerts)


def assert_settles(address: str) -> None:
    wrong = settle(lambda: unsettled(address))
    assert not wrong, f"after {PATIENCE} s still: {wrong}"


def of_pid(stats: shmpool.Stats, pid: int) -> list[Any]:
    return [client for client in stats.clients if client.pid == pid]


def out(stats: shmpool.Stats) -> int:
    """Slots and runs' chunks that some client or reader has."""
    return sum(tier.idle + tier.leased + tier.published for tier in stats.tiers)


def lease_all(pool: shmpool.Pool, nbytes: int, strategy: shmpool.Strategy = shmpool.Strategy.ADAPTIVE) -> list[Any]:
    """Leases until the pool is exhausted."""
    leases = []
    try:
        while True:
            leases.append(pool.lease(nbytes, strategy=strategy, timeout=0))
    except shmpool.LeaseTimeout:
        return leases


# --- processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def child(method: str, target: Callable[..., None], *args: Any) -> Iterator[tuple[BaseProcess, Pipe]]:
    """A process that runs ``target(pipe, *args)``, and the other end of its pipe. It is
    killed at the end of the block if it still runs."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        with contextlib.suppress(OSError):
            ours.send(None)  # a forked child has our end too, and would wait for ever
        ours.close()
        process.join(0 if sys.exc_info()[0] else PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def hear(pipe: Pipe) -> Any:
    """The next thing that a child says."""
    assert pipe.poll(PATIENCE), "the child says nothing"
    return pipe.recv()


def in_fork(function: Callable[[], T]) -> T:
    """Run *function* in a forked child that ends by ``os._exit``; its result comes back,
    its error is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer: tuple[bool, Any] = (True, function())
        except BaseException:
            answer = (False, traceback.format_exc())
        try:
            with open(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    assert data, "the child died before it could answer"
    worked, result = pickle.loads(data)
    assert worked, f"in the child:\n{result}"
    return result  # type: ignore[no-any-return]


def run_script(script: str, *args: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """A Python script in a process of its own, warnings on."""
    return subprocess.run(
        [*prefix, sys.executable, "-X", "dev", "-c", script, *args],
        env={**ENV, **env}, capture_output=True, text=True, timeout=PATIENCE * 2,
    )  # fmt: skip


def run_preloaded(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """The same in a process that has imported all before, where neither that nor the interpreter's end matters."""
    return preloaded.run([sys.executable, "-X", "dev", "-c", script, *args], env=ENV, timeout=PATIENCE * 2)


class Daemon:
    """`shmpoold` run by hand, for tests that end it and start another one."""

    def __init__(self, address: str, **settings: Any) -> None:
        reading, writing = os.pipe()
        self.address = address
        settings = {"memory_limit": "16MiB", "max_clients": 8, "log_level": "warning", "drain_timeout": 0, **settings}
        self.process = preloaded.Popen(
            [sys.executable, "-m", "shmpoold", "--socket", address, "--settings", json.dumps(settings),
             "--ready-fd", str(writing)],
            env=ENV, pass_fds=(writing,),
        )  # fmt: skip
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert select.select([pipe], [], [], PATIENCE)[0], "the broker did not report in time"
            report = json.loads(pipe.readline() or b"{}")
        assert report.get("ready"), report

    def end(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(PATIENCE)


# --- what conftest's fixtures give ---------------------------------------------------------------

Start = Callable[..., shmpool.Broker]
Connect = Callable[..., shmpool.Pool]
StartDaemon = Callable[..., Daemon]


class Common:
    """One broker for all tests of a file that do not fill it; a new one after a test that
    left something in it, so that only this one fails."""

    def __init__(self, **settings: Any) -> None:
        self._settings = {"memory_limit": "64MiB", "max_clients": 32, **settings}
        self._broker: shmpool.Broker | None = None

    def broker(self) -> shmpool.Broker:
        if self._broker is None:
            self._broker = shmpool.Broker(**self._settings)
        return self._broker

    @contextlib.contextmanager
    def used(self) -> Iterator[shmpool.Broker]:
        """By one test, at whose end everything must have come back."""
        broker = self.broker()
        try:
            yield broker
            assert_settles(broker.address)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()
