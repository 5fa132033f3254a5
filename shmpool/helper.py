"""The helper thread: one daemon thread for each session, the reader of its socket unless a
waiting lease reads for itself.

It takes grants and recalls, sends the bells that finalizers left, returns what rests in
the magazines, reconnects with backoff. It is stopped before a fork and started again
after it; it never holds a lock while it waits.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .session import Session

#: Reconnecting: the first pause and the longest, in seconds; each is jittered.
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 2.0
_CONNECT_TIMEOUT: Final = 2.0
#: A helper that found another thread reading looks again after so long, or when told.
STAND_ASIDE: Final = 0.005
#: How often the helper of an unclosed, collected pool looks whether anything is in use.
FORSAKEN_POLL: Final = 0.1


class Helper:
    """Runs a session's thread. `start` and `stop` belong to one thread at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._pause = 0.0

    @property
    def is_running(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread, if there is none."""
        if self._thread is None:
            self._is_stopping = False
            self._thread = threading.Thread(target=self._run, name="shmpool-helper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait until the kernel has forgotten it: a fork must find
        one thread less."""
        thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread():
            return
        self._is_stopping = True
        self._session.wake_helper()
        thread.join()
        gone = time.monotonic() + 0.1
        while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < gone:
            os.sched_yield()

    def _run(self) -> None:
        session = self._session
        rested_at = time.monotonic() + session.magazine_idle
        has_idle = True
        while not (self._is_stopping or session.is_over):
            if session.connection is None and not self._reconnect():
                session.requests.serve()  # nobody raises the wanted flag for own slots now
                continue
            pauses = [session.bells.pause()]
            if has_idle:
                pauses.append(max(0.0, rested_at - time.monotonic()))
            if session.is_forsaken:
                pauses.append(FORSAKEN_POLL)
            self._wait_and_handle(min((pause for pause in pauses if pause is not None), default=None))
            if session.is_forsaken and self._is_left():
                return
            if session.is_wanted:
                session.answer_recall()
            session.send_bells()
            now = time.monotonic()
            if now >= rested_at:
                has_idle = session.return_rested()
                rested_at = now + session.magazine_idle
            elif not has_idle:
                has_idle = True
                rested_at = now + session.magazine_idle

    def _is_left(self) -> bool:
        """Close the session of a pool that was garbage-collected, if nothing is in use."""
        from . import forking  # it knows leases and buffers, which know sessions

        if forking.is_in_use(self._session):
            return False
        forking.leave(self._session, self)
        return True

    def _wait_and_handle(self, timeout: float | None) -> None:
        """Wait for a wake-up or a message, and handle what has come. Stands aside while a
        waiting thread reads, and looks again when it is told to or after a while."""
        session, connection = self._session, self._session.connection
        poll = select.poll()
        poll.register(session.wakeup, select.POLLIN)
        if session.helper_stands_aside:
            timeout = STAND_ASIDE if timeout is None else min(timeout, STAND_ASIDE)
        elif connection is None or not connection.poll_with(poll):
            return
        ready = dict(poll.poll(None if timeout is None else timeout * 1000 + 1))
        session.helper_stands_aside = False
        if session.wakeup in ready:
            self._clear_wakeup()
        if connection is None or len(ready) == (session.wakeup in ready):
            return
        connection.flush()
        if session.requests.reading.acquire(blocking=False):
            try:
                session.receive(connection)
            finally:
                session.requests.reading.release()
            if session.connection is None:
                self._pause = 0.0
        else:
            session.helper_stands_aside = True

    def _reconnect(self) -> bool:
        """One attempt, after a pause that grows; False when there is no connection yet."""
        session = self._session
        if session.is_closing or session.reconnect(_CONNECT_TIMEOUT):
            if session.is_closing:
                session.end()
            return not session.is_over
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        poll = select.poll()
        poll.register(session.wakeup, select.POLLIN)
        until = time.monotonic() + self._pause * _jitter()
        while not self._is_stopping and (left := until - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self._clear_wakeup()
        return False

    def _clear_wakeup(self) -> None:
        try:
            os.eventfd_read(self._session.wakeup)
        except BlockingIOError:
            pass


def _jitter() -> float:
    """0.5 to 1: clients that lost their broker together must not come back together."""
    return 0.5 + int.from_bytes(os.urandom(2)) / 0x1FFFF
