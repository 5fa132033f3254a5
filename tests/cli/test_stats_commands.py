"""``shmpool stats`` and ``leases``: the broker's figures as tables and as JSON."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest
from cli_helpers import ENV, PATIENCE, command, shmpool_command
from corners import corner
from patience import settle
from rich.console import Console

import shmpool
from shmpool.cli import stats as stats_command
from shmpool.cli.look import age, duration, printable
from shmpool.stats import Stats, query

TOP_LEVEL = {
    "pool_id", "epoch", "total_gets", "total_puts", "pool_hits", "pool_misses", "active_buffers", "operations",
    "strategies", "average_latency_ns", "memory_efficiency", "memory", "tiers", "clients", "alerts",
}  # fmt: skip


@pytest.fixture(scope="module")
def broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=64) as broker:
        yield broker


@pytest.fixture
def pool(broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with broker.connect() as pool:
        yield pool


@pytest.fixture(autouse=True)
def everything_comes_back(broker: shmpool.Broker) -> Iterator[None]:
    yield
    assert not settle(lambda: query(broker.address).clients)


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
    assert set(figures["clients"][0]) >= {"seat", "pid", "uid", "command", "leases", "bytes", "reads", "read_bytes"}
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


def test_each_figure_of_the_table_is_the_one_it_says(broker: shmpool.Broker) -> None:
    figures = query(broker.address).to_dict()
    numbers = iter(range(1001, 2000))
    for group in ("operations", "strategies", "ladder"):
        figures[group] = {key: next(numbers) for key in figures[group]}
    for key in ("total_gets", "total_puts", "active_buffers", "held_by_views", "pool_hits", "pool_misses"):
        figures[key] = next(numbers)
    tier = figures["tiers"][2]
    columns = ("capacity", "warm", "free", "idle", "leased", "published")
    tier.update({column: next(numbers) for column in columns})
    text = io.StringIO()
    Console(file=text, width=200).print(stats_command.render(Stats.from_dict(figures)))
    lines = [" ".join(line.split()) for line in text.getvalue().replace(",", "").splitlines()]
    shown = "\n".join(lines)
    for group in ("strategies", "ladder"):
        assert " ".join(f"{key} {value}" for key, value in figures[group].items()) in shown
    for category, leases in figures["operations"].items():
        assert any(line.startswith(f"{category.replace('_', ' ')} {leases} ") for line in lines)
    assert " ".join(str(tier[column]) for column in columns) in shown
    assert f"{figures['total_gets']} gets {figures['total_puts']} puts {figures['active_buffers']} active" in shown
    assert f"{figures['held_by_views']} of them held by views" in shown
    assert f"{figures['pool_misses']} misses" in shown and f"hits {figures['pool_hits']} (" in shown


def test_watch_ends_cleanly_with_ctrl_c(broker: shmpool.Broker) -> None:
    line = command("stats", "--watch", "--interval", "0.1", "--socket", broker.address)
    with subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):  # flushed each time, though nobody has a terminal
            while query(broker.address).pool_id not in process.stdout.readline():
                assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")


def test_watching_as_json_prints_an_object_a_line_at_once(broker: shmpool.Broker) -> None:
    line = command("stats", "--watch", "--json", "--interval", "0.1", "--socket", broker.address)
    with subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        epochs = [json.loads(process.stdout.readline())["epoch"] for _ in range(2)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert epochs == [1, 1] and process.returncode == 0


def test_prometheus_goes_with_neither_json_nor_watch() -> None:
    assert shmpool_command("stats", "--prometheus", "--json").returncode == 2


def leases(address: str, *options: str) -> dict[str, Any]:
    return dict(json.loads(shmpool_command("leases", "--json", *options, "--socket", address).stdout))


def test_leases_name_who_holds_what(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(10) as kept, pool.lease(2_000_000) as lease:
        kept.write(bytes(10))
        lease.write(bytes(2_000_000))
        handle = lease.publish()
        found = leases(broker.address)
        shown = shmpool_command("leases", "--socket", broker.address).stdout
    pool.discard(handle)
    assert found["total"] == found["shown"] == 2
    by_state = {line["state"]: line for line in found["leases"]}
    assert by_state["leased"]["tiers"] == {"pooled 4 KiB": 1}
    assert by_state["unread"]["bytes"] >= 2_000_000 and by_state["unread"]["tickets"] == 1
    for line in found["leases"]:
        assert (line["pid"], line["uid"], line["connected"]) == (os.getpid(), os.getuid(), True)
        assert line["age_seconds"] >= 0
    for words in (str(os.getpid()), "4 KiB", "direct", "leased", "unread", "1.9 MiB"):
        assert words in shown


def test_each_buffer_is_a_line_with_who_reads_it(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(10) as lease:
        first, second = lease.publish_many(2)
    with pool.open(first):
        found = leases(broker.address, "--each")
        shown = shmpool_command("leases", "--each", "--socket", broker.address).stdout
    pool.discard(second)
    (line,) = found["leases"]
    assert (line["state"], line["tier"], line["strategy"], line["bytes"]) == ("open", "pooled 4 KiB", "pooled", 4096)
    assert (line["pid"], line["tickets"], line["readers"]) == (os.getpid(), 1, [os.getpid()])
    assert "open, 1 unread" in shown


def test_nothing_that_matters_is_cut_at_80_columns(broker: shmpool.Broker) -> None:
    """Long names of scripts are; figures, states and pids are not."""
    script = (
        "import sys, shmpool\n"
        "with shmpool.connect() as pool, pool.lease(300_000) as lease, pool.lease(10) as other:\n"
        "    handles = [pool.lease(n).publish() for n in (10, 20_000, 300_000, 2_000_000)]\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "    [pool.discard(handle) for handle in handles]\n"
    )
    line = [sys.executable, "-c", script, "x" * 60]
    env = {**ENV, "SHMPOOL_SOCKET": broker.address}
    with subprocess.Popen(line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        figures = leases(broker.address)
        for arguments in (["stats"], ["leases"], ["leases", "--idle"], ["leases", "--each"]):
            shown = in_terminal([*command(*arguments), "--socket", broker.address], columns=80)
            rows = shown.splitlines()
            assert max(map(len, rows)) <= 80, shown
            assert not [row for row in rows if "\u2026" in row and str(process.pid) not in row], shown
            assert str(process.pid) in shown
        shown = in_terminal([*command("leases"), "--socket", broker.address], columns=80)
        process.communicate("")
    for one in figures["leases"]:
        assert sum(one["state"] in row and str(one["pid"]) in row for row in shown.splitlines()) == 1, shown


def in_terminal(line: list[str], columns: int) -> str:
    """What a command shows in a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    env = {key: value for key, value in ENV.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(line, env={**env, "TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert process.wait(PATIENCE) == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_leases_of_nobody(broker: shmpool.Broker) -> None:
    done = shmpool_command("leases", "--socket", broker.address)
    assert done.stdout == "nobody holds a lease or a publication\n"
    assert shmpool_command("leases", "--idle", "--socket", broker.address).stdout == "nobody holds anything\n"


@pytest.mark.parametrize("args", corner(["stats"], ["stats", "--json"], ["leases"], ["stats", "--watch"]))
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
    assert shmpool.__version__ in shmpool_command("--version").stdout


@pytest.mark.long
@pytest.mark.parametrize("name", ["demo", "run", "stats", "leases", "doctor"])
def test_each_command_has_help(name: str) -> None:
    assert shmpool_command(name, "--help").returncode == 0
    assert shmpool_command(f"no-{name}").returncode == 2


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
    ("seconds", "text"),
    [(0.2, "0 s"), (9.98, "10 s"), (119, "119 s"), (180, "3 min"), (9000, "2.5 h"), (3.5 * 86400, "3.5 days")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


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
