"""Many processes read one table: one of them makes it, there is one copy, and it is found by its name.

python examples/shared.py

With pandas the table is a frame, with pyarrow besides a table of that; with neither, numpy arrays.
"""

import multiprocessing

import numpy as np

import shmpool


def make_table():
    """What takes long to load."""
    columns = {"price": np.linspace(1.0, 2.0, 200_000), "volume": np.arange(200_000)}
    try:
        import pandas as pd
    except ImportError:
        return columns
    frame = pd.DataFrame(columns)
    try:
        import pyarrow as pa
    except ImportError:
        return frame
    return pa.Table.from_pandas(frame)


def work(address: str, results) -> None:
    with shmpool.connect(address) as pool:
        made = []

        def make():
            made.append(True)
            return make_table()

        table = pool.get_or_share("prices", make, keep="cache").get()
        volume = table["volume"]
        results.put((len(made), len(volume), int(np.asarray(volume)[-1])))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with shmpool.Broker(memory_limit="64MiB") as broker, broker.connect() as pool:
        workers = [context.Process(target=work, args=(broker.address, results)) for _ in range(4)]
        for worker in workers:
            worker.start()
        told = [results.get() for _ in workers]
        for worker in workers:
            worker.join()
        assert pool.names() == ["prices"]
        pool.drop("prices")
    assert sum(made for made, _, _ in told) == 1
    assert {(rows, last) for _, rows, last in told} == {(200_000, 199_999)}
    print(f"{len(told)} processes read one table, which was made once")


if __name__ == "__main__":
    main()
