"""The installed package works: an object of each strategy passes from one process to another, without a copy.

Run it from outside the checkout, with the interpreter of the environment that shmpool was installed into.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import shmpool

SIZES = (1, 5000, 100_000, 600_000, 5_000_000)


def pattern(nbytes: int) -> bytes:
    """Of this length, no two neighbouring pages alike."""
    return bytes(range(251)) * (nbytes // 251 + 1)


def write(address: str, pipe: Connection) -> None:
    """In a process of its own: an object of each size, its handle through the pipe."""
    with shmpool.connect(address) as pool:
        for nbytes in SIZES:
            with pool.lease(nbytes) as lease:
                lease.write(pattern(nbytes)[:nbytes])
                pipe.send_bytes(bytes(lease.publish()))


def main() -> None:
    """Read what the other process has written; then nothing is left of it."""
    assert Path(shmpool.__file__).is_relative_to(sys.prefix), f"{shmpool.__file__} is not the installed one"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with shmpool.Broker(memory_limit="32MiB") as broker, broker.connect() as pool:
        writer = context.Process(target=write, args=(broker.address, theirs))
        writer.start()
        theirs.close()
        for nbytes in SIZES:
            with pool.open(ours.recv_bytes()) as buffer:
                assert buffer.view == pattern(nbytes)[:nbytes]
        writer.join()
        assert writer.exitcode == 0
        assert pool.stats().active_buffers == 0
    print(f"{len(SIZES)} objects arrived, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
