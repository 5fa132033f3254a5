"""Tickets with a ttl: closed by their publisher's session when nobody has opened them in time; and those
that the broker is to close for a process that cannot.

The helper looks when the next one is due. A ticket that is open just then may be given back
(`Buffer.give_back`), so it is looked at again until it is done. After the publisher has gone the
broker's ``handle_ttl`` counts.
"""

from __future__ import annotations

import time
from _heapq import heappop, heappush
from itertools import count
from threading import RLock

from ..errors import HandleUsed, StaleHandle
from ..protocol.handle import Handle, unpack_handle
from ..protocol.ledger import NBYTES_BITS
from ..protocol.messages import Take
from ..system.outside import own
from . import tickets
from .records import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Seconds until a ticket that is open, or is being opened, is looked at again.
AGAIN: Final = 1.0
#: From so many on those that are done are forgotten, each time there are twice as many as were left.
FORGOTTEN_FROM: Final = 1024


class Expiry:
    """Those of one session. Thread-safe."""

    def __init__(self, session: Reader) -> None:
        self._session = session
        #: Reentrant: a finalizer may have something closed.
        self.lock = RLock()
        self._numbers = count()
        #: When (monotonic seconds), a number of its own, granted and tail of a handle.
        self._heap: list[tuple[float, int, int, int]] = []
        self._forgets_at = FORGOTTEN_FROM

    def add(self, handles: list[Handle], ttl: float) -> None:
        """These are to be closed in *ttl* seconds."""
        due = time.monotonic() + ttl
        with self.lock:
            is_first = not self._heap or due < self._heap[0][0]
            for handle in handles:
                _, granted, tail = unpack_handle(handle)
                heappush(self._heap, (due, next(self._numbers), granted, tail))
            if len(self._heap) >= self._forgets_at:
                self._forget_done()
        if is_first:
            self._session.wake_helper()

    def close(self, granted: int, tail: int) -> None:
        """Have the broker close this one, again and again until it is done."""
        with self.lock:
            heappush(self._heap, (time.monotonic(), next(self._numbers), granted, tail))
        self._session.wake_helper()

    def __len__(self) -> int:
        """How many are watched."""
        return len(self._heap)

    def _forget_done(self) -> None:
        """A long ttl and a steady producer: nearly all were read long ago."""
        known, self._heap = self._heap, []  # in one step: a finalizer may add some meanwhile
        for entry in known:
            if not tickets.is_done(self._session, entry[2], entry[3] >> NBYTES_BITS):
                heappush(self._heap, entry)
        self._forgets_at = max(FORGOTTEN_FROM, 2 * len(self._heap))

    @property
    def pause(self) -> float | None:
        """Seconds until the next one is due, None without any."""
        heap = self._heap
        try:
            return max(0.0, heap[0][0] - time.monotonic())
        except own(IndexError):
            return None

    def look(self) -> None:
        """Close what is due."""
        while self._heap and self._heap[0][0] <= (now := time.monotonic()):
            with self.lock:
                if not self._heap or self._heap[0][0] > now:
                    return
                _, _, granted, tail = heappop(self._heap)
            index, session = tail >> NBYTES_BITS, self._session
            try:
                if session.asks_for_tickets:
                    pending = tickets.pending_word(session, granted, tail)
                    session.send(Take(0, index >> 4, index & 15, pending, True))
                    is_done = False
                else:
                    tickets.discard_handle(session, granted, tail)
                    is_done = True
            except own(HandleUsed):
                is_done = tickets.is_done(session, granted, index)
            except own(StaleHandle):
                is_done = True  # it was read, and its slot is in use again
            if not is_done:
                with self.lock:
                    heappush(self._heap, (now + AGAIN, next(self._numbers), granted, tail))
