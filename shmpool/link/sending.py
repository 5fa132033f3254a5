"""What is sent over a link, and the descriptors that it has; what it calls upwards."""

from __future__ import annotations

from collections import deque

from ..protocol.messages import Bell, Message, Return
from ..seat.slot import Slot
from ..system.descriptors import CLOSED, Closed, Descriptor, make_eventfd, signal
from .bells import Bells
from .connection import Connection
from .requests import Requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .waiting import Attempt

    class Seat(Protocol):
        """What the link calls upwards."""

        lease_timeout: float
        #: Somebody waits: it is to give back what is idle.
        is_wanted: bool

        def adopt_rows(self, rows: list[int]) -> list[Slot]:
            """The slots of the rows that were granted and are not known already."""

        def return_unwanted(self, *slots: Slot | None) -> None:
            """Take slots that nobody waits for."""

        def answer_recall(self) -> None:
            """Somebody waits: give back what is idle."""

        def apply(self, settings: list[list[int]]) -> None:
            """Take over settings that were changed."""

        def account_for(self, rows: list[int], *, is_reader: bool) -> None:
            """Tell the broker what is known of buffers that it takes for leaked."""

        def broker_pid(self) -> int:
            """The broker's process, as it sees itself."""

        def let_go(self, number: int) -> None:
            """What was held, or was to be made, under this number is nobody's here."""


class Sending:
    """A link as far as it sends. Thread-safe."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        #: None while there is no broker.
        self.connection: Connection | None = None
        #: Makes the helper look at what is left for it.
        self.wakeup: Descriptor | Closed = make_eventfd()
        #: Makes the reading thread look at its request again.
        self._nudge: Descriptor | Closed = make_eventfd()
        self.bells = Bells(self.wake)
        self.requests = Requests()
        #: What was read and is not handled yet, and the connection of what is just being handled.
        self._arrived: deque[Message] = deque()
        self._handled: Connection | None = None
        #: Under 0: who reads, a request or the helper, by its thread.
        self._reader: dict[int, object] = {}
        #: The helper leaves the socket alone, for a waiting thread reads.
        self._stands_aside = False
        #: All waiting ends: the seat is over, or its pool closes.
        self.is_discarding = False
        #: By thread: who tries in it and must not wait.
        self.attempts: dict[int, Attempt] = {}
        #: The helper waits and does nothing; it looks for forks before it does anything.
        self.is_resting = False
        #: It is in others' code (`Link.aside`).
        self.is_aside = False
        #: Its rests are told to who forks (`HERE[WORKING]`).
        self.tells_rests = False

    def send(self, message: Message) -> None:
        """Send a message, and the bells that are left with it. Never blocks."""
        connection = self.connection
        if connection is not None:
            self._send(connection, message)
        elif isinstance(message, Return | Bell):
            self.bells.now(*message.rows)  # for the next connection

    def send_bells(self) -> None:
        """Tell the broker which rows to look at."""
        connection = self.connection
        if connection is not None and self.bells:
            self._send(connection)

    def _send(self, connection: Connection, *messages: Message) -> None:
        rows: set[int] = set()
        try:
            connection.send(*self.bells.take(rows), *messages)
        except BaseException:  # a bell that rings twice does nothing, one that is lost is found late
            self.bells.now(*rows)
            raise
        if connection.has_outbox:
            self.wake()

    def ring(self, row: int) -> None:
        """Have the broker look at a row: at once, or by the helper where the socket is full, or soon where
        many ring. Not for finalizers: they leave it to `bells`."""
        connection = self.connection
        if connection is None or connection.has_outbox:
            self.bells.now(row)
        elif self.bells.are_few():
            connection.send(Bell([row]))
        else:
            self.bells.soon(row)

    def wake(self) -> None:
        """Make the helper look. From anywhere."""
        signal(self.wakeup)

    def close_connection(self, connection: Connection | None = None) -> None:
        """End a connection, by default the present one; the helper makes another. What had not
        been read is discarded with it."""
        connection = connection or self.connection
        if connection is None:
            return
        connection.shut_down()  # first: whoever polls it sees the end, and drops what we could not
        if self.connection is connection:
            self.connection = None
        connection.close()
        self.wake()

    def close(self) -> None:
        """Close what it has open. Who is just using a descriptor has it until then."""
        self.close_connection()
        self.wake()  # nobody can, from here on
        self.wakeup = self._nudge = CLOSED
        self.is_discarding = True  # who was forked while it waited waits no longer

    def abandon(self) -> None:
        """After a fork: close the descriptors, without touching the parent's socket."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abandon()
        self.wakeup = self._nudge = CLOSED
