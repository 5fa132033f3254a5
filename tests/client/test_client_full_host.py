"""A full /dev/shm: an error with the numbers, never a signal. In a mount namespace with a
small tmpfs, which needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from client_helpers import ENV, PATIENCE

SMALL = 'mount -t tmpfs -o size=8m,mode=1777 tmpfs /dev/shm && exec "$@"'
PRELUDE = """
import os, shmpool
from shmpool import Strategy
broker = shmpool.Broker(memory_limit="64MiB", max_clients=4, pooled_sizes=["256KiB"], chunk_sizes=["256KiB"])
pool = broker.connect()
def free(): return (lambda s: s.f_bavail * s.f_frsize)(os.statvfs("/dev/shm"))
def check(*sizes):
    "The pool goes on."
    for nbytes in sizes:
        with pool.lease(nbytes, timeout=10) as lease:
            lease.write(b"c" * nbytes)
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer.view) == b"c" * nbytes
"""
EPILOGUE = """
pool.close()
broker.close()
assert os.listdir("/dev/shm") == [], os.listdir("/dev/shm")
print("well")
"""


def can_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--mount", "sh", "-c", SMALL, "sh", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs root and mount namespaces")


def on_a_small_host(script: str) -> str:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SMALL, "sh", sys.executable, "-X", "dev", "-W", "error", "-c",
         PRELUDE + script + EPILOGUE],
        env=ENV, capture_output=True, text=True, timeout=4 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.endswith("well\n")
    return done.stdout


@pytest.mark.parametrize(("strategy", "nbytes"), [("POOLED", 200_000), ("CHUNKED", 500_000)])
@pytest.mark.parametrize("timeout", ["0", "0.2"])
def test_leases_of_a_full_host_are_refused_with_the_numbers(strategy: str, nbytes: int, timeout: str) -> None:
    on_a_small_host(f"""
leases = []
for _ in range(200):
    try:
        leases.append(pool.lease({nbytes}, strategy=Strategy.{strategy}, timeout={timeout}))
        leases[-1].view[:] = b"x" * {nbytes}
    except (shmpool.SharedMemoryFull, shmpool.LeaseTimeout) as error:
        refusal = error
        break
else:
    raise AssertionError("8 MiB took it all")
assert len(leases) > 5
if {timeout} == 0:
    assert isinstance(refusal, shmpool.SharedMemoryFull), repr(refusal)
    assert isinstance(refusal, MemoryError)
assert "/dev/shm" in str(refusal) and "iB" in str(refusal), refusal
assert all(lease.view == b"x" * {nbytes} for lease in leases)
for lease in leases:
    lease.release()
check(1000, 300_000)
""")


@pytest.mark.parametrize("how", ["lease.write(b'x' * (4 << 20))", "lease.view[:] = b'x' * (4 << 20)", "lease.publish()",
                                 "lease.publish_many(3)", "lease.chunks"])  # fmt: skip
def test_direct_segments_of_a_full_host_are_refused_with_the_numbers(how: str) -> None:
    on_a_small_host(f"""
leases = []
for _ in range(20):
    lease = pool.lease(4 << 20, timeout=0)
    leases.append(lease)
    try:
        {how}
    except shmpool.SharedMemoryFull as error:
        assert "4 MiB" in str(error) and "/dev/shm" in str(error) and "free" in str(error), error
        break
else:
    raise AssertionError("8 MiB took it all")
lease.release()
assert pool.stats().active_buffers <= 2
for lease in leases:
    lease.release()
del lease, leases
if "publish" in {how!r}:  # nobody has the handles
    pool.close()
    pool = broker.connect()
else:
    check(1000, 300_000, 1 << 20)
""")


def test_lease_on_a_full_host_goes_on_when_there_is_room_again() -> None:
    on_a_small_host("""
with open("/dev/shm/other", "wb") as other:
    os.posix_fallocate(other.fileno(), 0, free() - 256 * 1024)
lease = pool.lease(2 << 20)
for _ in range(2):
    try:
        lease.view
        raise AssertionError("there was room")
    except shmpool.SharedMemoryFull:
        pass
os.unlink("/dev/shm/other")
lease.view[:3] = b"abc"
with pool.open(lease.publish()) as buffer:
    assert bytes(buffer.view[:3]) == b"abc"
check(1000, 300_000, 1 << 20)
""")


def test_a_broker_that_finds_no_room_for_its_tables_says_so() -> None:
    on_a_small_host("""
pool.close(); broker.close()
with open("/dev/shm/other", "wb") as other:
    os.posix_fallocate(other.fileno(), 0, free() - 64 * 1024)
try:
    shmpool.Broker(memory_limit="64MiB")
    raise AssertionError("it started")
except shmpool.ShmpoolError as error:
    assert "/dev/shm" in str(error), error
os.unlink("/dev/shm/other")
broker = shmpool.Broker(memory_limit="64MiB")
pool = broker.connect()
""")
