"""Seats held in a real pool by a process of its own, as so many idle clients do:
``python -m benchmarks.seats SOCKET COUNT``. It says that it holds them, and lets go at the end of its stdin."""

from __future__ import annotations

import fcntl
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shmpool.link.connection import Connection
from shmpool.link.hello import dial, greet
from shmpool.protocol.ledger import SEAT_LOCKS
from shmpool.protocol.messages import Role
from shmpool.protocol.names import seats_path
from shmpool.system.locks import F_OFD_SETLK, lock_bytes, open_beside

#: Seconds for all of them to be admitted.
PATIENCE = 60.0


@contextmanager
def held(address: str, count: int) -> Iterator[None]:
    """So many seats are held within the block."""
    command = [sys.executable, "-m", "benchmarks.seats", address, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        if not holder.stdout.readline():
            raise RuntimeError(f"{count} seats could not be had: its holder ended with status {holder.wait()}")
        yield


def _sit(address: str) -> Connection:
    """A connection with a seat whose byte is locked, as a client's is; the open file stays so."""
    connection = dial(address, time.monotonic() + PATIENCE)
    welcome = greet(connection, Role.WORKER, secrets.randbits(64), 0, 0, time.monotonic() + PATIENCE)
    fd = open_beside(address, seats_path, welcome.seats_file, welcome.pool_id)
    fcntl.fcntl(fd, F_OFD_SETLK, lock_bytes(SEAT_LOCKS + welcome.seat))
    return connection


def main() -> None:
    address, count = sys.argv[1], int(sys.argv[2])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    seats = [_sit(address) for _ in range(count)]
    print(f"{len(seats)} seats", flush=True)
    os.read(0, 1)


if __name__ == "__main__":
    main()
