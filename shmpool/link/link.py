"""The link: the connection to the broker, the right to read it, and the threads that wait for it.

Any thread sends; one at a time reads: whose name stands in `_reader`, the helper's or a waiting
lease's, which saves a thread switch at every miss. Nothing else asks who reads.

An exception may come between any two bytecodes, so ownership is recorded in the step that takes
it, and taken back where it is recorded: a lock is only taken by ``with``, whose enter and exit a
signal does not come between; the right to read by one `dict.setdefault`, inside the ``try`` whose
``finally`` gives it back without a call. What an exception finds in the middle (of a frame, of an
answer) is not mended: the connection is dropped, the next one asks again what is unanswered and
adopts what the ledger says was granted. Finalizers send nothing; they leave bells.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from ..errors import ProtocolError
from ..protocol.messages import (
    Bell,
    Cancel,
    Dropped,
    Fault,
    Grant,
    Held,
    Inquire,
    Message,
    Refusal,
    Return,
    Settings,
    Taken,
    Turn,
)
from ..seat.magazine import Magazine, Slot
from ..system.descriptors import CLOSED, Closed, Descriptor, drain, make_eventfd, signal
from ..system.here import FORKING, HERE, WORKING
from ..system.processes import process_state
from .bells import Bells
from .connection import Connection, ConnectionEnded
from .requests import Request, Requests, RequestState
from .waiting import LONGEST_WAIT, Attempt, Waiter

#: Who waits no longer still waits so long for the broker's word: an answer takes a hundredth of it.
_WORD: Final = 0.04
#: And so long, a little at a time, while the broker is seen to be at work, and just does not get
#: its turn on this host.
_LAST_WORD: Final = 5.0
_LOOK_AGAIN: Final = 0.004
#: Seconds from look to look whether a fork is over.
_FORKING: Final = 0.0005
#: A helper that found another thread reading looks again after so long, or when told.
_STAND_ASIDE: Final = 0.005


class Seat(Protocol):
    """What the link calls upwards."""

    lease_timeout: float

    def adopt_row(self, row: int) -> Slot | None:
        """The slot of a row that was granted; None when it was not, or is known already."""

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


class Link:
    """The way to the broker of one seat. Thread-safe."""

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
        #: Of the table above.
        self._lock = threading.Lock()
        #: Under 0: who reads, a request or this link for its helper.
        self._reader: dict[int, object] = {}
        #: The helper leaves the socket alone, for a waiting thread reads.
        self._stands_aside = False
        #: All waiting ends: the seat is over, or its pool closes.
        self.is_discarding = False
        #: By thread: who tries in it and must not wait.
        self.attempts: dict[int, Attempt] = {}
        #: The helper waits and does nothing; it looks for forks before it does anything.
        self.is_resting = False
        #: Its rests are told to who forks (`HERE[WORKING]`).
        self.tells_rests = False

    # --- sending ------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message, and the bells that are left with it. Never blocks."""
        connection = self.connection
        if connection is not None:
            connection.send(*self.bells.take(), message)
            if connection.has_outbox:
                self.wake()
        elif isinstance(message, Return | Bell):
            self.bells.now(*message.rows)  # for the next connection

    def send_bells(self) -> None:
        """Tell the broker which rows to look at."""
        connection = self.connection
        if connection is not None and self.bells:
            connection.send(*self.bells.take())
            if connection.has_outbox:
                self.wake()

    def ring(self, row: int) -> None:
        """Have the broker look at a row: at once, or by the helper where the socket is full. Not for
        finalizers: they leave it to `bells`."""
        connection = self.connection
        if connection is not None and not connection.has_outbox:
            connection.send(Bell([row]))
        else:
            self.bells.now(row)

    def wake(self) -> None:
        """Make the helper look. From anywhere."""
        signal(self.wakeup)

    # --- asking -------------------------------------------------------------------------------------

    def next_number(self) -> int:
        """For a new request."""
        with self._lock:
            number = self.requests.next_number()
        return number

    def ask(self, request: Request, timeout: float | None) -> Slot | None:
        """Send a request and wait for its slot; None when there is none: *request* says why. Whatever
        is raised, a slot that was granted meanwhile is not lost."""
        request.began = time.monotonic()
        if self.attempts and (attempt := self.attempts.get(threading.get_ident())) is not None:
            return attempt.ask(request)
        try:
            self.begin(request)
            slot = self._settle(request, timeout)
        except BaseException:
            self.discard(request)
            raise
        return slot

    def ask_here(self, request: Request, timeout: float | None) -> None:
        """The same for what has to be answered before anything else is done, an event loop's thread too."""
        request.began = time.monotonic()
        try:
            self.begin(request)
            self._settle(request, timeout)
        except BaseException:
            self.discard(request)
            raise

    def begin(self, request: Request) -> None:
        """Send a request, to be waited for by `settle`."""
        with self._lock:
            self.requests.add(request)
        request.is_sent = True
        self.send(request.message)

    def settle(self, request: Request, timeout: float | None) -> Slot | None:
        """What a request got that was begun before; waits for the answer if it must. None when it
        was refused, or there is no answer in time."""
        if self.attempts and request.is_waiting and threading.get_ident() in self.attempts:
            self.discard(request)  # what is asked for anew is waited for otherwise
            return None
        try:
            slot = self._settle(request, timeout)
        except BaseException:
            self.discard(request)
            raise
        return slot

    def discard(self, request: Request) -> None:
        """Nobody waits for this request any more; what it got or will get is put aside."""
        with self._lock:
            cancel = self.requests.remove(request)
            slot, request.slot = request.slot, None
        self._seat.return_unwanted(slot)
        if isinstance(request.answer, Held | Turn):
            self._seat.let_go(request.number)
        if cancel is not None:
            self.send(cancel)

    def _settle(self, request: Request, timeout: float | None) -> Slot | None:
        if request.is_waiting:
            self._await_answer(request, self._seat.lease_timeout if timeout is None else timeout)
        return self.conclude(request)

    def conclude(self, request: Request) -> Slot | None:
        """What a request got, for whoever waited for it; it is asked for no more."""
        with self._lock:
            cancel = self.requests.remove(request)
        if self.is_discarding:
            self.discard(request)
            return None
        if cancel is not None and request.state is RequestState.SERVED:
            self.send(cancel)
        return request.slot

    def return_unwanted(self, slot: Slot | None) -> None:
        """Take what was granted and is not needed."""
        self._seat.return_unwanted(slot)

    def pause(self, seconds: float) -> None:
        """Wait for what nobody tells."""
        if self.attempts and (attempt := self.attempts.get(threading.get_ident())) is not None:
            attempt.pause(seconds)
        time.sleep(seconds)

    def _await_answer(self, request: Request, seconds: float) -> None:
        """Wait until a request is answered, or given up at its deadline."""
        request.waiter = Waiter()
        deadline = time.monotonic() + seconds
        if seconds > 0:
            self._wait(request, deadline)
            if not request.is_waiting or self.is_discarding:
                return
            self.send(Cancel(request.number))  # its answer, a refusal that says why or a grant, still comes
        if self.connection is not None:
            self._await_word(request)

    def _await_word(self, request: Request) -> None:
        """The broker answers at once what does not queue or was cancelled, unless it is stopped or
        hangs. One that is just not given its turn by this host is waited for."""
        started = time.monotonic()
        self._wait(request, started + _WORD)
        asleep = 0
        while request.is_waiting and not self.is_discarding and self.connection is not None:
            state = process_state(self._seat.broker_pid())
            asleep = asleep + 1 if state == "S" else 0  # it may have answered just now
            if state not in ("R", "D", "S") or asleep > 1 or time.monotonic() > started + _LAST_WORD:
                return
            self._wait(request, time.monotonic() + _LOOK_AGAIN)

    def _wait(self, request: Request, deadline: float) -> None:
        """Wait until *deadline*; reads the socket meanwhile if nobody else does."""
        reader = self._reader
        while request.is_waiting and not self.is_discarding:
            try:
                # Without a connection the helper makes one, and reads it: it must find it unread.
                reads = self.connection is not None and reader.setdefault(0, request) is request
                in_time = self._read_for(request, deadline) if reads else request.waiter.wait(deadline)
            finally:
                if 0 in reader and reader[0] is request:
                    del reader[0]
            if reads:
                self._let_others_read()
            if not in_time:
                return
            self._offer(request.magazine, request)

    def _read_for(self, request: Request, deadline: float) -> bool:
        """Read the socket until it ends or something concerns this request; False at the
        deadline."""
        nudge, connection = self._nudge, self.connection
        poll = select.poll()
        poll.register(nudge, select.POLLIN)
        while connection is not None and request.is_waiting:
            if not connection.poll_with(poll):
                self.close_connection(connection)
                break
            left = deadline - time.monotonic()
            ready = dict(poll.poll(min(max(0.0, left), LONGEST_WAIT) * 1000))
            if nudge in ready:
                drain(nudge)
                return True
            if ready:
                self.receive(connection)
            elif left <= LONGEST_WAIT:
                return False
            connection = self.connection
        return True

    def _let_others_read(self) -> None:
        """Let the next one read. The helper looks again by itself when it stood aside; for
        another waiter it must do so at once."""
        if self.connection is None or sum(request.waiter is not None for request in self.requests.all()) > 1:
            self.wake()

    # --- answers ------------------------------------------------------------------------------------

    def receive(self, connection: Connection) -> None:
        """Handle what has arrived. For who has the right to read."""
        if connection.is_in_pieces:
            self.close_connection(connection)
            return
        connection.is_in_pieces = True  # until all of it is done: what an exception leaves half is not read on
        try:
            connection.flush()
            for message in connection.receive():
                self.handle(message)
            connection.is_in_pieces = False
        except (ConnectionEnded, ProtocolError):
            self.close_connection(connection)
        except BaseException:
            self.close_connection(connection)
            raise

    def handle(self, message: Message) -> None:
        """Do what the broker says."""
        if isinstance(message, Grant):
            seat = self._seat
            self._grant(message.request, [slot for row in message.rows if (slot := seat.adopt_row(row))])
        elif isinstance(message, Taken | Held | Turn | Dropped):
            with self._lock:
                answered = self.requests.answered(message)
            if answered is None and isinstance(message, Held | Turn):
                self._seat.let_go(message.request)
            self._wake_waiter(answered)
        elif isinstance(message, Refusal):
            with self._lock:
                request = self.requests.refuse(message)
            self._wake_waiter(request)
        elif isinstance(message, Fault):
            raise ConnectionEnded(message.text)
        elif isinstance(message, Settings):
            self._seat.apply(message.settings)
        elif isinstance(message, Inquire):
            self._seat.account_for(message.rows, is_reader=message.is_reader)
        else:  # Recall: nothing else comes without being asked for
            self._seat.answer_recall()

    def _grant(self, number: int, slots: list[Slot]) -> None:
        with self._lock:
            request, left = self.requests.grant(number, slots)
        self._seat.return_unwanted(*left)  # first: who wakes may want the next one at once
        self._wake_waiter(request)

    def serve(self) -> None:
        """Own slots that came back go to own waiters first."""
        self._offer(None, None)

    def _offer(self, magazine: Magazine | None, me: Request | None) -> None:
        if me is not None and magazine is None:
            return  # no own slot serves a direct segment's request
        with self._lock:
            served = self.requests.offer(magazine)
        for request in served:
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

    # --- the helper's part --------------------------------------------------------------------------

    def look(self, timeout: float | None, is_meant: Callable[[], bool] = lambda: True) -> None:
        """Wait for a wake-up or a message, and handle what has come. Stands aside while a waiting
        thread reads, and looks again when it is told to or after a while."""
        connection, reader = self.connection, self._reader
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        if self._stands_aside:
            timeout = _STAND_ASIDE if timeout is None else min(timeout, _STAND_ASIDE)
        elif connection is None:
            return
        elif not connection.poll_with(poll):
            self.close_connection(connection)
            return
        ready = self.rest(poll, timeout, is_meant)
        self._stands_aside, wakeup = False, self.wakeup
        if wakeup in ready:
            drain(wakeup)
        if connection is None or len(ready) == (wakeup in ready):
            return
        try:
            reads = reader.setdefault(0, self) is self
            if reads:
                self.receive(connection)
        finally:
            if 0 in reader and reader[0] is self:
                del reader[0]
        self._stands_aside = not reads

    def rest(self, poll: select.poll, timeout: float | None, is_meant: Callable[[], bool]) -> dict[int, int]:
        """Wait, as the helper does between all that it does. A fork may come meanwhile, since nothing is
        under way here and nothing is held; one that has begun is waited for, unless the helper is to end:
        it may be joined by who forks. No descriptor is referred to here: a child does not see this frame
        go."""
        milliseconds = None if timeout is None else min(timeout, LONGEST_WAIT) * 1000 + 1
        self._set_resting(True)
        try:
            ready = dict(poll.poll(milliseconds))
        finally:
            # In this order: who forks says so, and then looks whether we rest.
            self._set_resting(False)
            while HERE[FORKING] and is_meant():
                self._set_resting(True)
                time.sleep(_FORKING)
                self._set_resting(False)
        return ready

    def _set_resting(self, is_resting: bool) -> None:
        self.is_resting = is_resting
        if self.tells_rests:
            HERE[WORKING] += -1 if is_resting else 1

    # --- connections --------------------------------------------------------------------------------

    def attach(self, connection: Connection) -> None:
        """A new connection, over which the seat was taken up again: ask again what is unanswered."""
        self.connection = connection
        with self._lock:
            messages = self.requests.unanswered()
        for message in messages:
            self.send(message)
        self.send_bells()

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

    def abandon(self) -> None:
        """After a fork: close the descriptors, without touching the parent's socket."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abandon()
        self.wakeup = self._nudge = CLOSED
