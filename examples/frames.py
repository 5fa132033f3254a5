"""Frames from a camera process to two workers, without a copy.

Run it with ``python examples/frames.py``: it starts a private broker, a producer and two
workers. Handles travel over an ordinary multiprocessing queue; the frames do not.
"""

from __future__ import annotations

import multiprocessing

import numpy as np

import shmpool

FRAMES, HEIGHT, WIDTH = 200, 480, 640


def produce(pool: shmpool.Pool, queue: multiprocessing.Queue) -> None:
    for number in range(FRAMES):
        with pool.lease(HEIGHT * WIDTH * 3) as lease:
            frame = np.frombuffer(lease.view, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
            frame[:] = number % 256
            del frame  # the writer's own views go before the handle does
            queue.put(lease.publish())
    for _ in range(2):
        queue.put(None)


def work(pool: shmpool.Pool, queue: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    total = 0.0
    while (handle := queue.get()) is not None:
        with pool.open(handle) as buffer:
            total += float(np.frombuffer(buffer.view, dtype=np.uint8).mean())
    results.put(total)


def main() -> None:
    context = multiprocessing.get_context("spawn")
    queue, results = context.Queue(maxsize=16), context.Queue()
    with shmpool.Broker(memory_limit="128MiB") as broker, broker.connect() as pool:
        workers = [context.Process(target=work, args=(pool, queue, results)) for _ in range(2)]
        producer = context.Process(target=produce, args=(pool, queue))
        for process in (producer, *workers):
            process.start()
        total = sum(results.get() for _ in workers)
        for process in (producer, *workers):
            process.join()
        expected = float(sum(number % 256 for number in range(FRAMES)))
        print(f"{FRAMES} frames, sum of means {total:.0f}, expected {expected:.0f}")
        stats = pool.stats()
        print(f"{stats.total_gets} leases, {stats.pool_misses} asked the broker")
        assert total == expected


if __name__ == "__main__":
    main()
