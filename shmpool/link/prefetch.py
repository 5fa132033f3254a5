"""The next direct segment of a steady producer, asked for before it is needed.

A direct lease costs a round trip to the broker, which just then may be unlinking the last
one. Who leases the same size again gets its next segment granted while it writes the
present one. What lies here is IDLE in the ledger, counts towards the cap, has no pages yet,
and goes back when it rests or when somebody waits, like the slots of a magazine.
"""

from __future__ import annotations

import threading

from ..protocol.messages import Direct
from .requests import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    from ..seat.slot import Slot
    from .link import Link

    class Seat(Protocol):
        """Whose segments these are."""

        link: Link
        memory_limit: int
        is_closing: bool


#: The largest part of the pool's limit that one client may have lie here.
_SHARE: Final = 1 / 16


class Prefetch:
    """At most one segment. Thread-safe."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._lock = threading.RLock()
        self._request: Request | None = None
        #: The size that was leased last; twice the same is steady.
        self._nbytes = -1
        #: What lay here at the helper's last look.
        self._resting: Request | None = None

    def take(self, nbytes: int, timeout: float | None) -> Slot | None:
        """The segment that was asked for, maybe after waiting for the answer; None when there
        is none of this size to be had this way. *timeout* is in seconds like a lease's."""
        me, request, link = object(), self._request, self._seat.link
        if request is None:
            return None
        try:
            slot = None
            if request.claims.setdefault(0, me) is me:
                self._request = None
                # Not if it was leased last, for that may be another thread's; nor what was never sent.
                if request.is_sent and _nbytes_of(request) == nbytes:
                    slot = link.settle(request, timeout)
                else:
                    link.discard(request)
        except BaseException:
            self._discard(request, me)
            raise
        return slot

    def ask(self, nbytes: int) -> None:
        """A segment of *nbytes* was leased: ask for the next one, if that size is steady."""
        seat = self._seat
        is_steady, self._nbytes = nbytes == self._nbytes, nbytes
        is_modest = nbytes <= seat.memory_limit * _SHARE
        if not (is_steady and is_modest) or seat.is_closing or seat.link.connection is None:
            return
        # Without queueing: it must not hold up anybody who needs one now.
        me, request = object(), Request(Direct(seat.link.next_number(), nbytes, False))
        try:
            with self._lock:
                if self._request is not None:
                    return  # another thread was faster
                self._request = request
            seat.link.begin(request)
        except BaseException:  # remembered, maybe not sent: nobody may wait for it
            request.claims.setdefault(0, me)
            self._discard(request, me)
            raise

    def discard(self) -> None:
        """Return what lies here or is on its way."""
        me, request, self._resting = object(), self._request, None
        if request is not None:
            try:
                request.claims.setdefault(0, me)
            finally:
                self._discard(request, me)

    def discard_rested(self) -> bool:
        """Return what lay here at the last call; whether anything still lies here."""
        request = self._request
        if request is not None and request is self._resting:
            self.discard()
        self._resting = self._request
        return self._request is not None

    def _discard(self, request: Request, me: object) -> None:
        """Give a request up, if it is ours: who claims it first has it."""
        if request.claims.get(0) is me:
            if self._request is request:
                self._request = None
            self._seat.link.discard(request)


def _nbytes_of(request: Request) -> int:
    assert isinstance(request.message, Direct)
    return request.message.nbytes
