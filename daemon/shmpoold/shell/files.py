"""The files beside the socket: its directory, the lock that makes a broker the only one,
the lock files of tickets and seats, the socket itself.

The lock comes first and goes last: whatever is done to the other files is done while it
is held, so two brokers that start at once cannot harm each other. The lock file also
holds the pool's id for the next broker, and all lock files stay while the pool lives. A file
that another user made, or that others may write, is not believed.

A directory such as /tmp is cleaned of what is old. Ours is locked (flock), which
systemd-tmpfiles respects, and the files' times are renewed, by which others judge.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shmpool.errors import ConfigError
from shmpool.protocol.names import lock_path, seats_path, tickets_path
from shmpool.system.locks import POOL_ID_BYTES, ByteLocks, FileId, FileLock, pool_id_in

from .segments import Access

#: Connections that the kernel holds ready until they are accepted.
BACKLOG: Final = 512


class AlreadyRunning(ConfigError):
    """Another broker serves this socket."""


class Earlier(NamedTuple):
    """What the broker before us noted; *is_copy*: in another file, of which this is a copy."""

    pool_id: int
    is_copy: bool


@dataclass(frozen=True, slots=True)
class LockFiles:
    """The open files of the tickets' and the seats' byte locks."""

    tickets: ByteLocks
    seats: ByteLocks

    def close(self) -> None:
        """Give up all locks. May be called twice."""
        self.tickets.close()
        self.seats.close()


class RuntimeFiles:
    """The files of the broker at one socket path. Not thread-safe."""

    def __init__(self, socket_path: str, access: Access) -> None:
        self.socket_path: Final = socket_path
        self._tickets_path: Final = tickets_path(socket_path)
        self._seats_path: Final = seats_path(socket_path)
        self._access: Final = access
        self._lock: Final = FileLock(lock_path(socket_path))
        self._has_bound = False
        self._directory_fd = -1

    def acquire(self) -> Earlier | None:
        """Become the only broker here. Returns what an earlier one noted. Raises
        AlreadyRunning, which says by whom, or ConfigError when these files cannot be
        used; neither changes anything."""
        self._make_directory()
        try:
            for path, others in ((self._lock.path, 0o077), (self._tickets_path, 0o007), (self._seats_path, 0o007)):
                _require_own(path, others)
            acquired = self._lock.try_acquire()
        except OSError as error:
            raise ConfigError(f"cannot use the lock file {self._lock.path}: {error.strerror}") from error
        if not acquired:
            holder = _read_note(self._lock).get("pid", "unknown")
            raise AlreadyRunning(f"a broker already serves {self.socket_path} (pid {holder})")
        try:
            _require_own(self._lock.path, 0o077)  # it may have been made since
            note = _read_note(self._lock)
            earlier = Earlier(note["pool_id"], self._is_copy(note)) if note else None
            self._lock_directory()
            return earlier
        except OSError as error:
            self._lock.release()
            raise ConfigError(f"cannot read what the broker before us noted: {error.strerror}") from error
        except BaseException:
            self._lock.release()
            raise

    def _lock_directory(self) -> None:
        """Only against cleaning, so that brokers may share a directory, and it need not succeed."""
        directory = os.path.dirname(self.socket_path) or "."
        with suppress(OSError):
            self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._directory_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _unlock_directory(self) -> None:
        fd, self._directory_fd = self._directory_fd, -1
        if fd >= 0:
            os.close(fd)

    def renew(self) -> None:
        """Make the files as young as if they had been made now."""
        for path in (os.path.dirname(self.socket_path) or ".", self.socket_path, self._lock.path,
                     self._tickets_path, self._seats_path):  # fmt: skip
            with suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def _is_copy(self, note: dict[str, Any]) -> bool:
        """Whether the note was written into another file (a directory that was copied). Version
        0.1.0 noted the tickets file only."""
        if "lock" in note:
            return bool(note["lock"] != list(FileId.of(self._lock.fileno())))
        return note.get("tickets") != _inode(self._tickets_path)

    def record(self, pool_id: int) -> None:
        """Note whose pool this is, for the next broker and for whoever asks."""
        note = {"pool": f"{pool_id:016x}", "pid": os.getpid(), "lock": FileId.of(self._lock.fileno())}
        self._lock.write(json.dumps(note))

    def make_lock_files(self, pool_id: int) -> LockFiles:
        """New ones for a new pool: who had the last one may still hold bytes of the old. Raises
        OSError."""
        tickets = self._make(self._tickets_path, pool_id)
        try:
            return LockFiles(tickets, self._make(self._seats_path, pool_id))
        except BaseException:
            tickets.close()
            raise

    def _make(self, path: str, pool_id: int) -> ByteLocks:
        _unlink(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, pool_id.to_bytes(POOL_ID_BYTES, "little"))
            self._secure(fd)
        finally:
            os.close(fd)
        return ByteLocks(path)

    def open_lock_files(self, pool_id: int, tickets: FileId, seats: FileId) -> LockFiles | None:
        """Those of an earlier broker's pool; None when they are not there any more: its clients
        hold bytes of other files, and these would exclude nobody. Raises OSError."""
        with ExitStack() as stack:
            try:
                locks = [stack.enter_context(ByteLocks(path)) for path in (self._tickets_path, self._seats_path)]
            except FileNotFoundError:
                return None
            for each, expected in zip(locks, (tickets, seats), strict=True):
                if (each.file_id, pool_id_in(each.fileno())) != (expected, pool_id):
                    return None
                self._secure(each.fileno())
            stack.pop_all()
        return LockFiles(*locks)

    def _secure(self, fd: int) -> None:
        if self._access.gid is not None:
            os.fchown(fd, -1, self._access.gid)
        os.fchmod(fd, self._access.write_mode)

    def listen(self) -> socket.socket:
        """Bind the socket, in place of a dead broker's. Only while the lock is held.
        Raises ConfigError when the path is something else's."""
        self._remove_stale_socket()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Nobody may connect before group and mode are right.
            old = os.umask(0o177)
            try:
                listener.bind(self.socket_path)
                self._has_bound = True
            finally:
                os.umask(old)
            if self._access.gid is not None:
                os.chown(self.socket_path, -1, self._access.gid)
            os.chmod(self.socket_path, self._access.write_mode)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise ConfigError(f"cannot listen on {self.socket_path}: {error.strerror or error}") from error
        return listener

    def remove(self) -> None:
        """The pool is gone: remove what is ours and give the lock up, in this order."""
        try:
            self._unlink_socket()
            _unlink(self._tickets_path)
            _unlink(self._seats_path)
        finally:
            self._unlock_directory()
            self._lock.release(unlink=True)

    def leave(self) -> None:
        """The pool is kept: only the socket goes."""
        try:
            self._unlink_socket()
        finally:
            self._unlock_directory()
            self._lock.release()

    def _unlink_socket(self) -> None:
        """Not one that systemd made, and nothing that was in our way."""
        if self._has_bound:
            _unlink(self.socket_path)

    def _make_directory(self) -> None:
        directory = os.path.dirname(self.socket_path) or "."
        try:
            os.makedirs(directory, mode=0o700)
            if self._access.gid is not None:
                os.chown(directory, -1, self._access.gid)
                os.chmod(directory, self._access.directory_mode)
        except FileExistsError:
            if not os.path.isdir(directory):
                raise ConfigError(f"socket {self.socket_path}: {directory} is not a directory") from None
        except OSError as error:
            raise ConfigError(f"cannot make the directory {directory}: {error.strerror}") from error

    def _remove_stale_socket(self) -> None:
        try:
            status = os.lstat(self.socket_path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise ConfigError(f"socket {self.socket_path}: there is a file of that name, and it is no socket")
        if status.st_uid != os.geteuid():
            raise ConfigError(
                f"{self.socket_path} is a socket of uid {status.st_uid}, and this broker runs as uid {os.geteuid()}:"
                " remove it, or choose another directory for the socket"
            )
        try:
            if _somebody_listens(self.socket_path):
                raise AlreadyRunning(f"another program listens on {self.socket_path} (systemd's socket unit?)")
            _unlink(self.socket_path)
        except OSError as error:
            raise ConfigError(f"cannot replace the socket {self.socket_path}: {error.strerror}") from error


def _require_own(path: str, others: int) -> None:
    """Raise ConfigError, which says what was found, for a file that is not ours, or has any of those
    rights of *others*; none at all is fine."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & others:
        return
    kind = "a file" if stat.S_ISREG(status.st_mode) else "something else than a plain file"
    raise ConfigError(
        f"{path} is {kind} of uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}; a lock file must be"
        f" this user's (uid {os.geteuid()}) and closed to others, or what it says is not believed: remove it, or"
        " choose another directory for the socket"
    )


def _read_note(lock: FileLock) -> dict[str, Any]:
    """What a broker noted in its lock file; "pool_id" only if it is a sound one."""
    try:
        note = json.loads(lock.read())
        pool_id = int(note.get("pool", ""), 16)
    except (ValueError, TypeError, AttributeError):
        return {}
    return {**note, "pool_id": pool_id} if 0 < pool_id < 1 << 64 else {}


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # its queue is full
            return True
        return True


def _inode(path: str) -> int | None:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
