"""Forks: what a child keeps of its parent's pools, and what the parent waits for.

A child keeps the windows through which its parent had something open for reading, with the pages
that say so to the parent (`seat.guards`) and to the broker; a writer's view that it inherited shows
a copy; everything else is out of its reach, and its pools connect anew on first use. It stores and
sends nothing: `system.here` says so from its first instruction on, before any hook.

A signal handler may raise where a hook begins, and what a hook raises is thrown away. So the very
first act is a C callable, after which nothing that was open or leased is used again; and each hook is there
twice, and does each of its steps once: what an exception keeps the first from doing, the second does.
Not covered: a fork made in C, without Python's hooks.
"""

from __future__ import annotations

import os
import threading
from array import array
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from ..errors import ShmpoolError
from ..lease import EndedLease, Lease
from ..live_lease import live_leases
from ..seat import guards
from ..seat.windows import (
    Window,
    Windows,
    keep_readable,
)
from ..system.heirs import Evidence
from ..system.here import COPIED, FORKING, HERE, OURS, UNSHARED
from .closing import sessions
from .lifetime import pools

if TYPE_CHECKING:
    from ..seat.session import Session


class _Forks:
    """The fork that is under way, by who has `guards.fork_lock`."""

    def __init__(self) -> None:
        #: Whose guards it has begun, and whose helpers it has stopped: both are undone, whether the
        #: session has ended meanwhile or not.
        self.guarded: set[Session] = set()
        self.stopped: set[Session] = set()


_forks = _Forks()


def _before() -> None:
    # In this order: from the first act (see the end) nothing that was open is released at once; then
    # each seat has a guard, which the child inherits; only then the fork. A guard that came after it
    # would be the parent's alone, and what the child reads would be given away.
    guards.fork_lock.acquire()
    HERE[UNSHARED], HERE[COPIED], HERE[FORKING] = 0, 0, 1  # the lock's last holder may have said otherwise
    for session in sessions.copy():
        if not session.is_over:
            _forks.guarded.add(session)
            session.guards.before_fork()
    # A child must find no helper in the middle of anything.
    for session in sessions.copy():
        if session.helper.is_running and not session.helper.rest():
            _forks.stopped.add(session)
            session.helper.stop()


def _after_in_parent() -> None:
    if not guards.fork_lock._is_owned():
        return  # all is done, and another thread may fork by now
    if HERE[FORKING]:
        for session in sessions | _forks.guarded:
            session.guards.after_fork()
        _forks.guarded.clear()
        guards.count_fork()
    while _forks.stopped:
        session = next(iter(_forks.stopped))
        session.helper.start()
        _forks.stopped.discard(session)
    guards.share_nothing()
    while guards.fork_lock._is_owned():
        guards.fork_lock.release()


def _after_in_child() -> None:
    if HERE[OURS]:
        return
    for session in sessions:
        _abandon_leases(session)
        session.openings.abandon()
        session.holds.abandon()
        session.deferred.abandon()
    owners: dict[Windows, Session] = {session.windows: session for session in sessions}
    evidence: dict[Evidence, Evidence] = {}
    kept = keep_readable()
    for session in sessions:  # as soon as can be: the parent's slots wait for it
        session.guards.has_copied()
    for window in kept:
        _keep(window, owners.get(window.owner), evidence)
    for pool in list(pools):
        pool.abandon()
    while sessions:
        session = next(iter(sessions))
        session.abandon()
        sessions.discard(session)
    guards.abandon_all()
    guards.fork_lock, _forks.guarded, _forks.stopped = threading.RLock(), set(), set()
    guards.count_fork()
    HERE[UNSHARED] = HERE[COPIED] = HERE[OURS] = 1


def _abandon_leases(session: Session) -> None:
    """The parent's leases raise here; whoever has a view of one keeps it."""
    for lease in live_leases(session.owned):
        lease.__class__ = EndedLease  # type: ignore[assignment]
        with suppress(AttributeError):
            _view.__delete__(lease)
    session.abandon_windows()


_view: Final = vars(Lease)["view"]


def _keep(window: Window, session: Session | None, ours: dict[Evidence, Evidence]) -> None:
    """Hang the evidence on a window. One that our parent inherited itself has some already; one of
    a pool that is gone needs none. *ours* is what was made here of what we inherited."""
    if session is not None and (guard := session.guards.begun) is not None:
        window.evidence = Evidence(session.pool_id, session.seat, guard.number, session.readers, guard.page)
    if (inherited := window.evidence) is not None:
        if inherited not in ours:
            ours[inherited] = inherited
            with suppress(OSError, ShmpoolError):  # nobody learns our pid then
                ours[inherited] = inherited.under(os.getpid())
        window.evidence = ours[inherited]


_first_act: Final = partial(HERE.__setitem__, slice(UNSHARED, FORKING + 1), memoryview(array("Q", [0, 0, 1])))

for _ in range(2):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
os.register_at_fork(before=_first_act)  # the last to be registered is the first to be called
