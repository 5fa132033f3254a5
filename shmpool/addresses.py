"""Where a broker is looked for when nobody says where. No connection is made here."""

from __future__ import annotations

import os
from typing import Final

#: Names the broker's socket for this process and its children.
ENVIRONMENT: Final = "SHMPOOL_SOCKET"
#: The socket of the system's broker.
SYSTEM_SOCKET: Final = "/run/shmpool/broker.sock"
#: The socket of a user's own broker, below ``$XDG_RUNTIME_DIR``.
USER_SOCKET: Final = "shmpool/broker.sock"
#: A unix socket's path, in bytes, the closing zero left out.
MAX_PATH: Final = 107


def resolve(address: str | os.PathLike[str] | None = None) -> str:
    """The socket path that *address* means.

    A given path is taken as it is. None means ``$SHMPOOL_SOCKET``; without it the user's
    ``$XDG_RUNTIME_DIR/shmpool/broker.sock`` if that exists, else
    ``/run/shmpool/broker.sock``, whether it exists or not.
    """
    if address is not None:
        return os.fspath(address)
    return os.environ.get(ENVIRONMENT) or _users() or SYSTEM_SOCKET


def _users() -> str | None:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        return None
    path = os.path.join(runtime, USER_SOCKET)
    return path if os.path.exists(path) else None
