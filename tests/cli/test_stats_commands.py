"""``shmpool stats`` and ``leases``: the broker's figures as tables and as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from cli_helpers import ENV, PATIENCE, command, shmpool_command

import shmpool
from shmpool.cli.look import duration, printable
from shmpool.stats import query

TOP_LEVEL = {
    "pool_id", "epoch", "total_gets", "total_puts", "pool_hits", "pool_misses", "active_buffers", "operations",
    "strategies", "average_latency_ns", "memory_efficiency", "memory", "tiers", "clients", "alerts",
}  # fmt: skip


def test_json_has_the_promised_names_and_figures(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(100) as small, pool.lease(300_000) as large:
        assert (small.category, large.category) == (shmpool.SizeCategory.SMALL, shmpool.SizeCategory.LARGE)
        figures = json.loads(shmpool_command("stats", "--json", "--socket", broker.address).stdout)
    assert set(figures) >= TOP_LEVEL
    assert figures["active_buffers"] == 2
    assert figures["total_gets"] == 2
    assert figures["operations"] == {"small": 1, "medium": 0, "large": 1, "very_large": 0}
    assert figures["strategies"] == {"pooled": 1, "chunked": 1, "direct": 0}
    assert set(figures["memory"]) >= {"limit", "held", "payload", "by_state"}
    assert set(figures["tiers"][0]) >= {"size", "kind", "capacity", "warm", "free", "idle", "leased", "published"}
    (client,) = figures["clients"]
    assert (client["pid"], client["uid"], client["leases"]) == (os.getpid(), os.getuid(), 2)


def test_json_is_what_the_pool_says(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    assert json.loads(shmpool_command("stats", "--json", "--socket", broker.address).stdout) == pool.stats().to_dict()


def test_the_table_shows_tiers_and_clients(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    done = shmpool_command("stats", SHMPOOL_SOCKET=broker.address)
    assert done.returncode == 0, done.stderr
    stats = query(broker.address)
    for words in (stats.pool_id, "pooled 4 KiB", "chunk 128 KiB", "direct", str(os.getpid()), "very large"):
        assert words in done.stdout


def test_watch_ends_cleanly_with_ctrl_c(broker: shmpool.Broker) -> None:
    line = command("stats", "--watch", "--interval", "0.1", "--socket", broker.address)
    with subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert query(broker.address).pool_id in out


def test_json_and_watch_exclude_each_other() -> None:
    assert shmpool_command("stats", "--json", "--watch").returncode == 2


def test_leases_name_who_holds_what(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(10) as kept, pool.lease(2_000_000) as lease:
        kept.write(bytes(10))
        lease.write(bytes(2_000_000))
        handle = lease.publish()
        found = json.loads(shmpool_command("leases", "--json", "--socket", broker.address).stdout)
        shown = shmpool_command("leases", "--socket", broker.address).stdout
    pool.discard(handle)
    by_state = {entry["state"]: entry for entry in found}
    assert by_state["leased"]["tier"] == "pooled 4 KiB"
    assert by_state["published"]["bytes"] >= 2_000_000
    for entry in found:
        assert set(entry) >= {"pid", "command", "seat", "tier", "bytes", "state", "age_seconds"}
        assert entry["age_seconds"] >= 0
    for words in (str(os.getpid()), "pooled 4 KiB", "leased", "published"):
        assert words in shown


def test_leases_of_nobody(broker: shmpool.Broker) -> None:
    done = shmpool_command("leases", "--socket", broker.address)
    assert done.stdout == "nobody holds a lease or a publication\n"
    assert shmpool_command("leases", "--idle", "--socket", broker.address).stdout == "nobody holds anything\n"


@pytest.mark.parametrize("args", [["stats"], ["stats", "--json"], ["leases"], ["stats", "--watch"]])
def test_no_broker_is_one_line(args: list[str]) -> None:
    done = shmpool_command(*args, "--socket", "/nowhere/broker.sock")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("shmpool: no broker answers at /nowhere/broker.sock")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_closes_the_pipe_is_no_traceback(broker: shmpool.Broker) -> None:
    line = " ".join(command("stats", "--socket", broker.address)) + " | true"
    done = subprocess.run(["sh", "-c", line], env=ENV, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "Traceback" not in done.stderr


def test_help_and_version_need_no_broker() -> None:
    shown = shmpool_command("--help").stdout
    for name in ("demo", "run", "stats", "leases", "doctor"):
        assert name in shown
        assert shmpool_command(name, "--help").returncode == 0
    assert shmpool.__version__ in shmpool_command("--version").stdout
    assert shmpool_command("no-such-command").returncode == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (850e-9, "850 ns"),
        (12.34e-6, "12.3 us"),
        (0.25, "250 ms"),
        (4.5, "4.5 s"),
        (119, "119 s"),
        (180, "3 min"),
        (9000, "2.5 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain.txt", "plain.txt"),
        ("[red]x[/]", "[red]x[/]"),
        ("a\nb\x1b[1m", "a\\nb\\x1b[1m"),
        ("\udcff", "\\xff"),
        ("ü", "ü"),
    ],
)
def test_names_from_outside_are_made_printable(text: str, shown: str) -> None:
    assert printable(text).plain == shown


def test_output_survives_a_locale_without_unicode() -> None:
    done = shmpool_command("doctor", "--memory-limit", "1MiB", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert "Traceback" not in done.stderr
    assert sys.version.split()[0] in done.stdout
