"""Leaks of real clients: told with process, size and age, and with the line of code where it is noted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from client_helpers import ENV, KIB, PATIENCE, Start, eventually
from corners import corner

import shmpool
from shmpool.stats import query_leaks

#: What a test of ours leaks it leaks for so long.
AGE = "0.2s"
#: Of each strategy; one is of the default setting.
SIZES = corner(300 * KIB, 100, 2048 * KIB)


@pytest.fixture
def pool(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[shmpool.Pool]:
    """A pool that notes its callers, of a broker that takes little for leaked."""
    monkeypatch.setenv("SHMPOOL_TRACE", "1")
    with start(memory_limit="64MiB", leak_age=AGE).connect() as pool:
        yield pool


def leaks(pool: shmpool.Pool) -> list[dict[str, Any]]:
    found = query_leaks(pool.address)["leases"]
    return [leak for leak in found if leak["site"] or leak["kind"] == "quarantined"]


def one_leak(pool: shmpool.Pool) -> dict[str, Any]:
    [leak] = eventually(lambda: leaks(pool), "the leak")
    assert leak["pid"] == os.getpid() and leak["age_seconds"] >= 0.2
    return leak


def is_here(leak: dict[str, Any], function: str) -> bool:
    file, _, rest = leak["site"].partition(":")
    return bool(__file__.endswith(file) and rest.endswith(f" in {function}"))


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_lease_that_nobody_gives_back(pool: shmpool.Pool, nbytes: int) -> None:
    lease = pool.lease(nbytes)
    leak = one_leak(pool)
    assert leak["kind"] == "leased" and leak["bytes"] >= nbytes
    assert is_here(leak, "test_a_lease_that_nobody_gives_back")
    assert pool.stats().leaks["leased"] == 1
    lease.release()
    eventually(lambda: query_leaks(pool.address)["total"] == 0, "the end of the leak")


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_handle_that_nobody_opens(pool: shmpool.Pool, nbytes: int) -> None:
    handle = pool.lease(nbytes).publish()
    leak = one_leak(pool)
    assert leak["kind"] == "unread"
    assert is_here(leak, "test_a_handle_that_nobody_opens")
    pool.discard(handle)
    eventually(lambda: query_leaks(pool.address)["total"] == 0, "the end of the leak")


@pytest.mark.parametrize("nbytes", SIZES)
def test_a_view_that_outlives_what_was_opened(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.open(pool.lease(nbytes).publish()) as buffer:
        view = buffer.view[10:20]
    leak = one_leak(pool)
    assert leak["kind"] == "view"
    assert is_here(leak, "test_a_view_that_outlives_what_was_opened")
    assert pool.stats().leaks == {"leased": 0, "unread": 0, "view": 1, "quarantined": 0}
    del view
    eventually(lambda: query_leaks(pool.address)["total"] == 0, "the end of the leak")


@pytest.mark.filterwarnings("ignore:a view of a published or released buffer")
def test_a_view_that_outlives_its_lease(pool: shmpool.Pool) -> None:
    with pool.lease(100) as lease:
        view = lease.view[:10]
    leak = one_leak(pool)
    assert leak["kind"] == "view" and is_here(leak, "test_a_view_that_outlives_its_lease")
    del view
    eventually(lambda: query_leaks(pool.address)["total"] == 0, "the end of the leak")


def test_what_is_read_for_long_is_no_leak(pool: shmpool.Pool) -> None:
    with pool.open(pool.lease(100).publish()), pool.open(pool.lease(100).publish()) as other:
        view = other.view[:1]
        other.release()
        one_leak(pool)  # of both only this one
        assert query_leaks(pool.address)["total"] == 1
        del view


def test_objects_and_streams_name_the_line_that_used_them(pool: shmpool.Pool) -> None:
    handle = pool.put(bytes(100 * KIB))
    assert is_here(one_leak(pool), "test_objects_and_streams_name_the_line_that_used_them")
    pool.discard(handle)
    writer = pool.open_writer(100)
    eventually(lambda: [leak for leak in leaks(pool) if leak["kind"] == "leased"], "the leak of the stream")
    assert is_here(one_leak(pool), "test_objects_and_streams_name_the_line_that_used_them")
    writer.close()
    pool.discard(writer.handle)


def test_without_the_setting_nothing_is_noted(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMPOOL_TRACE", raising=False)
    with start(memory_limit="64MiB", leak_age=AGE).connect() as pool, pool.lease(100):
        [leak] = eventually(lambda: query_leaks(pool.address)["leases"], "the leak")
        assert (leak["kind"], leak["site"]) == ("leased", "")
        assert not pool._session.sites.leased  # type: ignore[union-attr]


def test_a_traced_pool_does_all_else_that_its_settings_say(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMPOOL_TRACE", "1")
    with start(memory_limit="64MiB", checksums=True, detailed_metrics=True).connect() as pool:
        for _ in range(10):
            with pool.lease(1000) as lease:
                lease.write(b"a" * 1000)
                handle = lease.publish()
            with pool.open(handle) as buffer:
                assert bytes(buffer) == b"a" * 1000
        with pool.lease(10) as lease, pytest.raises(ValueError, match="12 readers"):
            lease.publish_many(13)
        assert sum(pool.stats().latency_histogram["small"]["counts"]) == 11


def test_the_log_tells_each_leak_once_with_its_line(address: str) -> None:
    command = [sys.executable, "-m", "shmpoold", "--socket", address]
    command += ["--set", "leak_age=0.2s", "--set", "log_level=warning", "--set", "memory_limit=16MiB"]
    client = (
        "import sys, shmpool\n"
        "def work(pool):\n"
        "    return pool.lease(5000)\n"
        "with shmpool.connect(sys.argv[1], timeout=60) as pool:\n"
        "    lease = work(pool)\n"
        "    print('leased', flush=True)\n"
        "    sys.stdin.read()\n"
        "    lease.release()\n"
    )
    broker = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)
    worker = subprocess.Popen(
        [sys.executable, "-c", client, address],
        env={**ENV, "SHMPOOL_TRACE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "leased\n"
        eventually(lambda: query_leaks(address)["leases"], "the leak")
        listed = [sys.executable, "-m", "shmpool.cli", "leases", "--leaks", "--socket", address]
        shown = subprocess.run(listed, env=ENV, capture_output=True, text=True, timeout=PATIENCE)
        assert "<string>:3 in work" in shown.stdout and str(worker.pid) in shown.stdout
        as_json = subprocess.run([*listed, "--json"], env=ENV, capture_output=True, text=True, timeout=PATIENCE)
        [leak] = json.loads(as_json.stdout)["leases"]
        assert (leak["kind"], leak["bytes"]) == ("leased", 16 * KIB)
        eventually(lambda: query_leaks(address)["leases"][0]["age_seconds"] > 1.0, "four looks more")
    finally:
        worker.communicate("")
        broker.terminate()
        _, log = broker.communicate(timeout=PATIENCE)
    lines = [line for line in log.splitlines() if "leak: " in line]
    assert len(lines) == 1
    assert f"pid {worker.pid} " in lines[0] and "has leased 16 KiB" in lines[0]
    assert lines[0].endswith("leased at <string>:3 in work")
