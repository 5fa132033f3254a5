"""A worker: leases, fills, publishes, sends; receives, opens, verifies; and dies in many ways.

Runs in a forked child of the engine and never returns. Whatever it finds wrong it reports to
the engine; an exception that nobody expects ends it with exit status `BROKEN` and its story.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import random
import select
import signal
import socket
import struct
import time
import traceback
import warnings
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

import shmpool
from shmpool import Handle, Lease, Pool, Strategy

from . import payload
from .board import MAX_DUPLICATES, Board, Figure
from .disturbances import Disturbances, Section, ignore_known_warnings

#: Exit statuses: hard exits on purpose, and what nobody wanted.
HARD_EXIT, BROKEN = 41, 70
#: A lease waits so long for memory, and a worker for a broker, through restarts of the broker.
PATIENCE = 30.0
CONNECT_PATIENCE = 120.0
#: What one reader keeps beyond its release, at most.
MOST_KEPT = 6
#: One object in so many is the last of its worker.
OBJECTS_OF_A_LIFE = 400
#: Of more workers than so many a core each rests between two objects, so that all of them together are as busy
#: as those would be: what the broker's part is on a host that starves everybody is not the question.
BUSY_PER_CORE, REST = 8, 0.02
#: A worker that is disturbed closes its pool, and opens another, at one deed in so many.
DEEDS_OF_A_POOL = 500

_MAIL = struct.Struct("<24sHhBxxxQQd")
MAIL_BYTES = _MAIL.size


@dataclass(slots=True)
class Surroundings:
    """What the engine gives all workers. Closing the other end of *stop* ends producing, of
    *end* ends reading."""

    board: Board
    mailboxes: list[tuple[socket.socket, socket.socket]]
    complaints: socket.socket
    stop: int
    end: int
    address: str
    ttl: float
    lives_forever: bool
    objects: str
    disturbances: tuple[str, ...]


@dataclass(slots=True)
class Mail:
    """A handle on its way: the object's producer and number, which sending of it this is
    (*duplicate* is -1 where there is only one), and when it was published."""

    handle: bytes
    producer: int
    duplicate: int
    copy: int
    sequence: int
    nbytes: int
    published_at: float

    def pack(self) -> bytes:
        return _MAIL.pack(
            self.handle, self.producer, self.duplicate, self.copy, self.sequence, self.nbytes, self.published_at
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Mail:
        return cls(*_MAIL.unpack(raw))


class Worker:
    """One life of the worker that has *place*."""

    def __init__(self, place: int, seed: int, around: Surroundings) -> None:
        self.place = place
        self.random = random.Random(seed)
        self.around = around
        self.board = around.board
        self.inbox = around.mailboxes[place][0]
        self.kept: deque[tuple[np.ndarray, Mail]] = deque()
        self.open_buffers: deque[tuple[shmpool.Buffer, Mail]] = deque()
        self.stop = select.poll()
        self.stop.register(around.stop, select.POLLHUP)
        self.section = Section(self._work)
        self.disturbances = Disturbances(self, around.disturbances, self.random.getrandbits(64))
        #: Handles that are between two owners: an interrupt loses none that we know.
        self.pending: list[Handle] = []

    # --- the life ------------------------------------------------------------------------------------

    def live(self) -> None:
        """Produce and read until told to stop, then read what is left, and close."""
        self.board.set(self.place, Figure.READS_ONLY, 0)
        self.pool = self.connect()
        self.disturbances.begin(self.section)
        while not self.stop.poll(0):
            if not self.section.run():
                self.count(Figure.INTERRUPTS)
                self._discard_pending()
        self.disturbances.end()
        if self.pool.closed:
            self._reopen()
        self.board.set(self.place, Figure.READS_ONLY, 1)
        self._read_until_the_end()
        self._drop_kept(0)
        self.pool.close()

    def _work(self) -> None:
        while not self.stop.poll(0):
            if self.pool.closed or (self.around.disturbances and self.random.random() < 1 / DEEDS_OF_A_POOL):
                self._reopen()
            if self.random.random() < 0.6:
                self._produce()
            else:
                self._read_some(4)
            if self.random.random() < 0.02:
                self._drop_kept(self.random.randrange(MOST_KEPT))

    def _reopen(self) -> None:
        self.pool.close()
        self.count(Figure.CLOSED)
        self.pool = self.connect()

    def _discard_pending(self) -> None:
        """What an interrupt kept from being sent or opened."""
        while self.pending:
            with contextlib.suppress(shmpool.HandleUsed, shmpool.StaleHandle, shmpool.PoolClosed):
                self.pool.discard(self.pending.pop())

    def connect(self) -> Pool:
        """The broker may be away just now."""
        started = time.monotonic_ns()
        while True:
            try:
                pool = shmpool.connect(self.around.address, timeout=5)
            except shmpool.BrokerUnavailable:
                if time.monotonic_ns() - started > CONNECT_PATIENCE * 1e9:
                    raise
                self.count(Figure.CONNECT_RETRIES)
                time.sleep(0.01)
            else:
                self.count(Figure.CONNECTS)
                self.board.raise_to(self.place, Figure.LONGEST_CONNECT_NS, time.monotonic_ns() - started)
                return pool

    def count(self, figure: Figure, amount: int = 1) -> int:
        return self.board.add(self.place, figure, amount)

    def complain(self, text: str) -> None:
        self.section.is_open = False  # it is not interrupted
        self.around.complaints.send(f"place {self.place}, pid {os.getpid()}: {text}".encode()[:4000])

    # --- producing -------------------------------------------------------------------------------------

    def size(self, chance: random.Random) -> tuple[int, Strategy]:
        """Of the next object, and how it is leased."""
        choice = chance.random()
        objects = self.around.objects
        if objects == "pooled":
            return chance.randint(payload.SMALLEST, 32 << 10 if choice < 0.7 else 256 << 10), Strategy.POOLED
        if objects == "chunked":
            return chance.randint(payload.SMALLEST, 256 << 10 if choice < 0.5 else (1 << 20) - 1), Strategy.CHUNKED
        if objects == "direct":
            return chance.randint(payload.SMALLEST, 64 << 10 if choice < 0.5 else 3 << 20), Strategy.DIRECT
        if choice < 0.6:
            return chance.randint(payload.SMALLEST, 32 << 10), Strategy.ADAPTIVE
        if choice < 0.85:
            return chance.randint(32 << 10, 256 << 10), Strategy.ADAPTIVE
        if choice < 0.90:
            return chance.randint(payload.SMALLEST, 256 << 10), Strategy.CHUNKED
        if choice < 0.96:
            return chance.randint(256 << 10, (1 << 20) - 1), Strategy.ADAPTIVE
        if choice < 0.98:
            return chance.randint(payload.SMALLEST, 64 << 10), Strategy.DIRECT
        return chance.randint(1 << 20, 3 << 20), Strategy.ADAPTIVE

    def _produce(self) -> None:
        crowd = len(self.around.mailboxes) / (BUSY_PER_CORE * (os.cpu_count() or 1)) - 1
        if crowd > 0:
            time.sleep(REST * crowd * self.random.uniform(0.5, 1.5))
        choice = self.random.random()
        if choice < 0.002:
            self._hog()
        if choice > 1 - 1 / OBJECTS_OF_A_LIFE and not self.around.lives_forever:
            self._die()
        nbytes, strategy = self.size(self.random)
        lease = self._lease(nbytes, strategy)
        if lease is None:
            return
        if choice < 0.05:
            lease.release()
            self.count(Figure.RELEASED)
            return
        sequence = self.count(Figure.SEQUENCE)
        array = self._fill(lease, sequence, keep=self.random.random() < 0.03)
        readers = self.random.randint(2, 5) if self.random.random() < 0.1 else 1
        handles = lease.publish_many(readers) if readers > 1 else [lease.publish()]
        self.pending.extend(handles)
        published_at = time.monotonic()
        self.count(Figure.OBJECTS)
        self.count(Figure.HANDLES, readers)
        for handle in handles:
            self.pending.remove(handle)  # first: one that was sent is not ours to discard
            self._send(Mail(handle, self.place, -1, 0, sequence, nbytes, published_at))
        if array is not None and (wrong := payload.fault(memoryview(array), self.place, sequence, nbytes)):
            self.complain(f"the writer's array changed after publish: {wrong}")

    def _lease(self, nbytes: int, strategy: Strategy) -> Lease | None:
        started = time.monotonic_ns()
        patience = 0.0 if self.random.random() < 0.02 else PATIENCE
        try:
            lease = self.pool.lease(nbytes, strategy=strategy, timeout=patience)
        except shmpool.LeaseTimeout as error:
            if patience:
                self.complain(f"a lease of {nbytes} bytes timed out: {error}")
            self.count(Figure.LEASE_TIMEOUTS)
            return None
        self.board.raise_to(self.place, Figure.LONGEST_LEASE_NS, time.monotonic_ns() - started)
        self.count(Figure.LEASES)
        self.count(Figure[lease.strategy.name])
        return lease

    def _fill(self, lease: Lease, sequence: int, *, keep: bool) -> np.ndarray | None:
        """Write the payload in one of several ways, and see that nobody else writes there."""
        head, body = payload.make(self.place, sequence, lease.nbytes)
        way = self.random.random()
        if way < 0.4:
            lease.write(b"".join((head, body)))
        else:
            middle = payload.HEAD_BYTES + len(body) // 2
            lease.view[payload.HEAD_BYTES : middle] = body[: middle - payload.HEAD_BYTES]
            if way > 1 - 0.5 / OBJECTS_OF_A_LIFE and not self.around.lives_forever:
                self.count(Figure.DIED_MID_WRITE)
                os.kill(os.getpid(), signal.SIGKILL)
            lease.view[middle:] = body[middle - payload.HEAD_BYTES :]
            lease.view[: payload.HEAD_BYTES] = head
        if way > 0.7 and (wrong := payload.fault(lease.view, self.place, sequence, lease.nbytes)):
            self.complain(f"somebody else writes into a lease of {lease.nbytes} bytes: {wrong}")
        return np.frombuffer(lease.view, np.uint8) if keep else None

    def _send(self, mail: Mail) -> None:
        """To some other worker; sometimes to two, of which one must fail. What cannot be sent
        is discarded."""
        others = [place for place in range(len(self.around.mailboxes)) if place != self.place]
        copies = 1
        if self.random.random() < 0.05 and self.board.get(self.place, Figure.DUPLICATES) < MAX_DUPLICATES // 2 - 1:
            mail.duplicate, copies = self.count(Figure.DUPLICATES), 2
        sent = 0
        for copy, place in enumerate(self.random.choices(others, k=copies)):
            mail.copy = copy
            try:
                self.around.mailboxes[place][1].send(mail.pack())
                sent += 1
            except BlockingIOError:
                pass
        self.count(Figure.SENT, sent)
        if not sent:
            self.pool.discard(Handle(mail.handle))
            self.count(Figure.DISCARDED)
            self._read_some(16)
            self._wait_for_mail(0.005)

    def _hog(self) -> None:
        """Take all there is, for a moment: others have to wait."""
        self.count(Figure.HOGS)
        leases = []
        try:
            while len(leases) < 2000:
                leases.append(self.pool.lease(self.random.choice((60_000, 250_000, 700_000)), timeout=0))
        except (shmpool.LeaseTimeout, shmpool.SharedMemoryFull):
            pass
        self._wait_for_mail(0.02)
        for lease in leases:
            lease.release()

    # --- reading -----------------------------------------------------------------------------------------

    def _wait_for_mail(self, seconds: float) -> None:
        select.select([self.inbox], [], [], seconds)

    def _read_some(self, most: int) -> None:
        for _ in range(most):
            try:
                raw = self.inbox.recv(MAIL_BYTES)
            except BlockingIOError:
                return
            self._read(Mail.unpack(raw))

    def _read_until_the_end(self) -> None:
        poll = select.poll()
        poll.register(self.inbox, select.POLLIN)
        poll.register(self.around.end, select.POLLHUP)
        while True:
            ready = dict(poll.poll())
            if ready.get(self.inbox.fileno()):
                self._read_some(16)
            elif self.around.end in ready:
                return

    def _read(self, mail: Mail) -> None:
        self.count(Figure.RECEIVED)
        handle = Handle(mail.handle)
        self.pending.append(handle)
        try:
            if self.random.random() < 0.02:
                self.pool.discard(handle)
                self.pending.remove(handle)
                self.count(Figure.DISCARDED)
                return
            buffer = self.pool.open(handle)
            self.pending.remove(handle)
        except (shmpool.HandleUsed, shmpool.StaleHandle) as error:
            self.pending.remove(handle)
            self._refused(mail, error)
            return
        if mail.duplicate >= 0:
            self.board.note_opened(mail.producer, mail.duplicate, mail.copy)
        self._verify(buffer.view, mail, "read")
        self.count(Figure.VERIFIED)
        self.count(Figure.VERIFIED_BYTES, mail.nbytes)
        choice = self.random.random()
        if choice < 0.05:
            self.kept.append((np.frombuffer(buffer.view, np.uint8), mail))
            self.count(Figure.VIEWS_KEPT)
            buffer.release()
        elif choice < 0.10:
            self.open_buffers.append((buffer, mail))
        else:
            buffer.release()
        if len(self.kept) + len(self.open_buffers) > MOST_KEPT:
            self._drop_kept(MOST_KEPT // 2)

    def _refused(self, mail: Mail, error: Exception) -> None:
        """Right only if another copy of the handle was first, or if the publication may have
        expired, its publisher being dead."""
        if mail.duplicate >= 0:
            self.count(Figure.REFUSED_TWICE_SENT)
        elif time.monotonic() - mail.published_at >= self.around.ttl:
            self.count(Figure.REFUSED_EXPIRED)
        else:
            age = time.monotonic() - mail.published_at
            self.complain(f"a good handle was refused ({mail}, {age:.3f} s old): {type(error).__name__}: {error}")

    def _drop_kept(self, leave: int) -> None:
        """Let go of what was kept open or kept alive, having looked at it again."""
        while len(self.kept) + len(self.open_buffers) > leave:
            if self.kept:
                array, mail = self.kept.popleft()
                self._verify(memoryview(array), mail, "a kept array")
                del array
            else:
                buffer, mail = self.open_buffers.popleft()
                self._verify(buffer.view, mail, "a buffer kept open")
                buffer.release()
            self.count(Figure.VERIFIED_AGAIN)

    def _verify(self, view: memoryview, mail: Mail, what: str) -> None:
        wrong = payload.fault(view, mail.producer, mail.sequence, mail.nbytes)
        if wrong:
            self.complain(f"{what} is wrong: {wrong} ({mail})")

    # --- dying ---------------------------------------------------------------------------------------------

    def _die(self) -> NoReturn:
        """With leases, publications that nobody will read, and open buffers."""
        leases = [self._lease(*self.size(self.random)) for _ in range(self.random.randrange(5))]
        for lease in leases[:2]:
            if lease is not None:
                lease.publish()
        way = self.random.randrange(4)
        if way == 0:  # an ordinary exit
            self.count(Figure.DIED_BY_EXIT)
            _leave(0)
        if way == 1:
            self.count(Figure.DIED_BY_HARD_EXIT)
            os._exit(HARD_EXIT)
        if way == 2:
            self.count(Figure.DIED_BY_EXEC)
            os.execv("/bin/sleep", ["sleep", "0.1"])
        self.count(Figure.DIED_BY_SEGFAULT)
        ctypes.string_at(0)
        raise AssertionError("unreachable")


def _leave(status: int) -> NoReturn:
    """As the interpreter exits, but for the parent's stack, which this fork has inherited."""
    atexit._run_exitfuncs()
    os._exit(status)


def stacks_of(address: str, pid: int) -> str:
    """The file to which a worker writes what its threads do, at SIGUSR1: for one that does not end."""
    return f"{address}.{pid}.stacks"


def run(place: int, seed: int, around: Surroundings) -> NoReturn:
    """The whole life of a worker process."""
    status = BROKEN
    stacks = open(stacks_of(around.address, os.getpid()), "w")  # noqa: SIM115  # as long as the process
    faulthandler.register(signal.SIGUSR1, stacks)
    try:
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # arrays outlive leases here on purpose
        ignore_known_warnings()
        worker = Worker(place, seed, around)
        worker.live()
        status = 0
    except BaseException:
        around.complaints.send(f"place {place}, pid {os.getpid()}: {traceback.format_exc()}".encode()[-8000:])
    if status == 0:
        _leave(0)
    os._exit(status)
