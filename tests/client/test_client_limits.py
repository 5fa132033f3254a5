"""A process that has reached a limit of its own: an error of ours that names it, and nothing lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_helpers import ENV, MIB, PATIENCE, run_script
from corners import corner

PRELUDE = """
import errno, os, resource, shmpool
broker = shmpool.Broker(memory_limit="256MiB", max_clients=4)
pool = broker.connect()
def check(*sizes):
    "The pool goes on, and has got everything back."
    for nbytes in sizes:
        with pool.lease(nbytes, timeout=60) as lease:
            lease.write(b"c" * nbytes)
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer.view) == b"c" * nbytes
    assert pool.stats().active_buffers == 0, pool.stats()
def descriptors(): return len(os.listdir("/proc/self/fd"))
"""
EPILOGUE = """
pool.close(); broker.close(); print("well")
"""


def on_a_limit(script: str) -> None:
    done = run_script(PRELUDE + script + EPILOGUE)
    assert (done.stdout, done.stderr) == ("well\n", ""), done.stderr


@pytest.mark.parametrize(
    "use", ["lease.write(bytes(1 << 20))", pytest.param("lease.view[:] = bytes(1 << 20)", marks=pytest.mark.long)]
)
def test_a_direct_lease_that_was_written_keeps_no_descriptor(use: str) -> None:
    on_a_limit(f"""
check(1000, 1 << 20)
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 6, 4096))
leases = []
for _ in range(40):
    lease = pool.lease(1 << 20)
    {use}
    leases.append(lease)
handles = [lease.publish() for lease in leases]
buffers = [pool.open(handle) for handle in handles]
assert all(len(buffer.view) == 1 << 20 for buffer in buffers)
for buffer in buffers: buffer.release()
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
check(1000, 1 << 20)
""")


@pytest.mark.parametrize("strategy", corner("POOLED", "CHUNKED", "DIRECT"))
def test_no_descriptor_left_for_a_lease(strategy: str) -> None:
    """The first lease of a tier and each direct one opens a segment."""
    on_a_limit(f"""
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors(), 4096))
holes = []
try:
    while True: holes.append(os.dup(0))
except OSError: pass
try:
    pool.lease(100_000, strategy=shmpool.Strategy.{strategy}, timeout=1)
    raise AssertionError("there was a descriptor")
except shmpool.ConfigError as error:
    assert "ulimit -n" in str(error) and "4096" in str(error), error
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
check(1000, 100_000, 300_000, 1 << 20)
""")


@pytest.mark.parametrize("nbytes", corner(300_000, 100_000, 2 * MIB))
def test_no_descriptor_left_for_opening_leaves_the_ticket(nbytes: int) -> None:
    on_a_limit(f"""
writer = broker.connect()
with writer.lease({nbytes}) as lease:
    lease.write(b"o" * {nbytes})
    handle = lease.publish()
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors(), 4096))
holes = []
try:
    while True: holes.append(os.dup(0))
except OSError: pass
for _ in range(2):
    try:
        pool.open(handle)
        raise AssertionError("there was a descriptor")
    except shmpool.ConfigError as error:
        assert "ulimit -n" in str(error), error
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
with pool.open(handle) as buffer:
    assert bytes(buffer.view) == b"o" * {nbytes}
writer.close()
check({nbytes})
""")


@pytest.mark.parametrize("nbytes", corner(300_000, 100_000, 64 * MIB))
def test_no_address_space_for_a_map(nbytes: int) -> None:
    """Leases and buffers alike; a direct lease may still be written without a map."""
    on_a_limit(f"""
check(1000)
writer = broker.connect()
with writer.lease({nbytes}) as lease:
    lease.write(b"m" * {nbytes})
    handle = lease.publish()
def used():
    with open("/proc/self/statm") as file: return int(file.read().split()[0]) * resource.getpagesize()
def mapped():
    with pool.lease({nbytes}) as lease: lease.view
for use in (lambda: pool.lease({nbytes}), mapped, lambda: pool.open(handle)):
    resource.setrlimit(resource.RLIMIT_AS, (used() + min(65536, {nbytes} // 2), resource.RLIM_INFINITY))
    try:
        lease = use()
        assert {nbytes} == 64 << 20, "there was room"
        lease.release()
    except shmpool.SharedMemoryFull as error:
        assert "ulimit -v" in str(error), error
        assert error.__context__ is None or isinstance(error.__context__, OSError), error.__context__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with pool.open(handle) as buffer:
    assert bytes(buffer.view) == b"m" * {nbytes}
writer.close()
check({nbytes})
""")


def test_connect_for_which_there_is_no_thread_says_so() -> None:
    on_a_limit("""
import threading
with open("/proc/self/statm") as file: used = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), resource.RLIM_INFINITY))
threading.stack_size(1 << 30)
try: broker.connect()
except shmpool.BrokerUnavailable as error: assert "ulimit" in str(error) and "thread" in str(error), error
else: raise AssertionError("there was room for its stack")
threading.stack_size(0)
broker.connect().close()
assert len(pool.stats().clients) == 1
check(1000)
""")


# --- a cgroup of its own ---------------------------------------------------------------------------

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """One of 48 MiB, for the client alone."""
    base, limit = (_V1, "memory.limit_in_bytes") if (_V1 / "memory.limit_in_bytes").exists() else (_V2, "memory.max")
    path = base / f"shmpool-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {base}: {error.strerror}")
    try:
        try:
            (path / limit).write_text(str(48 * MIB))
        except OSError as error:
            pytest.skip(f"the cgroup {path} has no memory controller: {error.strerror}")
        yield path
    finally:
        path.rmdir()


def in_cgroup(cgroup: Path, script: str) -> None:
    enter = f"import os\nopen('{cgroup}/cgroup.procs', 'w').write(str(os.getpid()))\n"
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + enter + script + EPILOGUE],
        env=ENV, capture_output=True, text=True, timeout=PATIENCE * 2,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", ""), (done.returncode, done.stderr)


def test_a_direct_lease_that_the_cgroup_never_holds_is_refused_at_once(cgroup: Path) -> None:
    in_cgroup(cgroup, f"""
import time
started = time.monotonic()
try:
    pool.lease(100 << 20, timeout=60)
    raise AssertionError("it was granted")
except shmpool.SharedMemoryFull as error:
    assert "{cgroup.name}" in str(error) and "48 MiB" in str(error), error
assert time.monotonic() - started < 30
check(1000, 1 << 20)
""")  # fmt: skip


def test_a_direct_lease_waits_for_room_in_its_cgroup(cgroup: Path) -> None:
    in_cgroup(cgroup, """
import threading
held = pool.lease(30 << 20)
held.view[:3] = b"abc"
for timeout in (0, 0.2):
    try:
        pool.lease(30 << 20, timeout=timeout)
        raise AssertionError("it was granted")
    except shmpool.SharedMemoryFull as error:
        assert "left" in str(error), error
threading.Timer(0.3, held.release).start()
with pool.lease(30 << 20, timeout=60) as lease:
    lease.write(bytes(30 << 20))
""")  # fmt: skip
