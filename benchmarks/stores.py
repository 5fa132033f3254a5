"""Object stores of others, for `objects`: put, get and the end of an array, in a process of its own, with an
interpreter of its own where it needs one, that is asked for laps over a pipe.

Runs as ``python -m benchmarks.stores NAME`` there, so it imports nothing of shmpool.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

MEMORY = 1 << 30


@contextmanager
def _plasma() -> Iterator[Callable[[Any], object]]:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from pyarrow import plasma

    with tempfile.TemporaryDirectory(prefix="shmpool-benchmarks-") as folder:
        socket = os.path.join(folder, "plasma")
        program = os.path.join(os.path.dirname(sys.executable), "plasma_store")
        store = subprocess.Popen([program, "-m", str(MEMORY), "-s", socket], stdout=subprocess.DEVNULL, stderr=2)
        try:
            client = plasma.connect(socket, num_retries=100)

            def there_and_back(array: Any) -> None:
                name = client.put(array)
                got = client.get(name)
                del got
                client.delete([name])

            yield there_and_back
        finally:
            store.terminate()
            store.wait()


@contextmanager
def _ray() -> Iterator[Callable[[Any], object]]:
    import ray

    ray.init(num_cpus=1, object_store_memory=MEMORY, include_dashboard=False, log_to_driver=False)

    def there_and_back(array: Any) -> None:
        name = ray.put(array)
        got = ray.get(name)
        del got, name

    try:
        yield there_and_back
    finally:
        ray.shutdown()


STORES = {"Plasma": _plasma, "Ray": _ray}


def main(name: str, asked: IO[str], said: IO[str]) -> None:
    """Answer ``BYTES OBJECTS`` with the seconds that it took."""
    import numpy as np

    with STORES[name]() as there_and_back:
        print("ready", file=said, flush=True)
        for line in asked:
            nbytes, objects = map(int, line.split())
            array = np.ones(nbytes // 4, np.float32)
            started = time.perf_counter()
            for _ in range(objects):
                there_and_back(array)
            print(time.perf_counter() - started, file=said, flush=True)


class Store:
    """Such a process, from outside. Raises RuntimeError, with its last word, when it does not start."""

    def __init__(self, name: str, interpreter: str) -> None:
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self._process = subprocess.Popen(
            [interpreter, "-m", f"{__package__}.stores", name], cwd=root, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asks, self._says = self._process.stdin, self._process.stdout
        if self._says.readline() != "ready\n":
            error = self._process.communicate()[1].strip().splitlines()
            raise RuntimeError(error[-1] if error else f"{name} did not start")

    def lap(self, nbytes: int, objects: int) -> float:
        """Seconds for so many arrays of that size."""
        print(nbytes, objects, file=self._asks, flush=True)
        return float(self._says.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin, sys.stdout)
