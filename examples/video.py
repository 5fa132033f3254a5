"""A video pipeline: frames from a camera through workers to a display, in order, with back-pressure.

    python examples/video.py [FRAMES]

The queues are short, so nobody runs ahead: the camera waits while the workers are behind. Ctrl-C ends
the whole group, a killed worker blocks nobody.
"""

from __future__ import annotations

import heapq
import multiprocessing
import sys

import numpy as np
from numpy.typing import NDArray

import shmpool

WORKERS = 2
SHAPE = (480, 640, 3)


def camera(frames: shmpool.Queue, count: int) -> None:
    for number in range(count):
        frames.put((number, np.full(SHAPE, number % 256, np.uint8)))
    frames.put_many([None] * WORKERS)


def worker(frames: shmpool.Queue, results: shmpool.Queue) -> None:
    while (item := frames.get()) is not None:
        number, frame = item
        results.put((number, 255 - frame))


def display(number: int, frame: NDArray[np.uint8]) -> None:
    assert (frame == 255 - number % 256).all()


def main(count: int = 100) -> None:
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        frames, results = shmpool.Queue(4, pool=pool), shmpool.Queue(4, pool=pool)
        crew = [multiprocessing.Process(target=camera, args=(frames, count))]
        crew += [multiprocessing.Process(target=worker, args=(frames, results)) for _ in range(WORKERS)]
        for process in crew:
            process.daemon = True  # gone with us, also after Ctrl-C
            process.start()
        early: list[tuple[int, NDArray[np.uint8]]] = []
        for number in range(count):
            while not early or early[0][0] != number:
                heapq.heappush(early, results.get(timeout=30))
            display(*heapq.heappop(early))
        print(f"{count} frames, in order")


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
