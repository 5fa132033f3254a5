"""What the broker says over a link, and whom it wakes."""

from __future__ import annotations

import threading

from ..errors import ProtocolError
from ..protocol.messages import Dropped, Fault, Grant, Held, Inquire, Message, Refusal, Settings, Taken, Turn
from ..seat.magazine import Magazine
from ..seat.slot import Slot
from ..system.descriptors import signal
from ..system.outside import own
from .connection import Connection, ConnectionEnded
from .requests import Request
from .sending import Sending


class Answers(Sending):
    """A link as far as it is read. Thread-safe; `receive` is for who has the right to read."""

    def receive(self, connection: Connection) -> None:
        """Handle what has arrived. For who has the right to read: it may have interrupted its own thread in the middle
        of this, and goes on with what that has yet to handle; where that was taking something apart, nobody can."""
        is_within, arrived = connection.is_in_pieces, self._arrived
        if is_within and self._handled is not connection:
            self.close_connection(connection)
            return
        connection.is_in_pieces = True  # until all of it is done: what an exception leaves half is not read on
        try:
            if not arrived:
                self._handled = None
                connection.flush()
                arrived.extend(connection.receive())
            self._handled = connection
            while True:
                if not arrived:
                    break
                try:
                    message = arrived.popleft()
                except own(IndexError):  # who interrupted this just here has handled all of it
                    break
                self.handle(message)
            if not is_within:
                self._handled, connection.is_in_pieces = None, False
        except own(ConnectionEnded, ProtocolError):
            self._forget_arrived(connection)
        except BaseException:
            self._forget_arrived(connection)
            raise

    def _forget_arrived(self, connection: Connection) -> None:
        self._handled = None
        self._arrived.clear()
        self.close_connection(connection)

    def handle(self, message: Message) -> None:
        """Do what the broker says."""
        if isinstance(message, Grant):
            self._grant(message.request, self._seat.adopt_rows(message.rows))
        elif isinstance(message, Taken | Held | Turn | Dropped):
            answered = self.requests.answered(message)
            if answered is None and isinstance(message, Held | Turn):
                self._seat.let_go(message.request)
            self._wake_waiter(answered)
        elif isinstance(message, Refusal):
            self._wake_waiter(self.requests.refuse(message))
        elif isinstance(message, Fault):
            raise ConnectionEnded(message.text)
        elif isinstance(message, Settings):
            self._seat.apply(message.settings)
        elif isinstance(message, Inquire):
            self._seat.account_for(message.rows, is_reader=message.is_reader)
        else:  # Recall: nothing else comes without being asked for
            self._seat.is_wanted = True
            if isinstance(self._reader.get(0), Request):
                self.wake()  # the helper answers it, since that may wait for a lock; who reads must not

    def _grant(self, number: int, slots: list[Slot]) -> None:
        request, left = self.requests.grant(number, slots)
        self._seat.return_unwanted(*left)  # first: who wakes may want the next one at once
        self._wake_waiter(request)

    def serve(self) -> None:
        """Own slots that came back go to own waiters first."""
        self._offer(None, None)

    def _offer(self, magazine: Magazine | None, me: Request | None) -> None:
        if me is not None and magazine is None:
            return  # no own slot serves a direct segment's request
        for request in self.requests.offer(magazine):
            if request is not me:
                self._wake_waiter(request)

    def discard_all(self) -> None:
        """End all waiting. Waits for nobody."""
        self.is_discarding = True
        for request in self.requests.all():
            self._wake_waiter(request)

    def _wake_waiter(self, request: Request | None) -> None:
        waiter = None if request is None else request.waiter
        if waiter is not None:
            waiter.wake()
            reader = self._reader.get(0)
            if isinstance(reader, Request) and reader.waiter.thread != threading.get_ident():
                signal(self._nudge)
