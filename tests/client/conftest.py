"""Brokers and pools for the client's tests. Each broker is checked before it ends: every
slot has come back, nobody sits, the memory adds up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_helpers import Common, Connect, Daemon, Start, StartDaemon, assert_settles

import shmpool


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
