"""What users write, for the type checkers; it is checked, not run."""

from __future__ import annotations

import array
import mmap
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import shmpool


def start() -> None:
    with shmpool.Broker(memory_limit="256MiB", max_clients=8, pooled_sizes=[4096, "8KiB"], on_stop="remove") as broker:
        assert_type(broker, shmpool.Broker)
        assert_type(broker.address, str)
        assert_type(broker.pid, int)
        with broker.connect(timeout=2.5, strict=True) as pool:
            assert_type(pool, shmpool.Pool)
    shmpool.Broker().connect()


def write(pool: shmpool.Pool, frame: npt.NDArray[np.float32], raw: bytes | bytearray | memoryview) -> shmpool.Handle:
    with pool.lease(frame.nbytes) as lease:
        assert_type(lease, shmpool.Lease)
        lease.write(frame)
        lease.write(raw)
        lease.write(array.array("f", [1.0]))
        lease.write(mmap.mmap(-1, 4096))
        lease.write(frame.astype("datetime64[s]")[::2].T)
        lease.write_parts([(0, b"head"), (64, frame)])
        assert_type(lease.view, memoryview)
        assert_type(lease.chunks, list[memoryview])
        assert_type(lease.nbytes, int)
        assert_type(lease.strategy, shmpool.Strategy)
        assert_type(lease.category, shmpool.SizeCategory)
        lease.view[:4] = b"abcd"
        born: npt.NDArray[Any] = lease.ndarray(np.float32, (2, -1))
        born[0] = 1.0
        assert_type(lease.publish_many(2), list[shmpool.Handle])
        return lease.publish()


def choose(pool: shmpool.Pool) -> None:
    pool.lease(100, strategy="direct", timeout=0).release()
    pool.lease(np.int64(100).item(), strategy=shmpool.Strategy.POOLED, timeout=None).release()
    pool.lease(100, strategy="fast")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def read(pool: shmpool.Pool, handle: shmpool.Handle) -> float:
    with pool.open(handle) as buffer:
        assert_type(buffer, shmpool.Buffer)
        assert_type(bytes(buffer), bytes)
        assert_type(len(buffer), int)
        frame = np.frombuffer(buffer.view, dtype=np.uint8)
        return float(frame.mean())


def as_bytes(pool: shmpool.Pool, handle: shmpool.Handle) -> None:
    sent = bytes(handle)
    pool.open(sent).release()
    pool.discard(shmpool.Handle.from_bytes(bytearray(sent)))
    assert_type(handle.nbytes, int)


def wrong(pool: shmpool.Pool, lease: shmpool.Lease, buffer: shmpool.Buffer) -> None:
    lease.nbytes = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    lease.view = memoryview(b"")  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    buffer.view = memoryview(b"")  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    pool.closed = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    lease.write("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lease.write([1, 2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.open(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    shmpool.Broker(memory_limt="1GiB")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    shmpool.Broker(max_clients="8")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def look(pool: shmpool.Pool) -> None:
    assert_type(pool.closed, bool)
    assert_type(pool.name, str)
    assert_type(pool.address, str)
    stats = pool.stats()
    assert_type(stats, shmpool.Stats)
    try:
        shmpool.connect("/run/x.sock", timeout=1, autostart=True)
    except (shmpool.BrokerUnavailable, shmpool.SharedMemoryFull):
        return
