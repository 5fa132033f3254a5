"""A broker that does not answer: the figures are read from the pool's memory."""

from __future__ import annotations

import json
import os
import signal

import pytest
from cli_helpers import shmpool_command

import shmpool
from shmpool.errors import BrokerUnavailable
from shmpool.stats import query
from shmpool.unanswered import read_stats

#: What only a broker knows.
ITS_OWN = {"ladder", "shared", "alerts", "alert_states", "memory", "clients", "leaks"}


def test_the_ledger_alone_says_what_the_broker_says(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(5000) as first, pool.lease(300_000), pool.lease(3 << 20) as direct:
        first.write(b"x" * 5000)
        with pool.open(first.publish()) as opened, pool.open(direct.publish()):
            assert opened.nbytes == 5000
            told, read = query(broker.address).to_dict(), read_stats(broker.address, BrokerUnavailable("")).to_dict()
    assert {k: v for k, v in read.items() if k not in ITS_OWN} == {k: v for k, v in told.items() if k not in ITS_OWN}
    for name in ("payload", "overhead", "by_state"):
        assert read["memory"][name] == told["memory"][name]
    assert abs(read["memory"]["limit"] - told["memory"]["limit"]) < 1 << 20
    same = ("pid", "uid", "command", "leases", "bytes", "reads", "read_bytes", "unread")
    assert [{k: client[k] for k in same} for client in read["clients"]] == [
        {k: client[k] for k in same} for client in told["clients"]
    ]


def test_the_command_shows_them_and_says_so(broker: shmpool.Broker) -> None:
    pool = broker.connect()
    lease = pool.lease(5000)
    os.kill(broker.pid, signal.SIGKILL)
    done = shmpool_command("stats", SHMPOOL_SOCKET=broker.address)
    assert done.returncode == 0 and "the broker does not answer" in done.stdout and str(os.getpid()) in done.stdout
    figures = json.loads(shmpool_command("stats", "--json", SHMPOOL_SOCKET=broker.address).stdout)
    assert figures["active_buffers"] == 1 and figures["total_gets"] == 1
    lease.release()
    pool.close()


def test_where_there_is_no_pool_the_error_is_the_broker_s() -> None:
    with pytest.raises(BrokerUnavailable, match="none there"):
        read_stats("/nowhere/broker.sock", BrokerUnavailable("none there"))
    done = shmpool_command("stats", "--socket", "/nowhere/broker.sock")
    assert done.returncode == 1 and "no broker answers at /nowhere/broker.sock" in done.stderr
