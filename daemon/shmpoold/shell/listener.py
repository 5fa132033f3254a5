"""Accepting: who may connect, how many, and what happens when descriptors run out."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from shmpool.protocol.codes import Code
from shmpool.protocol.framing import encode_frame
from shmpool.protocol.messages import Fault, encode
from shmpool.system import processes

from ..core.events import Peer
from .repeats import Repeats

#: Connections accepted in so many seconds, at most: accepting one, and ending it again, costs
#: as much as a dozen messages.
ACCEPTS_PER_WINDOW: Final = 8
WINDOW: Final = 0.005
#: Seconds without accepting when the process has no descriptors left.
PAUSE: Final = 0.1
#: Descriptors that connections leave to what those who have one need: segments, pidfds.
RESERVE: Final = 16
_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)

#: Serve an accepted socket: (socket, peer, pidfd; -1 when it has ended, None when it cannot be watched).
Serve = Callable[[socket.socket, Peer, int | None], None]


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may connect: root and the broker's own user always, then the listed users and
    groups, and if none are listed the group of the files."""

    own_uid: int
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    @classmethod
    def of(cls, uids: tuple[int, ...], gids: tuple[int, ...], group: int | None) -> Admission:
        """The admission that a configuration describes."""
        members = frozenset([group] if group is not None and not uids and not gids else gids)
        return cls(os.geteuid(), frozenset(uids), members)

    def admits(self, peer: processes.Credentials, groups: frozenset[int]) -> bool:
        """Whether this peer may connect."""
        return peer.uid in (0, self.own_uid) or peer.uid in self.uids or bool(self.gids & {peer.gid, *groups})


class Listener:
    """Accepts from a listening, non-blocking socket, which it owns, and hands on what it
    accepted. *shortage* says why nobody more can be served just now, if that is so."""

    def __init__(
        self, sock: socket.socket, admission: Admission, serve: Serve, shortage: Callable[[], Fault | None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._admission = admission
        self._serve = serve
        self._shortage = shortage
        self._repeats = Repeats(log)
        self._pause: asyncio.TimerHandle | None = None
        self._window_ends = 0.0
        self._left = ACCEPTS_PER_WINDOW

    def admit(self, admission: Admission) -> None:
        """Who may connect from now on; those who are connected stay."""
        self._admission = admission

    def start(self) -> None:
        """Accept from now on."""
        self._pause = None
        self._loop.add_reader(self._sock, self._on_ready)

    def close(self) -> None:
        """Accept no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._repeats.close()

    def _on_ready(self) -> None:
        now = self._loop.time()
        if now >= self._window_ends:
            self._left, self._window_ends = ACCEPTS_PER_WINDOW, now + WINDOW
        try:
            while self._left > 0:
                self._left -= 1
                self._require_descriptors()
                sock, _ = self._sock.accept()
                try:
                    self._admit(sock)
                except BaseException:
                    sock.close()
                    raise
            self._rest(self._window_ends - now)
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                self._repeats.warning("accepting a connection failed", with_traceback=True)
                return
            self._repeats.warning("not accepting for %.1f s: %s", PAUSE, error.strerror)
            self._rest(PAUSE)

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(seconds, self.start)

    def _require_descriptors(self) -> None:
        """Raise EMFILE when only the reserve is left: whoever is in must not be held up. The
        kernel gives the lowest number that is free."""
        lowest = os.dup(self._sock.fileno())
        os.close(lowest)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY and lowest >= limit - RESERVE:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _admit(self, sock: socket.socket) -> None:
        """Identify the peer while nothing has been said yet; hand it on, or refuse it."""
        sock.setblocking(False)
        credentials = processes.peer_credentials(sock)
        if not self._admission.admits(credentials, processes.peer_groups(sock)):
            text = f"uid {credentials.uid} may not use this broker (allow_uids, allow_gids, group)"
            self._repeats.warning("refused pid %d: %s", credentials.pid, text)
            _refuse(sock, Fault(Code.FORBIDDEN, text))
            return
        if shortage := self._shortage():
            _refuse(sock, shortage)
            return
        pidfd = _pidfd_of(sock)
        # The pid was the peer's all the time if the peer still lives after the look at /proc.
        try:
            began, command = processes.start_time(credentials.pid), processes.command(credentials.pid)
            if pidfd is None or pidfd < 0 or processes.has_ended(pidfd) or _has_hung_up(sock):
                began, command = None, ""
        except BaseException:
            if pidfd is not None and pidfd >= 0:
                os.close(pidfd)
            raise
        peer = Peer(credentials.pid, credentials.uid, credentials.gid, began or 0, command, *processes.namespaces())
        self._serve(sock, peer, pidfd)


def _pidfd_of(sock: socket.socket) -> int | None:
    """The peer's; -1 when it has ended already, which whoever watches it is told, and None when
    the kernel gives none: its process is in a namespace that we do not see."""
    try:
        return processes.pidfd_of_peer(sock)
    except ProcessLookupError:
        return -1
    except OSError as error:
        if error.errno in _OUT_OF_RESOURCES:
            raise
        return None


def _refuse(sock: socket.socket, fault: Fault) -> None:
    """Say why, and close: a new socket has room for that, and a thousand of them must not cost
    what a thousand connections do."""
    with suppress(OSError):
        sock.send(encode_frame(encode(fault)))
    sock.close()


def _has_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
