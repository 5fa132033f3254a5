"""What there is of pools on this host, by the names in /dev/shm: whose it is, and removing it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

from shmpool.protocol.names import SHM_DIR, header_name, parse_pool_id, pool_prefix

from .untracked import unlink_segment


def names_of(pool_id: int) -> list[str]:
    """The names of a pool's segments that exist."""
    prefix = pool_prefix(pool_id)
    return [name for name in os.listdir(SHM_DIR) if name.startswith(prefix)]


def remove_names(names: Iterable[str]) -> None:
    """Unlink segments by name; missing is fine. Raises OSError when one cannot be, and then
    all others were."""
    failure: OSError | None = None
    for name in names:
        try:
            unlink_segment(name)
        except OSError as error:
            failure = error
    if failure is not None:
        raise failure


def is_served(pool_id: int) -> bool:
    """Whether a living broker has a pool, wherever it runs."""
    try:
        fd = os.open(f"{SHM_DIR}/{header_name(pool_id)}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def leftover_pools() -> dict[int, list[str]]:
    """Pool id -> the names of its segments, of all pools that there are on this host."""
    pools: dict[int, list[str]] = {}
    for name in sorted(os.listdir(SHM_DIR)):
        pool_id = parse_pool_id(name)
        if pool_id is not None:
            pools.setdefault(pool_id, []).append(name)
    return pools
