"""A client that does what its stdin says, one JSON object a line, and answers on stdout.

A script of its own, so that it has one thread besides shmpool's, and dies without anybody's help.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from fcntl import fcntl
from typing import Any

import fault_helpers

import shmpool
from shmpool.system.locks import F_OFD_SETLK, lock_bytes

#: One of each strategy, and two of a size.
SIZES = (1000, 1000, 200_000, 300_000, 1_000_000, 2_000_000)


def say(thing: Any) -> None:
    sys.stdout.write(json.dumps(thing) + "\n")
    sys.stdout.flush()


def dying() -> None:
    """The last word before a death by its own hand: when."""
    say(time.monotonic())


class Client:
    def __init__(self, address: str) -> None:
        self.pool = shmpool.connect(address)
        self.leases: list[shmpool.Lease] = []
        self.buffers: list[tuple[shmpool.Buffer, int]] = []

    # --- getting into a state ---------------------------------------------------------------------

    def lease(self, fill: float = 0.5) -> None:
        """Hold leases of all kinds, written as far as *fill*."""
        for seed, nbytes in enumerate(SIZES):
            lease = self.pool.lease(nbytes)
            data = fault_helpers.pattern(nbytes, seed)[: int(nbytes * fill)]
            lease.view[: len(data)] = data
            self.leases.append(lease)
        say("leased")

    def publish(self, many: int = 1) -> None:
        """Publish one of each kind, for *many* readers each."""
        handles = []
        for seed, nbytes in enumerate(SIZES):
            with self.pool.lease(nbytes) as lease:
                lease.write(fault_helpers.pattern(nbytes, seed))
                handles += [handle.hex() for handle in lease.publish_many(many)]
        say(handles)

    def publish_leases(self) -> None:
        handles = []
        for seed, lease in enumerate(self.leases):
            lease.view[:] = fault_helpers.pattern(lease.nbytes, seed)
            handles.append(lease.publish().hex())
        self.leases.clear()
        say(handles)

    def open(self, handles: list[str], seeds: list[int]) -> None:
        """Open and keep open."""
        for handle, seed in zip(handles, seeds, strict=True):
            self.buffers.append((self.pool.open(shmpool.Handle(bytes.fromhex(handle))), seed))
        self.check()

    def check(self) -> None:
        """Look at everything that stands open."""
        good = [buffer.view == fault_helpers.pattern(buffer.nbytes, seed) for buffer, seed in self.buffers]
        say(good)

    def release(self) -> None:
        while self.buffers:
            self.buffers.pop()[0].release()
        say("released")

    def lock(self, handle: str) -> None:
        """Stop in the middle of opening: the ticket's byte is locked, the cell untouched."""
        session = self.pool._session
        assert session
        index = int.from_bytes(bytes.fromhex(handle)[16:], "little") >> 40
        fcntl(session.tickets_fd, F_OFD_SETLK, lock_bytes(index))
        say(index)

    def take(self, handle: str) -> None:
        """Open it, and never say so: TAKEN is stored, no buffer was handed out."""
        buffer = self.pool.open(shmpool.Handle(bytes.fromhex(handle)))
        self.buffers.append((buffer, -1))
        say("taken")

    # --- dying --------------------------------------------------------------------------------------

    def die_exit(self) -> None:
        dying()
        sys.exit(0)

    def die_hard_exit(self) -> None:
        dying()
        os._exit(3)

    def die_segfault(self) -> None:
        dying()
        ctypes.string_at(0)

    def die_exec(self) -> None:
        """The process lives on, as something else."""
        dying()
        os.execv("/bin/sleep", ["sleep", "3600"])

    def die_raw_fork(self) -> None:
        """A child that no Python hook knows of keeps everything: socket, maps, locks."""
        libc = ctypes.PyDLL(None)
        child = libc.fork()
        if child == 0:
            while True:
                libc.pause()
        say(child)
        dying()
        os.kill(os.getpid(), signal.SIGKILL)

    def die_fork(self) -> None:
        """A child by os.fork goes on, with a seat of its own; it has let go of the parent's before the parent dies."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            # Our end of the parent's stdin and stdout would confuse whoever reads them.
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            self.pool.lease(5000).release()
            os.write(writing, b"1")
            while True:
                signal.pause()
        os.close(writing)
        os.read(reading, 1)
        say(child)
        dying()
        os.kill(os.getpid(), signal.SIGKILL)

    def wait(self) -> None:
        """To be killed."""
        say("waiting")


if __name__ == "__main__":
    client = Client(sys.argv[1])  # a global: it is still there when the interpreter exits
    say("ready")
    for line in sys.stdin:
        arguments = json.loads(line)
        getattr(client, arguments.pop("command"))(**arguments)
