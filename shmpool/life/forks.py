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
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from sys import _current_frames as _frames
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
        #: The sessions, where none needs a guard, and what each had counted.
        self.unused: list[tuple[Session, bytes]] | None = None


_forks = _Forks()


def _before() -> None:
    # In this order: from the first act (see the end) nothing that was open is released at once; then
    # each seat has a guard, which the child inherits; only then the fork. A guard that came after it
    # would be the parent's alone, and what the child reads would be given away.
    guards.fork_lock.acquire()
    HERE[UNSHARED], HERE[COPIED], HERE[FORKING] = 0, 0, 1  # the lock's last holder may have said otherwise
    if _forks.unused is not None:
        return
    # A child must find no helper in the middle of anything.
    at_rest = 0
    for session in sessions.copy():
        if session.helper.is_running:
            if session.helper.rest():
                at_rest += 1
            else:
                _forks.stopped.add(session)
                session.helper.stop()
    if not _forks.guarded and len(_frames()) == 1 + at_rest and (unused := _unused()) is not None:
        _forks.unused = unused  # last: it says that all this is done
        return
    for session in sessions.copy():
        if not session.is_over:
            _forks.guarded.add(session)
            session.guards.before_fork()


def _unused() -> list[tuple[Session, bytes]] | None:
    """For a thread that is alone: what each session has counted, where nothing is in use. A guard costs more
    than to look, and most who fork have nothing open. Who may still come is seen to have come: another
    hook, a signal's handler."""
    unused = []
    for session in sessions:
        if not session.is_over:
            counted = session.count_if_unused()
            if counted is None:
                return None
            unused.append((session, counted))
    return unused


def _is_used() -> bool:
    """Whether another hook, or a handler, has leased or opened something since it was looked."""
    return any(session.was_used_since(counted) for session, counted in _forks.unused or ())


def _after_in_parent() -> None:
    if not guards.fork_lock._is_owned():
        return  # all is done, and another thread may fork by now
    if HERE[FORKING]:
        if _forks.unused is None:
            _after_guards(sessions | _forks.guarded)
        elif _is_used():
            _after_guards([session for session, _ in _forks.unused])  # which were not begun
        else:
            HERE[FORKING] = 0
    _forks.unused = None
    while _forks.stopped:
        session = next(iter(_forks.stopped))
        session.helper.start()
        _forks.stopped.discard(session)
    guards.share_nothing()
    while guards.fork_lock._is_owned():
        guards.fork_lock.release()


def _after_guards(ended: Collection[Session]) -> None:
    for session in ended:
        session.guards.after_fork()
    _forks.guarded.clear()
    guards.count_fork()


def _after_in_child() -> None:
    if HERE[OURS]:
        return
    # A page that is touched is a page that is copied, so what has nothing in it is left alone.
    was_used = _forks.unused is None or _is_used()
    for session in sessions:
        if was_used:
            _abandon_leases(session)
            session.holds.abandon()
            session.deferred.abandon()
        session.abandon_windows()
        session.openings.abandon()
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
        session.abandon(was_used=was_used)
        sessions.discard(session)
    guards.abandon_all()
    guards.fork_lock, _forks.guarded, _forks.stopped, _forks.unused = threading.RLock(), set(), set(), None
    guards.count_fork()
    HERE[UNSHARED] = HERE[COPIED] = HERE[OURS] = 1


def _abandon_leases(session: Session) -> None:
    """The parent's leases raise here; whoever has a view of one keeps it."""
    for lease in live_leases(session.owned):
        lease.__class__ = EndedLease  # type: ignore[assignment]
        with suppress(AttributeError):
            _view.__delete__(lease)


_view: Final = vars(Lease)["view"]


def _keep(window: Window, session: Session | None, ours: dict[Evidence, Evidence]) -> None:
    """Hang the evidence on a window. One that our parent inherited itself has some already; one of
    a pool that is gone needs none. *ours* is what was made here of what we inherited."""
    if session is not None:
        guard = session.guards.begun
        number, page = (0, None) if guard is None else (guard.number, guard.page)
        window.evidence = Evidence(session.pool_id, session.seat, number, session.readers, page)
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
