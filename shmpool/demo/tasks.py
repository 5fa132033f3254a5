"""What the demo's processes do: one function for each kind of member.

Handles travel through one plain pipe that all readers write and all workers read. A
record is 32 bytes, so the kernel writes and reads it whole: no lock, and nobody can be
left holding one. The pipe is a page long, which bounds the handles in flight, and bulky
objects take a permit of a semaphore, so that readers do not fill the pool to its limit;
where they do, a lease waits for the workers. A permit that dies with its holder is waited
for a little and then not missed. The queue's job is bounded in the same way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Semaphore
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

from ..connecting import connect
from ..errors import InvalidSize, ShmpoolError
from ..lease import Lease
from ..pools import Pool
from ..protocol.handle import HANDLE_BYTES, Handle
from ..protocol.sizing import SizeCategory, Strategy
from .crew import CrewFailed, Link
from .files import Identity, Skipped, Trouble, blocks, opened, read_into, read_whole, require_unchanged

#: A handle and the file's index.
RECORD_BYTES: Final = HANDLE_BYTES + 8
#: The pipe's length, and so handles in flight times RECORD_BYTES.
PIPE_BYTES: Final = 4096
MAX_IN_FLIGHT: Final = PIPE_BYTES // RECORD_BYTES
#: Failed leases after which a reader gives up.
MAX_FAILURES: Final = 3
#: Objects from this size on are bulky: few are in flight.
BULKY: Final = 1024 * 1024
MAX_BULKY_IN_FLIGHT: Final = 4
_PERMIT_SECONDS: Final = 1.0
_BLOCK: Final = 1024 * 1024

Share = Sequence[tuple[int, str]]
"""(index, path) of the files that are one process's to read."""


class Digests(NamedTuple):
    """SHA-256 and BLAKE2b of the same bytes."""

    sha256: bytes
    blake2b: bytes


class Referenced(NamedTuple):
    """What a file's digests have to be, or why it is left out."""

    file: int
    identity: Identity | None
    digests: Digests | None
    trouble: Trouble | None


class Sent(NamedTuple):
    """A file was handed over, or why not; *error* is a failure of the pool. Times in
    nanoseconds: *pool_ns* for lease and publish, *file_ns* for reading into the lease."""

    file: int
    identity: Identity | None = None
    trouble: Trouble | None = None
    error: str = ""
    category: SizeCategory = SizeCategory.SMALL
    strategy: Strategy = Strategy.POOLED
    pool_ns: int = 0
    file_ns: int = 0


class Digested(NamedTuple):
    """What a worker made of it. *pool_ns* is for open and release."""

    file: int
    digests: Digests | None
    error: str = ""
    pool_ns: int = 0
    digest_ns: int = 0


def digests_of(data: Any) -> Digests:
    """The digests of anything with a buffer."""
    return Digests(hashlib.sha256(data).digest(), hashlib.blake2b(data).digest())


# --- from the file itself --------------------------------------------------------------------


def reference_files(link: Link, share: Share, largest: int) -> None:
    """Compute the digests that files have to have; what is larger than *largest* bytes is
    left out."""
    block = make_block()
    link.await_go()
    for index, path in share:
        link.put(reference(index, path, largest, block))


def make_block() -> memoryview:
    """What files are read through."""
    return memoryview(bytearray(_BLOCK))


def reference(index: int, path: str, largest: int, block: memoryview) -> Referenced:
    """One file's digests, read through *block* and nothing of shmpool."""
    try:
        with opened(path) as (fd, identity):
            if identity.size > largest:
                raise Skipped(Trouble.TOO_LARGE)
            sha256, blake2b = hashlib.sha256(), hashlib.blake2b()
            for piece in blocks(fd, block):
                sha256.update(piece)
                blake2b.update(piece)
            require_unchanged(fd, identity)
    except Skipped as skipped:
        return Referenced(index, None, None, skipped.trouble)
    return Referenced(index, identity, Digests(sha256.digest(), blake2b.digest()), None)


# --- through the pool --------------------------------------------------------------------------


def read_files(link: Link, share: Share, address: str, handles: Connection, bulky: Semaphore) -> None:
    """A reader: files into leases, handles into the pipe. After a few failures of the pool
    it gives up, since each may have taken the whole lease timeout."""
    with ExitStack() as stack:
        pool = stack.enter_context(connect(address))
        stack.enter_context(handles)  # closed first: the workers see the end at once
        link.await_go()
        failures = 0
        for index, path in share:
            sent = _hand_over(pool, handles.fileno(), bulky, index, path)
            link.put(sent)
            failures += bool(sent.error)
            if failures >= MAX_FAILURES:
                raise CrewFailed(sent.error)
        link.flush()


def _hand_over(pool: Pool, pipe: int, bulky: Semaphore, index: int, path: str) -> Sent:
    try:
        with opened(path) as (fd, identity), _permit(bulky, identity.size):
            sent, handle = _publish(pool, fd, Sent(index, identity))
    except Skipped as skipped:
        return Sent(index, trouble=skipped.trouble)
    except InvalidSize:
        return Sent(index, trouble=Trouble.TOO_LARGE)
    except ShmpoolError as error:
        return Sent(index, error=f"{type(error).__name__}: {error}")
    os.write(pipe, handle + index.to_bytes(8, "little"))
    return sent


@contextmanager
def _permit(bulky: Semaphore, nbytes: int) -> Iterator[None]:
    """Take a permit for a bulky object, which its worker gives back; on an error we do."""
    taken = nbytes >= BULKY and bulky.acquire(timeout=_PERMIT_SECONDS)
    try:
        yield
    except BaseException:
        if taken:
            bulky.release()
        raise


def _publish(pool: Pool, fd: int, sent: Sent) -> tuple[Sent, Handle]:
    assert sent.identity is not None
    began = perf_counter_ns()
    with pool.lease(sent.identity.size) as lease:
        leased = perf_counter_ns()
        _fill(lease, fd)
        require_unchanged(fd, sent.identity)
        filled = perf_counter_ns()
        category, strategy = lease.category, lease.strategy
        handle = lease.publish()
    pool_ns = leased - began + perf_counter_ns() - filled
    return sent._replace(category=category, strategy=strategy, pool_ns=pool_ns, file_ns=filled - leased), handle


def _fill(lease: Lease, fd: int) -> None:
    if lease.strategy is Strategy.DIRECT:
        lease.write(read_whole(fd, lease.nbytes))  # cheaper than faulting in fresh pages
    else:
        read_into(fd, lease.view)


def digest_handles(link: Link, address: str, handles: Connection, bulky: Semaphore) -> None:
    """A worker: opens what comes out of the pipe and computes the digests, without a copy."""
    with connect(address) as pool, handles:
        link.await_go()
        while record := os.read(handles.fileno(), RECORD_BYTES):
            handle, index = Handle.from_bytes(record[:HANDLE_BYTES]), int.from_bytes(record[HANDLE_BYTES:], "little")
            link.put(_digest(pool, index, handle))
            if handle.nbytes >= BULKY:
                bulky.release()
        link.flush()


def _digest(pool: Pool, index: int, handle: Handle) -> Digested:
    try:
        began = perf_counter_ns()
        with pool.open(handle) as buffer:
            opened_at = perf_counter_ns()
            digests = digests_of(buffer.view)
            digested = perf_counter_ns()
        pool_ns = opened_at - began + perf_counter_ns() - digested
    except ShmpoolError as error:
        return Digested(index, None, f"{type(error).__name__}: {error}")
    return Digested(index, digests, "", pool_ns, digested - opened_at)


# --- over multiprocessing.Queue ------------------------------------------------------------------

_END_OF_READER: Final = -1
_STOP: Final = -2

Item = tuple[int, bytes]


def queue_files(link: Link, share: Share, queue: Queue[Item], bulky: Semaphore) -> None:
    """The same reader, with a queue for the bytes."""
    link.await_go()
    for index, path in share:
        try:
            with opened(path) as (fd, identity), _permit(bulky, identity.size):
                data = read_whole(fd, identity.size)
                require_unchanged(fd, identity)
                queue.put((index, data))
        except Skipped:
            pass  # it was readable just now; the job goes on without it
    queue.put((_END_OF_READER, b""))


def digest_queued(link: Link, queue: Queue[Item], bulky: Semaphore, others: Semaphore, workers: int) -> None:
    """The same worker. The one that takes the last reader's end stops the others: a
    reader's end lies behind all that it sent, so the queue is empty then. *others* has a
    permit for each reader but one, so that the last one finds none."""
    link.await_go()
    while True:
        index, data = queue.get()
        if index == _STOP:
            break
        if index == _END_OF_READER:
            if others.acquire(block=False):
                continue
            for _ in range(workers - 1):
                queue.put((_STOP, b""))
            break
        link.put(Digested(index, digests_of(data)))
        if len(data) >= BULKY:
            bulky.release()
    link.flush()
