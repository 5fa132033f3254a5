"""SIGHUP: what may change does, for the clients too; the rest is refused by name; nobody is dropped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from shell_helpers import BrokerProcess, Wire

from shmpool.errors import ConfigError
from shmpool.protocol.messages import Grant, Refill, Setting, Settings
from shmpoold.config import Scope, load, reload

StartBroker = Callable[..., BrokerProcess]
Connect = Callable[[], Wire]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text("")
    return path


def test_what_may_change_is_told_to_the_clients_and_they_stay(
    start_broker: StartBroker, connect: Connect, path: Path
) -> None:
    broker = start_broker("--config", str(path))
    wire = connect()
    wire.hello()
    path.write_text('lease_timeout = "5s"\nmagazine_bytes = "64KiB"\nhandle_ttl = 7\nmax_clients = 9\n')
    broker.process.send_signal(signal.SIGHUP)
    told = wire.receive()
    assert isinstance(told, Settings)
    assert sorted(told.settings) == [[Setting.LEASE_TIMEOUT_MS, 5000], [Setting.MAGAZINE_BYTES, 64 * 1024]]
    assert broker.await_log("reloaded").endswith("reloaded: lease_timeout, handle_ttl, magazine_bytes\n")
    wire.send(Refill(1, 0, 1, 1, False))
    assert isinstance(wire.receive(), Grant)


def test_what_may_not_change_is_refused_by_name_and_a_wrong_file_changes_nothing(
    start_broker: StartBroker, connect: Connect, path: Path, tmp_path: Path
) -> None:
    broker = start_broker("--config", str(path))
    wire = connect()
    wire.hello()
    path.write_text('pooled_sizes = ["4KiB"]\nscrub = true\nlease_timeout = 3\n')
    broker.process.send_signal(signal.SIGHUP)
    assert "pooled_sizes has changed: it takes effect with the next pool" in broker.await_log("pooled_sizes")
    assert "scrub has changed: it takes effect with a restart" in broker.await_log("scrub")
    assert isinstance(wire.receive(), Settings)
    path.write_text("lease_timeout = -1\n")
    broker.process.send_signal(signal.SIGHUP)
    line = broker.await_log("stays as it was")
    assert f"{path}: lease_timeout = -1 is too small" in line
    path.write_text("lease_timeout = 4\n")
    broker.process.send_signal(signal.SIGHUP)
    told = wire.receive()
    assert isinstance(told, Settings)
    assert told.settings == [[Setting.LEASE_TIMEOUT_MS, 4000]]


def test_who_may_connect_is_taken_over(start_broker: StartBroker, connect: Connect, path: Path) -> None:
    group = f"group = {os.getgid()}\n"
    path.write_text(group)
    broker = start_broker("--config", str(path))
    path.write_text(f'{group}allow_uids = [12345]\non_stop = "keep"\n')
    broker.process.send_signal(signal.SIGHUP)
    broker.await_log("reloaded: on_stop, allow_uids")
    connect().hello()  # the broker's own user always may
    path.write_text(group)
    broker.process.send_signal(signal.SIGHUP)
    broker.await_log("reloaded: on_stop, allow_uids")  # else the pool would stay


def test_a_change_that_does_not_fit_what_stays_is_refused_whole() -> None:
    running = load(None, {})
    with pytest.raises(ConfigError, match="stays until a restart: allow_uids and allow_gids need group"):
        reload(running, load(None, {"allow_uids": [1], "group": 7}))
    change = reload(running, load(None, {"lease_timeout": 1, "memory_limit": "64MiB"}))
    assert (change.applied, change.later) == (["lease_timeout"], {"memory_limit": Scope.POOL})
    assert (change.config.lease_timeout, change.config.memory_limit) == (1, running.memory_limit)
