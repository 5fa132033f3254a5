"""What systemd expects of a service: readiness, signs of life, a line of status, and taking over
its socket. No library."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

#: The first descriptor that socket activation passes.
FIRST_FD: Final = 3
#: Seconds from one look at the status to the next, where no watchdog asks for more.
STATUS_EVERY: Final = 10.0


def notify(state: str) -> None:
    """Tell the service manager, for example ``READY=1``; nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address)
    except OSError:
        pass  # it is gone, or was never meant for us: no reason to fail


def watchdog_seconds() -> float | None:
    """Within which a sign of life is expected of this process, or None."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isdecimal() and int(text) else None


class Heartbeat:
    """Signs of life from the event loop itself, and its status where that has changed. Without a
    service manager it does nothing and costs nothing."""

    def __init__(self, status: Callable[[], str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._status = status
        self._told = ""
        watchdog = watchdog_seconds()
        self._is_watched = watchdog is not None
        self._period = min(STATUS_EVERY, watchdog / 2 if watchdog else STATUS_EVERY)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on."""
        if os.environ.get("NOTIFY_SOCKET"):
            self._beat()

    def stop(self) -> None:
        """No more."""
        if self._timer is not None:
            self._timer.cancel()

    def _beat(self) -> None:
        lines = ["WATCHDOG=1"] if self._is_watched else []
        if (status := self._status()) != self._told:
            lines.append(f"STATUS={status}")
            self._told = status
        if lines:
            notify("\n".join(lines))
        self._timer = self._loop.call_later(self._period, self._beat)


def activated_socket() -> socket.socket | None:
    """The listening socket that systemd made for this process, non-blocking, or None.

    Once only: the variables are removed, so that no child takes them for its own. Raises
    ValueError when what was passed is no single listening unix stream socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return None
    if count != "1":
        raise ValueError(f"systemd passed {count or 0} sockets, the broker serves one")
    sock = socket.socket(fileno=FIRST_FD)
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise ValueError("systemd passed something else than a listening unix stream socket (ListenStream=PATH)")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
