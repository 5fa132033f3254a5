"""A full /dev/shm: an error with the numbers, never a signal. In a mount namespace with a
tmpfs that shrinks, which needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from client_helpers import ENV, PATIENCE

SMALL = 'mount -t tmpfs -o size=80m,mode=1777 tmpfs /dev/shm && exec "$@"'
PRELUDE = """
import os, shmpool, subprocess, threading, time
from shmpool import Strategy
broker = shmpool.Broker(memory_limit="64MiB", max_clients=4, pooled_sizes=["256KiB"], chunk_sizes=["256KiB"])
pool = broker.connect()
def resize(size):
    subprocess.run(["mount", "-o", f"remount,size={size}", "/dev/shm"], check=True)
resize("8m")  # a broker that starts here would be refused so high a limit
def free(): return (lambda s: s.f_bavail * s.f_frsize)(os.statvfs("/dev/shm"))
def fill(left):
    "Other people's files, until *left* bytes are free."
    with open("/dev/shm/other", "wb") as other:
        os.posix_fallocate(other.fileno(), 0, free() - left)
    return other.name
def check(*sizes):
    "The pool goes on."
    for nbytes in sizes:
        with pool.lease(nbytes, timeout=60) as lease:
            lease.write(b"c" * nbytes)
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer.view) == b"c" * nbytes
"""
EPILOGUE = """
if os.path.exists("/dev/shm/other"): os.unlink("/dev/shm/other")
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


@pytest.mark.parametrize(
    ("strategy", "nbytes", "timeout"),
    [
        ("CHUNKED", 500_000, "0.2"),
        pytest.param("POOLED", 200_000, "0", marks=pytest.mark.long),
        pytest.param("POOLED", 200_000, "0.2", marks=pytest.mark.long),
        pytest.param("CHUNKED", 500_000, "0", marks=pytest.mark.long),
    ],
)
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


@pytest.mark.parametrize("timeout", [pytest.param("0", marks=pytest.mark.long), "0.2"])
def test_direct_leases_of_a_full_host_are_refused_at_lease_with_the_numbers(timeout: str) -> None:
    on_a_small_host(f"""
leases = []
for _ in range(20):
    started = time.monotonic()
    try:
        leases.append(pool.lease(2 << 20, timeout={timeout}))
    except shmpool.SharedMemoryFull as error:
        assert "2 MiB" in str(error) and "/dev/shm" in str(error) and "free" in str(error), error
        break
else:
    raise AssertionError("8 MiB took it all")
assert {timeout} <= time.monotonic() - started < {timeout} + 20
assert len(leases) >= 2
for number, lease in enumerate(leases):
    if number % 2: lease.write(bytes([number]) * (2 << 20))
    else: lease.view[:] = bytes([number]) * (2 << 20)
for number, handle in enumerate([lease.publish() for lease in leases]):
    with pool.open(handle) as buffer:
        assert bytes(buffer) == bytes([number]) * (2 << 20)
check(1000, 300_000, 1 << 20)
""")


def test_direct_lease_waits_for_what_comes_back() -> None:
    on_a_small_host("""
held = [pool.lease(2 << 20) for _ in range(2)]
fill(1 << 20)
releasing = threading.Timer(0.3, held.pop().release)
releasing.start()
with pool.lease(2 << 20, timeout=60) as lease:
    releasing.join()
    lease.write(b"w" * (2 << 20))
    handle = lease.publish()
with pool.open(handle) as buffer:
    assert bytes(buffer) == b"w" * (2 << 20)
held.pop().release()
""")


def test_direct_lease_waits_for_other_people_s_files_too() -> None:
    on_a_small_host("""
held = pool.lease(100)  # something is out that could come back, so it waits in line
other = fill(256 << 10)
removing = threading.Timer(0.3, os.unlink, [other])
removing.start()
with pool.lease(2 << 20, timeout=60) as lease:
    lease.view[:3] = b"abc"
removing.join()
held.release()
check(1000, 300_000, 1 << 20)
""")


def test_two_clients_that_are_promised_the_same_room_take_turns() -> None:
    """The broker sees free what the other has not reserved yet; who comes too late tries again."""
    on_a_small_host("""
done = []
def work(seed):
    with broker.connect() as own:
        for _ in range(30):
            with own.lease(5 << 20, timeout=60) as lease:
                lease.write(bytes([seed]) * (5 << 20))
                with own.open(lease.publish()) as buffer:
                    assert bytes(buffer) == bytes([seed]) * (5 << 20)
    done.append(seed)
threads = [threading.Thread(target=work, args=[seed]) for seed in (1, 2, 3)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
assert sorted(done) == [1, 2, 3]
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
resize("80m")
broker = shmpool.Broker(memory_limit="64MiB")
pool = broker.connect()
""")
