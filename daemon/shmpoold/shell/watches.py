"""Watching the processes of seats by pidfd: their death is certain, never guessed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from shmpool.protocol.ledger import SEAT_LOCKS
from shmpool.system import processes
from shmpool.system.locks import ByteLocks

#: Seconds until an adopted process is tried again when no descriptor could be had.
RETRY: Final = 1.0

log = logging.getLogger(__name__)


class Watches:
    """One pidfd for each seat. *died* is called once for each seat whose process ends;
    it may be called from within `adopt`."""

    def __init__(self, locks: ByteLocks, died: Callable[[int], None]) -> None:
        self._locks = locks
        self._loop = asyncio.get_running_loop()
        self._died = died
        self._pidfds: dict[int, int] = {}
        self._retries: dict[int, asyncio.TimerHandle] = {}
        #: Seats whose byte we hold, while they are settled.
        self._locked: set[int] = set()

    def watch(self, seat: int, pidfd: int) -> None:
        """Watch a process by its pidfd, which is now ours; -1 for one that has ended."""
        self.unwatch(seat)
        if pidfd < 0:
            self._died(seat)
            return
        self._pidfds[seat] = pidfd
        self._loop.add_reader(pidfd, self._on_end, seat)

    def adopt(self, seat: int, pid: int, began: int) -> None:
        """Watch a process that an earlier broker knew by pid and start time. A pid that
        was out of its sight (0) is taken for alive."""
        self.unwatch(seat)
        if pid == 0:
            log.warning("seat %d is of a process out of sight: taken for alive", seat)
            return
        pidfd = -1
        try:
            pidfd = os.pidfd_open(pid)
            # Looked at after the pidfd was opened: what it names cannot change any more.
            is_same = processes.is_same_process(pid, began)
        except ProcessLookupError:
            self._died(seat)
            return
        except OSError as error:
            if pidfd >= 0:
                os.close(pidfd)
            log.warning("cannot watch pid %d of seat %d yet: %s", pid, seat, error.strerror)
            self._retries[seat] = self._loop.call_later(RETRY, self.adopt, seat, pid, began)
            return
        if is_same:
            self.watch(seat, pidfd)
        else:
            os.close(pidfd)
            self._died(seat)

    def probe(self, seat: int) -> None:
        """See whether the client has let go of its seat though its process lives. Then the
        byte stays locked until the seat is cleared: a client that has its welcome, but was not
        yet so far as to lock it, must not take the seat for its own meanwhile."""
        if self._locks.try_lock(SEAT_LOCKS + seat):
            self._locked.add(seat)
            self._died(seat)

    def unwatch(self, seat: int) -> None:
        """Forget a seat; nothing happens when it was not watched."""
        retry = self._retries.pop(seat, None)
        if retry is not None:
            retry.cancel()
        pidfd = self._pidfds.pop(seat, None)
        if pidfd is not None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        if seat in self._locked:
            self._unlock(seat)

    def _unlock(self, seat: int) -> None:
        """Let the seat's next client have its byte. Should the kernel refuse (it needs memory to
        divide a range), that client's `watch` tries again, before it hears of its seat."""
        try:
            self._locks.unlock(SEAT_LOCKS + seat)
        except OSError as error:
            log.warning("seat %d stays locked until it is taken: %s", seat, error.strerror)
        else:
            self._locked.remove(seat)

    def close(self) -> None:
        """Forget all."""
        for seat in [*self._pidfds, *self._retries, *self._locked]:
            self.unwatch(seat)

    def _on_end(self, seat: int) -> None:
        self.unwatch(seat)
        self._died(seat)
