"""The next direct segment of a steady producer, asked for before it is needed.

A direct lease costs a round trip to the broker, which just then may be unlinking the last
one. Who leases the same size again gets its next segment granted while it writes the
present one. What lies here is IDLE in the ledger, counts towards the cap, has no pages yet,
and goes back when it rests or when somebody waits, like the slots of a magazine.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from .magazine import Slot
from .protocol.messages import Direct
from .requests import Request

if TYPE_CHECKING:
    from .session import Session


class DirectRequest(Request):
    """A request for a direct segment."""

    __slots__ = ()
    message: Direct

    def __init__(self, message: Direct) -> None:
        super().__init__(message, None)


#: The largest part of the pool's limit that one client may have lie here.
_SHARE: Final = 1 / 16


class Ahead:
    """At most one segment. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._request: DirectRequest | None = None
        #: The size that was leased last; twice the same is steady.
        self._nbytes = -1
        #: What lay here at the helper's last look.
        self._resting: DirectRequest | None = None

    def take(self, nbytes: int, timeout: float | None) -> Slot | None:
        """The segment that was asked for, maybe after waiting for the answer; None when there
        is none of this size to be had this way. *timeout* is in seconds like a lease's."""
        request = self._pop()
        if request is None:
            return None
        if nbytes == request.message.nbytes:  # and not what was leased last: that may be another thread's
            return self._session.requests.settle_ahead(request, timeout)
        self._session.requests.abandon(request)
        return None

    def ask(self, nbytes: int) -> None:
        """A segment of *nbytes* was leased: ask for the next one, if that size is steady."""
        session = self._session
        is_steady, self._nbytes = nbytes == self._nbytes, nbytes
        is_modest = nbytes <= session.memory_limit * _SHARE
        if not (is_steady and is_modest) or session.is_closing or session.connection is None:
            return
        # Without queueing: it must not hold up anybody who needs one now.
        request = DirectRequest(Direct(session.requests.next_number(), nbytes, False))
        with self._lock:
            if self._request is not None:
                return  # another thread was faster
            self._request = request
        session.requests.begin(request)

    def give_up(self) -> None:
        """Return what lies here or is on its way."""
        request, self._resting = self._pop(), None
        if request is not None:
            self._session.requests.abandon(request)

    def give_up_rested(self) -> bool:
        """Return what lay here at the last call; whether anything still lies here."""
        request = self._request
        if request is not None and request is self._resting:
            self.give_up()
        self._resting = self._request
        return self._request is not None

    def _pop(self) -> DirectRequest | None:
        with self._lock:
            request, self._request = self._request, None
            return request
