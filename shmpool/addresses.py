"""Where a broker is looked for when nobody says where. No connection is made here."""

from __future__ import annotations

import os

from .errors import ConfigError
from .system.outside import exists, own, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

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

    A given path is taken as it is. None means ``$SHMPOOL_SOCKET``; without it that of the
    user's own broker (`own_socket`) if it exists, else ``/run/shmpool/broker.sock``, whether it
    exists or not. Raises ConfigError for what cannot be a path.
    """
    if address is not None:
        path: Any = os.fspath(address)
        if isinstance(path, bytes):
            raise TypeError(f"an address is a socket's path, a str or a pathlib.Path, not {address!r:.120}")
        if not path or "\0" in path:
            raise ConfigError(f"{path!r} is no path of a socket: name one, or leave it out for the usual one")
        return str(path)
    return variable(ENVIRONMENT) or _existing_own() or SYSTEM_SOCKET


def own_socket() -> str:
    """Where a user's own broker listens, and is looked for: below ``$XDG_RUNTIME_DIR``; where
    that is not set, or is not there, below ``/run/user/UID`` or in ``/tmp/shmpool-UID``."""
    uid = os.geteuid()
    for runtime in (variable("XDG_RUNTIME_DIR"), f"/run/user/{uid}"):
        if runtime and exists(f"{runtime}/") and os.access(runtime, os.W_OK | os.X_OK, effective_ids=True):
            return os.path.join(runtime, USER_SOCKET)
    return f"/tmp/shmpool-{uid}/{os.path.basename(USER_SOCKET)}"


def _existing_own() -> str | None:
    """The user's own socket, if it is there. Where all may write (/tmp) anybody could have made
    it: one in another's directory is not ours."""
    path = own_socket()
    try:
        directory = os.stat(os.path.dirname(path))
    except own(OSError):
        return None
    return path if directory.st_uid in (0, os.geteuid()) and exists(path) else None
