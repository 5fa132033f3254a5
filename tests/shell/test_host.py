"""The limit against what the host can give: a small tmpfs and a memory cgroup of the tests' own, which need root."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from corners import corner
from shell_helpers import ENV, PATIENCE, BrokerProcess

from shmpool.errors import ConfigError
from shmpool.protocol.sizing import MIB
from shmpool.stats import query
from shmpool.system import memory
from shmpool.system.memory import Place
from shmpoold.config import load
from shmpoold.shell import host

MOUNT = 'mount -t tmpfs -o size={}m,mode=1777 tmpfs /dev/shm && exec "$@"'
RunHere = Callable[..., subprocess.CompletedProcess[str]]


def in_small_shm(*command: str, mebibytes: int = 64, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command where /dev/shm is as small as in a container of Docker's."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT.format(mebibytes), "sh", *command],
        env=ENV | environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _needs_mounts() -> None:
    if os.geteuid() != 0 or not shutil.which("unshare") or in_small_shm("true").returncode:
        pytest.skip("needs root and mount namespaces")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of 100 MiB."""
    v1 = Path("/sys/fs/cgroup/memory")
    base, limit = (
        (v1, "memory.limit_in_bytes") if (v1 / "memory.limit_in_bytes").exists() else (v1.parent, "memory.max")
    )
    path = base / f"shmpool-host-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / limit).write_text(str(100 * MIB))
    except OSError as error:
        if path.exists():
            path.rmdir()
        pytest.skip(f"no memory cgroup can be made in {base}: {error.strerror}")
    yield path
    path.rmdir()


PYTHON = (sys.executable, "-X", "dev", "-W", "error")
LIMIT_OF_A_BROKER = """
import sys, shmpool
with shmpool.Broker(**eval(sys.argv[1])) as broker, broker.connect() as pool:
    with pool.lease(200_000) as lease:
        lease.write(b"w" * 200_000)
    print(pool.stats().memory["limit"])
"""


# --- a small /dev/shm ----------------------------------------------------------------------------


def test_a_private_broker_that_is_given_no_limit_takes_what_fits_and_says_so() -> None:
    done = in_small_shm(*PYTHON, "-c", LIMIT_OF_A_BROKER, "{}")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 64 * MIB
    assert "lowered from the usual 256 MiB to 64 MiB" in done.stderr
    assert "remount,size=512M" in done.stderr and "--shm-size" in done.stderr


def test_a_private_broker_that_is_given_a_limit_keeps_to_it_or_does_not_start() -> None:
    done = in_small_shm(*PYTHON, "-c", LIMIT_OF_A_BROKER, "{'memory_limit': '256MiB'}")
    assert done.returncode != 0 and done.stdout == ""
    assert "ConfigError: memory_limit is 256 MiB, more than this host can give" in done.stderr
    done = in_small_shm(*PYTHON, "-c", LIMIT_OF_A_BROKER, "{'memory_limit': '60MiB'}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{60 * MIB}\n", "")


@pytest.mark.parametrize("options", [(), pytest.param(("--set", "memory_limit=256MiB"), marks=pytest.mark.long)])
def test_the_service_refuses_more_than_the_host_gives(options: tuple[str, ...], tmp_path: Path) -> None:
    done = in_small_shm(*PYTHON, "-m", "shmpoold", "--socket", str(tmp_path / "broker.sock"), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "memory_limit is 256 MiB, more than this host can give: /dev/shm has 64 MiB free of 64 MiB" in done.stderr
    assert "Lower memory_limit to 64 MiB" in done.stderr and "remount,size=512M" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_check_tells_beforehand_what_a_start_would(tmp_path: Path) -> None:
    check = (*PYTHON, "-m", "shmpoold", "--check", "--socket", str(tmp_path / "broker.sock"))
    done = in_small_shm(*check)
    assert done.returncode == 2
    assert 'memory_limit = "256 MiB"' in done.stdout
    assert "memory_limit is 256 MiB, more than this host can give: /dev/shm has 64 MiB in all" in done.stderr
    assert "Lower memory_limit to 64 MiB" in done.stderr and "remount,size=512M" in done.stderr
    # What is taken now may be the running pool's, which this one would take up.
    fill = 'fallocate -l 40MiB /dev/shm/pool && exec "$@"'
    assert in_small_shm("sh", "-c", fill, "sh", *check, "--set", "memory_limit=64MiB").returncode == 0


def test_what_others_hold_there_is_not_there_for_the_pool(tmp_path: Path) -> None:
    fill = 'fallocate -l 40MiB /dev/shm/other && exec "$@"'
    start = (*PYTHON, "-m", "shmpoold", "--socket", str(tmp_path / "broker.sock"), "--set", "memory_limit=60MiB")
    done = in_small_shm("sh", "-c", fill, "sh", *start)
    assert done.returncode == 2
    assert "/dev/shm has 24 MiB free of 64 MiB" in done.stderr


def test_doctor_says_the_same() -> None:
    doctor = in_small_shm(*PYTHON, "-m", "shmpool.cli", "doctor")
    assert doctor.returncode == 1
    assert "shmpoold refuses that; shmpool.Broker() that is given no limit takes 64 MiB" in doctor.stdout
    assert "remount,size=512M" in doctor.stdout


@pytest.mark.long
def test_the_demo_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    demo = in_small_shm(*PYTHON, "-m", "shmpool.cli", "demo", "--no-compare", str(tmp_path))
    assert demo.returncode == 0, demo.stderr
    assert "a private broker with 64 MiB" in demo.stdout and "remount,size=512M" in demo.stdout


def test_a_share_is_of_what_there_really_is(tmp_path: Path) -> None:
    check = (*PYTHON, "-m", "shmpoold", "--check", "--socket", str(tmp_path / "broker.sock"))
    done = in_small_shm(*check, SHMPOOLD_MEMORY_LIMIT="50 %")
    assert done.returncode == 0, done.stderr
    assert 'memory_limit = "32 MiB"' in done.stdout


def test_too_small_a_host_for_any_pool_is_refused_whoever_asks() -> None:
    done = in_small_shm(*PYTHON, "-c", LIMIT_OF_A_BROKER, "{}", mebibytes=1)
    assert done.returncode != 0
    assert "ConfigError: memory_limit is 256 MiB" in done.stderr and "remount" in done.stderr


# --- a cgroup ------------------------------------------------------------------------------------


def in_cgroup(cgroup: Path, *command: str) -> subprocess.CompletedProcess[str]:
    enter = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    return subprocess.run(
        ["sh", "-c", enter, "sh", *command], env=ENV, capture_output=True, text=True, timeout=PATIENCE
    )


def test_a_cgroup_bounds_the_limit_as_well(cgroup: Path, tmp_path: Path) -> None:
    start = (*PYTHON, "-m", "shmpoold", "--socket", str(tmp_path / "broker.sock"))
    done = in_cgroup(cgroup, *start, "--set", "memory_limit=100MiB")
    assert done.returncode == 2
    assert f"{cgroup.name} has" in done.stderr and "of 100 MiB" in done.stderr
    assert "raise its memory limit by" in done.stderr
    done = in_cgroup(cgroup, *start, "--check", "--set", "memory_limit=50 %")
    assert 'memory_limit = "50 MiB"' in done.stdout
    done = in_cgroup(cgroup, *PYTHON, "-c", LIMIT_OF_A_BROKER, "{}")
    assert done.returncode == 0, done.stderr
    assert 32 * MIB < int(done.stdout) < 100 * MIB
    assert "lowered from the usual 256 MiB" in done.stderr


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "limit"), [(300 * MIB, 256 * MIB), (256 * MIB, 256 * MIB), (100 * MIB + 5, 100 * MIB)]
)
def test_the_tightest_place_bounds(monkeypatch: pytest.MonkeyPatch, free: int, limit: int) -> None:
    places = [Place("/dev/shm", 1024 * MIB, 999 * MIB), Place("the cgroup /a", 512 * MIB, free)]
    monkeypatch.setattr(host, "limiting_places", lambda groups: places)
    config = load(None, {})
    assert host.fit(config, may_lower=True).memory_limit == limit
    if limit < config.memory_limit:
        with pytest.raises(ConfigError, match=re.escape("the cgroup /a has 100.0 MiB free")):
            host.fit(config, may_lower=False)


def test_without_any_bound_the_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "limiting_places", lambda groups: [])
    config = load(None, {})
    assert host.fit(config, may_lower=False) is config
    assert memory.most_memory() > 0


# --- preallocation and pressure, for real --------------------------------------------------------

PREALLOCATE = """
import os, shmpool
settings = {"memory_limit": "60MiB", "max_clients": 8, "allocation_strategy": "preallocate"}
with shmpool.Broker(**settings, preallocate={"64KiB": "50%"}) as broker:
    used = sum(512 * os.stat(f"/dev/shm/{name}").st_blocks for name in os.listdir("/dev/shm"))
    with broker.connect() as pool:
        stats = pool.stats()
        assert used >= stats.memory["held"] - (1 << 20), (used, stats.memory)
        print([tier.warm for tier in stats.tiers if tier.size == 65536])
"""


def test_a_broker_is_ready_once_its_memory_is_reserved() -> None:
    done = in_small_shm(*PYTHON, "-c", PREALLOCATE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[480, 0]\n", "")


def test_readiness_comes_after_preallocation_and_progress_is_logged(tmp_path: Path) -> None:
    broker = BrokerProcess(
        str(tmp_path / "broker.sock"), "--set", "memory_limit=100MiB", "--set", "max_clients=8",
        "--set", "allocation_strategy=preallocate", "--set", 'preallocate={"256KiB" = "50%"}',
    )  # fmt: skip
    try:
        assert query(broker.address).memory["held"] >= 50 * MIB
        log = broker.signal(signal.SIGTERM)
    finally:
        broker.stop()
    lines = [line.partition("INFO: ")[2] for line in log.splitlines()]
    assert lines[0] == "preallocating 50 MiB" and "preallocated 50 MiB of 50 MiB" in lines
    assert any(line.startswith("serving") for line in lines[lines.index("preallocated 50 MiB of 50 MiB") :])


UNDER_PRESSURE = """
import os, shmpool, time
with shmpool.Broker(memory_limit="60MiB", max_clients=8, buffer_lifetime=3600, magazine_idle=3600) as broker:
    with broker.connect() as pool:
        for lease in [pool.lease(200_000) for _ in range(100)]:
            lease.release()
        warm = pool.stats().memory["held"]
        with open("/dev/shm/other", "wb") as other:
            space = os.statvfs("/dev/shm")
            os.posix_fallocate(other.fileno(), 0, space.f_bavail * space.f_frsize - (2 << 20))
        deadline = time.monotonic() + 50
        while (stats := pool.stats()).memory["pressure"] == "normal" or stats.memory["held"] > warm / 2:
            assert time.monotonic() < deadline, stats.memory
            time.sleep(0.1)
        assert any("memory pressure is elevated" in alert for alert in stats.alerts), stats.alerts
        assert any("but /dev/shm has only" in alert for alert in stats.alerts), stats.alerts
        with pool.lease(100_000) as lease:  # serves on
            lease.write(b"x" * 100_000)
        print(stats.memory["pressure"])
"""


def test_others_who_fill_shm_are_given_room_and_operators_an_alert() -> None:
    done = in_small_shm(*PYTHON, "-c", UNDER_PRESSURE)
    assert (done.returncode, done.stdout) == (0, "elevated\n"), done.stderr
    assert "memory pressure is elevated: /dev/shm has" in done.stderr


SHORT = "printf 'MemTotal: 8388608 kB\\nMemAvailable: 8192 kB\\n' >$1 && mount --bind $1 /proc/meminfo && shift && "
PRESSURE = """
import shmpool
with shmpool.Broker(memory_limit="60MiB") as broker, broker.connect() as pool:
    print(pool.stats().memory["pressure"])
"""


@pytest.mark.parametrize(("is_apart", "pressure"), corner((True, "normal\n"), (False, "critical\n")))
def test_a_host_whose_memory_others_have_turns_no_test_red(is_apart: bool, pressure: str, tmp_path: Path) -> None:
    """A run's own brokers do not look at it. (Names without a prefix are in a /dev/shm of its own.)"""
    prefix = os.environ["SHMPOOL_PREFIX"] if is_apart else ""
    command = ["sh", "-c", SHORT + MOUNT.format(64), "sh", str(tmp_path / "meminfo"), *PYTHON, "-c", PRESSURE]
    done = subprocess.run(
        ["unshare", "--mount", *command],
        env=ENV | {"SHMPOOL_PREFIX": prefix}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, pressure), done.stderr
    assert ("the host's memory has 8 MiB free of 8 GiB" in done.stderr) is not is_apart


IN_A_FULL_CGROUP = """
import os, shmpool, sys, time
with shmpool.Broker(memory_limit="40MiB", max_clients=8, on_critical_pressure="direct", fallback=False) as broker:
    with broker.connect() as pool:
        pool.lease(1000).release()
        others = []
        # Critical, and what this process had ready has been recalled: that is leased without asking.
        while (stats := pool.stats()).memory["pressure"] != "critical" or any(tier.warm for tier in stats.tiers):
            if (more := min(shmpool_room()) - (2 << 20)) > 0:
                others.append(b"x" * (more // 2 + 4096))
            time.sleep(0.05)
        held = stats.memory["held"]
        with pool.lease(1000) as lease:
            assert lease.strategy is shmpool.Strategy.DIRECT, lease.strategy
        try:
            pool.lease(200_000, strategy=shmpool.Strategy.POOLED, timeout=0)
        except shmpool.SharedMemoryFull as error:
            assert "short of memory" in str(error), error
            print("well")
"""


def test_critical_pressure_of_a_cgroup_stops_growth_before_the_kernel_kills(cgroup: Path) -> None:
    helper = (
        "from shmpool.system.memory import memory_groups\n"
        "def shmpool_room(): return [room for group in memory_groups() if (room := group.room()) is not None]\n"
    )
    done = in_cgroup(cgroup, sys.executable, "-c", helper + IN_A_FULL_CGROUP)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    assert "memory pressure is critical: the cgroup" in done.stderr
