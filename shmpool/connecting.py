"""Connecting: `connect` finds a broker by its address, or starts one."""

from __future__ import annotations

import os

from .addresses import resolve
from .errors import BrokerUnavailable
from .link.hello import listens
from .link.waiting import check_timeout
from .pools import Pool, open_pool
from .queues import defaults
from .system.importing import door, explained
from .system.outside import own


def connect(
    address: str | os.PathLike[str] | None = None,
    *,
    timeout: float = 5.0,
    autostart: bool = False,
    strict: bool = False,
) -> Pool:
    """Connect to a broker.

    *address* is its socket's path; None means ``$SHMPOOL_SOCKET``, else the user's
    ``$XDG_RUNTIME_DIR/shmpool/broker.sock``, else ``/run/shmpool/broker.sock``. *timeout*, in
    seconds, is for connecting: a broker that is still to come, or that listens and does not
    answer yet, is waited for as long, and the default address looked for anew at each try. With
    *autostart* a private broker for this process tree is started, at once where nobody listens.
    *strict* (or ``SHMPOOL_STRICT=1``) makes leaked views an error. Raises `BrokerUnavailable`.
    """
    timeout = check_timeout(timeout)
    path = None if address is None else os.fspath(address)
    if not autostart:
        return open_pool(path, timeout, strict)
    try:
        if listens(resolve(path)):  # then it has its time to answer
            return open_pool(path, timeout, strict)
    except own(BrokerUnavailable):
        pass
    with door, explained:
        from .embedded import autostart as start

    return open_pool(start().address, timeout, strict)


_shared: Pool | None = None


def _find_pool() -> Pool:
    """The pool of queues that were given none: this process tree's."""
    global _shared
    if _shared is None or _shared.closed:
        _shared = connect(autostart=True)
    return _shared


defaults.find_pool = _find_pool
