"""The daemon's life: lock, pool, core, server, and an orderly end.

Whatever was built is taken down again in the opposite order, also when a later step
fails. SIGKILL needs no help: the next broker finds lock files and segments, and takes
the pool up or removes it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from shmpool.errors import ConfigError
from shmpool.system import lifeline

from ..config import Config
from . import pools, systemd
from .files import AlreadyRunning, Earlier, RuntimeFiles
from .listener import Admission
from .reloading import Reloading
from .segments import Access
from .server import SPARE_CONNECTIONS, Server

log = logging.getLogger(__name__)

#: Allocations more than deallocations until the youngest generation is collected, and how many
#: collections of each until the next.
COLLECTED_AFTER: Final = (10_000, 50, 100)
#: Descriptors besides two for each connection: segments, lock files, the loop's own.
_OTHER_DESCRIPTORS: Final = 128 + 2 * SPARE_CONNECTIONS
#: How often the files' times are renewed; what cleans /tmp goes by days.
RENEW_EVERY: Final = 3600.0
#: A parent hears at least so often that we are still preallocating.
PROGRESS_EVERY: Final = 1.0
#: How long a private broker waits for another at its socket to end.
PREDECESSOR_SECONDS: Final = 1.0
#: How long a private broker that is to end lets its clients end first, and how long it is found out
#: whether it was its parent that did or the parent's program.
LAST_SECONDS: Final = 1.0
LOOKS_AT_PARENT: Final = 0.02
#: What ends a broker in an orderly way.
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(slots=True)
class Parent:
    """How a private broker hangs on its parent: a pidfd of it and a lifeline of its program
    (the end of either is our orderly end), and a descriptor that gets one line of JSON when it
    is known how we fare."""

    pidfd: int | None = None
    life_fd: int | None = None
    ready_fd: int | None = None

    def tell(self, report: dict[str, object]) -> None:
        """Write the line and close, once. A parent that does not listen is no error."""
        self.say(report)
        fd, self.ready_fd = self.ready_fd, None
        if fd is not None:
            os.close(fd)

    def say(self, report: dict[str, object]) -> None:
        """Write a line that is not the last."""
        if self.ready_fd is None:
            return
        try:
            with open(self.ready_fd, "wb", buffering=0, closefd=False) as pipe:
                pipe.write(json.dumps(report).encode() + b"\n")
        except BrokenPipeError:
            log.info("the parent has gone before it was told")
        except OSError as error:
            log.warning("cannot report to the parent: %s", error)


def run(config: Config, parent: Parent, read_again: Callable[[], Config], *, may_lower: bool = False) -> None:
    """Serve until told to stop; SIGHUP takes over what may change of what *read_again* gives.
    *may_lower*: nobody asked for this memory_limit, so it may be less where the host has less.
    Raises ConfigError (AlreadyRunning among them) and OSError when it cannot start; then
    nothing is left behind."""
    try:
        asyncio.run(_run(config, parent, read_again, may_lower=may_lower))
    except Exception as error:
        name = "ConfigError" if isinstance(error, ConfigError) else type(error).__name__
        parent.tell({"error": name, "message": str(error)})
        raise


async def _run(config: Config, parent: Parent, read_again: Callable[[], Config], *, may_lower: bool = False) -> None:
    stop = Stop(parent)  # first of all: from here on no signal ends us half way
    _raise_descriptor_limit(config.max_clients)
    activated = _activated_socket()
    if activated is not None:
        config = config.model_copy(update={"socket": activated.getsockname()})
    with ExitStack() as stack:
        if parent.pidfd is not None:
            stack.callback(_leave_directory, config.socket)
        files = RuntimeFiles(config.socket, Access(config.group))
        earlier = await _acquire(files, parent)
        # Until we serve it, an earlier broker's pool is not ours to remove.
        ending = Ending(keep=earlier is not None)
        stack.callback(lambda: (files.leave if ending.keep else files.remove)())
        listener = stack.enter_context(activated or files.listen())
        pool, server = _start(config, files, earlier, may_lower=may_lower)
        stack.callback(lambda: (pool.close if ending.keep else pool.remove)())
        _tame_the_collector()
        if not await _prepare(pool, server, stop, parent):
            return
        server.serve(listener, Admission.of(config.allow_uids, config.allow_gids, config.group))
        reloading = Reloading(config, read_again, server, lambda now: ending.follow(now, parent))
        stop.on_hangup(reloading.reload)
        ending.follow(config, parent)
        if config.metrics_address is not None:
            from .exporter import Exporter  # an HTTP server: a fifth of what else a broker's start costs

            exporter = Exporter(config.metrics_address, config.socket, Access(config.group))
            exporter.start()
            stack.callback(exporter.stop)
        how = f"taken up, epoch {pool.core.epoch}" if pool.is_adopted else "new"
        log.info("serving %s, pool %016x (%s)", config.socket, pool.store.pool_id, how)
        systemd.notify("READY=1")
        heartbeat = systemd.Heartbeat(server.status)
        heartbeat.start()
        stack.callback(heartbeat.stop)
        parent.tell({"ready": True, "address": config.socket, "pid": os.getpid()})
        await _serve_until(stop.requested, files)
        if parent.pidfd is not None:
            # One signal ends a whole group, one process after the other: nobody is to miss us first.
            await server.until_alone(LAST_SECONDS, stop.hurried)
        systemd.notify("STOPPING=1")
        if ending.patience and not ending.keep and parent.pidfd is None:
            await _drain(server, stop, ending.patience)
        await server.stop()
        stop.ignore_more()
    log.info("stopped; pool %016x is %s", pool.store.pool_id, "kept" if ending.keep else "removed")


def _tame_the_collector() -> None:
    """What is here now stays: collections need not look at it. What comes later, a record for each
    thing granted, is no cycle: the oldest generation is looked at so rarely that no client meets it
    (9 ms with 41,000 leases), and often enough for whatever cycles there may be."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


async def _serve_until(requested: asyncio.Event, files: RuntimeFiles) -> None:
    """Wait for the end, and keep the files young meanwhile."""
    while True:
        try:
            await asyncio.wait_for(requested.wait(), RENEW_EVERY)
            return
        except TimeoutError:
            files.renew()


async def _drain(server: Server, stop: Stop, seconds: float) -> None:
    """Let clients give back what they have, for so long or until we are told a second time."""
    server.drain()
    waits = [asyncio.ensure_future(event.wait()) for event in (server.drained, stop.insisted)]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _prepare(pool: pools.Pool, server: Server, stop: Stop, parent: Parent) -> bool:
    """Reserve what is to be reserved before anybody is served. False when we are to stop first.
    Raises ConfigError when a new pool cannot have it; an earlier one's clients go on with less."""
    server.prepare()
    if not server.prepared.is_set():
        waits = [asyncio.ensure_future(event.wait()) for event in (server.prepared, stop.requested)]
        try:
            while not any(wait.done() for wait in waits):
                await asyncio.wait(waits, timeout=PROGRESS_EVERY, return_when=asyncio.FIRST_COMPLETED)
                parent.say({"preparing": pool.core.inventory.held})
        finally:
            for wait in waits:
                wait.cancel()
        if stop.requested.is_set():
            await server.stop()
            return False
    if server.preparation_failure and not pool.is_adopted:
        raise ConfigError(
            f"what preallocate says cannot be had: {server.preparation_failure}. Lower preallocate, or make room"
        )
    return True


async def _acquire(files: RuntimeFiles, parent: Parent) -> Earlier | None:
    """Become the only broker here. A parent that has called exec starts its next broker while the
    last one is just ending, so a private broker waits a little for another."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (PREDECESSOR_SECONDS if parent.life_fd is not None else 0.0)
    while True:
        try:
            return files.acquire()
        except AlreadyRunning:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(0.02)


def _leave_directory(address: str) -> None:
    """A private broker's directory was made for it; if the parent was killed, nobody else
    removes it."""
    directory = os.path.dirname(address)
    if os.path.basename(directory).startswith("shmpool-"):
        with suppress(OSError):
            os.rmdir(directory)


def _start(
    config: Config, files: RuntimeFiles, earlier: Earlier | None, *, may_lower: bool
) -> tuple[pools.Pool, Server]:
    """The pool and a server for it, with all that an earlier broker left settled."""
    if earlier is not None and earlier.is_copy:
        log.warning(
            "what lies beside %s is a copy of another broker's directory: that one's pool %016x is left alone",
            config.socket,
            earlier.pool_id,
        )
        earlier = None
    pool = pools.open_pool(config, files, earlier.pool_id if earlier else None, may_lower=may_lower)
    try:
        server = Server(pool.core, pool.store, pool.locks.tickets, pool.locks.seats)
        if pool.is_adopted and not _adopt(server):
            pool.remove()
            pool = pools.open_pool(config, files, None, may_lower=may_lower)
            server = Server(pool.core, pool.store, pool.locks.tickets, pool.locks.seats)
        _make_known(pool, files)
    except BaseException:
        (pool.close if pool.is_adopted else pool.remove)()
        raise
    return pool, server


def _make_known(pool: pools.Pool, files: RuntimeFiles) -> None:
    """Tidy up after an earlier broker, say what is damaged, and note whose pool this is."""
    if pool.is_adopted:
        pools.remove_orphaned_segments(pool.store)
        if damaged := len(pool.core.inventory.quarantined):
            log.error(
                "pool %016x: %d rows of its ledger are damaged and not given out again", pool.store.pool_id, damaged
            )
    files.record(pool.store.pool_id)


def _adopt(server: Server) -> bool:
    """Whether the core could make sense of an earlier broker's ledger, which any client
    may have scribbled on."""
    try:
        server.adopt()
    except Exception:
        log.exception("the ledger makes no sense: removing the pool and starting a new one")
        return False
    return True


@dataclass(slots=True)
class Ending:
    """Whether the pool stays when we go, and else for how many seconds we wait for what is out."""

    keep: bool
    patience: float = 0.0

    def follow(self, config: Config, parent: Parent) -> None:
        """As the configuration says; a private broker's pool never stays."""
        self.patience = config.drain_timeout
        self.keep = config.on_stop == "keep" and parent.pidfd is None


class Stop:
    """The reasons to end: SIGTERM, SIGINT, the parent's death. A private broker leaves
    SIGINT to its parent: Ctrl-C reaches both, and the parent may still need its pool. It is in a
    hurry when the parent lives and wants it no longer (it has closed it, or called exec)."""

    def __init__(self, parent: Parent) -> None:
        self._loop = asyncio.get_running_loop()
        self.requested = asyncio.Event()
        #: A second signal: at once.
        self.insisted = asyncio.Event()
        self.hurried = asyncio.Event()
        self._is_orphaned = False
        self._loop.add_signal_handler(signal.SIGTERM, self._because, "SIGTERM")
        self.on_hangup(lambda: log.warning("SIGHUP while starting: the configuration has just been read"))
        if parent.pidfd is None:
            self._loop.add_signal_handler(signal.SIGINT, self._because, "SIGINT")
        else:
            self._loop.add_signal_handler(signal.SIGINT, log.info, "SIGINT is left to the parent")
            self._loop.add_reader(parent.pidfd, self._parent_ended, parent.pidfd)
        self.ignore_more()  # in the other thread for good
        if parent.life_fd is not None:
            threading.Thread(target=self._await_program_s_end, args=(parent.life_fd,), daemon=True).start()
        # A private broker is started with them blocked: until now they would have killed it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    def ignore_more(self) -> None:
        """Hold signals back, at last until the process ends: it does anyway, with status 0."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def on_hangup(self, act: Callable[[], None]) -> None:
        """What SIGHUP does from now on."""
        self._loop.add_signal_handler(signal.SIGHUP, act)

    def _because(self, reason: str) -> None:
        log.info("stopping: %s", reason)
        (self.insisted if self.requested.is_set() else self.requested).set()

    def _parent_ended(self, pidfd: int) -> None:
        self._is_orphaned = True
        self._loop.remove_reader(pidfd)
        self._because("the parent has ended")

    def _await_program_s_end(self, life_fd: int) -> None:
        """A thread of its own, for the kernel has no descriptor to poll that tells of a lock."""
        lifeline.wait(life_fd)
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._program_ended)

    def _program_ended(self) -> None:
        """When it is a process that ends, the kernel lets go of its locks a moment before its pidfd tells."""
        self._because("the parent runs another program, or has ended")
        self._loop.call_later(LOOKS_AT_PARENT, self._hurry)

    def _hurry(self) -> None:
        if not self._is_orphaned:
            self.hurried.set()


def _activated_socket() -> socket.socket | None:
    try:
        return systemd.activated_socket()
    except (ValueError, OSError) as error:
        raise ConfigError(f"socket activation: {error}") from error


def _raise_descriptor_limit(max_clients: int) -> None:
    """Each client takes a socket and a pidfd."""
    wanted = 2 * max_clients + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            log.warning("only %d descriptors are allowed (LimitNOFILE); max_clients %d needs %d", soft, max_clients,
                        wanted)  # fmt: skip
