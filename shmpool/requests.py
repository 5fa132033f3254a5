"""Leases that wait: for the broker's answer, or for an own slot that comes back.

A waiting thread reads the socket itself if nobody does just then, which saves a thread
switch at every miss; else the helper thread or another waiter reads for it, and wakes it.
So the socket has one reader at any moment, whoever holds `reading`.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from .errors import (
    BrokerUnavailable,
    InvalidSize,
    LeaseTimeout,
    PoolClosed,
    QuotaExceeded,
    SharedMemoryFull,
    ShmpoolError,
)
from .magazine import Magazine, Slot
from .protocol import figures
from .protocol.codes import Code
from .protocol.messages import Cancel, Direct, Message, Refill, Refusal
from .protocol.sizing import format_bytes

if TYPE_CHECKING:
    from .session import Session

#: After a cancel: how long the broker's last word is waited for.
_LAST_WORD: Final = 1.0
#: A request without queueing is answered at once; a broker that is stopped is not.
_ANSWER: Final = 5.0


class Request:
    """One lease that waits, or will."""

    __slots__ = ("_gate", "is_awaited", "is_granted", "magazine", "message", "number", "refusal", "slot")

    def __init__(self, message: Refill | Direct, magazine: Magazine | None) -> None:
        self.number = message.request
        self.message = message
        self.magazine = magazine
        self.slot: Slot | None = None
        self.refusal: Refusal | None = None
        #: A thread waits for the answer.
        self.is_awaited = False
        #: *slot* is the broker's grant, and not an own slot that came back.
        self.is_granted = False
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def is_answered(self) -> bool:
        """Whether waiting is over."""
        return self.slot is not None or self.refusal is not None

    def wait(self, deadline: float) -> bool:
        """Wait for `wake` until *deadline* (monotonic seconds); False when it has passed."""
        return self._gate.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def wake(self) -> None:
        """Let the waiting thread look again."""
        try:
            self._gate.release()
        except RuntimeError:
            pass  # it is awake already


class Requests:
    """All leases of a session that wait. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._waiting: dict[int, Request] = {}
        self._last_number = 0
        #: Who holds it reads the socket.
        self.reading = threading.Lock()
        #: The thread that reads while it waits, 0 for none.
        self._reader = 0
        #: Makes it look at its request again.
        self._nudge = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def next_number(self) -> int:
        """A number that no present request has."""
        with self._lock:
            self._last_number = self._last_number % 0xFFFFFFFF + 1
            return self._last_number

    def ask(self, message: Refill | Direct, magazine: Magazine | None, nbytes: int, timeout: float | None) -> Slot:
        """Send a request and wait for a slot. Raises `LeaseTimeout` or what the refusal
        means; whatever is raised, a slot that was granted meanwhile is not lost."""
        started = time.monotonic()
        request = Request(message, magazine)
        try:
            self.begin(request)
            self._settle(request, timeout)
        except BaseException:
            self.abandon(request)
            raise
        slot = self._close(request)
        if slot is None:
            raise self._refused(request, nbytes, time.monotonic() - started)
        if not request.is_granted:
            self._session.send(Cancel(request.number))  # the broker need not look for one any more
        return slot

    def begin(self, request: Request) -> None:
        """Send a request; `ask` waits for the answer at once, `settle_ahead` later."""
        with self._lock:
            self._waiting[request.number] = request
        self._session.send(request.message)

    def settle_ahead(self, request: Request, timeout: float | None) -> Slot | None:
        """What a request got that was begun before; waits for the answer if it must. None
        when it was refused, or there is no answer in time."""
        try:
            self._settle(request, timeout)
        except BaseException:
            self.abandon(request)
            raise
        return self._close(request)

    def abandon(self, request: Request) -> None:
        """Nobody waits for this request any more; what it got or will get is returned."""
        slot = self._close(request)
        if not request.is_granted and request.refusal is None:
            self._session.send(Cancel(request.number))
        self._return(slot)

    def _settle(self, request: Request, timeout: float | None) -> None:
        """Wait until a request is answered, or withdrawn at its deadline."""
        session = self._session
        if request.is_answered:
            return
        request.is_awaited = True
        seconds = session.lease_timeout if timeout is None else timeout
        if timeout == 0:
            seconds = _ANSWER if session.connection else 0.0
        self._wait(request, time.monotonic() + seconds)
        if not (request.is_answered or self._is_dismissed):
            session.send(Cancel(request.number))
            self._wait(request, time.monotonic() + (_LAST_WORD if session.connection else 0.0))

    def _return(self, slot: Slot | None) -> None:
        """Nobody needs it. After the seat's end it is not ours to return."""
        if not self._session.is_over:
            self._session.put_aside(slot)

    @property
    def _is_dismissed(self) -> bool:
        return self._session.is_over or self._session.is_closing

    def _wait(self, request: Request, deadline: float) -> None:
        while not (request.is_answered or self._is_dismissed):
            # Without a connection the helper makes one, and reads it: it must find it unread.
            if self._session.connection is not None and self.reading.acquire(blocking=False):
                try:
                    self._reader = threading.get_ident()
                    in_time = self._read_for(request, deadline)
                finally:
                    self._stop_reading()
            else:
                in_time = request.wait(deadline)
            if not in_time:
                return
            self._take_own(request)

    def _read_for(self, request: Request, deadline: float) -> bool:
        """Read the socket until it ends or something concerns this request; False at the
        deadline."""
        session = self._session
        poll = select.poll()
        poll.register(self._nudge, select.POLLIN)
        connection = session.connection
        while connection is not None and not request.is_answered:
            if not connection.poll_with(poll):
                break
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(0.0, left * 1000)))
            if self._nudge in ready:
                _drain(self._nudge)
                return True
            if not ready:
                return False
            session.receive(connection)
            connection = session.connection
        return True

    def _stop_reading(self) -> None:
        """Let the next one read. The helper looks again by itself when it stood aside; for
        another waiter it must do so at once."""
        self._reader = 0
        self.reading.release()
        session = self._session
        if self._waiters > 1 or session.connection is None:
            session.wake_helper()

    def _take_own(self, request: Request) -> None:
        """An own slot may have come back: who has waited longest for one gets it."""
        if request.magazine is None:
            return
        served: list[Request] = []
        with self._lock:
            for waiting in self._waiting.values():
                if waiting.magazine is request.magazine and not waiting.is_answered:
                    waiting.slot = request.magazine.take()
                    if waiting.slot is None:
                        break
                    served.append(waiting)
        for waiting in served:
            if waiting is not request:
                self._wake(waiting)

    def _close(self, request: Request) -> Slot | None:
        """From here on nothing is granted to this request; what already was, is returned, and
        when nobody may have it any more it goes back."""
        with self._lock:
            self._waiting.pop(request.number, None)
            slot = request.slot
        if self._is_dismissed:
            self._return(slot)
            return None
        return slot

    @property
    def _waiters(self) -> int:
        """How many threads wait."""
        return sum(request.is_awaited for request in list(self._waiting.values()))

    # --- answers -----------------------------------------------------------------------------

    def grant(self, number: int, slots: list[Slot]) -> None:
        """The broker granted; what its request does not need joins the magazines."""
        with self._lock:
            request = self._waiting.get(number)
            if request is not None and slots and not request.is_answered:
                request.slot, request.is_granted = slots.pop(0), True
        self._session.put_aside(*slots)  # first: who wakes may want the next one at once
        self._wake(request)

    def refuse(self, refusal: Refusal) -> None:
        """The broker refused."""
        with self._lock:
            request = self._waiting.get(refusal.request)
            if request is not None and not request.is_answered:
                request.refusal = refusal
        self._wake(request)

    def serve(self) -> None:
        """Own slots that came back go to own waiters first."""
        with self._lock:
            waiting = list(self._waiting.values())
            for request in waiting:
                if request.magazine is not None and not request.is_answered:
                    request.slot = request.magazine.take()
        for request in waiting:
            self._wake(request)

    def dismiss(self) -> None:
        """The session closes: end all waiting. Returns when everybody has gone (at most
        `_LAST_WORD`), so that the descriptors that they poll may be closed."""
        deadline = time.monotonic() + _LAST_WORD
        while self._waiters and time.monotonic() < deadline:
            with self._lock:
                waiting = list(self._waiting.values())
            for request in waiting:
                self._wake(request)
            time.sleep(0.001)

    def _wake(self, request: Request | None) -> None:
        if request is not None:
            request.wake()
            if self._reader not in (0, threading.get_ident()):
                os.eventfd_write(self._nudge, 1)

    def messages(self) -> list[Message]:
        """What is to be asked again over a new connection."""
        with self._lock:
            return [request.message for request in self._waiting.values() if not request.is_answered]

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._nudge)

    # --- refusals ------------------------------------------------------------------------------

    def _refused(self, request: Request, nbytes: int, waited: float) -> ShmpoolError:
        session, refusal = self._session, request.refusal
        if session.is_closing:
            return PoolClosed("the pool was closed while a lease waited")
        if session.is_over:
            return BrokerUnavailable("the broker came back with another pool while a lease waited; lease again")
        said = f"no buffer of {format_bytes(nbytes)} within {waited:.3g} s"
        if refusal is None:
            session.count(figures.TIMEOUTS)
            return LeaseTimeout(said if session.connection else f"{said}; the broker at {session.address} is away")
        error = {
            Code.TOO_LARGE: InvalidSize,
            Code.SHM_FULL: SharedMemoryFull,
            Code.QUOTA: QuotaExceeded,
            Code.STOPPING: BrokerUnavailable,
        }.get(Code(refusal.code))
        if error is not None:
            return error(refusal.text)
        session.count(figures.TIMEOUTS)
        return LeaseTimeout(f"{said}: {refusal.text}")


def _drain(eventfd: int) -> None:
    try:
        os.eventfd_read(eventfd)
    except BlockingIOError:
        pass
