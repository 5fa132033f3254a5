"""The locks of a queue's ends, which no dead process keeps, at the price of some stores.

A lock is a semaphore in the queue's memory. Nobody can tell who has it; so each process has a word of its own at each
end, in which it **says** that it may be inside before it tries, and which it clears when it has let go. That
stays behind when it dies in between, and whoever waits for the lock looks, after a moment, whether one of those
who say so has died: every process keeps a byte of the seats' file locked, which the kernel frees with it.

Then a waiter **mends** the lock, under a byte lock, so that one does at a time: the next of some semaphores counts
from now on, taken at first; he waits until none of the living says that he is inside, frees it, and clears the words
of those who were dead before, last of all: until then the next waiter begins anew. Who takes a semaphore looks
afterwards whether it still counts: if it does, he who mends has seen that he is inside. To mend what is whole does no
harm; so what is taken for long, and nobody says so, is mended too, scribbled as it may be.

A process that is about to take a semaphore that no longer counts has either said so, and is waited for, or is
between two instructions, with what it said on its way to memory. It stays there for less than a microsecond, and there
are semaphores for more menders than that has time for. Within a process a lock of its own comes first, the **gate**:
its threads have one word. `tests/queues/lock_model.py` has every interleaving.

Signals may raise behind any call: what takes and lets go are single calls, those that let go raise AssertionError where
nothing was taken, and what comes between them are stores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from fcntl import fcntl
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from ..protocol.names import seats_path
from ..protocol.queues import LOCKS, SEMAPHORE_WORDS, SEMAPHORES, VERSIONS, first_said
from ..system import hooks, libc, semaphores
from ..system.descriptors import Descriptor
from ..system.locks import F_OFD_SETLK, FileId, any_locked, lock_bytes, open_beside, share_byte, unlock_bytes
from ..system.outside import own
from .members import NONCE_MASK, name_of

if TYPE_CHECKING:
    from ..seat.session import Session

#: Bytes of the seats' file: of who lives, by nonce; of who mends, by row and end.
_LIVES: Final = 1 << 60
_MENDS: Final = 1 << 61
#: Which end.
TAIL_END: Final = 0
HEAD_END: Final = 1

#: Who does not wait at all waits so long for a lock: in it nobody sleeps, unless he was stopped.
LEAST_PATIENCE: Final = 0.05
_YIELDS: Final = 50
_FIRST_PAUSE: Final = 50e-6
_LONGEST_PAUSE: Final = 1e-3
#: Seconds of waiting after which to look whether a holder has died, and whether there is any.
_LOOK_AFTER: Final = 0.001
_MEND_AFTER: Final = 0.1


class Life:
    """That a session's process lives, for all to see, as long as it uses queues."""

    __slots__ = ("__weakref__", "fd", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        expected = FileId.of(session._seat_fd)  # type: ignore[arg-type]
        self.fd: Descriptor = open_beside(session.address, seats_path, expected, session.pool_id)
        share_byte(self.fd, _LIVES | session.nonce & NONCE_MASK)

    def is_alive(self, name: int) -> bool:
        """Whether another process lives, by its `name_of`."""
        return any_locked(self.fd, _LIVES | name & NONCE_MASK, 1) >= 0


#: By their session's `id`; as long as any end of a queue has them.
_lives: WeakValueDictionary[int, Life] = WeakValueDictionary()
_lives_lock = RLock()


def life_of(session: Session) -> Life:
    """That of a session."""
    with _lives_lock:
        found = _lives.get(id(session))
        if found is None or found.session is not session:
            found = _lives[id(session)] = Life(session)
        return found


class End:
    """One end of a queue, as one process locks it.

    ``now`` has what takes the semaphore that counts, what gives it back, and its version. To lock it takes a
    ``try`` whose ``finally`` lets go, by calls in the ``finally`` itself: see `Memory.under`.
    """

    __slots__ = (
        "_address", "_barrier", "_life", "_mend_bytes", "_said", "_unmend_bytes", "_words", "gate_address",
        "gate_memory", "has_gate", "holder", "leave_gate", "name", "now", "said", "take_gate", "version",
    )  # fmt: skip

    def __init__(self, session: Session, words: memoryview[int], address: int, row: int, end: int, seats: int) -> None:
        self._words, self._life, self._barrier = words, life_of(session), session.barrier
        self.name = name_of(session)
        #: Where the version lies; where this process says that it may be inside, and all do.
        self.version = SEMAPHORES + end
        first = first_said(seats, end)
        self._said = slice(first, first + seats + 1)
        self.said = first + session.seat
        self._address = address + 8 * (LOCKS + end * VERSIONS * SEMAPHORE_WORDS)
        self._mend_bytes, self._unmend_bytes = (
            lock_bytes(_MENDS | row << 1 | end),
            unlock_bytes(_MENDS | row << 1 | end),
        )
        self.gate_memory = bytearray(8 * semaphores.WORDS)
        self.gate_address = libc.address_of(self.gate_memory)
        semaphores.make(self.gate_address, 1)
        gate = semaphores.lock_over(self.gate_address)
        self.take_gate, self.leave_gate, self.has_gate = gate.acquire, gate.release, gate._is_mine
        #: The thread that has the gate, 0 for none: which of its calls have locked what.
        self.holder = 0
        self.now: tuple[Callable[..., bool], Callable[[], None], int]
        self._use(words[self.version])

    def _use(self, version: int) -> None:
        lock = semaphores.lock_over(self._address + 8 * SEMAPHORE_WORDS * (version % VERSIONS))
        self.now = lock.acquire, lock.release, version

    def sit_down(self) -> None:
        """Before its first use: clear what the last owner of the seat may have left."""
        if self._words[self.said] not in (0, self.name):
            try:
                self.take_gate()
                self._mend(time.monotonic() + LEAST_PATIENCE, is_sure=True)
                self._words[self.said] = 0
            finally:
                try:
                    self.leave_gate()
                except own(AssertionError):
                    pass

    def insist(self, take: Callable[..., bool]) -> bool:
        """Try some times more: nobody is inside for long."""
        for _ in range(_YIELDS):
            os.sched_yield()
            if take(False):
                return True
        return False

    def acquire(self, deadline: float) -> bool:
        """Lock it; False when that was not possible in time."""
        started = 0.0
        if not self.take_gate(False):
            started = time.monotonic()
            patience = max(deadline - started, LEAST_PATIENCE)
            if not self.take_gate(True, None if patience == float("inf") else patience):
                return False
        self.holder = get_ident()
        return self._try() or self._wait(deadline, started or time.monotonic())

    def _try(self) -> bool:
        """With the gate: lock it, if nobody else has it."""
        words = self._words
        take, leave, version = self.now
        words[self.said] = self.name
        if self._barrier:
            self._barrier()
        if take(False):
            if self._barrier:
                self._barrier()
            if words[self.version] == version:
                return True
            leave()
        words[self.said] = 0
        return False

    def _wait(self, deadline: float, started: float) -> bool:
        """With the gate: lock it as soon as that is possible, or False."""
        words = self._words
        yields, pause = _YIELDS, _FIRST_PAUSE
        deadline = max(deadline, started + LEAST_PATIENCE)
        while True:
            if words[self.version] != self.now[2]:
                self._use(words[self.version])
            if self._try():
                return True
            if yields:
                yields -= 1
                os.sched_yield()
                continue
            now = time.monotonic()
            if now >= deadline:
                return False
            if now - started >= _LOOK_AFTER:
                self._mend(deadline, is_sure=now - started >= _MEND_AFTER and not any(words[self._said].tolist()))
            time.sleep(min(pause, max(0.0, deadline - now)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _mend(self, deadline: float, *, is_sure: bool) -> None:
        """With the gate, saying nothing: if one who says that he may be inside has died, or *is_sure*."""
        words, fd = self._words, self._life.fd
        if not (is_sure or self._names(alive=False)):
            return
        try:
            try:
                fcntl(fd, F_OFD_SETLK, self._mend_bytes)
            except own(BlockingIOError, PermissionError):
                return  # another does
            if not (is_sure or self._names(alive=False)):
                return
            version = words[self.version] + 1 & 0xFFFFFFFF
            address = self._address + 8 * SEMAPHORE_WORDS * (version % VERSIONS)
            semaphores.make(address, 0)
            words[self.version] = version
            fcntl(fd, F_OFD_SETLK, self._mend_bytes)  # the fence: the kernel's own locks are one
            while True:
                if not self._names(alive=True):
                    break
                if time.monotonic() >= deadline:
                    return
                time.sleep(_FIRST_PAUSE)
            dead = self._names(alive=False)  # before: who dies from now on may have this one
            semaphores.make(address, 1)
            for seat in dead:
                words[self._said.start + seat] = 0
        finally:
            fcntl(fd, F_OFD_SETLK, self._unmend_bytes)

    def _names(self, *, alive: bool) -> list[int]:
        """The seats of the others who say that they may be inside, those that live or those that do not."""
        said = enumerate(self._words[self._said].tolist())
        return [seat for seat, name in said if name not in (0, self.name) and self._life.is_alive(name) is alive]


def raise_interrupted() -> None:
    """In a signal handler."""
    raise RuntimeError("a queue was used by a signal handler that had interrupted its use by this thread")


def _abandon_all() -> None:
    """In a forked child: an inherited descriptor would say that a parent lives that dies in it. The number
    stays open, for whoever is just using it."""
    global _lives, _lives_lock
    null = -1
    try:
        for life in list(_lives.values()):
            if null < 0:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, life.fd, inheritable=False)
    finally:
        if null >= 0:
            os.close(null)
    _lives, _lives_lock = WeakValueDictionary(), RLock()


hooks.in_child(_abandon_all)
