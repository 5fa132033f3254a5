"""Who waits at a link: requests from their first word to their answer, their deadline or an exception.

A waiting thread reads the socket itself where nobody else does, which saves a thread switch at every miss. What an
exception comes between, is discarded: a slot that was granted meanwhile goes to the next who wants one.
"""

from __future__ import annotations

import select
import threading
import time

from ..protocol.messages import Cancel, Find, Held, Turn
from ..seat.slot import Slot
from ..system.descriptors import drain, signal
from ..system.processes import process_state
from .answers import Answers
from .requests import Request, RequestState
from .waiting import LONGEST_WAIT, WORD, Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: And so long, a little at a time, while the broker is seen to be at work, and just does not get
#: its turn on this host.
_LAST_WORD: Final = 5.0
_LOOK_AGAIN: Final = 0.004


class Asking(Answers):
    """A link as far as it is asked over. Thread-safe."""

    def next_number(self) -> int:
        """For a new request."""
        return self.requests.next_number()

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
        cancel = self.requests.remove(request)
        slot, request.slot = request.slot, None
        answer, request.answer = request.answer, None
        self._seat.return_unwanted(slot)
        is_unheard = cancel is not None and isinstance(request.message, Find)  # its answer may go with the connection
        if is_unheard or isinstance(answer, Held | Turn):
            self._seat.let_go(request.number)
        if cancel is not None:
            self.send(cancel)

    def _settle(self, request: Request, timeout: float | None) -> Slot | None:
        if request.is_waiting:
            self._await_answer(request, self._seat.lease_timeout if timeout is None else timeout)
        return self.conclude(request)

    def conclude(self, request: Request) -> Slot | None:
        """What a request got, for whoever waited for it; it is asked for no more."""
        cancel = self.requests.remove(request)
        if self.is_discarding:
            self.discard(request)
            return None
        if cancel is not None and request.state is RequestState.SERVED:
            self.send(cancel)
        slot, request.slot = request.slot, None  # who granted it may find that it came too late, and take it back
        return slot

    def return_unwanted(self, slot: Slot | None) -> None:
        """Take what was granted and is not needed."""
        self._seat.return_unwanted(slot)

    def pause(self, seconds: float) -> bool:
        """Wait for what nobody tells. False where an attempt has no time left for that."""
        if self.attempts and (attempt := self.attempts.get(threading.get_ident())) is not None:
            return attempt.pause(seconds)
        time.sleep(seconds)
        return True

    def await_connection(self, timeout: float | None) -> bool:
        """Wait for a broker that is away, at the most *timeout* seconds: one that restarts is back in a moment. So is
        one whose connection an exception has ended here, for which even who does not wait has its word's time.
        Whether it is there, or the seat ends, of which the next step tells."""
        seconds = self._seat.lease_timeout if timeout is None else timeout
        if self.connection is None and seconds < WORD and self._is_at_work():
            seconds = WORD
        deadline = time.monotonic() + seconds
        while self.connection is None and not self.is_discarding:
            if time.monotonic() >= deadline or not self.pause(_LOOK_AGAIN):
                return False
        return True

    def _is_at_work(self) -> bool:
        """Whether the broker's process lives, and is not stopped."""
        return process_state(self._seat.broker_pid()) in ("R", "D", "S")

    def _await_answer(self, request: Request, seconds: float) -> None:
        """Wait until a request is answered, or given up at its deadline."""
        request.waiter = Waiter()
        deadline = time.monotonic() + seconds
        if seconds > 0:
            self._wait(request, deadline)
            if not request.is_waiting or self.is_discarding:
                return
            self.send(Cancel(request.number))  # its answer, a refusal that says why or a grant, still comes
        if self.connection is not None or self._is_at_work():
            self._await_word(request)  # an exception may have ended the connection here: it is back in a moment

    def _await_word(self, request: Request) -> None:
        """The broker answers at once what does not queue or was cancelled, unless it is stopped or
        hangs. One that is just not given its turn by this host is waited for."""
        started = time.monotonic()
        self._wait(request, started + WORD)
        asleep = 0
        while request.is_waiting and not self.is_discarding and self.connection is not None:
            state = process_state(self._seat.broker_pid())
            asleep = asleep + 1 if state == "S" else 0  # it may have answered just now
            if state not in ("R", "D", "S") or asleep > 1 or time.monotonic() > started + _LAST_WORD:
                return
            self._wait(request, time.monotonic() + _LOOK_AGAIN)

    def _wait(self, request: Request, deadline: float) -> None:
        """Wait until *deadline*; reads the socket meanwhile if nobody else does, or who does is interrupted by this
        very call: he finds that it is not his any more, and begins anew."""
        reader, connection = self._reader, self.connection
        if connection is not None and connection.is_sent_here:
            self.close_connection(connection)  # nobody can send before this returns: the next one asks again
        while request.is_waiting and not self.is_discarding:
            has_interrupted = False
            try:
                # Without a connection the helper makes one, and reads it: it must find it unread.
                reads = self.connection is not None and reader.setdefault(0, request) is request
                if not reads and self._reads_here():
                    has_interrupted, reader[0] = True, request
                    reads = self.connection is not None
                in_time = self._read_for(request, deadline) if reads else request.waiter.wait(deadline)
            finally:
                if 0 in reader and reader[0] is request:
                    del reader[0]
                if has_interrupted:
                    signal(self._nudge)
            if reads:
                self._let_others_read()
            if not in_time:
                return
            self._offer(request.magazine, request)

    def _reads_here(self) -> bool:
        """Whether this thread has the right to read: in a call that this one has interrupted."""
        reader, me = self._reader.get(0), threading.get_ident()
        return reader.waiter.thread == me if isinstance(reader, Request) else reader == me

    def _read_for(self, request: Request, deadline: float) -> bool:
        """Read the socket until it ends or something concerns this request; False at the
        deadline."""
        nudge, connection = self._nudge, self.connection
        poll = select.poll()
        poll.register(nudge, select.POLLIN)
        while connection is not None and request.is_waiting and self._reader.get(0) is request:
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
