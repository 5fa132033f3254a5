"""What users write, for the type checkers; it is checked, not run."""

from __future__ import annotations

import array
import concurrent.futures
import mmap
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import shmpool
import shmpool.aio
import shmpool.joblib
import shmpool.torch


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


def queues(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(8, pool=pool, name="frames", overflow="drop_oldest", on_dead_consumer="drop", keep=True)
    assert_type(one, shmpool.Queue)
    assert_type(pool.queue("frames", maxsize=8), shmpool.Queue)
    one.put((1, b"x"), timeout=1.5)
    assert_type(one.put_many(range(3), block=False), int)
    assert_type(one.get_many(3), list[Any])
    assert_type(one.qsize(), int)
    assert_type(one.fileno(), int)
    assert_type(one.dropped, int)
    assert_type(one.full(), bool)
    one.shutdown(immediate=True)
    joinable = shmpool.JoinableQueue(pool=pool)
    joinable.task_done()
    joinable.join()
    shmpool.Queue("8")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    shmpool.Queue(overflow="drop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.queue(on_dead_consumer="keep")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for queue in pool.stats().queues:
        assert_type(queue.items, int)
        assert_type(queue.members, list[int])


async def on_a_loop() -> shmpool.Handle:
    async with shmpool.aio.connect(timeout=1) as pool:
        assert_type(pool, shmpool.aio.Pool)
        async with pool.lease(100) as lease, pool.queue("work", 3) as queue:
            assert_type(lease, shmpool.Lease)
            assert_type(queue, shmpool.aio.Queue)
            await queue.put(1)
            assert_type(await queue.get_many(2, timeout=0.5), list[Any])
            handle = lease.publish()
        async with pool.open(handle) as buffer:
            assert_type(buffer, shmpool.Buffer)
        assert_type(await pool.put({}, readers=2), list[shmpool.Handle])
        return await pool.put([1, 2])


def double(number: int) -> float:
    return 2.0 * number


def in_executors() -> None:
    shmpool.install(min_nbytes=65536)
    shmpool.uninstall()
    with shmpool.Executor(2, memory_limit="64MiB") as executor:
        assert_type(executor.submit(double, 3), concurrent.futures.Future[float])
        assert_type(list(executor.map(double, [1, 2])), list[float])
        executor.submit(double, "3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    anywhere: concurrent.futures.Executor = executor
    anywhere.shutdown()
    shmpool.joblib.register()


def in_torch(pool: shmpool.Pool, loader: list[Any]) -> None:
    assert_type(shmpool.torch.collate(pool), shmpool.torch.Collate)
    for batch in shmpool.torch.batches(loader):
        print(batch)
