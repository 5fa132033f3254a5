"""Requests: the leases that wait, as a table. Pure: no socket, no lock, no clock; what is to be
done is returned. Any thread may use it, and a finalizer in the middle of any of these calls: there is no lock that
it would wait for. Between a look at a state and the store of the next one nothing is called, so no other thread and no
finalizer comes in between. A request that was removed meanwhile has the slot or the answer taken from it again: by one
step, so that of who gives it and who gives it up one has it.

======== ============================================ ===========================================
state    became so by                                 what it has
======== ============================================ ===========================================
WAITING  `Requests.add`
GRANTED  `Requests.grant`, the broker's answer        *slot*, which the broker granted
ANSWERED `Requests.answer`, the broker's answer       *answer*, to what asks for no slot
SERVED   `Requests.offer`: an own slot came back      *slot*; the broker still has to be told
REFUSED  `Requests.refuse`, the broker's answer       *refusal*
======== ============================================ ===========================================

A request leaves the table by `Requests.remove`, in any state, once or more often.
"""

from __future__ import annotations

from enum import Enum
from itertools import count

from ..protocol.messages import (
    Cancel,
    Direct,
    Drop,
    Dropped,
    Find,
    Held,
    Hold,
    Refill,
    Refusal,
    Share,
    Take,
    Taken,
    Turn,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..seat.magazine import Magazine
    from ..seat.slot import Slot

MAX_NUMBER = 0xFFFFFFFF

#: What has a number, and an answer.
Question = Refill | Direct | Take | Share | Hold | Find | Drop


class RequestState(Enum):
    """How far a request has come."""

    WAITING = "waiting"
    GRANTED = "granted"
    ANSWERED = "answered"
    SERVED = "served"
    REFUSED = "refused"


#: By these names, since each look at one there is a call in Python 3.11.
_WAITING, _GRANTED, _ANSWERED = RequestState.WAITING, RequestState.GRANTED, RequestState.ANSWERED
_SERVED, _REFUSED = RequestState.SERVED, RequestState.REFUSED


class Request:
    """One lease that waits, or will, or another question to the broker. *magazine* is where an own slot
    for it may come back to, None
    for a direct segment; *waiter* is whoever is to be woken and *claims* has, under 0, whose it is if
    it was prefetched: both for the table's user."""

    __slots__ = ("answer", "began", "claims", "is_sent", "magazine", "message", "refusal", "slot", "state", "waiter")

    def __init__(self, message: Question, magazine: Magazine | None = None) -> None:
        self.message = message
        self.magazine = magazine
        self.state = RequestState.WAITING
        self.slot: Slot | None = None
        self.refusal: Refusal | None = None
        self.answer: Taken | Held | Turn | Dropped | None = None
        #: The message is on its way, or waits for the next connection.
        self.is_sent = False
        self.waiter: Any = None
        #: When it was asked, in monotonic seconds.
        self.began = 0.0
        self.claims: dict[int, object] = {}

    @property
    def number(self) -> int:
        """By which the broker knows it."""
        return self.message.request

    @property
    def is_waiting(self) -> bool:
        """Whether it has no answer yet."""
        return self.state is RequestState.WAITING


class Requests:
    """All requests of one seat, the oldest first."""

    def __init__(self) -> None:
        self._table: dict[int, Request] = {}
        self._numbers = count()

    def next_number(self) -> int:
        """A number that no present request has."""
        number = next(self._numbers) % MAX_NUMBER + 1
        while number in self._table:
            number = next(self._numbers) % MAX_NUMBER + 1
        return number

    def add(self, request: Request) -> None:
        """From here on it may be answered."""
        self._table[request.number] = request

    def grant(self, number: int, slots: list[Slot]) -> tuple[Request | None, list[Slot]]:
        """The broker granted: who has to be woken, and what that request does not need."""
        request = self._table.get(number)
        if request is None or not slots or request.state is not _WAITING:
            return request, slots
        request.slot, request.state = slots[0], _GRANTED
        if number not in self._table:  # it was removed meanwhile
            slot, request.slot = request.slot, None
            return request, slots[1:] if slot is None else slots
        return request, slots[1:]

    def answered(self, answer: Taken | Held | Turn | Dropped) -> Request | None:
        """The broker answered: who has to be woken; None when nobody waits for it any more."""
        request = self._table.get(answer.request)
        if request is None or request.state is not _WAITING:
            return None
        request.answer, request.state = answer, _ANSWERED
        if answer.request not in self._table:
            taken, request.answer = request.answer, None
            return request if taken is None else None
        return request

    def refuse(self, refusal: Refusal) -> Request | None:
        """The broker refused: who has to be woken."""
        request = self._table.get(refusal.request)
        if request is not None and request.state is _WAITING:
            request.refusal, request.state = refusal, _REFUSED
        return request

    def offer(self, magazine: Magazine | None = None) -> list[Request]:
        """Own slots may have come back, to *magazine* or to any: who has waited longest for one gets
        it. Returns who has to be woken."""
        served = []
        empty: set[int] = set()
        for request in self.all():
            own = request.magazine
            if own is None or not request.is_waiting or (magazine or own) is not own or id(own) in empty:
                continue
            slot = own.take()
            if slot is None:
                empty.add(id(own))
            elif request.state is not _WAITING:
                own.ready.append(slot)  # it has one
            else:
                request.slot, request.state = slot, _SERVED
                if request.number in self._table:
                    served.append(request)
                else:
                    slot, request.slot = request.slot, None
                    if slot is not None:
                        own.ready.append(slot)
        return served

    def remove(self, request: Request) -> Cancel | None:
        """From here on nothing is granted to it, and what it got is its caller's. Returns what the
        broker is to be told: it need not look for a slot any more."""
        if self._table.pop(request.number, None) is None or not request.is_sent:
            return None
        return Cancel(request.number) if request.state in (RequestState.WAITING, RequestState.SERVED) else None

    def unanswered(self) -> list[Question]:
        """What is to be asked again over a new connection."""
        return [request.message for request in self.all() if request.is_sent and request.is_waiting]

    def all(self) -> list[Request]:
        """Everybody in the table, as it is now. By any thread at any time."""
        return list(self._table.values())
