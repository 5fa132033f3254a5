"""The life of a pool: it connects, begins anew where its session is over, and is closed."""

from __future__ import annotations

import threading
import time
import warnings
from _weakref import ref
from functools import partial

from ..addresses import resolve
from ..errors import BrokerUnavailable, LeaseReleased, PoolClosed
from ..link.waiting import check_timeout
from ..pool import BasePool
from ..seat.session import Session
from ..system.finalizers import ends_by
from ..system.here import HERE, OURS
from ..system.outside import variable
from . import closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self


def _close_collected(pool: PoolLife) -> None:
    """A pool that nobody closed: its helper does it, once no lease or buffer is left.
    A finalizer takes no lock and starts no thread."""
    session = getattr(pool, "_session", None) or getattr(pool, "_closing", None)
    if session is None or session.is_at_exit or not HERE[OURS]:
        return
    is_closed = session.is_over  # looked at first: the helper may close it before we go on
    session.is_orphaned = True
    session.wake_helper()
    if is_closed:
        closing.sessions.discard(session)
    else:
        warnings.warn(f"unclosed {pool!r}", ResourceWarning, source=pool, stacklevel=3)


@ends_by(_close_collected)
class PoolLife(BasePool):
    """A pool from its first session to its last."""

    def __init__(self, address: str | None, *, timeout: float = 5.0, strict: bool = False) -> None:
        self._timeout = timeout = check_timeout(timeout)
        self.address = resolve(address)
        self._strict = strict
        self._is_traced = variable("SHMPOOL_TRACE") not in ("", "0")
        self._is_closed = False
        #: One thread connects; a finalizer that comes in the middle of it does so first.
        self._connecting = threading.RLock()
        self._session: Session | None = None
        #: The session that `close` is to close, until it has.
        self._closing: Session | None = None
        #: The private broker that made this pool is not to end before it.
        self._broker: object = None
        self._name = ""
        self._connect(address, timeout)
        pools.add(ref(self, pools.discard))

    def _connect(self, address: str | None, timeout: float) -> Session:
        """A session, if there is none; None is the default address, looked for anew at each try."""
        if not HERE[OURS]:
            raise BrokerUnavailable("this process is just being forked: its pools are not its own yet")
        with self._connecting:
            session = self._session
            if session is None or session.is_over:
                self._raise_if_closed()
                self._forget_session()
                session = self._begin_session(address, timeout)
        return session

    def _begin_session(self, address: str | None, timeout: float) -> Session:
        if address is not None:
            closing.raise_if_gone(self.address)
        session = Session(strict=self._strict, close_if_unused=closing.close_if_unused)
        try:
            session.join(lambda: resolve(address), time.monotonic() + timeout, lambda: self._is_closed)
            if (other := self._session) is not None and not other.is_over:  # a finalizer was faster
                closing.close_unbegun(session)
                return other
            closing.sessions.add(session)
            session.guards.begin()
            session.helper.start()
            self.address = session.address
            session.on_share = partial(_share, ref(self))
            self._fit_class(session)
            self._session = session
            self._name = f"{session.pool_id:016x}"
            self._raise_if_closed()
        except BaseException as error:  # also where there is no thread to be had
            self._session = None
            closing.close_unbegun(session)
            if isinstance(error, BrokerUnavailable):
                self._raise_if_closed()
            raise
        return session

    def _fit_class(self, session: Session) -> None:
        """What a session does besides (sums, notes) its pool's class does, so that others pay nothing."""
        raise NotImplementedError

    def _share_lease(self, lease: Any, name: str | None, keep: Any, ttl: float | None) -> Any:
        """Publish a lease for any number of processes; the verbs of objects know how."""
        raise NotImplementedError

    def _raise_if_closed(self) -> None:
        if self._is_closed:
            raise PoolClosed("the pool is closed; connect() makes a new one")

    def _forget_session(self) -> None:
        """Close one that is over, once: there may be no other for a while."""
        session, self._session = self._session, None
        if session is not None:
            closing.close_unused(session)

    def _live_session(self, timeout: float | None = None) -> Session:
        session = self._session
        if session is None or session.is_over or self._is_closed or not HERE[OURS]:
            self._raise_if_closed()
            return self._connect(self.address, self._timeout if timeout is None else min(timeout, self._timeout))
        return session

    def close(self) -> None:
        """Give everything back. Never blocks on the broker: new calls raise, idle slots and
        publications go to the broker, unpublished leases are released (ResourceWarning);
        the seat stays until the last view that this process still has is gone. Once more finishes
        what an exception (Ctrl-C) has ended."""
        if not HERE[OURS]:
            return  # in a finalizer of a child that is not itself yet
        self._is_closed = True
        if self._session is not None:
            self._closing, self._session = self._session, None
        session = self._closing
        if session is not None:  # another thread may close it, too
            closing.close(session)
            self._closing = None
        pools.discard(ref(self))
        self._broker = None

    def abandon(self) -> None:
        """In a forked child: the seat is the parent's."""
        self._connecting = type(self._connecting)()
        self._session = self._closing = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    @property
    def name(self) -> str:
        """The pool's id, 16 hexadecimal digits, as in `Stats.pool_id` and its segments' names; of
        the pool connected to last. Another one is at the same address when a broker starts anew."""
        return self._name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        session = self._session
        what = "closed" if session is None else f"seat {session.seat} of pool {session.pool_id:016x}"
        return f"<Pool at {self.address}: {what}>"


def _share(pool: ref[PoolLife], lease: object, name: str | None, keep: object, ttl: float | None) -> Any:
    """A lease of a session's is to be shared."""
    alive = pool()
    if alive is None:
        raise LeaseReleased("the lease's pool is gone")
    return alive._share_lease(lease, name, keep, ttl)


#: Every open pool of this process. Weak references in a plain set: a `WeakSet` has callbacks in Python, and what a
#: signal handler raises there is thrown away.
pools: Final[set[ref[PoolLife]]] = set()


def open_pools() -> list[PoolLife]:
    """Every open pool of this process."""
    return [pool for reference in list(pools) if (pool := reference()) is not None]
