"""What disturbs a worker from within, while it produces and reads.

*forks*: a thread forks. The children keep and check what was open at their fork, fork again, close
every descriptor, use the pool themselves, execute something, and leave. *pools*: a second pool
that one thread uses while another closes and opens it. *interrupts*: alarms and Ctrl-C that raise
wherever the main thread is just then, and exceptions that one thread sends another.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

import shmpool
from shmpool import Lease, Pool

from . import payload
from .board import Figure

if TYPE_CHECKING:
    from .worker import Worker

KINDS: Final = ("forks", "pools", "interrupts")
#: Children of one worker at a time, and how long one lives, in seconds.
MOST_CHILDREN: Final = 3
LONGEST_CHILDHOOD: Final = 1.0
#: Arrays of the second pool that outlive their buffers.
MOST_KEPT: Final = 4
#: Mean seconds between two of a kind.
FORKS_EVERY: Final = 0.15
CLOSES_EVERY: Final = 0.1
INTERRUPTS_EVERY: Final = 0.05
#: The second pool's objects are numbered from here on.
SECOND_SEQUENCE: Final = 1 << 40

_send_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_send_exception.argtypes = (ctypes.c_ulong, ctypes.py_object)


class Alarm(BaseException):
    """A timeout's handler raises it, or another thread sends it."""


class Section:
    """Work that may end anywhere by an exception from outside, and no more than once a time."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self.is_open = False

    def run(self) -> bool:
        """Do the work; False when it was ended."""
        try:
            try:
                self.is_open = True
                self._act()
            finally:
                self.is_open = False
            _breathe()  # what was sent in the last moment comes here
        except (Alarm, KeyboardInterrupt):
            return False
        return True

    def interrupt(self) -> None:
        """From a signal's handler."""
        if self.is_open:
            self.is_open = False
            raise random.choice((Alarm, KeyboardInterrupt))


def _breathe() -> None:
    pass


class Disturbances:
    """Those of one worker. They begin and end in its main thread."""

    def __init__(self, worker: Worker, kinds: tuple[str, ...], seed: int) -> None:
        self.worker = worker
        self.kinds = kinds
        self.random = random.Random(seed)
        self.section: Section | None = None
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        #: With the lease that is written, its array and number.
        self.children: dict[int, tuple[Lease, np.ndarray, int] | None] = {}
        self.second: Pool | None = None
        self.sequences = itertools.count(SECOND_SEQUENCE + (os.getpid() << 20))

    def begin(self, section: Section) -> None:
        """*section* is what the main thread does."""
        self.section = section
        sys.unraisablehook = self._on_unraisable
        if "forks" in self.kinds:
            self._start(self._fork_again_and_again)
        if "pools" in self.kinds:
            self.second = self.worker.connect()
            user = Section(self._use_second_pool)
            thread = self._start(lambda: self._run_again_and_again(user))
            self._start(lambda: self._close_again_and_again(user, thread))
        if "interrupts" in self.kinds:
            for number in (signal.SIGALRM, signal.SIGINT):
                signal.signal(number, lambda *_: section.interrupt())
            self._start(self._interrupt_again_and_again)

    def end(self) -> None:
        """All threads end, and the second pool; children go when they like."""
        self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.second is not None:
            self.second.close()
        self._reap(is_last=True)

    def _start(self, act: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(act,), daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def _guarded(self, act: Callable[[], object]) -> None:
        while True:
            try:
                act()
            except Alarm:  # it came between two sections
                continue
            except BaseException:
                self.worker.complain(f"in a thread: {traceback.format_exc()}")
            return

    def _on_unraisable(self, args: sys.UnraisableHookArgs) -> None:
        """CPython prints what a finalizer raises; an interrupt in one reaches nobody."""
        if args.exc_type in (Alarm, KeyboardInterrupt):
            self.worker.count(Figure.INTERRUPTED_FINALIZERS)
        else:
            self.worker.complain(f"unraisable: {args.exc_value!r} in {args.object!r}")

    def _pause(self, mean: float) -> bool:
        """Whether to go on, after a while."""
        return not self.stop.wait(min(20 * mean, self.random.expovariate(1 / mean)))

    # --- interrupts ------------------------------------------------------------------------------------

    def _interrupt_again_and_again(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while self._pause(INTERRUPTS_EVERY):
            if self.random.random() < 0.5:
                signal.pthread_kill(main, signal.SIGINT)
            else:
                signal.setitimer(signal.ITIMER_REAL, self.random.uniform(1e-6, 0.005))

    # --- a second pool ---------------------------------------------------------------------------------

    def _run_again_and_again(self, section: Section) -> None:
        while not self.stop.is_set():
            if not section.run():
                self.worker.count(Figure.INTERRUPTS)

    def _close_again_and_again(self, section: Section, user: threading.Thread) -> None:
        while self._pause(CLOSES_EVERY):
            if "interrupts" in self.kinds and self.random.random() < 0.5:
                if section.is_open and user.is_alive():
                    _send_exception(user.ident or 0, Alarm)
            elif self.second is not None:
                self.second.close()
                self.worker.count(Figure.CLOSED)
                self.second = self.worker.connect()

    def _use_second_pool(self) -> None:
        """Write, publish and read, whether the pool is closed meanwhile or not: all is right, or
        it says that it is closed."""
        kept: deque[tuple[np.ndarray, int]] = deque()
        while not self.stop.is_set():
            pool = self.second
            assert pool is not None
            sequence = next(self.sequences)
            nbytes, strategy = self.worker.size(self.random)
            try:
                lease = pool.lease(nbytes, strategy=strategy)
                lease.write(b"".join(payload.make(self.worker.place, sequence, nbytes)))
                handle = lease.publish()
            except (shmpool.PoolClosed, shmpool.LeaseReleased, shmpool.BrokerUnavailable):
                self.worker.count(Figure.REFUSED_CLOSED)
                self.stop.wait(0.001)
                continue
            buffer = None
            while buffer is None:
                try:
                    buffer = (self.second or pool).open(handle)
                except (shmpool.PoolClosed, shmpool.BrokerUnavailable):
                    if self.stop.wait(0.001):
                        return
            self._verify(buffer.view, sequence, "read from the second pool")
            if self.random.random() < 0.1:
                kept.append((np.frombuffer(buffer.view, np.uint8), sequence))
            buffer.release()
            self.worker.count(Figure.SECOND_CYCLES)
            while len(kept) > MOST_KEPT:
                self._verify(memoryview(kept[0][0]), kept[0][1], "an array that outlived its pool")
                kept.popleft()

    def _verify(self, view: memoryview, sequence: int, what: str) -> None:
        if wrong := payload.fault(view, self.worker.place, sequence, len(view)):
            self.worker.complain(f"{what} is wrong: {wrong}")

    # --- forks -----------------------------------------------------------------------------------------

    def _fork_again_and_again(self) -> None:
        while self._pause(FORKS_EVERY):
            self._reap()
            if len(self.children) < MOST_CHILDREN:
                self._fork()

    def _fork(self) -> None:
        """With a lease that is written: the child has a copy of it, and its writing is seen by nobody."""
        written = self._write_lease()
        pid = os.fork()
        if not pid:
            _Child(self.worker, self.random.getrandbits(64)).live(written)
        self.children[pid] = written
        self.worker.count(Figure.CHILDREN)

    def _write_lease(self) -> tuple[Lease, np.ndarray, int] | None:
        sequence = next(self.sequences)
        try:
            lease = self.worker.pool.lease(payload.SMALLEST + 5000, timeout=0)
            lease.write(b"".join(payload.make(self.worker.place, sequence, lease.nbytes)))
            return lease, np.frombuffer(lease.view, np.uint8), sequence
        except shmpool.ShmpoolError:
            return None  # there is none, or the main thread has just closed its pool

    def _reap(self, *, is_last: bool = False) -> None:
        for pid in list(self.children):
            found, status = os.waitpid(pid, 0 if is_last else os.WNOHANG)
            if not found:
                continue
            if code := os.waitstatus_to_exitcode(status):
                self.worker.complain(f"child {pid} ended with {code}")
            if (written := self.children.pop(pid)) is not None:
                lease, array, sequence = written
                self._verify(memoryview(array), sequence, "the lease that a child wrote to")
                del array, written
                lease.release()


class _Child:
    """A child, made in whatever moment of its parent's threads."""

    def __init__(self, worker: Worker, seed: int) -> None:
        self.worker = worker
        self.random = random.Random(seed)
        self.generation = 1

    def live(self, written: tuple[Lease, np.ndarray, int] | None) -> NoReturn:
        status = 1
        try:
            sys.unraisablehook = lambda args: self.worker.complain(f"unraisable in a child: {args.exc_value!r}")
            if written is not None:
                self._check_lease(*written)
                del written
            self._read()
            status = 0
        except BaseException:
            self.worker.complain(f"in a child: {traceback.format_exc()}")
        os._exit(status)

    def _check_lease(self, lease: Lease, array: np.ndarray, sequence: int) -> None:
        if wrong := payload.fault(memoryview(array), self.worker.place, sequence, lease.nbytes):
            self.worker.complain(f"a child's copy of a lease is wrong: {wrong}")
        array[:] = 0xEE
        try:
            lease.publish()
            self.worker.complain("a child published its parent's lease")
        except shmpool.LeaseReleased:
            pass

    def _read(self) -> None:
        worker, until = self.worker, time.monotonic() + self.random.uniform(0, LONGEST_CHILDHOOD)
        kept = [(array, mail) for array, mail in worker.kept.copy()]
        worker.kept.clear()
        way = self.random.random()
        if way < 0.15:
            _close_all_but(worker.around.complaints.fileno())
        elif way < 0.3:
            self._use_pool()
        while time.monotonic() < until:
            for array, mail in kept:
                wrong = payload.fault(memoryview(array), mail.producer, mail.sequence, mail.nbytes)
                if wrong:
                    worker.complain(f"an inherited array is wrong: {wrong} ({mail})")
                worker.count(Figure.VERIFIED_BY_CHILDREN)
            if kept and self.random.random() < 0.2:
                del kept[self.random.randrange(len(kept))]
            if self.generation == 1 and self.random.random() < 0.05:
                self._fork_again()
            time.sleep(0.02)
        if way > 0.9:
            os.execv("/bin/sleep", ["sleep", "0.05"])
        if way > 0.8:
            kept.clear()
            gc.collect()

    def _fork_again(self) -> None:
        """Both go on with what they have; or the child leaves, and its own child lives on."""
        self.generation += 1
        if not os.fork():
            self.worker.count(Figure.GRANDCHILDREN)
            self.random.seed(os.getpid())
        elif self.random.random() < 0.5:
            os._exit(0)

    def _use_pool(self) -> None:
        """The parent's pool is the child's by a seat of its own."""
        try:
            handle = None
            with self.worker.pool.lease(3000, timeout=1) as lease:
                lease.write(bytes(range(250)) * 12)
                handle = lease.publish()
            with self.worker.pool.open(handle) as buffer:
                if bytes(buffer.view) != bytes(range(250)) * 12:
                    self.worker.complain("a child's own object is wrong")
            self.worker.pool.close()
        except (shmpool.PoolClosed, shmpool.LeaseTimeout, shmpool.BrokerUnavailable, shmpool.StaleHandle):
            pass  # there may be no broker, or no memory, for so long


def _close_all_but(fd: int) -> None:
    """As a daemon does."""
    os.closerange(3, fd)
    os.closerange(fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def ignore_known_warnings() -> None:
    """CPython's own of forks beside threads."""
    warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
