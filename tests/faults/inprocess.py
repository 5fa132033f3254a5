"""The whole daemon in this process and thread: `service._run` with a scenario in the place of
"wait until told to stop", a client in plain non-blocking calls, and system calls that fail.

Only the calls of the shell (and of what it uses of `shmpool.system`) go through `Faults`:
the modules get other ``os``, ``mmap``, ``socket``, ``fcntl`` and ``open`` than everybody else.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import fcntl
import mmap
import multiprocessing.shared_memory as shared_memory
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from shmpool.protocol import sizing
from shmpool.protocol.framing import FrameDecoder, encode_frame
from shmpool.protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    ONE_GENERATION,
    ROW_WORDS,
    SEAT_LOCKS,
    STATE_SHIFT,
    extent_word,
)
from shmpool.protocol.messages import (
    FROM_BROKER,
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Bell,
    Direct,
    Fault,
    Goodbye,
    Grant,
    Hello,
    Message,
    Recall,
    Refill,
    Refusal,
    Return,
    Role,
    Welcome,
    decode,
    encode,
)
from shmpool.protocol.names import parse_pool_id, seats_path
from shmpool.protocol.sizing import KIB, MIB
from shmpool.protocol.states import State
from shmpool.system import locks, memory, processes
from shmpoold.config import Config
from shmpoold.core.objects import custody
from shmpoold.core.recovery import invariants
from shmpoold.shell import (
    connection,
    files,
    listener,
    pools,
    segments,
    server,
    service,
    tickets,
    untracked,
    watches,
)

#: Seconds until something that the broker does by itself is said not to happen.
PATIENCE = 60.0
POOLED, CHUNKS = 0, 1


def small_config(address: str, **changes: Any) -> Config:
    """Few rows, and everything that waits does so for milliseconds."""
    return Config(**{
        "socket": address, "memory_limit": MIB, "max_clients": 4, "pooled_sizes": (4 * KIB,),
        "chunk_sizes": (16 * KIB,), "medium_object_threshold": 4 * KIB, "large_object_threshold": 4 * KIB,
        "very_large_object_threshold": 64 * KIB, "handle_ttl": 0.002, "drain_timeout": 0, **changes,
    })  # fmt: skip


#: The pools that `run_daemon` made: others on the host are none of its business.
POOLS: set[int] = set()


def segments_left() -> set[str]:
    """The names in /dev/shm of the pools that were made here."""
    return {name for name in os.listdir("/dev/shm") if parse_pool_id(name) in POOLS}


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# --- the daemon ----------------------------------------------------------------------------------


class Daemon:
    """What a scenario sees of a running broker: the last *pool* and its *server*."""

    pool: pools.Pool
    server: server.Server

    @property
    def ledger(self) -> memoryview[int]:
        return self.pool.store.ledger

    async def until(self, holds: Callable[[], bool]) -> None:
        """Let the loop run until something holds that comes by itself."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await asyncio.sleep(0.0005)

    async def until_all_is_back(self) -> None:
        """Nobody sits and nothing is held, or cooling is all that is left to do."""
        core = self.pool.core
        lending = core.lending
        await self.until(lambda: not (core.seats.taken or core.inventory.granted or lending.grants))
        invariants.check(core)


Scenario = Callable[[Daemon], Awaitable[None]]


def run_daemon(config: Config, scenario: Scenario) -> None:
    """Start, serve the scenario, stop in an orderly way. Raises what `service.run` does."""
    daemon = Daemon()

    class Stop:
        def __init__(self, parent: service.Parent) -> None:
            self.requested = self
            self.insisted = asyncio.Event()  # nobody does

        async def wait(self) -> None:
            await scenario(daemon)

        def on_hangup(self, act: Callable[[], None]) -> None:
            """None comes."""

        def ignore_more(self) -> None:
            """Signals are the test run's business."""

    def start(*args: Any, **options: Any) -> Any:
        daemon.pool, daemon.server = _start(*args, **options)
        return daemon.pool, daemon.server

    def new_pool_id(bits: int) -> int:
        pool_id = secrets.randbits(bits)
        POOLS.add(pool_id)
        return pool_id

    _start = service._start
    with (
        patch.object(pools, "secrets", Module(secrets, randbits=new_pool_id)),
        patch.object(service, "Stop", Stop),
        patch.object(service, "_start", start),
        patch.object(sizing, "DIRECT_ROWS", 8),
        patch.object(custody, "FIRST", 0.001),
        patch.object(listener, "PAUSE", 0.001),
        patch.object(watches, "RETRY", 0.001),
        patch.object(tickets, "FIRST_RETRY", 0.001),
        patch.object(server, "TICK_AFTER_ERROR", 0.001),
    ):
        asyncio.run(service._run(config, service.Parent(), lambda: config))


# --- a client ---------------------------------------------------------------------------------------


class Refused(Exception):
    """The broker said clearly why not, or ended the connection."""


class Client:
    """Speaks the wire, and stores in the daemon's own ledger what a client stores."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._decoder = FrameDecoder()
        self._inbox: list[Message] = []
        self._seats = -1
        self.seat = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of socket and seat. May be called twice."""
        self._socket.close()
        fd, self._seats = self._seats, -1
        if fd >= 0:
            os.close(fd)

    async def connect(self, address: str) -> Welcome:
        try:
            await self._loop.sock_connect(self._socket, address)
        except OSError as error:
            raise Refused(str(error)) from error
        welcome = await self.ask(Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.WORKER, secrets.randbits(64), 0, 0))
        assert isinstance(welcome, Welcome)
        self.seat = welcome.seat
        self._seats = os.open(seats_path(address), os.O_RDWR | os.O_CLOEXEC)  # whose calls must not fail
        fcntl.fcntl(self._seats, locks.F_OFD_SETLK, locks.lock_bytes(SEAT_LOCKS + self.seat))
        return welcome

    async def send(self, message: Message) -> None:
        try:
            await self._loop.sock_sendall(self._socket, encode_frame(encode(message)))
        except OSError as error:
            raise Refused(str(error)) from error

    async def ask(self, message: Message) -> Message:
        """Send, and wait for what is no Recall. Raises Refused."""
        await self.send(message)
        while True:
            answer = await self._receive()
            if isinstance(answer, Refusal | Fault):
                assert answer.text
                raise Refused(answer.text)
            if not isinstance(answer, Recall):
                return answer

    async def _receive(self) -> Message:
        while not self._inbox:
            try:
                async with asyncio.timeout(PATIENCE):
                    data = await self._loop.sock_recv(self._socket, 65536)
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                raise Refused(str(error)) from error
            if not data:
                raise Refused("the connection was ended")
            self._inbox += [decode(frame, FROM_BROKER) for frame in self._decoder.feed(data)]
        return self._inbox.pop(0)

    async def refill(self, number: int, tier: int, chunks: int = 1, count: int = 1) -> list[int]:
        return await self._granted(Refill(number, tier, chunks, count, False))

    async def direct(self, number: int, nbytes: int) -> list[int]:
        return await self._granted(Direct(number, nbytes, False))

    async def _granted(self, message: Message) -> list[int]:
        grant = await self.ask(message)
        assert isinstance(grant, Grant)
        ledger = self._daemon.ledger
        for row in grant.rows:
            assert ledger[row * ROW_WORDS] & ~GENERATION_FIELD == State.IDLE << STATE_SHIFT | self.seat
        return grant.rows

    async def give_back(self, *rows: int) -> None:
        ledger = self._daemon.ledger
        for row in rows:
            generation = ledger[row * ROW_WORDS] & GENERATION_FIELD
            ledger[row * ROW_WORDS] = generation + ONE_GENERATION | State.RETURNED << STATE_SHIFT
        await self.send(Return(list(rows)))

    async def publish(self, row: int, nbytes: int, custodian: int) -> None:
        """One ticket; the broker is rung if it is the custodian."""
        ledger, at = self._daemon.ledger, row * ROW_WORDS
        granted = ledger[at] & GENERATION_FIELD | State.PUBLISHED << STATE_SHIFT | custodian
        ledger[at + EXTENT] = extent_word(nbytes, 1, self.seat if custodian == 0 else 1)
        ledger[at + FIRST_CELL] = granted
        ledger[at] = granted
        if custodian == 0:
            await self.send(Bell([row]))

    async def goodbye(self) -> None:
        await self.send(Goodbye())


# --- system calls that fail ----------------------------------------------------------------------------

OS_CALLS = {
    "open", "ftruncate", "fstat", "stat", "lstat", "unlink", "posix_fallocate", "fchmod", "fchown", "chmod", "chown",
    "makedirs", "listdir", "statvfs", "read", "pwrite", "pidfd_open", "dup",
}  # fmt: skip
SOCKET_CALLS = ("accept", "bind", "listen", "connect", "recv", "send", "sendmsg", "getsockopt", "setblocking")
MODULES = (
    connection, files, listener, locks, memory, pools, processes, segments, server, service, shared_memory, tickets,
    untracked, watches,
)  # fmt: skip


class Faults:
    """Counts system calls, in the order in which they come; the one that *fails* says raises
    an OSError of *number* and is not made. *fired* is its name then."""

    def __init__(self, fails: int | None = None, number: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self.fails = fails
        self.number = number
        self.fired: str | None = None

    def check(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self.fails:
            self.fired = name
            raise OSError(self.number, os.strerror(self.number), name)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.check(name)
            return call(*args, **options)

        return wrapped


class Module:
    """A module some of whose attributes are others."""

    def __init__(self, module: Any, **others: Any) -> None:
        self.__dict__.update(vars(module), **others)


@contextmanager
def failing(faults: Faults) -> Iterator[Faults]:
    """Let the shell's system calls go through *faults*."""

    class Map(mmap.mmap):
        def __new__(cls, *args: Any, **options: Any) -> Map:
            faults.check("mmap")
            return super().__new__(cls, *args, **options)

        def madvise(self, *args: Any) -> None:
            faults.check("madvise")
            super().madvise(*args)

    class Socket(socket.socket):
        def __init__(self, *args: Any, **options: Any) -> None:
            if not options:
                faults.check("socket")
            super().__init__(*args, **options)

        def accept(self) -> Any:
            faults.check("accept")
            fd, address = self._accept()  # type: ignore[attr-defined]
            return Socket(self.family, self.type, self.proto, fileno=fd), address

    for name in SOCKET_CALLS[1:]:
        setattr(Socket, name, _method(faults, name, getattr(socket.socket, name)))
    others = {
        "os": Module(os, **{name: faults.wrap(name, getattr(os, name)) for name in OS_CALLS}),
        "mmap": Module(mmap, mmap=Map),
        "socket": Module(socket, socket=Socket),
        "fcntl": Module(fcntl, fcntl=faults.wrap("fcntl", fcntl.fcntl), flock=faults.wrap("flock", fcntl.flock)),
        "_posixshmem": None,
    }
    posixshmem = getattr(shared_memory, "_posixshmem", None)
    if posixshmem is not None:
        calls = {name: faults.wrap(name, getattr(posixshmem, name)) for name in ("shm_open", "shm_unlink")}
        others["_posixshmem"] = Module(posixshmem, **calls)

    def opening(path: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(path, int):
            faults.check("open")
        return builtins.open(path, *args, **options)

    patches = [
        patch.object(module, name, other)
        for module in MODULES
        for name, other in others.items()
        if name in vars(module)
    ]
    patches += [patch.object(module, "open", opening, create=True) for module in MODULES]
    for one in patches:
        one.start()
    try:
        yield faults
    finally:
        for one in reversed(patches):
            one.stop()


def _method(faults: Faults, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: socket.socket, *args: Any) -> Any:
        faults.check(name)
        return call(self, *args)

    return method
