"""Forks and exits: what a process must do about its pools at its edges.

Before a fork the helper threads are stopped, after it they go on. The child covers every
inherited map with private zeros, ends the inherited leases and buffers, and connects anew
on first use. At interpreter exit all pools are closed; what views are left then, the
broker's death sweep finds.
"""

from __future__ import annotations

import atexit
import gc
import os
import threading
import warnings
import weakref
from typing import TYPE_CHECKING

from .buffer import EndedBuffer, LiveBuffer
from .lease import EndedLease
from .life.closing import sessions, settle_at_exit
from .windows import cover_all

if TYPE_CHECKING:
    from .link.helper import Helper
    from .pool import Pool
    from .session import Session

#: Every open pool of this process.
pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class _Stopped(threading.local):
    """The helpers that this thread's fork has stopped."""

    def __init__(self) -> None:
        self.helpers: list[Helper] = []


_stopped = _Stopped()


def _before_fork() -> None:
    """A fork must find one thread, and nobody in the middle of a message."""
    _stopped.helpers = [session.helper for session in list(sessions) if not session.is_over]
    for helper in _stopped.helpers:
        helper.stop()


def _after_fork_in_parent() -> None:
    for helper in _stopped.helpers:
        helper.start()
    _stopped.helpers = []


def _after_fork_in_child() -> None:
    _stopped.helpers = []
    inherited = set(sessions)
    sessions.clear()
    if any(not session.is_over for session in inherited):
        _end_inherited(inherited)
    for pool in list(pools):
        pool.forget_parent()
    cover_all()
    for session in inherited:
        session.abandon()


def _end_inherited(inherited: set[Session]) -> None:
    """The parent's leases and buffers raise here, and are never released from here."""
    for session in inherited:
        for lease in session.live_leases():
            lease.__class__ = EndedLease  # type: ignore[assignment]
    for thing in gc.get_objects():
        if type(thing) is LiveBuffer and thing._record.session in inherited:
            thing.__class__ = EndedBuffer  # type: ignore[assignment]


def _at_exit() -> None:
    """All pools give back what is idle and hand their publications over. They stay open for what runs
    later still, daemon threads and exit handlers; the death sweep finds what these leave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a process may end with its leases
        for session in list(sessions):
            settle_at_exit(session)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
