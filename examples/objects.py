"""A producer sends frames with their time stamps, workers reduce them: arrays without a copy.

python examples/objects.py
"""

import multiprocessing

import numpy as np

import shmpool


def work(address: str, tasks, results) -> None:
    with shmpool.connect(address) as pool:
        while (handle := tasks.get()) is not None:
            message = pool.get(handle)
            results.put((message["time"], float(message["frame"].mean())))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    tasks, results = context.SimpleQueue(), context.SimpleQueue()
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        workers = [context.Process(target=work, args=(broker.address, tasks, results)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for at in range(50):
            frame = np.full((480, 640, 3), at, np.uint8)
            tasks.put(pool.put({"frame": frame, "time": at / 25}))
        means = dict(results.get() for _ in range(50))
        for _ in workers:
            tasks.put(None)
        for worker in workers:
            worker.join()
    assert means == {at / 25: float(at) for at in range(50)}
    print(f"{len(means)} frames of {frame.nbytes} bytes reduced")


if __name__ == "__main__":
    main()
