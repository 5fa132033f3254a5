"""Closing: what becomes of a seat when its pool is closed, or collected unclosed.

Nothing here waits for the broker. What is idle goes back and publications are handed over at
once; the seat, with its byte lock and its connection, stays until the last view is gone, and its
helper sees to that, over any number of brokers. Each step may be done twice: a second `close`
finishes what an exception has ended the first in.
"""

from __future__ import annotations

import atexit
import threading
import warnings

from ..errors import BrokerUnavailable, LeakedView
from ..live_lease import live_leases
from ..system.outside import own_or_called

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from ..seat.session import Session

#: Every session of this process that has a seat.
sessions: Final[set[Session]] = set()
#: Where private brokers of this process, or of the one that it was forked from, were closed: none comes there again.
_gone: Final[set[str]] = set()


def close(session: Session) -> None:
    """Close a session: see `Pool.close`."""
    session.is_closing = True
    session.link.discard_all()
    stories: list[str] = []
    if not session.is_over:
        session.prefetch.discard()
        stories = _discard_streams(session) + _release_leases(session)
        session.close_magazines()
    session.is_orphaned = True  # if we do not come so far, its helper ends it
    if is_in_use(session) or not close_unused(session):
        session.helper.start()
        session.wake_helper()
    for story in stories:  # last: where warnings are errors, the pool is closed all the same
        warnings.warn(story, ResourceWarning, stacklevel=3)


def _discard_streams(session: Session) -> list[str]:
    stories = []
    for stream in session.outgoing.copy():
        writer = stream.writer()
        if writer is not None and not writer.closed:
            stories.append(f"{writer!r} was open when its pool was closed; it is discarded")
            writer.discard()
    session.outgoing.clear()
    return stories


def _release_leases(session: Session) -> list[str]:
    open_leases = live_leases(session.owned)
    stories = [f"{lease!r} was open when its pool was closed; it is released" for lease in open_leases]
    while open_leases:
        # The seat waits for a view in any case, and for a lease that another thread is just
        # making or publishing (who takes `view` away, goes on with it).
        try:
            open_leases.pop().release_unless_busy()
        except own_or_called(LeakedView, Warning, AttributeError):
            pass
    return stories


def is_in_use(session: Session) -> bool:
    """Whether any lease, buffer or view of a session is left, or one is just being made."""
    if session.is_over:
        return False
    session.deferred.look_at_all()
    return session.is_in_use


def close_if_unused(session: Session) -> bool:
    """For the helper of a session without a pool: close it, if nothing is in use."""
    if not session.is_over:
        session.prefetch.discard()
        session.close_magazines()
    return not is_in_use(session) and close_unused(session)


def close_unused(session: Session) -> bool:
    """Say goodbye: the seat ends. Nothing of the session may be in use; False when another thread
    has just begun to use something."""
    if not session.is_over:
        session.close_magazines()
        if not session.say_goodbye():
            return False
    session.link.discard_all()
    if threading.current_thread() is not session.helper.thread:
        session.helper.stop()
    session.close_descriptors()
    sessions.discard(session)
    return True


def close_unbegun(session: Session) -> None:
    """A session that could not begin: nothing was leased or opened over it."""
    session.is_closing = True
    session.helper.stop()
    session.is_over = True
    session.close_descriptors()
    sessions.discard(session)


def broker_is_gone(address: str) -> None:
    """This process has ended its own broker there, and no other will come: who waits for it is told, and who asks, here
    and in children that are forked from now on."""
    _gone.add(address)
    for session in list(sessions):
        if session.address == address:
            session.link.discard_all()


def raise_if_gone(address: str) -> None:
    """Before a broker is waited for. Raises BrokerUnavailable."""
    if address in _gone:
        raise BrokerUnavailable(f"the private broker at {address} was closed: nobody will answer there any more")


def settle_at_exit(session: Session) -> None:
    """The interpreter ends: what is idle goes back, and publications are handed over. The pool stays
    as it is for whatever runs later still, and nothing is warned of any more."""
    session.is_at_exit = True
    if not session.is_over:
        session.prefetch.discard()
        session.close_magazines()


def _at_exit() -> None:
    """All pools give back what is idle and hand their publications over. They stay open for what runs
    later still, daemon threads and exit handlers; the death sweep finds what these leave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a process may end with its leases
        for session in list(sessions):
            settle_at_exit(session)


atexit.register(_at_exit)
