"""The parent of a soak: forks the workers, kills them and the broker, and closes the account.

One thread, and one wait: for a worker's end, a complaint, or the next thing to do. Workers are
forked from here, which knows no pool, so a new one lives within milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import os
import random
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shmpool.protocol.names import parse_pool_id
from shmpool.stats import query, query_invariants

from . import worker
from .account import Account
from .board import Board, Figure
from .brokers import BrokerFailed, Brokers

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
#: Seconds that the workers have for reading what is left, and the broker for settling.
CLOSING_PATIENCE = 120.0
#: Seconds that it may take longer to have done what there is to be at least.
MORE_PATIENCE = 120.0
#: Seconds between two looks for children of workers that were killed.
REAP_EVERY = 0.2
#: How a worker may end. An alarm that was set before an exec ends what was executed.
KNOWN_ENDS = {0, worker.HARD_EXIT, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGALRM}


@dataclass(slots=True)
class Options:
    """How to run. Intervals are mean seconds between two kills."""

    seconds: float = 60.0
    workers: int = 6
    seed: int = 0
    kill_workers: bool = False
    kill_broker: bool = False
    worker_interval: float = 0.2
    broker_interval: float = 5.0
    memory_limit: str = "192MiB"
    ttl: float = 20.0
    #: "mixed", or the kind of all: "pooled", "chunked", "direct", "checksummed" (mixed, with checksums).
    objects: str = "mixed"
    #: Of `disturbances.KINDS`.
    disturbances: tuple[str, ...] = ()
    #: Deeds and figures by name; it goes on until there are so many: a busy machine does little in a second.
    at_least: tuple[tuple[str, int], ...] = ()
    is_talkative: bool = False


class Soak:
    """One run. `run` returns the account; nothing is left behind whatever happens."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        self.account = Account(options.seed, options.workers)
        self.directory = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
        self.brokers = Brokers(
            str(self.directory / "broker.sock"), self.directory / "broker.log", memory_limit=options.memory_limit,
            max_clients=(24 if options.disturbances else 4) * options.workers + 8, on_stop="keep",
            handle_ttl=options.ttl, checksums=options.objects == "checksummed",
        )  # fmt: skip
        self.board = Board(options.workers)
        self.mailboxes = [_mailbox() for _ in range(options.workers)]
        self.complaints, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stop, self.end = os.pipe(), os.pipe()
        self.around = worker.Surroundings(
            self.board, self.mailboxes, theirs, self.stop[0], self.end[0], self.brokers.address, options.ttl,
            lives_forever=not options.kill_workers, objects=options.objects, disturbances=options.disturbances,
        )  # fmt: skip
        self.poll = select.poll()
        self.poll.register(self.complaints, select.POLLIN)
        #: pidfd -> (place, pid)
        self.running: dict[int, tuple[int, int]] = {}
        self.stopped: set[int] = set()
        self.killed: set[int] = set()
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.appointments = 0
        #: How late the engine itself was at most: a machine that stops us stops the broker, too.
        self.longest_delay = 0.0
        self.is_closing = False

    def run(self) -> Account:
        started = time.monotonic()
        try:
            self.brokers.start()
            # Children of workers that were killed are ours: nobody else would see how they end.
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
            self._reap_orphans()
            for place in range(self.options.workers):
                self._fork(place)
            self._plan_kills()
            self._work_until(started + self.options.seconds)
            self._work_until(time.monotonic() + MORE_PATIENCE, self._is_enough)
            self._close()
        except BrokerFailed as error:
            self.account.violations.append(str(error))
        finally:
            self._clear_up()
        self.account.seconds = time.monotonic() - started
        self.account.read_board(self.board)
        self.account.figures["longest_delay_of_the_engine_seconds"] = round(self.longest_delay, 3)
        if left := _segments(self.brokers.pool_ids):
            self.account.violations.append(f"segments are left in /dev/shm: {sorted(left)}")
        return self.account

    def _is_enough(self) -> bool:
        return all(self.account.deeds.get(name, 0) >= count or self._figure(name) >= count
                   for name, count in self.options.at_least)  # fmt: skip

    def _figure(self, name: str) -> int:
        return self.board.total(Figure[name.upper()]) if name.upper() in Figure.__members__ else 0

    # --- the one wait -----------------------------------------------------------------------------------

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        self.appointments += 1
        heapq.heappush(self.agenda, (time.monotonic() + seconds, self.appointments, what))

    def _work_until(self, deadline: float, done: Callable[[], bool] = lambda: False) -> None:
        """Handle what happens, until *deadline* or until *done*."""
        while not done() and (now := time.monotonic()) < deadline:
            due = min(deadline, self.agenda[0][0] if self.agenda else deadline)
            self.longest_delay = max(self.longest_delay, now - due)
            for fd, _ in self.poll.poll(max(0.0, due - now) * 1000 + 1):
                if fd == self.complaints.fileno():
                    self._note(self.complaints.recv(16384).decode(errors="replace"))
                elif fd in self.running:
                    self._on_end(fd)
            while self.agenda and self.agenda[0][0] <= time.monotonic():
                heapq.heappop(self.agenda)[2]()

    def _note(self, violation: str) -> None:
        self.account.violations.append(violation)
        if self.options.is_talkative:
            print(violation, flush=True)

    # --- workers -------------------------------------------------------------------------------------------

    def _fork(self, place: int) -> None:
        seed = self.random.getrandbits(64)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(worker.BROKEN)
            for fd in (self.stop[1], self.end[1], self.complaints.fileno(), *self.running):
                os.close(fd)
            worker.run(place, seed, self.around)
        self.account.count("workers_started")
        pidfd = os.pidfd_open(pid)
        self.running[pidfd] = (place, pid)
        self.poll.register(pidfd, select.POLLIN)

    def _on_end(self, pidfd: int) -> None:
        place, pid = self.running.pop(pidfd)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        self.stopped.discard(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        is_late = self.is_closing and self._reads_only(place) and pid not in self.killed
        if status not in KNOWN_ENDS or (is_late and status != 0):
            self._note(f"place {place}, pid {pid} ended with {status}")
        if not self.is_closing:
            if self.random.random() < 0.7:
                self._fork(place)
            else:
                self._after(self.random.random(), lambda: None if self.is_closing else self._fork(place))

    def _reap_orphans(self) -> None:
        while self._reap_an_orphan():
            pass
        self._after(REAP_EVERY, self._reap_orphans)

    def _reap_an_orphan(self) -> bool:
        """Whether there was one. Our own children are waited for elsewhere."""
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None or any(ended.si_pid == pid for _, pid in self.running.values()) or self.brokers.has_ended():
            return False
        status = os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])
        if status:
            self._note(f"pid {ended.si_pid}, a child of a worker, ended with {status}")
        return True

    def _has_orphans(self) -> bool:
        """Whether any child is left but the broker."""
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return len(file.read().split()) > 1

    # --- killing ---------------------------------------------------------------------------------------------

    def _plan_kills(self) -> None:
        if self.options.kill_workers:
            self._after(self.random.expovariate(1 / self.options.worker_interval), self._kill_a_worker)
        if self.options.kill_broker:
            self._after(self.options.broker_interval * self.random.uniform(0.5, 1), self._kill_the_broker)

    def _kill_a_worker(self) -> None:
        if self.is_closing:
            return
        victims = [pid for _, pid in self.running.values() if pid not in self.stopped]
        if victims:
            pid = self.random.choice(victims)
            if self.random.random() < 0.75:
                self._signal(pid, signal.SIGKILL, "workers_killed")
            else:
                self.stopped.add(pid)
                self._signal(pid, signal.SIGSTOP, "workers_stopped")
                self._after(self.random.random(), lambda: self._continue(pid))
        self._after(self.random.expovariate(1 / self.options.worker_interval), self._kill_a_worker)

    def _continue(self, pid: int) -> None:
        if pid not in self.stopped:
            return  # it has ended meanwhile
        self.stopped.remove(pid)
        if self.random.random() < 0.2 and not self.is_closing:
            self._signal(pid, signal.SIGKILL, "workers_killed_while_stopped")
        else:
            self._signal(pid, signal.SIGCONT, "workers_continued")

    def _signal(self, pid: int, number: signal.Signals, kind: str) -> None:
        # A pid of ours that was not waited for is nobody else's.
        if any(pid == running for _, running in self.running.values()):
            if number == signal.SIGKILL:
                self.killed.add(pid)
            os.kill(pid, number)
            self.account.count(kind)

    def _kill_the_broker(self) -> None:
        if self.is_closing:
            return
        if self.brokers.has_ended():
            self._note("the broker ended by itself")
        elif self.random.random() < 0.85:
            self.brokers.end(signal.SIGKILL)
            self.account.count("broker_killed")
        else:
            self.brokers.end(signal.SIGTERM)
            self.account.count("broker_stopped_in_order")
        pause = 0.0 if self.random.random() < 0.5 else self.random.random()
        self._after(pause, self._restart_the_broker)

    def _restart_the_broker(self) -> None:
        if not self.brokers.has_ended():
            return  # the end of the run has started it already
        self.brokers.start()
        self._after(self.options.broker_interval * self.random.uniform(0.3, 1.7), self._kill_the_broker)

    # --- the end ----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Everything stops; then everything must have come back."""
        deadline = time.monotonic() + CLOSING_PATIENCE
        self.is_closing = True
        if self.brokers.has_ended():
            self.brokers.start()
        for pid in list(self.stopped):
            self._continue(pid)
        os.close(self.stop[1])
        self._settle("producers", lambda: all(self._reads_only(place) for place in self._living()), deadline)
        self._settle("mailboxes", lambda: not any(self._has_mail(place) for place in self._living()), deadline)
        os.close(self.end[1])
        self._work_until(deadline, lambda: not self.running)
        if self.running:
            self._note(f"workers did not end in {CLOSING_PATIENCE} s: {list(self.running.values())}")
            self._note_stacks()
        self._settle("the workers' children", lambda: not self._has_orphans(), deadline)
        self._settle("the clients' seats", lambda: not query(self.brokers.address).clients, deadline)
        self._check(keeps_unread=True)
        # Unread handles of killed readers: a broker with a short time to live closes them.
        self.brokers.end(signal.SIGTERM)
        self.brokers.start(handle_ttl=0.05, on_stop="remove")
        self._settle("unread publications", lambda: not query(self.brokers.address).active_buffers, deadline)
        self._check(keeps_unread=False)
        self.brokers.end(signal.SIGTERM)

    def _note_stacks(self) -> None:
        for _, pid in self.running.values():
            os.kill(pid, signal.SIGUSR1)
        self._work_until(time.monotonic() + 1)
        for _, pid in self.running.values():
            self._note(Path(worker.stacks_of(self.brokers.address, pid)).read_text())

    def _living(self) -> list[int]:
        return [place for place, _ in self.running.values()]

    def _reads_only(self, place: int) -> bool:
        return bool(self.board.get(place, Figure.READS_ONLY))

    def _has_mail(self, place: int) -> bool:
        return bool(select.select([self.mailboxes[place][0]], [], [], 0)[0])

    def _settle(self, what: str, holds: Callable[[], bool], deadline: float) -> None:
        """Give something that happens by itself its time."""
        while not holds():
            if time.monotonic() > deadline:
                self._note(f"{what} did not settle in {CLOSING_PATIENCE} s")
                return
            self._work_until(time.monotonic() + 0.02)

    def _check(self, *, keeps_unread: bool) -> None:
        """The broker's own invariants, and its account as an operator sees it."""
        address = self.brokers.address
        if violation := query_invariants(address, timeout=30):
            self._note(f"invariant: {violation}")
        stats = query(address)
        figures = self.account.figures
        if keeps_unread:
            figures["unread_at_the_end"] = stats.active_buffers
            figures["gets"], figures["puts"], figures["hits"] = stats.total_gets, stats.total_puts, stats.pool_hits
            figures["deferred_releases"] = stats.deferred_releases
        else:
            for tier in stats.tiers:
                # Cold is capacity - warm: so free + cold == capacity, and nothing is quarantined.
                if tier.idle or tier.leased or tier.published or (tier.size and tier.free != tier.warm):
                    self._note(f"a tier does not add up: {tier}")
            warm = sum(tier.warm * tier.size for tier in stats.tiers)
            if stats.memory["held"] != stats.memory["overhead"] + warm:
                self._note(f"held memory does not add up: {stats.memory}, {warm} bytes are warm")
        if stats.memory["held"] > stats.memory["limit"]:
            self._note(f"more is held than the limit: {stats.memory}")
        if stats.alerts:
            self._note(f"alerts: {stats.alerts}")
        if stats.epoch != self.brokers.starts or len(self.brokers.pool_ids) != 1:
            self._note(f"{self.brokers.starts} brokers, epoch {stats.epoch}, pools {sorted(self.brokers.pool_ids)}")
        times = self.brokers.restart_seconds
        figures["broker_restarts"] = len(times)
        figures["longest_restart_seconds"] = round(max(times, default=0.0), 3)
        figures["mean_restart_seconds"] = round(sum(times) / max(1, len(times)), 3)

    def _clear_up(self) -> None:
        for pidfd, (_, pid) in self.running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
        self.running.clear()
        self.brokers.close()
        log = self.brokers.log.read_text(errors="replace") if self.brokers.log.exists() else ""
        wrong = [line for line in log.splitlines() if "Traceback" in line or "ERROR" in line or "quarantine" in line]
        if wrong:
            self.account.violations.append(f"the broker's log: {wrong[:5]}; {log[-3000:]}")
        if self.account.violations:
            for name in _segments(self.brokers.pool_ids):
                os.unlink(f"/dev/shm/{name}")  # a failed run leaves nothing either
        for sockets in self.mailboxes:
            for one in sockets:
                one.close()
        self.complaints.close()
        self.around.complaints.close()
        for fd in (*self.stop, *self.end):
            with contextlib.suppress(OSError):  # our ends were closed to end the workers
                os.close(fd)
        shutil.rmtree(self.directory, ignore_errors=True)


def _mailbox() -> tuple[socket.socket, socket.socket]:
    """(reading, writing) end of a bounded queue of messages."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends[1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    for end in ends:
        end.setblocking(False)
    return ends


def _segments(pool_ids: set[str]) -> set[str]:
    """Of these pools: others may use this host too."""
    return {name for name in os.listdir("/dev/shm") if parse_pool_id(name) in {int(pool, 16) for pool in pool_ids}}
