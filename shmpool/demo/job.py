"""The demo as a whole: reference digests, the job through the pool, the same over a queue, the hand-over
alone, and the verdict. Tells its progress by a callback and prints nothing.

A file counts as verified when its digests, computed by a worker from the shared buffer,
equal those computed from the file itself, and the file was the same at both times. Files
with trouble of their own (`Trouble`) are named and fail nothing. A mismatch, a file whose
result never came, or a process that died make the job fail, and never hang.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .. import stats
from ..embedded import Broker
from ..errors import BrokerUnavailable
from ..protocol.sizing import MIB, SizeCategory, Strategy
from . import handover, tasks
from .crew import SPAWN, Crew, CrewFailed
from .files import Corpus, Trouble
from .handover import Handed, Way
from .tasks import Digested, Digests, Referenced, Sent, Share

#: Called with what is going on and the bytes just dealt with.
Progress = Callable[[str, int], None]

REFERENCE: Final = "digests from the files"
POOL: Final = "through shmpool"
QUEUE: Final = "over multiprocessing.Queue"
#: Of each category so many files, and bytes, are handed over alone.
HANDED_FILES: Final = 24
HANDED_BYTES: Final = 64 * MIB


@dataclass
class Timed:
    """One pass of the job: what was digested, in how many seconds; *cpu_seconds* are those
    of all its processes together."""

    files: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.nbytes / self.seconds if self.seconds else 0.0


@dataclass
class Line:
    """The figures of one category; times in nanoseconds, one for each file: the pool's own
    (lease, publish, open, release), reading the file, computing the digests."""

    category: SizeCategory
    strategies: set[Strategy] = field(default_factory=set)
    nbytes: int = 0
    pool_ns: list[int] = field(default_factory=list)
    file_ns: list[int] = field(default_factory=list)
    digest_ns: list[int] = field(default_factory=list)

    @property
    def files(self) -> int:
        """How many there were."""
        return len(self.pool_ns)

    def add(self, sent: Sent, digested: Digested, nbytes: int) -> None:
        """Count one verified file."""
        self.strategies.add(sent.strategy)
        self.nbytes += nbytes
        self.pool_ns.append(sent.pool_ns + digested.pool_ns)
        self.file_ns.append(sent.file_ns)
        self.digest_ns.append(digested.digest_ns)


@dataclass
class HandOver:
    """The hand-over alone, in one category: nanoseconds by way, one for each object; files and bytes of
    them that were handed over."""

    category: SizeCategory
    files: int = 0
    nbytes: int = 0
    times: dict[Way, list[int]] = field(default_factory=lambda: {way: [] for way in Way})


@dataclass
class Report:
    """What came of it."""

    lines: dict[SizeCategory, Line]
    verified: int = 0
    troubles: dict[Trouble, list[str]] = field(default_factory=lambda: {trouble: [] for trouble in Trouble})
    #: Files whose digests were wrong.
    mismatched: list[str] = field(default_factory=list)
    #: Files that no result came for, and why.
    lost: list[tuple[str, str]] = field(default_factory=list)
    #: Processes that failed in the job through the pool, and how.
    casualties: list[str] = field(default_factory=list)
    pool: Timed = field(default_factory=Timed)
    #: None when the comparison was left out or failed; *queue_failure* says how.
    queue: Timed | None = None
    queue_failure: str = ""
    #: Empty when the comparison was left out or failed; *hand_over_failure* says how.
    hand_over: dict[SizeCategory, HandOver] = field(default_factory=dict)
    hand_over_failure: str = ""
    #: Leases served without a message to the broker, and all leases of slots.
    hits: int = 0
    slot_leases: int = 0

    @property
    def ok(self) -> bool:
        """Whether every digest of an unchanged file matched."""
        return not (self.mismatched or self.lost or self.casualties)


class Job:
    """The demo's job on one corpus, with its own private broker.

    *limit* is the pool's memory in bytes; *readers* and *workers* are numbers of
    processes. Needs a main module that can be imported again (it spawns).
    """

    def __init__(self, corpus: Corpus, limit: int, readers: int, workers: int, progress: Progress) -> None:
        self.corpus = corpus
        self.limit = limit
        self.readers = readers
        self.workers = workers
        self._progress = progress
        self._sent: dict[int, Sent] = {}
        self._digested: dict[int, Digested] = {}
        self._references: dict[int, Referenced] = {}
        self._report = Report({category: Line(category) for category in SizeCategory})

    def run(self, *, compare: bool = True) -> Report:
        """Do it all; *compare* says whether the queue is tried too. Raises ShmpoolError
        when there is no broker and CrewFailed when the processes do not even start."""
        report = self._report
        report.troubles[Trouble.UNREADABLE] += self.corpus.unreadable
        self._compute_references()
        self._run_through_pool()
        verified = self._judge()
        if compare and verified:
            self._run_over_queue(verified)
            self._hand_over(verified)
        return report

    def _compute_references(self) -> None:
        with Crew() as crew:
            for number, share in enumerate(self._shares(range(len(self.corpus.paths)), self.workers), 1):
                crew.add(f"checker {number}", tasks.reference_files, share, self.limit)
            crew.start()
            crew.go()
            for batch in crew.results():
                for result in batch:
                    self._references[result.file] = result
                self._tell(REFERENCE, batch)
            self._report.casualties += crew.casualties

    # --- through the pool --------------------------------------------------------------------

    def _run_through_pool(self) -> None:
        with Broker(memory_limit=self.limit) as broker, Crew() as crew:
            self._add_pool_members(crew, broker.address)
            crew.go()
            began = last = time.monotonic()
            for batch in crew.results():
                if batch:
                    last = time.monotonic()
                    self._take(batch)
                if not broker.is_running():
                    raise BrokerUnavailable("the demo's broker died")
                if crew.casualties and not crew.alive("worker"):
                    break  # nobody is left to empty the pool
            self._report.pool.seconds, self._report.pool.cpu_seconds = last - began, crew.cpu_seconds
            self._report.casualties += crew.casualties
            figures = stats.query(broker.address)
            self._report.hits = figures.pool_hits
            self._report.slot_leases = figures.pool_hits + figures.pool_misses

    def _add_pool_members(self, crew: Crew, address: str) -> None:
        """Start readers and workers with one pipe for the handles between them."""
        bulky = SPAWN.Semaphore(tasks.MAX_BULKY_IN_FLIGHT)
        source, sink = SPAWN.Pipe(duplex=False)
        with source, sink:  # our copies: an open one here would keep the workers waiting
            fcntl.fcntl(sink.fileno(), fcntl.F_SETPIPE_SZ, tasks.PIPE_BYTES)
            for number, share in enumerate(self._shares(range(len(self.corpus.paths)), self.readers), 1):
                crew.add(f"reader {number}", tasks.read_files, share, address, sink, bulky)
            for number in range(1, self.workers + 1):
                crew.add(f"worker {number}", tasks.digest_handles, address, source, bulky)
            crew.start()

    def _take(self, batch: Sequence[Any]) -> None:
        for result in batch:
            if isinstance(result, Sent):
                self._sent[result.file] = result
            else:
                self._digested[result.file] = result
        self._tell(POOL, [result for result in batch if isinstance(result, Digested) or result.trouble])

    # --- the verdict -----------------------------------------------------------------------------

    def _judge(self) -> list[int]:
        """Sort every file into the report. Returns the indexes of the verified ones."""
        return [index for index, path in enumerate(self.corpus.paths) if self._judge_one(index, path)]

    def _judge_one(self, index: int, path: str) -> bool:
        report = self._report
        sent, digested, reference = self._sent.get(index), self._digested.get(index), self._references.get(index)
        trouble = (sent and sent.trouble) or (reference and reference.trouble)
        if trouble:
            report.troubles[trouble].append(path)
        elif failure := _failure(sent, digested, reference):
            report.lost.append((path, failure))
        else:
            assert sent and sent.identity and digested and digested.digests and reference
            if sent.identity != reference.identity or self._has_changed(index, path, digested.digests, reference):
                report.troubles[Trouble.CHANGED].append(path)
            elif digested.digests != reference.digests:
                report.mismatched.append(path)
            else:
                report.verified += 1
                report.pool.files += 1
                report.pool.nbytes += sent.identity.size
                report.lines[sent.category].add(sent, digested, sent.identity.size)
                return True
        return False

    def _has_changed(self, index: int, path: str, digests: Digests, before: Referenced) -> bool:
        """Whether a difference is the file's doing: the clock that stamps files is coarse,
        and a file written twice within its step can look unchanged."""
        if digests == before.digests:
            return False
        again = tasks.reference(index, path, self.limit, tasks.make_block())
        return (again.identity, again.digests) != (before.identity, before.digests)

    # --- over a queue ------------------------------------------------------------------------------

    def _run_over_queue(self, indexes: list[int]) -> None:
        """The same files, read and digested by as many processes, with as many objects in
        flight at most."""
        timed = Timed()
        try:
            with Crew() as crew:
                self._add_queue_members(crew, indexes)
                crew.go()
                began = last = time.monotonic()
                for batch in crew.results():
                    last = time.monotonic() if batch else last
                    timed.files += len(batch)
                    timed.nbytes += self._tell(QUEUE, batch)
                    if crew.casualties:  # whoever dies with the queue's lock stops everybody
                        raise CrewFailed(crew.casualties[0])
                timed.seconds, timed.cpu_seconds = last - began, crew.cpu_seconds
        except CrewFailed as error:
            self._report.queue_failure = str(error)
        else:
            self._report.queue = timed

    def _add_queue_members(self, crew: Crew, indexes: list[int]) -> None:
        queue: Any = SPAWN.Queue(tasks.MAX_IN_FLIGHT)
        bulky = SPAWN.Semaphore(tasks.MAX_BULKY_IN_FLIGHT)
        shares = self._shares(indexes, self.readers)
        others = SPAWN.Semaphore(len(shares) - 1)
        for number, share in enumerate(shares, 1):
            crew.add(f"reader {number}", tasks.queue_files, share, queue, bulky)
        for number in range(1, self.workers + 1):
            crew.add(f"worker {number}", tasks.digest_queued, queue, bulky, others, self.workers)
        crew.start()

    # --- the hand-over alone -------------------------------------------------------------------------

    def _hand_over(self, verified: list[int]) -> None:
        """Some files of each category, from one process to another, both ways."""
        report, chosen = self._report, self._choose(verified)
        try:
            with Broker(memory_limit=self.limit) as broker, Crew() as crew:
                ours, theirs = SPAWN.Pipe()
                queue: Any = SPAWN.Queue()
                with ours, theirs:  # our copies
                    share = [(index, self.corpus.paths[index]) for index in chosen]
                    crew.add("giver", handover.give, share, broker.address, ours, queue)
                    crew.add("taker", handover.take, broker.address, theirs, queue)
                    crew.start()
                crew.go()
                handed: list[Handed] = []
                for batch in crew.results():
                    handed += batch
                    if crew.casualties:
                        raise CrewFailed(crew.casualties[0])
        except CrewFailed as error:
            report.hand_over_failure = str(error)
            return
        self._count(handed)

    def _choose(self, verified: list[int]) -> list[int]:
        """Spread over what there is of each category."""
        chosen: list[int] = []
        for category in SizeCategory:
            members = [index for index in verified if self._sent[index].category is category]
            left = HANDED_BYTES
            for index in members[:: max(1, len(members) // HANDED_FILES)][:HANDED_FILES]:
                if left == HANDED_BYTES or self.corpus.sizes[index] <= left:
                    chosen.append(index)
                    left -= self.corpus.sizes[index]
        return chosen

    def _count(self, handed: list[Handed]) -> None:
        report = self._report
        for one in handed:
            category, reference = self._sent[one.file].category, self._references[one.file]
            line = report.hand_over.setdefault(category, HandOver(category))
            if one.nanoseconds is not None:
                line.times[one.way].append(one.nanoseconds)
                continue
            if one.way is Way.POOL:
                line.files += 1
                line.nbytes += self.corpus.sizes[one.file]
            path = self.corpus.paths[one.file]
            if reference.digests and one.sha256 != reference.digests.sha256 and path not in report.mismatched:
                again = tasks.reference(one.file, path, self.limit, tasks.make_block())
                if again.digests == reference.digests:
                    report.mismatched.append(path)

    # --- helpers -------------------------------------------------------------------------------------

    def _shares(self, indexes: Sequence[int], parts: int) -> list[Share]:
        """The files dealt out to so many processes, like cards."""
        return [[(index, self.corpus.paths[index]) for index in indexes[part::parts]] for part in range(parts)]

    def _tell(self, what: str, batch: Sequence[Any]) -> int:
        nbytes: int = sum(self.corpus.sizes[result.file] for result in batch)
        self._progress(what, nbytes)
        return nbytes


def _failure(sent: Sent | None, digested: Digested | None, reference: Referenced | None) -> str:
    """Why there is nothing to compare, or an empty string."""
    if sent is None:
        return "no reader got to it"
    if sent.error:
        return sent.error
    if digested is None:
        return "no worker reported it"
    if digested.error:
        return digested.error
    return "" if reference else "its own digests were not computed"


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
