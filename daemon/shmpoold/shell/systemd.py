"""What systemd expects of a service: readiness, and taking over its socket. No library."""

from __future__ import annotations

import os
import socket
from typing import Final

#: The first descriptor that socket activation passes.
FIRST_FD: Final = 3


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
