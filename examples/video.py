"""A video pipeline: frames from a camera through workers to a display, in order, with back-pressure.

    python examples/video.py [FRAMES]

The queues are short: the camera waits while the workers are behind. Ctrl-C ends the whole group, and a
killed worker blocks nobody."""

import heapq
import multiprocessing
import sys
from contextlib import suppress
from signal import SIG_BLOCK, SIG_UNBLOCK, SIGINT, pthread_sigmask

import numpy as np

import shmpool

WORKERS, SHAPE = 2, (480, 640, 3)


def camera(frames, count):
    for number in range(count):
        frames.put((number, np.full(SHAPE, number % 256, np.uint8)))
    frames.put_many([None] * WORKERS)


def worker(frames, results):
    while (item := frames.get()) is not None:
        results.put((item[0], 255 - item[1]))


def quietly(work, *arguments):
    with suppress(KeyboardInterrupt):
        pthread_sigmask(SIG_UNBLOCK, {SIGINT})
        work(*arguments)


def main(count=100):
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        frames, results = shmpool.Queue(4, pool=pool), shmpool.Queue(4, pool=pool)
        work = [(camera, frames, count)] + [(worker, frames, results)] * WORKERS
        pthread_sigmask(SIG_BLOCK, {SIGINT})  # until each is where it is caught
        for arguments in work:  # daemons: gone with us
            multiprocessing.Process(target=quietly, args=arguments, daemon=True).start()
        pthread_sigmask(SIG_UNBLOCK, {SIGINT})
        early = []
        for number in range(count):
            while not early or early[0][0] != number:
                heapq.heappush(early, results.get(timeout=30))
            assert heapq.heappop(early)[1][0, 0, 0] == 255 - number % 256  # here it would be shown
            if number == 0:
                print("the first frame is there", flush=True)
        print(f"{count} frames, in order")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(*map(int, sys.argv[1:])))
    sys.exit(130)
