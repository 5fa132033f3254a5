"""Brokers and pools for the client's tests. Each broker is checked before it ends: every
slot has come back, nobody sits, the memory adds up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_helpers import Daemon, assert_settles

import shmpool

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


@pytest.fixture(scope="module")
def common() -> Iterator[Common]:
    one = Common()
    one.broker()
    yield one
    one.close()


@pytest.fixture
def connect(common: Common) -> Iterator[Connect]:
    """Connects to the common broker; at the end of the test everything must have come back."""
    opened: list[shmpool.Pool] = []
    with common.used() as broker:

        def make(**options: Any) -> shmpool.Pool:
            opened.append(broker.connect(**options))
            return opened[-1]

        yield make
        for pool in opened:
            pool.close()


@pytest.fixture
def pool(connect: Connect) -> shmpool.Pool:
    return connect()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts brokers of the test's own; every one must have got everything back."""
    started: list[shmpool.Broker] = []

    def make(**settings: Any) -> shmpool.Broker:
        started.append(shmpool.Broker(**{"memory_limit": "4MiB", "max_clients": 8, **settings}))
        return started[-1]

    yield make
    try:
        for broker in started:
            if broker.is_running():
                assert_settles(broker.address)
    finally:
        for broker in started:
            broker.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "broker.sock")


@pytest.fixture
def daemon(address: str) -> Iterator[StartDaemon]:
    """Starts brokers at one address, one after the other; the last one removes the pool."""
    started: list[Daemon] = []

    def make(**settings: Any) -> Daemon:
        started.append(Daemon(address, **settings))
        return started[-1]

    yield make
    for one in started:
        one.end(signal.SIGTERM)
    if started and started[-1].process.returncode != 0:
        Daemon(address).end(signal.SIGTERM)  # it adopts what a killed one has left, and removes it
