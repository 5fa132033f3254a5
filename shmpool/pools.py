"""The pool that users have: the verbs of every room, and what its session's properties add to them."""

from __future__ import annotations

import sys
from functools import cache

from . import _fast  # noqa: F401  (it puts the compiled twin in the place of the hot paths)
from .errors import BrokerUnavailable
from .life import lifetime
from .link.waiting import check_timeout
from .pool import BasePool
from .queues.verbs import QueueVerbs
from .seat.session import Session
from .streams.verbs import StreamVerbs
from .system.importing import door, explained
from .system.outside import own, variable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Pool(QueueVerbs, StreamVerbs, lifetime.PoolLife):
    """A connection to a broker. Made by `shmpool.connect`.

    May be used by many threads. After a fork the child's pool connects by itself, with a
    seat of its own, on first use. Picklable by address, for `spawn`ed workers. Not to be
    used from a signal handler.

    *address* is its broker's socket. A pool as an argument of every task costs nothing: unpickling
    gives the pool that the process has open at that address already.
    """

    def _fit_class(self, session: Session) -> None:
        self.__class__ = _pool_class(session.has_checksums, self._is_traced)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconnect, (self.address, self._timeout, self._strict)


@cache
def _pool_class(has_checksums: bool, is_traced: bool) -> type[Pool]:
    """The class of a pool with these properties."""
    extras: list[type[BasePool]] = []
    if is_traced:
        with door, explained:
            from .traced import TracedPool

        extras.append(TracedPool)
    if has_checksums:
        with door, explained:
            from .checked import CheckedPool

        extras.append(CheckedPool)
    return type("Pool", (*extras, Pool), {}) if extras else Pool


def open_pool(address: str | None, timeout: float, strict: bool) -> Pool:
    """A new pool; the options are those of `shmpool.connect`."""
    strict = strict or variable("SHMPOOL_STRICT") not in ("", "0")
    return Pool(address, timeout=check_timeout(timeout), strict=strict)


#: Pools that came as an argument, by address and strictness: nobody else keeps them for the next.
_received: dict[tuple[str, bool], Pool] = {}


def _reconnect(address: str, timeout: float, strict: bool) -> Pool:
    """Unpickle: the pool that this process has open at that address, else a new one, which it
    then keeps. Where the process is only just being started for its task, and there is no
    broker, it ends with a line that says so: a traceback would show multiprocessing's inside."""
    try:
        return of_address(address, timeout, strict)
    except own(BrokerUnavailable) as error:
        if _is_being_spawned():
            if sys.stderr is not None:  # here: a fork server throws away what an exit says
                print(f"shmpool: {error}", file=sys.stderr, flush=True)
            raise SystemExit(1) from None
        raise


def of_address(address: str, timeout: float = 5.0, strict: bool = False) -> Pool:
    """The pool that this process has open at an address, else a new one, which it then keeps. Raises
    BrokerUnavailable."""
    received = _received.get((address, strict))
    if received is not None and not received.closed:
        return received
    for pool in lifetime.open_pools():
        if (pool.address, pool._strict) == (address, strict) and not pool.closed and isinstance(pool, Pool):
            return pool
    pool = _received[address, strict] = Pool(address, timeout=timeout, strict=strict)
    return pool


def _is_being_spawned() -> bool:
    """Whether multiprocessing is just unpickling what this process is to do."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and getattr(process.current_process(), "_inheriting", False)
