"""A camera fills frames in place, workers read them in place: no copy on either side.

python examples/born.py
"""

import multiprocessing

import numpy as np

import shmpool


def work(address: str, tasks, results) -> None:
    with shmpool.connect(address) as pool:
        while (handle := tasks.get()) is not None:
            frame = pool.get(handle)
            results.put(int(frame[0, 0, 0]))
            del frame  # the memory goes back with the last array


def main() -> None:
    context = multiprocessing.get_context("spawn")
    tasks, results = context.SimpleQueue(), context.SimpleQueue()
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        worker = context.Process(target=work, args=(broker.address, tasks, results))
        worker.start()
        for at in range(50):
            with pool.empty((480, 640, 3), np.uint8) as frame:
                frame.array[:] = at  # as a camera would
                tasks.put(frame.publish(ttl=60))
        seen = sorted(results.get() for _ in range(50))
        tasks.put(None)
        worker.join()
    assert seen == list(range(50))
    print(f"{len(seen)} frames, filled and read in place")


if __name__ == "__main__":
    main()
