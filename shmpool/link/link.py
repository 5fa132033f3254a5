"""The link: the connection to the broker, the right to read it, and the threads that wait for it.

Any thread sends; one at a time reads: whose name stands in `_reader`, the helper's or a waiting
lease's, which saves a thread switch at every miss. Nothing else asks who reads.

An exception may come between any two bytecodes, so ownership is recorded in the step that takes
it, and taken back where it is recorded: a lock is only taken by ``with``, whose enter and exit a
signal does not come between; the right to read by one `dict.setdefault`, inside the ``try`` whose
``finally`` gives it back without a call. What an exception finds in the middle (of a frame, of an
answer) is not mended: the connection is dropped, the next one asks again what is unanswered and
adopts what the ledger says was granted. Finalizers of ours send nothing; they leave bells.

A finalizer of the user's, or a handler, may come there as well, and ask for something. What its own thread has begun
goes on behind it, so it would wait for itself: it takes the right to read (`Asking._wait`), and where that thread is in
the middle of a frame, the connection is dropped for it, too.
"""

from __future__ import annotations

import select
import threading
import time

from ..system import importing
from ..system.descriptors import drain
from ..system.here import FORKING, HERE, WORKING
from .asking import Asking
from .connection import Connection
from .waiting import LONGEST_WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

#: Seconds from look to look whether a fork is over.
_FORKING: Final = 0.0005
#: A helper that found another thread reading looks again after so long, or when told.
_STAND_ASIDE: Final = 0.005


class Link(Asking):
    """The way to the broker of one seat. Thread-safe."""

    def look(self, timeout: float | None, is_meant: Callable[[], bool] = lambda: True) -> None:
        """Wait for a wake-up or a message, and handle what has come. Stands aside while a waiting
        thread reads, and looks again when it is told to or after a while."""
        connection, reader, me = self.connection, self._reader, threading.get_ident()
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
            reads = reader.setdefault(0, me) is me
            if reads:
                self.receive(connection)
        finally:
            if 0 in reader and reader[0] is me:
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
            self._go_on(is_meant)
        return ready

    def aside(self, act: Callable[..., object], *arguments: object, is_meant: Callable[[], bool]) -> None:
        """For the helper: what is others' code, as a program's logging is. Who forks does not wait for it: it may
        itself wait for what another hook of the fork has taken; nor does who closes the pool."""
        self._set_resting(True)
        self.is_aside = True
        try:
            act(*arguments)
        finally:
            self.is_aside = False
            self._go_on(is_meant)

    def _go_on(self, is_meant: Callable[[], bool]) -> None:
        # In this order: who forks says so, and then looks whether we rest.
        self._set_resting(False)
        while HERE[FORKING] and is_meant():
            self._set_resting(True)
            try:
                time.sleep(_FORKING)
            finally:
                self._set_resting(False)
        if self.tells_rests:  # whoever forks from here on has seen that we do not rest
            importing.waited_for.add(threading.get_ident())

    def _set_resting(self, is_resting: bool) -> None:
        if is_resting:
            importing.waited_for.discard(threading.get_ident())
        self.is_resting = is_resting
        if self.tells_rests:
            HERE[WORKING] += -1 if is_resting else 1

    # --- another connection -----------------------------------------------------------------------

    def attach(self, connection: Connection) -> None:
        """A new connection, over which the seat was taken up again: ask again what is unanswered."""
        self.connection = connection
        for message in self.requests.unanswered():
            self.send(message)
        self.send_bells()
