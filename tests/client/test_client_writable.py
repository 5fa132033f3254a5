"""`open(handle, writable=True)`: a private view, copied as it is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from client_helpers import KIB, MIB, lease_all, pattern, run_script

import shmpool

SIZES = [0, 1, 5000, 100_000, 300_000, 2 * MIB]


def publish(pool: shmpool.Pool, content: bytes, readers: int = 1) -> list[shmpool.Handle]:
    with pool.lease(len(content)) as lease:
        lease.write(content)
        return lease.publish_many(readers)


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_is_written_is_seen_by_nobody_else(pool: shmpool.Pool, nbytes: int) -> None:
    content = pattern(nbytes)
    mine, theirs, last = publish(pool, content, 3)
    with pool.open(mine, writable=True) as buffer, pool.open(theirs) as other:
        assert (buffer.nbytes, bytes(buffer), buffer.view.readonly) == (nbytes, content, False)
        buffer.view[:] = b"\xff" * nbytes
        assert bytes(buffer) == b"\xff" * nbytes
        assert bytes(other) == content
    with pool.open(last) as other:
        assert bytes(other) == content
    with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
        pool.open(mine, writable=True)


@pytest.mark.parametrize("nbytes", SIZES[2:])
def test_its_memory_stays_until_the_last_array_is_gone(pool: shmpool.Pool, nbytes: int) -> None:
    content = pattern(nbytes)
    (handle,) = publish(pool, content)
    with pool.open(handle, writable=True) as buffer:
        array = buffer.ndarray()
        array[::8192] = 0
    expected = np.frombuffer(content, np.uint8).copy()
    expected[::8192] = 0
    for _ in range(20):  # would use the slot again if it were free
        with pool.lease(nbytes) as lease:
            lease.write(b"\x63" * nbytes)
    assert np.array_equal(array, expected)
    del array
    assert pool.stats().active_buffers == 0 or pool.lease(nbytes).release() is None


def test_a_scattered_buffer_is_whole(start: Any) -> None:
    broker = start(chunk_sizes=["64KiB"], pooled_sizes=["4KiB"])
    with broker.connect() as pool:
        held = lease_all(pool, 64 * KIB, shmpool.Strategy.CHUNKED)
        for lease in held[::2]:
            lease.release()
        content = pattern(20 * 64 * KIB - 100)
        with pool.lease(len(content), strategy="chunked", timeout=5) as lease:
            assert len(lease.chunks) >= 4, "it is not scattered: the test shows nothing"
            lease.write(content)
            handle = lease.publish()
        with pool.open(handle, writable=True) as buffer:
            assert bytes(buffer) == content
            buffer.view[100_000] ^= 1
            assert b"".join(buffer.chunks) == bytes(buffer) != content
        for lease in held[1::2]:
            lease.release()


def test_checksums_are_verified_first(start: Any) -> None:
    broker = start(checksums=True, memory_limit="16MiB")
    with broker.connect() as pool:
        (handle,) = publish(pool, pattern(300_000))
        with pool.open(handle, writable=True) as buffer:
            buffer.view[:3] = b"abc"
            assert bytes(buffer.view[:5]) == b"abc" + pattern(5)[3:]


def test_without_room_for_a_private_map_the_ticket_stays_open() -> None:
    done = run_script(
        "import resource, shmpool\n"
        "with shmpool.Broker(memory_limit='256MiB') as broker, broker.connect() as pool:\n"
        "    with pool.lease(64 << 20) as lease:\n"
        "        lease.write(b'm' * (64 << 20)); handle = lease.publish()\n"
        "    with open('/proc/self/statm') as file: used = int(file.read().split()[0]) * 4096\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))\n"
        "    try: pool.open(handle, writable=True)\n"
        "    except shmpool.SharedMemoryFull as error: assert 'ulimit -v' in str(error)\n"
        "    else: raise AssertionError('there was room')\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    with pool.open(handle, writable=True) as buffer: assert buffer.view[64 << 19] == ord('m')\n"
        "print('well')"
    )
    assert (done.stdout, done.stderr) == ("well\n", "")
