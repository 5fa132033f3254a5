"""A broker as a child process: starting `shmpoold`, waiting until it is ready, stopping it, and
clearing up behind one that could not do so itself. Does not cover what a broker does, nor its
settings, which it checks itself and reports by name.

The child watches a pidfd of this process and a lifeline of this program, and ends with either,
whatever becomes of us: also when this process calls exec. It
runs in a session of its own, so that Ctrl-C in a terminal reaches the workers first and
the broker only by our word.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, Final

from . import errors
from .addresses import MAX_PATH
from .errors import BrokerUnavailable, ConfigError, ShmpoolError
from .protocol.names import lock_path, pool_prefix, seats_path, tickets_path
from .system.lifeline import Lifeline
from .system.limits import explain
from .system.locks import FileLock
from .system.outside import exists, own, own_or_called, variable

#: Seconds until a new broker must have said that it is ready.
START_TIMEOUT: Final = 30.0
#: Seconds that an orderly stop may take before the broker is killed.
STOP_TIMEOUT: Final = 5.0

_SHM: Final = "/dev/shm"
_SOCKET: Final = "broker.sock"
_MAX_READY_LINE: Final = 64 * 1024
#: How a line begins that says only that it is still preallocating.
_PROGRESS: Final = b'{"preparing"'


class Running:
    """A broker's process and its files. The finalizer of `embedded.Broker` holds this, so it must not know the
    Broker. *directory* is removed at the end; None when the caller chose the socket."""

    def __init__(
        self, address: str, directory: str | None, process: subprocess.Popen[bytes], lifeline: Lifeline
    ) -> None:
        self.address = address
        self.directory = directory
        self.process = process
        self.lifeline = lifeline
        self.owner = os.getpid()


def start(settings: dict[str, Any]) -> Running:
    """Start a broker, and return when it is ready. Raises ConfigError, and BrokerUnavailable when it
    does not start; nothing is left behind then."""
    chosen = settings.pop("socket", None)
    text = _settings_text({"log_level": "warning", **settings})
    directory = None if chosen is not None else _make_directory()
    address = os.path.join(directory, _SOCKET) if directory is not None else os.path.abspath(chosen)
    ready = ready_child = -1
    try:
        try:
            ready, ready_child = os.pipe()
        except own(OSError) as error:
            raise BrokerUnavailable(f"cannot start {sys.executable} -m shmpoold: {explain(error)}") from error
        running = Running(address, directory, *_launch(address, text, ready_child))
        os.close(ready_child)
        ready_child = -1
        try:
            _await_ready(running.process, ready)
        except BaseException:
            stop(running)
            raise
    except BaseException:
        if directory is not None:
            _remove_directory(directory)
        raise
    finally:
        for fd in (ready, ready_child):
            if fd < 0:
                continue
            os.close(fd)
    return running


def _settings_text(settings: dict[str, Any]) -> str:
    """The settings as JSON. Raises ConfigError for a value that no configuration has."""
    for key, value in settings.items():
        try:
            json.dumps(value, default=os.fspath)
        except own_or_called(TypeError, ValueError) as error:
            raise ConfigError(f"{key} = {value!r}: a setting is text, a number or a list of them") from error
    return json.dumps(settings, default=os.fspath)


def _launch(address: str, settings: str, ready: int) -> tuple[subprocess.Popen[bytes], Lifeline]:
    if not sys.executable:
        raise BrokerUnavailable("this interpreter does not know its own path, so it cannot start shmpoold")
    parent = life = -1
    lifeline = None
    try:
        parent = os.pidfd_open(os.getpid())
        lifeline = Lifeline()
        life = lifeline.fd
        command = [sys.executable, "-P", "-m", "shmpoold", "--socket", address, "--settings", settings]
        command += ["--parent-fd", str(parent), "--life-fd", str(life), "--ready-fd", str(ready)]
        # Until it can end in an orderly way a signal to all of us must not end it: it inherits
        # the mask, and has its handlers before it looks at what came.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(parent, life, ready),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException as error:
        if lifeline is not None:
            lifeline.cut()
        if isinstance(error, OSError):
            raise BrokerUnavailable(f"cannot start {sys.executable} -m shmpoold: {explain(error)}") from error
        raise
    finally:
        for fd in (parent, life):
            if fd < 0:
                continue
            os.close(fd)
    return process, lifeline


def _await_ready(process: subprocess.Popen[bytes], ready: int) -> None:
    """Return when the broker is ready; raise what it says is wrong. As long as it says that it
    makes progress it is waited for."""
    received = bytearray()
    while (line := _read_line(process, ready, received, time.monotonic() + START_TIMEOUT)) is not None:
        if not line.startswith(_PROGRESS):
            break
    if line is None:
        status = process.poll()
        if status is None:
            raise BrokerUnavailable(f"the broker (pid {process.pid}) was not ready within {START_TIMEOUT:.0f} s")
        raise BrokerUnavailable(
            f"the broker ended before it was ready, {_describe(status)}; what it wrote to stderr says why."
            f" Is shmpoold installed for {sys.executable}?"
        )
    try:
        report = json.loads(line)
        if report.get("ready") is True:
            return
        name, message = str(report["error"]), str(report["message"])
    except own(ValueError, KeyError, AttributeError) as error:
        raise BrokerUnavailable(f"the broker's first words make no sense: {line[:200]!r}") from error
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ShmpoolError):
        raise kind(message)
    raise BrokerUnavailable(f"the broker did not start: {message} [{name}]")


def _read_line(process: subprocess.Popen[bytes], ready: int, received: bytearray, deadline: float) -> bytes | None:
    """The broker's next line, or None at its end or the deadline. Its end is taken from a
    pidfd as well, since a process forked elsewhere meanwhile may hold the pipe open."""
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            if b"\n" in received or len(received) >= _MAX_READY_LINE:
                break
            events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
            if ready not in events:
                return None
            data = os.read(ready, 4096)
            if not data:
                # It closed the pipe without a word: most likely it is just about to end.
                poll.unregister(ready)
                poll.poll(max(0.0, min(1.0, deadline - time.monotonic())) * 1000)
                return bytes(received) or None
            received += data
        line, _, rest = received.partition(b"\n")
        received[:] = rest
        return bytes(line)
    finally:
        os.close(ended)


# --- stopping ------------------------------------------------------------------------------


def stop(running: Running) -> None:
    """End the broker and remove what is left. Blocks at most `STOP_TIMEOUT` and a little."""
    if os.getpid() != running.owner:
        return
    process = running.process
    process.terminate()
    running.lifeline.cut()
    try:
        process.wait(STOP_TIMEOUT)
    except own(subprocess.TimeoutExpired):
        process.kill()
        process.wait()
    if process.returncode != 0:
        _remove_pool(running.address, process.pid)
    if running.directory is not None:
        _remove_directory(running.directory)


def _remove_pool(address: str, pid: int) -> None:
    """Remove what a broker that was killed has left: the segments of its pool, whose id
    stands in the lock file beside the socket, then these files. Only under that file's
    lock, and only if the note in it is that broker's: a pool that another has taken up
    in the meantime is none of our business."""
    lock = FileLock(lock_path(address))
    if not exists(lock.path):
        return  # it never came so far
    try:
        if not lock.try_acquire():
            return
        note = json.loads(lock.read())
        prefix = pool_prefix(int(note["pool"], 16))
        if note["pid"] != pid:
            return
        for name in os.listdir(_SHM):
            if not name.startswith(prefix):
                continue
            _unlink(os.path.join(_SHM, name))
        for path in (address, tickets_path(address), seats_path(address), lock.path):
            _unlink(path)
    except own(OSError, ValueError, KeyError, TypeError):
        pass  # no note: it had no pool yet
    finally:
        lock.release()


def _describe(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"with exit status {status}"


# --- its directory ---------------------------------------------------------------------------


def _make_directory() -> str:
    """A private directory whose path leaves room for a socket's name."""
    candidates = [variable("XDG_RUNTIME_DIR"), variable("TMPDIR"), "/tmp"]
    failure: OSError = FileNotFoundError(errno.ENOENT, "no usable directory", "/tmp")
    for base in candidates:
        path = os.path.join(base, f"shmpool-{os.urandom(6).hex()}")
        if not os.path.isabs(path) or len(os.fsencode(os.path.join(path, _SOCKET))) > MAX_PATH:
            continue
        try:
            os.mkdir(path, 0o700)
        except own(OSError) as error:
            failure = error
        else:
            return path
    raise ConfigError(
        f"no directory for a private broker's socket: {failure.filename}: {failure.strerror};"
        " set XDG_RUNTIME_DIR to one that can be written and has a short path"
    ) from failure


def _remove_directory(path: str) -> None:
    """Remove the directory and its files; what cannot be removed stays."""
    try:
        os.rmdir(path)  # first: to look into it takes a descriptor, and there may be none
        return
    except own(OSError):
        pass
    try:
        for name in os.listdir(path):
            _unlink(os.path.join(path, name))
        os.rmdir(path)
    except own(OSError):
        pass


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except own(OSError):
        pass
