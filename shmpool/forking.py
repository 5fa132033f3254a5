"""Forks and exits: what a process must do about its pools at its edges.

Before a fork the helper threads are stopped, after it they go on. The child covers every
inherited map with private zeros, ends the inherited leases and buffers, and connects anew
on first use. At interpreter exit all pools are closed; what views are left then, the
broker's death sweep finds.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

from .buffer import EndedBuffer, LiveBuffer
from .direct import DirectLease
from .errors import LeakedView
from .lease import EndedLease, LiveLease
from .windows import cover_all

if TYPE_CHECKING:
    from .helper import Helper
    from .pool import Pool
    from .session import Session

#: Every open pool of this process.
pools: weakref.WeakSet[Pool] = weakref.WeakSet()
#: Closed sessions whose seat stays because views are left, with their helpers.
_lingering: dict[Session, tuple[Helper, list[weakref.ref[Any]]]] = {}


class _Stopped(threading.local):
    """The helpers that this thread's fork has stopped."""

    def __init__(self) -> None:
        self.helpers: list[Helper] = []


_stopped = _Stopped()

_LINGER_SECONDS = 0.05
_is_exiting = False


def live_objects(session: Session) -> list[LiveLease | LiveBuffer]:
    """The leases and buffers of a session that are not over. Looks at every object of the
    process (milliseconds): for edges only."""
    found: list[LiveLease | LiveBuffer] = []
    # Not gc.get_objects(): its list would hold every window for a while, and another thread's
    # release would take that for a view.
    for thing in gc.get_referrers(LiveLease, DirectLease, LiveBuffer):
        if _session_of(thing) is session:
            found.append(thing)
    return found


def _session_of(thing: Any) -> Session | None:
    """Whose lease or buffer a thing is; None for anything else, and for one that another
    thread is just making."""
    kind = type(thing)
    if issubclass(kind, LiveLease):
        return getattr(getattr(thing, "_slot", None), "session", None)
    if issubclass(kind, LiveBuffer):
        return getattr(getattr(thing, "_record", None), "session", None)
    return None


def finish(session: Session, helper: Helper) -> None:
    """Close a session: see `Pool.close`."""
    session.is_closing = True
    session.ahead.give_up()
    session.requests.dismiss()
    if session.is_over:
        helper.stop()
        session.close_descriptors()
        return
    open_leases = [thing for thing in live_objects(session) if isinstance(thing, LiveLease)]
    stories = [f"{lease!r} was open when its pool was closed; it is released" for lease in open_leases]
    while open_leases:
        # The seat waits for a view in any case, and for a lease that another thread is just
        # making or publishing (who takes `view` away, goes on with it).
        with contextlib.suppress(LeakedView, Warning, AttributeError):
            open_leases.pop().release_unless_busy()
    session.close_magazines()
    if not is_in_use(session):
        leave(session, helper)
    elif not _is_exiting:  # else the broker's death sweep finds what is left
        buffers = [weakref.ref(thing) for thing in live_objects(session)]
        _lingering[session] = (helper, buffers)
        threading.Thread(target=_linger, args=(session,), name="shmpool-linger", daemon=True).start()
    for story in stories:  # last: where warnings are errors, the pool is closed all the same
        warnings.warn(story, ResourceWarning, stacklevel=3)


def is_in_use(session: Session) -> bool:
    """Whether any lease, buffer or view of a session is left, or one is just being made."""
    return bool(session.windows.waiting or session.owns_any or live_objects(session))


def leave(session: Session, helper: Helper) -> None:
    """Say goodbye: the seat ends. Nothing of the session may be in use."""
    helper.stop()
    if not session.is_over:
        session.close_magazines()
        session.say_goodbye()
    session.close_descriptors()


def _linger(session: Session) -> None:
    """Keep the seat until the last view is gone, then say goodbye. Without a broker there is
    nobody to say it to, but the seat's byte lock must be held as long: a broker that comes
    back takes its release for the end of all views."""
    while session in _lingering:
        helper, buffers = _lingering[session]
        if not session.windows.waiting and not any(type(ref()) is LiveBuffer for ref in buffers):
            if not session.is_over:
                session.close_magazines()
            if session.is_over or not session.owns_any:
                if _lingering.pop(session, None):
                    leave(session, helper)
                return
        time.sleep(_LINGER_SECONDS)


def _before_fork() -> None:
    """A fork must find one thread, and nobody in the middle of a message."""
    helpers = [pool._helper for pool in pools] + [helper for helper, _ in _lingering.values()]
    _stopped.helpers = [helper for helper in helpers if helper is not None and helper.is_running]
    for helper in _stopped.helpers:
        helper.stop()


def _after_fork_in_parent() -> None:
    for helper in _stopped.helpers:
        helper.start()
    _stopped.helpers = []


def _after_fork_in_child() -> None:
    _stopped.helpers = []
    sessions = [pool._session for pool in pools if pool._session] + list(_lingering)
    _lingering.clear()
    if any(not session.is_over for session in sessions):
        _end_inherited(set(sessions))
    for pool in list(pools):
        pool._lock = threading.Lock()
        pool._session = pool._helper = None
    cover_all()
    for session in sessions:
        session.abandon()


def _end_inherited(sessions: set[Session]) -> None:
    """The parent's leases and buffers raise here, and are never released from here."""
    for thing in gc.get_objects():
        if _session_of(thing) in sessions:
            thing.__class__ = EndedLease if isinstance(thing, LiveLease) else EndedBuffer


def _at_exit() -> None:
    global _is_exiting
    _is_exiting = True  # no thread can be started any more
    for pool in list(pools):
        session = pool._session
        if session is not None:
            session.is_closing = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # a process may end with its leases
            pool.close()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
