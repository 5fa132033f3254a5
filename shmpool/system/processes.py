"""Who is at the other end of a socket, and which process a pid means.

Covers /proc/PID/stat, peer credentials and pidfds. Does not decide whether anybody is
dead: a pidfd tells that for certain, and its owner watches it. A bare pid proves nothing,
since pids are used again; a pid together with its start time does.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from functools import cache

from ..protocol.frozen import NamedTuple
from . import libc
from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    class SocketLike(Protocol):
        """As much of a socket as is needed here; asyncio's transport sockets have it too."""

        def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
            """Read a socket option as bytes."""

        def fileno(self) -> int:
            """The descriptor."""


#: Linux 6.5 and later. Python has no name for it yet.
SO_PEERPIDFD: Final = 77
SO_PEERGROUPS: Final = 59

_UCRED: Final = struct.Struct("3i")
_INT: Final = struct.Struct("i")
_NO_ID: Final = 2**32 - 1
_COMMAND_LENGTH: Final = 64
#: Bytes of a command line that are read: directories may be long.
_MOST_READ: Final = 4096
#: Options of the Python interpreter whose value is a word of its own.
_WITH_VALUE: Final = ("-X", "-W", "--check-hash-based-pycs")
#: How a server of multiprocessing's was started, from which workers are forked; and how many parents
#: are looked at for the program that they work for.
_FORKSERVER: Final = "from multiprocessing.forkserver import"
_GENERATIONS: Final = 4
_INIT: Final = 1
#: Field 22 of /proc/PID/stat, counted from the first field behind the command.
_START_TIME_FIELD: Final = 22 - 3


class Credentials(NamedTuple):
    """The kernel's word on a peer, taken when it connected. *pid* is 0 for a process
    that this pid namespace cannot see."""

    pid: int
    uid: int
    gid: int


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is no such process
    (or none that may be seen). With the pid it names a process for good."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except own(FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command stands in parentheses and may hold any of "() ": only the last ")" ends it.
    fields = stat[stat.rfind(b")") + 1 :].split()
    return int(fields[_START_TIME_FIELD]) if len(fields) > _START_TIME_FIELD else None


@cache
def namespaces() -> tuple[int, int]:
    """The pid and the time namespace in which this process sees others: pids and start times
    mean nothing in another one. 0 where the kernel has none."""
    return _namespace("pid"), _namespace("time")


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except own(OSError):
        return 0


def is_same_process(pid: int, began: int) -> bool:
    """Whether *pid* is still the process that began at *began*."""
    return pid > 0 and start_time(pid) == began


def command(pid: int) -> str:
    """What a process runs, for people: its command line without directories and without the
    interpreter of a script, printable, at most 64 characters; empty when it is gone. A process of
    multiprocessing's is its program's worker."""
    return _command(pid, _GENERATIONS)[:_COMMAND_LENGTH]


def _command(pid: int, generations: int) -> str:
    for name in ("cmdline", "comm"):  # a zombie and a kernel thread have no command line
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                raw = file.read(_MOST_READ)
        except own(OSError):
            return ""
        words = raw.decode("utf-8", "replace").strip("\0\n ").split("\0")
        if any(words):
            if words[-1] == "--multiprocessing-fork" or any(_FORKSERVER in word for word in words):
                parent = _parent(pid) if generations else _INIT
                program = _command(parent, generations - 1) if parent > _INIT else ""
                return f"worker of {program.removeprefix('worker of ')}" if program else "a worker of multiprocessing"
            text = " ".join(" ".join(_without_interpreter(words)).split())
            return "".join(char if char.isprintable() else "?" for char in text)
    return ""


def _parent(pid: int) -> int:
    """Of a process whose parent has gone, whoever took it on, which mostly is `_INIT`; 0 when it cannot be
    seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        return int(stat[stat.rindex(b")") + 1 :].split()[1])
    except own(OSError, ValueError, IndexError):
        return 0


def _without_interpreter(words: list[str]) -> list[str]:
    """``/usr/bin/python3 -u /srv/reader.py --fast`` is ``reader.py --fast`` to people."""
    program = os.path.basename(words[0]) or words[0]
    if not program.startswith("python"):
        return [program, *words[1:]]
    at = 1
    while at < len(words) and words[at].startswith("-") and not words[at].startswith(("-c", "-m")):
        at += 2 if words[at] in _WITH_VALUE else 1
    if at >= len(words) or words[at].startswith("-c"):
        return [program, *words[at:]]
    if words[at] == "-m" and at + 1 < len(words):
        return words[at + 1 :]
    return [os.path.basename(words[at]) or words[at], *words[at + 1 :]]


def peer_credentials(sock: SocketLike) -> Credentials:
    """Pid, uid and gid of the process that connected (or made the socket pair)."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Credentials(pid, uid & _NO_ID, gid & _NO_ID)


def peer_groups(sock: SocketLike) -> frozenset[int]:
    """The peer's supplementary groups, however many; empty where the kernel has no such option
    (before Linux 4.13)."""
    try:
        raw = libc.socket_option(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS)
    except own(OSError) as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return frozenset()
    return frozenset(gid & _NO_ID for (gid,) in _INT.iter_unpack(raw))


def pidfd_of_peer(sock: SocketLike) -> int:
    """A pidfd of the process that connected, close-on-exec; the caller closes it.

    The kernel's own answer where it has one (Linux 6.5), which cannot be another process.
    Before that it is opened by pid, which could be another's by now: the caller has to
    look for EOF on the socket afterwards. Raises ProcessLookupError when the process is
    gone and OSError when it cannot be had.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _INT.size)
    except ProcessLookupError:
        raise
    except own(OSError):
        return os.pidfd_open(peer_credentials(sock).pid)
    return int(_INT.unpack(raw)[0])


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended (a zombie has)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def process_state(pid: int) -> str:
    """R, S, D, T and so on, as in /proc; nothing where that cannot be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        return chr(stat[stat.rindex(b")") + 2])
    except own(OSError, ValueError, IndexError):
        return ""
