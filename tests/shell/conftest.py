"""Fixtures for the shell's tests: brokers, connections, and no leftovers after any test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shell_helpers import POOLS, BrokerProcess, Wire, segments_of


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    POOLS.clear()
    yield
    assert {name for pool_id in POOLS for name in segments_of(pool_id)} == set()


StartBroker = Callable[..., BrokerProcess]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "broker.sock")


@pytest.fixture
def start_broker(address: str) -> Iterator[StartBroker]:
    started: list[BrokerProcess] = []

    def start(*options: str, **more: Any) -> BrokerProcess:
        broker = BrokerProcess(address, "--set", "memory_limit=32MiB", "--set", "max_clients=8", *options, **more)
        started.append(broker)
        return broker

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture
def connect(address: str) -> Iterator[Callable[[], Wire]]:
    wires: list[Wire] = []

    def make() -> Wire:
        wires.append(Wire(address))
        return wires[-1]

    yield make
    for wire in wires:
        wire.close()
