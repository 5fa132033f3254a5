"""Names of a pool's segments in /dev/shm, all derived from the pool id, and of the files
beside a broker's socket, derived from its path: broker.lock, broker.tickets.lock and
broker.seats.lock for broker.sock.

``SHMPOOL_PREFIX`` sets the names of a test run apart from all others of the host: brokers,
clients, ``--cleanup`` and ``shmpool doctor`` see the pools of their own prefix only, and brokers
do not look at what others leave of the host's memory. It is for the tests: a broker and a client
with different ones do not find each other's segments.
"""

from __future__ import annotations

import posixpath
from os import environ

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import Match
    from typing import Final


def _prefix(apart: str) -> str:
    """Without a dash in *apart* no two prefixes can be taken for one another."""
    if len(apart) > 32 or not ((apart.replace("_", "0").isalnum() and apart.isascii()) or not apart):
        raise ConfigError(f"SHMPOOL_PREFIX is {apart!r}; expected up to 32 letters, digits and underscores")
    return f"{apart}-shmpool-" if apart else "shmpool-"


#: Where named segments are files: shm_open's place on Linux.
SHM_DIR: Final = "/dev/shm"
#: What all names start with.
PREFIX: Final = _prefix(environ.get("SHMPOOL_PREFIX", ""))
#: Whether that is a test run's own.
IS_APART: Final = bool(environ.get("SHMPOOL_PREFIX"))


def lock_path(socket_path: str) -> str:
    """The file whose lock the broker of this socket holds."""
    return posixpath.splitext(socket_path)[0] + ".lock"


def tickets_path(socket_path: str) -> str:
    """The file of the tickets' byte locks."""
    return posixpath.splitext(socket_path)[0] + ".tickets.lock"


def seats_path(socket_path: str) -> str:
    """The file of the seats' byte locks."""
    return posixpath.splitext(socket_path)[0] + ".seats.lock"


def pool_prefix(pool_id: int) -> str:
    """What every segment name of this pool starts with."""
    return f"{PREFIX}{pool_id:016x}-"


def header_name(pool_id: int) -> str:
    """The segment that only the broker writes; clients map it read-only."""
    return pool_prefix(pool_id) + "header"


def ledger_name(pool_id: int) -> str:
    """The segment of the rows, and behind them the clients' counters."""
    return pool_prefix(pool_id) + "ledger"


def tier_name(pool_id: int, tier: int) -> str:
    """The segment of one tier's slots."""
    return f"{pool_prefix(pool_id)}tier{tier}"


def direct_name(pool_id: int, row: int, generation: int) -> str:
    """A direct segment; row and generation make a name that is never used twice."""
    return f"{pool_prefix(pool_id)}direct-{row}-{generation}"


def queue_name(pool_id: int, row: int, generation: int) -> str:
    """The bell of a queue, a FIFO; row and generation are its publication's."""
    return f"{pool_prefix(pool_id)}queue-{row}-{generation}"


def parse_direct_name(name: str) -> tuple[int, int, int] | None:
    """(pool id, row, generation) of a direct segment's name, or None."""
    match = _match(r"([0-9a-f]{16})-direct-([0-9]+)-([0-9]+)", name)
    return None if match is None else (int(match[1], 16), int(match[2]), int(match[3]))


def parse_pool_id(name: str) -> int | None:
    """The pool id in any of a pool's segment names, or None for a foreign name."""
    match = _match(r"([0-9a-f]{16})-.+", name)
    return None if match is None else int(match[1], 16)


def _match(pattern: str, name: str) -> Match[str] | None:
    import re  # brokers and commands read names; workers make them only

    return re.fullmatch(PREFIX + pattern, name, re.ASCII)
