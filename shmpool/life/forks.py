"""Forks: what a child keeps of its parent's pools, and what the parent waits for.

A child keeps the windows through which its parent had something open for reading, with the pages
that say so to the parent (`seat.guards`) and to the broker; a writer's view that it inherited shows
a copy; everything else is out of its reach, and its pools connect anew on first use. It stores and
sends nothing: `system.here` says so from its first instruction on, before any hook.

A signal handler may raise anywhere in a hook, and what a hook raises is thrown away. So they are hooks that go on to
their end (`system.hooks`), and what was raised arrives at the caller. Each may be done again, and is there twice: more
exceptions than it takes end one of them. Before a fork for which all is ready the compiled
hook alone runs, and in the parent behind it one of C's: no handler comes in between.
Not covered: a fork made in C, without Python's hooks.

What a fork costs are pages: each that is written behind it, be it a reference count, the kernel copies, and before the
next it faults anew. So there is one hook of ours on each side, in the parent most often one of C's that only stores.
"""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from operator import setitem
from threading import get_ident

from ..errors import ShmpoolError
from ..lease import EndedLease, Lease
from ..live_lease import LiveLease
from ..seat import guards
from ..seat.windows import (
    Window,
    Windows,
    keep_readable,
)
from ..system import hooks, importing
from ..system.heirs import Evidence
from ..system.here import COPIED, FORKING, FORKS, GUARDED, HELPERS, HERE, IMPORTING, NOTED, OURS, UNSHARED, WORKING
from ..system.outside import own
from .closing import sessions
from .counted import COUNTS, before_fork
from .lifetime import pools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ..seat.session import Session


#: Seconds from look to look whether another thread's fork is over.
_ITS_TURN: Final = 0.0002
#: The sessions whose helpers the fork that is under way has stopped. They are started again, whether the
#: session has ended meanwhile or not.
_stopped: set[Session] = set()


def _before() -> None:
    # In this order: what was open or leased is not used again at once; then each seat has a guard, which the
    # child inherits; only then the fork. A guard that came after it would be the parent's alone, and what the
    # child reads would be given away. What is ready is not looked at.
    me = get_ident()
    while HERE[FORKING] and HERE[FORKING] != me:
        time.sleep(_ITS_TURN)
    HERE[FORKING] = me  # nothing is called between the look and this store: one forks at a time
    HERE[FORKS] += 1
    HERE[UNSHARED] = HERE[COPIED] = HERE[NOTED] = 0
    if HERE[IMPORTING]:
        importing.wait_for_imports()
    if HERE[WORKING] or not HERE[GUARDED]:
        _make_ready()
    if COUNTS:
        before_fork()


def _make_ready() -> None:
    HERE[GUARDED] = 0
    _after_in_parent.__setstate__(_GOES_ON)
    is_guarded = guards.stand_ready()
    HERE[UNSHARED] = HERE[COPIED] = HERE[NOTED] = 0  # who was just noting forks may have said otherwise
    # A child must find no helper in the middle of anything.
    for session in sessions.copy():
        if session.helper.is_running and not session.helper.rest():
            _stopped.add(session)
            session.helper.stop()
    if is_guarded and not _stopped:
        HERE[GUARDED] = 1
        _after_in_parent.__setstate__(_IS_OVER)


def _go_on() -> None:
    if HERE[FORKING] != get_ident():
        return  # all is done, and another thread may fork by now
    while _stopped:
        session = next(iter(_stopped))
        session.helper.start()
        _stopped.discard(session)
    HERE[FORKING] = 0
    guards.note_forks()  # at once, for some can be seen by nobody


#: What is done in the parent: where each seat has a guard one store, by C, which nothing interrupts.
_IS_OVER: Final[Any] = (setitem, (HERE, FORKING, 0), {}, None)
_after_in_parent: Final[Any] = partial(setitem, HERE, FORKING, 0)
_arrival: Final = hooks.Arrival()
_GOES_ON: Final[Any] = (hooks.unbroken(_go_on, partial(hooks.put_first, _arrival)), (), {}, None)


def _after_in_child() -> None:
    # As before it: what is touched is copied. So nothing here goes through more of our modules, or of CPython's,
    # than it must: each function that runs is four or five pages.
    if HERE[OURS]:
        return
    collects = gc.isenabled()
    try:
        gc.disable()  # what is looked at for garbage would be copied, too, and may be all that there is
        owners: dict[Windows, Session] = {}
        evidence: dict[Evidence, Evidence] = {}
        for session in sessions:
            owners[session.windows] = session
            abandon_leases(session)
            session.openings.abandon()
            session.holds.abandon()
            session.deferred.abandon()
        kept = keep_readable()
        for session in sessions:  # as soon as can be: the parent's slots wait for it
            session.guards.has_copied()
        for window in kept:
            _keep(window, owners.get(window.owner), evidence)
        for reference in list(pools):
            pool = reference()
            if pool is None:
                continue
            pool.abandon()
        while True:
            if not sessions:
                break
            session = next(iter(sessions))
            session.abandon()
            sessions.discard(session)
        guards.abandon_all()
        importing.abandon()
        if hooks.last is not None:
            hooks.last.abandon()
        _stopped.clear()
        _after_in_parent.__setstate__(_IS_OVER)
        HERE[FORKING] = HERE[WORKING] = HERE[HELPERS] = 0
        HERE[UNSHARED] = HERE[COPIED] = HERE[NOTED] = HERE[GUARDED] = 1
        HERE[OURS] = 1  # last: it says that all this is done
    finally:
        if collects:
            gc.enable()


def abandon_leases(session: Session) -> None:
    """The parent's leases raise here; whoever has a view of one keeps it. The compiled part puts its own in the place
    of this."""
    for slot in session.abandon_windows():
        try:
            if slot.lease is not None and isinstance(lease := slot.lease._itself(), LiveLease):
                lease.__class__ = EndedLease  # type: ignore[assignment]
                _view.__delete__(lease)
        except own(AttributeError, ReferenceError):
            pass  # it had none, or was collected


_view: Final = vars(Lease)["view"]


def _keep(window: Window, session: Session | None, ours: dict[Evidence, Evidence]) -> None:
    """Hang the evidence on a window. One that our parent inherited itself has some already; one of
    a pool that is gone needs none. *ours* is what was made here of what we inherited."""
    if session is not None and (guard := session.guards.standing) is not None:
        window.evidence = Evidence.of(session.pool_id, session.seat, guard.number, session.readers, guard.page)
    if (inherited := window.evidence) is not None:
        if inherited not in ours:
            ours[inherited] = inherited
            try:
                ours[inherited] = inherited.under(os.getpid())
            except own(OSError, ShmpoolError):
                pass  # nobody learns our pid then
        window.evidence = ours[inherited]


#: What is called: the compiled part puts its own in its place, and calls this where anything is to be done.
unbroken_before: Final = hooks.unbroken(_before, hooks.put_last)
before: Final[Any] = partial(unbroken_before)

for _ in range(2):
    os.register_at_fork(before=before, after_in_parent=_after_in_parent)
    hooks.in_child(_after_in_child)
os.register_at_fork(after_in_parent=_arrival.hook)
