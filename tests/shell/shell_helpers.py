"""A real broker in a child process, and a client that speaks the wire without the library."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import preloaded
from patience import PATIENCE, eventually

import shmpool.protocol
import shmpoold
from shmpool.protocol.framing import FrameDecoder, encode_frame
from shmpool.protocol.ledger import SEAT_LOCKS
from shmpool.protocol.messages import (
    FROM_BROKER,
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Hello,
    Message,
    Role,
    Welcome,
    decode,
    encode,
)
from shmpool.protocol.names import pool_prefix, seats_path
from shmpool.system.locks import ByteLocks

ROOTS = [str(Path(shmpool.protocol.__file__).parents[2]), str(Path(shmpoold.__file__).parents[1])]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(ROOTS)}
#: For children that use this module.
_OWN = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
TEST_ENV = {**ENV, "PYTHONPATH": os.pathsep.join([*_OWN, *ROOTS])}


#: The pools that this test made: others on the host are none of its business.
POOLS: set[int] = set()


def new_pool_id() -> int:
    pool_id = secrets.randbits(64) or 1
    POOLS.add(pool_id)
    return pool_id


def segments_of(pool_id: int) -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(pool_prefix(pool_id))}


def wait_until(holds: Callable[[], bool]) -> None:
    """Poll for a state that another process reaches by itself."""
    eventually(holds)


class Wire:
    """A client in plain socket calls."""

    def __init__(self, address: str | socket.socket) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(address)
        else:
            self.socket = address
        self.address: str = self.socket.getpeername()
        self.socket.settimeout(PATIENCE)
        self.decoder = FrameDecoder()
        self.inbox: list[Message] = []
        self.nonce = secrets.randbits(64)
        self.locks: ByteLocks | None = None

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(encode_frame(encode(message)) for message in messages))

    def receive(self) -> Message:
        """The next message; EOFError when the broker has ended the connection."""
        while not self.inbox:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.inbox += [decode(frame, FROM_BROKER) for frame in self.decoder.feed(data)]
        return self.inbox.pop(0)

    def hello(self, role: Role = Role.WORKER, pool_id: int = 0, seat: int = 0) -> Welcome:
        self.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, self.nonce, pool_id, seat))
        welcome = self.receive()
        assert isinstance(welcome, Welcome), welcome
        if role is Role.WORKER and self.locks is None:
            self.locks = ByteLocks(seats_path(self.address))
            self.locks.try_lock(SEAT_LOCKS + welcome.seat)  # an earlier Wire of this process may have it
        return welcome

    def close(self) -> None:
        self.socket.close()
        if self.locks is not None:
            self.locks.close()
            self.locks = None


class BrokerProcess:
    """`shmpoold` in a process of its own, ready to serve. *deadlines* are constants of
    shell/connection.py, made shorter so that a test need not wait so long."""

    def __init__(self, address: str, *options: str, pass_fds: tuple[int, ...] = (), **deadlines: float) -> None:
        reading, writing = os.pipe()
        self.address = address
        run = ["-m", "shmpoold"]
        if deadlines:
            run = ["-c", f"from shmpoold import cli; from shmpoold.shell import connection as c;"
                   f"vars(c).update({deadlines!r}); cli.main()"]  # fmt: skip
        command = [sys.executable, "-W", "error", *run, "--socket", address]
        self.process = preloaded.Popen(
            [*command, "--ready-fd", str(writing), "--set", "drain_timeout=0", *options],
            env=ENV, pass_fds=(writing, *pass_fds), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert select.select([pipe], [], [], PATIENCE)[0], "the broker did not report in time"
            self.report: dict[str, Any] = json.loads(pipe.readline() or b"{}")
        if "ready" in self.report:
            POOLS.add(self.pool_id)

    @property
    def pool_id(self) -> int:
        """By the note in its lock file."""
        return int(json.loads(Path(self.address.removesuffix(".sock") + ".lock").read_text())["pool"], 16)

    @property
    def pid(self) -> int:
        return self.process.pid

    def await_log(self, words: str) -> str:
        """Read what is logged up to the line that has these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return line
        raise AssertionError(f"the broker ended without a word of {words!r}")

    def signal(self, number: signal.Signals) -> str:
        """Send a signal and wait for the end; returns what was logged."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> str:
        _, errors = self.process.communicate(timeout=PATIENCE)
        return errors

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        if self.process.stderr and not self.process.stderr.closed:
            self.process.communicate(timeout=PATIENCE)
