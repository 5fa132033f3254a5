"""Watching the clients of seats: by a pidfd, or where none can be had by the seat's byte.

Their death is certain, never guessed: a pidfd that we hold has ended, or the byte is free. A pid
that cannot be seen, another start time, another namespace say nothing. It is told once the client's
children have copied what it was writing, which they do in their first moments: nobody else is to write
there before.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from shmpool.protocol.ledger import SEAT_LOCKS
from shmpool.system import processes
from shmpool.system.locks import ByteLocks

from ..core.events import Peer

#: Seconds until an adopted process is tried again when no descriptor could be had.
RETRY: Final = 1.0
#: Seconds that a child which has yet to copy is given first, and from look to look at the longest.
COPYING: Final = 0.002
LONGEST_COPYING: Final = 0.25

log = logging.getLogger(__name__)


class Watches:
    """One pidfd for each seat that can be seen. *died* is called once for each seat that has
    ended, *unseen* for each that cannot be watched; both may be called from within `watch` and
    `adopt`. *is_copied* says whether no child of a seat has yet to copy anything."""

    def __init__(
        self,
        locks: ByteLocks,
        died: Callable[[int], None],
        unseen: Callable[[int], None],
        is_copied: Callable[[int], bool],
    ) -> None:
        self._locks = locks
        self._loop = asyncio.get_running_loop()
        self._died = died
        self._unseen = unseen
        self._is_copied = is_copied
        self._pidfds: dict[int, int] = {}
        self._retries: dict[int, asyncio.TimerHandle] = {}
        #: Seats whose byte we hold, while they are settled.
        self._locked: set[int] = set()

    def watch(self, seat: int, pidfd: int | None) -> None:
        """Watch a process by its pidfd, which is now ours; -1 for one that has ended, None for
        one that cannot be watched."""
        self.unwatch(seat)
        if pidfd is None:
            self._unseen(seat)
        elif pidfd < 0:
            self._tell_end(seat)
        else:
            self._pidfds[seat] = pidfd
            self._loop.add_reader(pidfd, self._on_end, seat)

    def adopt(self, seat: int, peer: Peer) -> None:
        """Take over a seat of an earlier broker's: its byte tells whether anybody has it."""
        self.unwatch(seat)
        if not self.probe(seat):
            self._find(seat, peer)

    def _find(self, seat: int, peer: Peer) -> None:
        """Watch a process that an earlier broker knew by pid and start time."""
        self._retries.pop(seat, None)
        if peer.pid == 0 or (peer.pid_namespace, peer.time_namespace) != processes.namespaces():
            self._unseen(seat)
            return
        pidfd = -1
        try:
            pidfd = os.pidfd_open(peer.pid)
            # Looked at after the pidfd was opened: what it names cannot change any more.
            is_same = processes.is_same_process(peer.pid, peer.start_time)
        except ProcessLookupError:
            is_same = False
        except OSError as error:
            if pidfd >= 0:
                os.close(pidfd)
            log.warning("cannot watch pid %d of seat %d yet: %s", peer.pid, seat, error.strerror)
            self._retries[seat] = self._loop.call_later(RETRY, self._find, seat, peer)
            return
        if is_same:
            self.watch(seat, pidfd)
            return
        if pidfd >= 0:
            os.close(pidfd)
        self._unseen(seat)

    def probe(self, seat: int) -> bool:
        """See whether the client has let go of its seat, maybe though its process lives. Then the
        byte stays locked until the seat is cleared: a client that has its welcome, but was not
        yet so far as to lock it, must not take the seat for its own meanwhile."""
        if not self._locks.try_lock(SEAT_LOCKS + seat):
            return False
        self._locked.add(seat)
        self._tell_end(seat)
        return True

    def unwatch(self, seat: int) -> None:
        """Forget a seat; nothing happens when it was not watched."""
        self._forget_retry(seat)
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
        self._tell_end(seat)

    def _tell_end(self, seat: int, pause: float = COPYING) -> None:
        self._forget_retry(seat)
        if self._is_copied(seat):
            self._died(seat)
        else:
            longer = min(2 * pause, LONGEST_COPYING)
            self._retries[seat] = self._loop.call_later(pause, self._tell_end, seat, longer)

    def _forget_retry(self, seat: int) -> None:
        retry = self._retries.pop(seat, None)
        if retry is not None:
            retry.cancel()
