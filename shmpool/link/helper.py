"""The helper thread: one daemon thread for each session, the reader of its socket unless a
waiting lease reads for itself.

It takes grants and recalls, sends the bells that finalizers left, returns what rests in
the magazines, reconnects with backoff, and ends a closed session when its last view is gone.
Forks find it at rest, or stopped (`Helper.rest`); it never holds a lock while it waits.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time

from .. import log
from ..errors import BrokerUnavailable
from ..system import importing
from ..system.descriptors import drain
from ..system.here import FORKING, HELPERS, HERE, WORKING
from ..system.outside import exists, own
from .connection import Interruption
from .hello import jitter
from .link import Link
from .waiting import await_the_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from ..seat.deferred import DeferredReleases
    from ..seat.outgoing import Outgoing
    from ..seat.segments import Segments

    class Seat(Protocol):
        """What a helper looks after."""

        address: str
        link: Link
        deferred: DeferredReleases
        outgoing: set[Outgoing]
        segments: Segments
        is_over: bool
        is_orphaned: bool
        is_wanted: bool
        magazine_idle: float

        @property
        def is_locked_here(self) -> bool:
            """Whether this thread has any of the seat's locks."""

        def reconnect(self, timeout: float, interruption: Interruption | None = None) -> bool:
            """Try once to take the seat up again."""

        @property
        def pause(self) -> float | None:
            """Seconds until it has to be looked after besides; None: not before it is told."""

        def look_after_views(self) -> None:
            """Settle what waited for a view."""

        def answer_recall(self) -> None:
            """Give back what is idle."""

        def look_after_rested(self) -> bool:
            """Return what was not used; False when nothing idle is left."""


#: Reconnecting: the first pause and the longest, in seconds; each is jittered.
FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 2.0
#: Seconds for which a broker that listens is waited for to answer; twice as many each time that it does not, up to the
#: longest. Where it has little of the cores, all who lost it come at once: who gives up soon comes again, and
#: what it has to do for those who have gone is all that it gets done.
FIRST_PATIENCE: Final = 2.0
LONGEST_PATIENCE: Final = 64.0
#: Seconds after which an unexpected error is forgotten: the pause after the next one is the first again.
_FORGET: Final = 10.0
#: Seconds that a thread which has ended is given to leave the kernel's list.
_LONGEST_EXIT: Final = 1.0
#: Seconds from look to look whether the helper has come to rest.
_COMING_TO_REST: Final = 0.0002
#: Seconds from look to look whether the thread that is stopped has gone into others' code.
_ITS_END: Final = 0.02
#: Seconds that a thread is given to begin whose start was interrupted: it may not have come so far.
_ITS_BEGINNING: Final = 0.5
#: A finalizer or a handler that forks in the middle of what its thread has a lock for waits for the helper so long: it
#: may wait for that lock, and then does nothing either.
_LOCKED_OUT: Final = 0.05
#: The longest that a fork waits for it at all: it may be in the middle of a finalizer of the user's, which waits for
#: what another hook of the fork has taken.
_LONGEST_REST: Final = 5.0
#: How often the helper of a seat without a pool looks whether anything is in use.
UNUSED_POLL: Final = 0.05
#: How often it looks whether the streams that are written here are still read.
OUTGOING_POLL: Final = 0.1


class _Thread(threading.Thread):
    """One whose start may be interrupted. An exception behind the kernel's has threading forget a thread that is just
    beginning, or find that it has begun: whoever comes second there gets a KeyError."""

    #: Here is the child of a fork in the middle of its start.
    is_parents = False
    has_begun = False

    def start(self) -> None:
        try:
            super().start()
        except own(KeyError, RuntimeError) as error:
            if self.is_parents:
                return  # CPython 3.13 takes it for one that has ended, and then finds that threading has forgotten it
            if error.__context__ is None or not isinstance(error, KeyError):
                raise
            raise error.__context__ from None
        except BaseException:
            # Until it begins CPython 3.11 knows it by the number of the thread that has started it, and what is to be
            # sent to that one, as a hook does with what came here, would reach the new one.
            given_up = time.monotonic() + _ITS_BEGINNING
            while True:
                if self.has_begun or self.is_parents or time.monotonic() >= given_up:
                    break
                time.sleep(_COMING_TO_REST)
            raise

    def _bootstrap(self) -> None:
        self.has_begun = True
        try:
            super()._bootstrap()  # type: ignore[misc]
        except own(KeyError):
            pass  # it ends: who waits for a helper has another


#: All threads, for threading: a `WeakSet`.
_dangling: Final[Any] = getattr(threading, "_dangling", None)


class Helper:
    """Runs a seat's thread. *close_if_unused* closes a seat that nothing is left of, and says so.
    Of threads that are started at the same time the last goes on."""

    def __init__(self, seat: Seat, close_if_unused: Callable[[], bool]) -> None:
        self._seat = seat
        self._close_if_unused = close_if_unused
        #: The thread that is to run; one that finds another here, or none, ends.
        self.thread: threading.Thread | None = None
        #: One whose start is under way; a fork may come in its middle.
        self._starting: _Thread | None = None
        #: The kernel's thread that started it; its own under gevent.
        self._started_by = 0
        self._pause = 0.0
        self._patience = FIRST_PATIENCE
        #: The pause after the last unexpected error, and when it is forgotten.
        self._setback, self._forgets_at = 0.0, 0.0
        #: The broker is away, and that was said.
        self._is_lost = False

    @property
    def is_running(self) -> bool:
        """Whether there is a thread."""
        return self.thread is not None

    def stand_by(self) -> None:
        """For who is about to wait: have a thread, and not this one. (None was started again where an exception came;
        and a finalizer that comes in the helper and waits has another go on in its place.)"""
        if sys.is_finalizing():
            raise BrokerUnavailable("the interpreter ends: nothing is asked of a broker any more")
        if self.thread is threading.current_thread():
            self.thread = None
        self.start()

    def start(self) -> None:
        """Start the thread, if there is none. Not in a finalizer at the interpreter's end: it would never begin, and be
        waited for. Raises BrokerUnavailable where this process may have no more threads."""
        thread = self.thread
        if (thread is None or not thread.is_alive()) and not sys.is_finalizing():
            self._started_by = threading.get_native_id()
            thread = _Thread(target=self._run, name="shmpool-helper", daemon=True)
            self.thread = self._starting = thread
            handled = sys.exception()
            try:
                thread.start()
            except own(RuntimeError) as error:
                if error.__context__ not in (None, handled):  # in CPython's wait, whose lock's error took its place
                    raise error.__context__ from None
                if not self._seat.is_over:  # else a child of a fork in the middle of that (`abandon`)
                    said = f"no thread is to be had for the connection to the broker at {self._seat.address}: {error}"
                    if await_the_end():
                        raise BrokerUnavailable(said) from error
                    raise BrokerUnavailable(f"{said} (`ulimit -u` and `ulimit -v` may say why)") from error
            self._starting = None

    def rest(self) -> bool:
        """Before a fork: wait until the thread does nothing, and will not before the fork is over. It waits
        for no broker, so neither does this. False where it has to be stopped."""
        thread, link = self.thread, self._seat.link
        if thread is threading.current_thread() or not thread or not thread.is_alive():
            return False
        if thread.native_id == threading.get_native_id():
            return False  # under gevent
        waits_until = time.monotonic() + (_LOCKED_OUT if self._seat.is_locked_here else _LONGEST_REST)
        while thread.is_alive() and not link.is_resting and time.monotonic() < waits_until:
            link.wake()
            time.sleep(_COMING_TO_REST)
        return True

    def stop(self) -> None:
        """Stop the thread and wait until the kernel has forgotten it: a fork must find
        one thread less. It waits for no broker, so neither does this; and where it is in others' code, as a
        program's logging is, it is not waited for: it ends when that does."""
        thread, self.thread = self.thread, None
        if thread is None or thread is threading.current_thread():
            return
        self._seat.link.wake()
        try:
            gives_up = time.monotonic() + (_LOCKED_OUT if self._seat.is_locked_here else float("inf"))
            while True:
                left = gives_up - time.monotonic()
                if left <= 0 or self._seat.link.is_aside or not thread.is_alive():
                    break
                thread.join(min(left, _ITS_END))
        except own(RuntimeError):
            return  # its start was interrupted, or goes on in another thread: it finds that it is not meant
        if thread.native_id == threading.get_native_id() or thread.is_alive():
            return  # under gevent; or it waits for what this thread has, or others have
        gone = time.monotonic() + _LONGEST_EXIT
        while exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < gone:
            os.sched_yield()

    def abandon(self) -> None:
        """In a forked child. Who was just starting one goes on with that here, where threading has forgotten it: it
        would end with a KeyError, or be waited for without an end. It does nothing instead."""
        thread, self.thread, self._starting = self._starting, None, None
        self._seat.link.tells_rests = False  # it may be the helper that has forked, and goes on here
        if thread is not None and not thread._started.is_set():  # type: ignore[attr-defined]
            thread.is_parents = True
            thread._bootstrap = thread._started.set  # type: ignore[method-assign, attr-defined]
            thread._started.set()  # type: ignore[attr-defined]

    def _is_meant(self) -> bool:
        return self.thread is threading.current_thread() and not self._seat.is_over

    def _run(self) -> None:
        HERE[WORKING] += 1
        is_thread, pid = False, os.getpid()
        try:
            # One that a fork has to stop (`rest`), under gevent, is never seen to rest, and no thread of the kernel's.
            is_thread = threading.get_native_id() != self._started_by
            self._seat.link.tells_rests = is_thread
            HERE[HELPERS] += is_thread
            if is_thread:
                importing.waited_for.add(threading.get_ident())
            self._go_on()
        finally:
            if os.getpid() == pid:  # else a finalizer has forked here, and it is counted nowhere
                HERE[WORKING] -= 1
                HERE[HELPERS] -= is_thread
            importing.waited_for.discard(threading.get_ident())
            # Here, where no signal handler runs: else a callback in Python does it when the thread object goes, and
            # what comes in that is thrown away.
            if _dangling is not None:
                _dangling.discard(threading.current_thread())

    def _go_on(self) -> None:
        is_meant = True
        while is_meant:
            try:
                self._look_after()
                is_meant = self._is_meant()
            except BaseException:  # the last resort: nobody else would do its work
                self._begin_anew()
        if self.thread is threading.current_thread() and self._seat.is_orphaned:
            self._close_if_unused()  # the broker came back with another pool

    def _begin_anew(self) -> None:
        """Raises nothing: where memory was refused, it may be so here again."""
        try:
            if self._is_meant():
                now = time.monotonic()
                self._setback = min(LONGEST_PAUSE, 2 * self._setback) if now < self._forgets_at else FIRST_PAUSE
                self._forgets_at = now + _FORGET
                try:
                    self._say(
                        log.exception, "the helper of a shmpool seat drops its connection after an unexpected error"
                    )
                finally:
                    self._seat.link.close_connection()
                    self._wait(self._setback)
        except BaseException:
            pass

    def _look_after(self) -> None:
        seat, link = self._seat, self._seat.link
        rested_at = time.monotonic() + seat.magazine_idle
        has_idle = True
        while self._is_meant():
            if seat.is_orphaned and self._close_if_unused():
                return
            if link.connection is None:
                self._tell_lost()
                if not self._is_meant():
                    return  # it was not waited for
                if not self._reconnect():
                    link.serve()  # nobody raises the wanted flag for own slots now
                    continue
            pauses = [link.bells.pause(), seat.deferred.pause(), seat.segments.pause(), seat.pause]
            if has_idle:
                pauses.append(max(0.0, rested_at - time.monotonic()))
            if seat.is_orphaned:
                pauses.append(UNUSED_POLL)
            if seat.outgoing:
                pauses.append(OUTGOING_POLL)
            link.look(min((pause for pause in pauses if pause is not None), default=None), self._is_meant)
            seat.look_after_views()
            if seat.is_wanted:
                seat.answer_recall()
            link.send_bells()
            now = time.monotonic()
            if now >= rested_at:
                has_idle = seat.look_after_rested()
                rested_at = now + seat.magazine_idle
            elif not has_idle:
                has_idle = True
                rested_at = now + seat.magazine_idle

    def _tell_lost(self) -> None:
        if not self._is_lost and self._is_meant():
            self._is_lost = True
            self._say(
                log.warning,
                "the broker at %s is away; what is leased, published and open stays, and it is looked for",
                self._seat.address,
            )

    def _tell_found(self) -> None:
        self._is_lost = False
        if self._seat.is_over:
            text = "the broker at %s is back with another pool; leases of the old one are over"
            self._say(log.warning, text, self._seat.address)
        else:
            self._say(log.info, "the broker at %s is back", self._seat.address)

    def _say(self, say: Callable[..., None], text: str, *values: object) -> None:
        self._seat.link.aside(say, text, *values, is_meant=self._is_meant)

    def _is_called_off(self) -> bool:
        """Asked when something woke it: own slots that came back go to own waiters, too. A fork finds it at
        rest (`rest`)."""
        self._seat.link.serve()
        return not self._is_meant() or HERE[FORKING] != 0

    def _reconnect(self) -> bool:
        """One attempt, and a pause that grows; False when there is no connection yet."""
        seat, link = self._seat, self._seat.link
        gives_up = time.monotonic() + self._patience
        if seat.reconnect(self._patience, Interruption(self._is_called_off, link.wakeup)):
            self._pause, self._patience = 0.0, FIRST_PATIENCE
            self._tell_found()
            link.wake()  # what woke it meanwhile is looked at now
            return not seat.is_over
        if time.monotonic() >= gives_up:
            self._patience = min(LONGEST_PATIENCE, 2 * self._patience)
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        self._wait(self._pause * jitter())
        return False

    def _wait(self, seconds: float) -> None:
        """Without a connection. Own slots that come back go to own waiters, and a fork finds it at rest."""
        seat, link = self._seat, self._seat.link
        poll = select.poll()
        poll.register(link.wakeup, select.POLLIN)
        until = time.monotonic() + seconds
        while self._is_meant() and (left := until - time.monotonic()) > 0:
            if seat.is_orphaned:
                left = min(left, UNUSED_POLL)
                if self._close_if_unused():
                    return
            if link.rest(poll, left, self._is_meant):
                drain(link.wakeup)
                link.serve()
