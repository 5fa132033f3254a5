"""Clients: the real session, pool, leases and buffers, patched where they meet the kernel.

What the helper thread does in a product's process is done here where its client waits for a
grant, and between two calls (`Client.turn`, `Client.serve`).
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import shmpool.life.forks as forks
import shmpool.link.answers
import shmpool.link.link
import shmpool.link.prefetch
import shmpool.link.sending
import shmpool.link.waiting
import shmpool.pool
import shmpool.seat.direct
import shmpool.seat.guards
import shmpool.seat.joining
import shmpool.seat.mapping
import shmpool.seat.recalls
import shmpool.seat.records
import shmpool.seat.segments
import shmpool.seat.session
import shmpool.seat.supply
import shmpool.seat.tickets
import shmpool.system.atomics
import shmpool.system.heirs
import shmpool.system.memory
from shmpool import BrokerUnavailable, HandleUsed, LeaseTimeout, Pool, PoolClosed, StaleHandle
from shmpool.link.connection import ConnectionEnded
from shmpool.link.hello import greet
from shmpool.link.link import Link
from shmpool.link.requests import Request
from shmpool.link.waiting import Waiter
from shmpool.protocol.figures import COUNTER_WORDS
from shmpool.protocol.handle import unpack_handle
from shmpool.protocol.ledger import (
    FIRST_CELL,
    NBYTES_BITS,
    QUEUE_CELL,
    QUEUED_CELL,
    SEAT_LOCKS,
    generation_of,
    queued_word,
    state_of,
)
from shmpool.protocol.messages import FROM_BROKER, Bell, Message, Return, Role, decode, encode
from shmpool.protocol.states import CellState
from shmpool.seat import tickets
from shmpool.seat.session import Session
from shmpool.system import heirs, outside
from shmpool.system.heirs import READERS
from shmpool.system.locks import UNLOCK_ALL

from . import forking
from .fingerprints import fingerprint
from .machines import Context
from .memory import Words
from .nesting import Visit
from .start import NBYTES, Start, nonce_of

_FLOCK = struct.Struct("hhqqi4x")
#: The descriptors of the tickets' file, in the order in which a session opens them; and that of the open file which a
#: call in the middle of another one has for itself.
TICKETS, SEAT, BESIDE = 1_000_002, 1_000_003, 1_000_004


class Gone(Exception):
    """A client that goes away in the middle of its part."""


class Wrong(Exception):
    """A client was treated in a way that no client ever should be."""


# --- what stands for the kernel --------------------------------------------------------------------


class Window(bytearray):
    """Stands for a map, of the slot or of a direct segment's *inode*. Views hang on it as they do on one, so its
    reference count is right. *length* is what of the segment is mapped."""

    inode = length = 0


class File(NamedTuple):
    """Stands for a descriptor of a direct segment."""

    inode: int


class Windows:
    """Stands for `shmpool.seat.windows.Windows`: no view outlives its buffer here."""

    waiting = 0

    def make(self, pieces: Any, protection: int, *, populate: bool = True) -> Window:
        window = Window(16)
        if isinstance(pieces[0].fd, File):
            window.inode, window.length = pieces[0].fd.inode, pieces[0].length
        return window


class Connection:
    """A socket whose two directions are queues of the world's. *pending* is what `poll` saw."""

    has_outbox = is_in_pieces = is_sent_here = False
    address = ""

    def __init__(self, context: Context, number: int) -> None:
        self.number = number
        self.pending: Any = None
        self._context = context

    def send(self, *messages: Message) -> None:
        loses_bells = self._context.machine.start.chores.loses_bells
        for message in messages:
            if self._context.memory is None and not (loses_bells and isinstance(message, Bell | Return)):
                self._context.ask("send", self.number, encode(message))

    def try_send(self, message: Message) -> bool:
        self.send(message)
        return True

    def wait(self, guards: tuple[int, ...] = ()) -> bool:
        """Until there is something to receive, or one of these bytes is free; False when a deadline
        passed first."""
        self.pending = self._context.ask("receive", self.number, *([guards] if guards else []))
        return self.pending != "timeout"

    def receive(self) -> list[Message]:
        frame, self.pending = self.pending, None
        if frame == "end":
            raise ConnectionEnded("the broker is gone")
        return [decode(frame, FROM_BROKER)]

    def flush(self) -> None:
        """Nothing waits here."""

    def shut_down(self) -> None:
        """Nobody polls here."""

    def receive_one(self, deadline: float, interruption: Any = None) -> list[Message]:
        if self._context.memory is not None:
            self.pending = self._context.inbox.pop(0)
        else:
            self.wait()
        return self.receive()

    def unread(self) -> bytes | None:
        """What has come and nobody has received: for a mutant."""
        frame: bytes | None = self._context.ask("unread", self.number)
        return frame

    @property
    def has_ended(self) -> bool:
        """Whether the broker's end is gone."""
        return self._context.memory is None and bool(self._context.ask("ended", self.number))

    def close(self) -> None:
        if self._context.memory is None:
            self._context.ask("close", self.number)


def _context() -> Context:
    assert Context.current is not None
    return Context.current


def offset_of(lock: bytes) -> int:
    """The byte that a struct flock is about."""
    return int(_FLOCK.unpack(lock)[2])


def fcntl(fd: int, command: int, lock: bytes) -> None:
    """F_OFD_SETLK on one byte of the tickets file or of the seats file, or on all that an open file has locked."""
    context = _context()
    if context.memory is not None:
        return  # the seat's byte: it is locked when the scenario starts
    if not isinstance(fd, int):
        fd.fileno()  # it was closed: that is an error
    locked = context.locking.setdefault(fd, [])
    if lock == UNLOCK_ALL:
        context.ask("unlock", tuple(locked), fd == BESIDE)
        locked.clear()
        return
    offset = offset_of(lock)
    if not context.ask("lock", offset, fd == BESIDE):
        raise BlockingIOError(errno.EAGAIN, "another has it")
    locked.append(offset)


def swap_of(words: Words) -> Callable[[int, int, int], bool] | None:
    """`atomics.swap_of`; None for a client that asks the broker."""
    return None if _context().asks else words.swap


def open_segment(name: str, *, writable: bool) -> File:
    """Of a direct segment."""
    inode = _context().ask("find", name)
    if not inode:
        raise FileNotFoundError(errno.ENOENT, name)
    return File(inode)


def fstat(file: File) -> SimpleNamespace:
    """It has all its pages: whoever makes one reserves them."""
    length = _context().ask("length", file.inode)
    return SimpleNamespace(st_size=length, st_blocks=length // 512)


class Clock:
    """Each party has its own, so that it depends on nobody; patience ends at the second look."""

    @staticmethod
    def monotonic() -> float:
        _context().now += 0.006
        return _context().now

    @staticmethod
    def sleep(seconds: float) -> None:
        _context().now += 1.0


def _dial(address: str, deadline: float, interruption: Any = None) -> Connection:
    context = _context()
    return Connection(context, context.index + 1 if context.memory is not None else context.ask("connect"))


def _make_words(session: Session, welcome: Any) -> None:
    context, start = _context(), _context().machine.start
    context.seat = welcome.seat
    context.locking = {SEAT: [SEAT_LOCKS + welcome.seat]}
    session.words = Words(context, start.layout.ledger, start.layout.searched, start.ledger)  # type: ignore[assignment]
    session.header = Words(context, start.layout.header, {}, start.header)  # type: ignore[assignment]
    session.counters = len(start.ledger) - COUNTER_WORDS
    if start.forks:
        session.readers = forking.hold_anew(0, READERS + welcome.seat)  # type: ignore[assignment]


def _await_welcome(find: Any, nonce: int, deadline: float, is_closed: Any) -> Any:
    connection: Any = _dial(find(), deadline)
    return find(), connection, greet(connection, Role.WORKER, nonce, 0, 0, deadline)


def _read_for(link: Link, request: Request, deadline: float) -> bool:
    """`Link._read_for`, without the polling; and what the helper would do meanwhile."""
    client = Client.of(_context())
    while link.connection is not None and request.is_waiting:
        if not client.pump("waiting"):
            return False
    return True


def _wait(waiter: Waiter, deadline: float) -> bool:
    """`Waiter.wait`: the helper goes on until it wakes this thread."""
    client = Client.of(_context())
    while not waiter._gate.acquire(blocking=False):
        if client.session.connection is not None:
            return True  # the helper has made one; it nudges nobody, but the waiter looks again in time
        client.reconnect()
    return True


@contextmanager
def patched() -> Iterator[None]:
    """The product's modules over the instrumented kernel, while an exploration runs."""
    opened = cycle((TICKETS, SEAT))
    system = SimpleNamespace(
        close=lambda *_: None, eventfd=lambda *_: -1, eventfd_write=lambda *_: None,
        urandom=lambda size: nonce_of(_context().index).to_bytes(size, "big"),
        EFD_CLOEXEC=0, EFD_NONBLOCK=0,
    )  # fmt: skip
    with ExitStack() as stack:
        for module, name, stand_in in (
            (shmpool.pool, "fcntl", fcntl),
            (shmpool.seat.tickets, "fcntl", fcntl),
            (shmpool.seat.tickets, "open_beside", lambda *_: BESIDE),
            (shmpool.seat.tickets, "FileId", SimpleNamespace(of=lambda fd: fd)),
            (shmpool.seat.tickets, "time", Clock),
            (shmpool.seat.recalls, "time", SimpleNamespace(monotonic=float)),  # recalls come one upon the other
            (shmpool.seat.recalls, "KEPT_FOR", 0.0),  # and long enough: what is idle goes back
            (shmpool.seat.mapping, "fcntl", fcntl),
            (shmpool.seat.mapping, "open_beside", lambda *_: next(opened)),
            (shmpool.seat.mapping, "Windows", Windows),
            (shmpool.seat.mapping.libc, "needs_barrier", lambda: False),
            (shmpool.seat.mapping.Mapping, "_make_words", _make_words),
            (shmpool.seat.records, "open_segment", open_segment),
            (shmpool.seat.records, "os", SimpleNamespace(fstat=fstat)),
            (shmpool.seat.direct, "open_segment", open_segment),
            (shmpool.seat.direct, "os", SimpleNamespace(fstat=fstat)),
            (shmpool.seat.segments, "time", SimpleNamespace(monotonic=float)),  # what follows is soon
            (shmpool.seat.segments, "LIFETIME", 0.0),  # and what was not used at two looks goes back
            (shmpool.system.memory, "memory_groups", list),
            # What stands here for the kernel, and for a connection, raises as they do: nothing of it is a handler's.
            (outside, "OURS", outside.OURS | {outside.origin(__name__)}),
            (shmpool.link.prefetch.Prefetch, "take", lambda *_: None),
            (shmpool.link.prefetch.Prefetch, "ask", lambda *_: None),
            (shmpool.link.sending, "make_eventfd", lambda: -1),
            (shmpool.link.sending, "signal", lambda *_: None),
            (shmpool.link.answers, "signal", lambda *_: None),
            (shmpool.link.link.Link, "_read_for", _read_for),
            (shmpool.link.waiting.Waiter, "wait", _wait),
            (shmpool.seat.session.Helper, "start", lambda *_: None),  # its part is `Client.turn`
            (shmpool.seat.session.Session, "_warn_of_tickets", lambda session: None),
            (shmpool.seat.joining, "await_welcome", _await_welcome),
            (shmpool.seat.joining, "reach", _dial),
            (shmpool.seat.joining, "os", system),
            (shmpool.seat.guards, "open_segment", lambda *_, **__: -1),
            (shmpool.system.atomics, "swap_of", swap_of),
            (shmpool.system.heirs, "hold_anew", forking.hold_anew),
            (shmpool.system.heirs, "hold_fork", forking.hold_fork),
            (shmpool.system.heirs, "is_held", forking.is_held),
        ):
            stack.enter_context(patch.object(module, name, stand_in))
        yield


# --- a client ----------------------------------------------------------------------------------------


class Client:
    """A process that uses one pool: what scenarios let it do. Made at the party's first step;
    *joins* is for one that is not connected at the start."""

    def __init__(self, context: Context, start: Start, *, joins: bool = False) -> None:
        self._context = context
        self._step = 0
        context.client = self
        if not joins:
            context.memory = list(start.memory)
            context.inbox = [start.welcomes[context.index]]
        if start.forks:
            context.process = forking.Process()
            context.process.enter()
        session = self.session = context.session = self._connect()
        session._fds = {(0, True): -1, (0, False): -1}
        if start.is_direct:
            if not start.chores.loses_bells:  # what is kept is given back, what is not is handed over
                session.segments._used_at = 0.0  # the first is kept already
        elif not joins and context.index == 0:
            session.link.handle(decode(start.grant, FROM_BROKER))
        context.memory = None
        self.pool = pool = object.__new__(Pool)
        pool.address, pool._strict, pool._is_closed = "here", False, False
        pool._connecting, pool._session, pool._closing = threading.Lock(), session, None
        #: What is open beside the buffer.
        self._next: Any = None
        #: What was received last, and before.
        self.handle = self.earlier = b""
        if start.forks:
            context.process.sessions.add(session)
            session.guards.begin()

    def _connect(self) -> Session:
        """Tried twice: who finds no broker then goes away."""
        try:
            return self._join()
        except BrokerUnavailable:
            self._context.seat = None
        try:
            return self._join()
        except BrokerUnavailable:
            self._context.seat = None
            raise Gone from None

    def _join(self) -> Session:
        session = Session(strict=False, close_if_unused=lambda session: False)
        session.join(lambda: "here", 1.0, lambda: False)
        return session

    @staticmethod
    def of(context: Context) -> Client:
        return context.client  # type: ignore[no-any-return]

    def _cut(self) -> None:
        """Between two calls: the past is what the objects say."""
        self._step += 1
        self._mark()

    def _mark(self) -> None:
        context, session = self._context, self.session
        if context.is_visited:
            return  # what goes on around it counts, too
        process = None if context.process is None else context.process.key
        rest = context.visit is None, fingerprint(session, context.lease, context.buffer, self._next), process
        context.cut((self._step, self.handle, self.earlier, *rest))

    # --- writing -----------------------------------------------------------------------------------

    def lease(self, act: Callable[[], None] | None = None) -> bool:
        """False when it timed out. *act* may come in its middle."""
        self._cut()
        try:
            with self._visited_by(act):
                self._context.lease = self.pool.lease(NBYTES)
        except LeaseTimeout:
            return False
        return True

    def write(self) -> None:
        """Write what only this generation's readers may see: its future grant word."""
        slot = self._context.lease._slot
        inode = slot.open().inode if slot.window is None else slot.window.inode
        self._context.store(self._context.machine.start.layout.payloads[inode], slot.base | self.session.published)
        self._context.ask("pass")  # it writes for a while: nobody else may

    def produce_direct(self, *sizes: int) -> None:
        """The same with objects of so many bytes, each in a segment of its own."""
        for nbytes in sizes:
            self._cut()
            try:
                self._context.lease = self.pool.lease(nbytes, strategy="direct")
            except LeaseTimeout:
                return
            self.write()
            self.publish()
            self.turn()

    def publish(self, tickets: int = 1, act: Callable[[], None] | None = None, queue: int | None = None) -> None:
        """Publish, and post the handles; into a *queue*, 0 for none."""
        lease = self._context.lease
        if queue:  # as `queues.putting`
            slot, words = lease._slot, self.session.words
            words[slot.word + QUEUE_CELL] = queue
            words[slot.word + QUEUED_CELL] = queued_word(generation_of(slot.base))
        with self._visited_by(act):
            handles = [lease.publish()] if tickets == 1 else lease.publish_many(tickets)
        self._context.lease = None
        self.handle = handles[0]
        for handle in handles:
            self._context.ask("post", bytes(handle))

    def release_lease(self) -> None:
        """Release unpublished."""
        self._context.lease.release()
        self._context.lease = None

    def return_idle(self) -> None:
        """Give everything idle back to the broker."""
        self._cut()
        self.session.return_all()
        self.turn()

    def produce(self, times: int, tickets: int = 1, queue: int | None = None) -> None:
        """Lease, write, publish, and look at what the broker wants."""
        for _ in range(times):
            if not self.lease():
                return
            self.write()
            self.publish(tickets, queue=queue)
            self.turn()

    def produce_from_own(self, times: int, tickets: int = 1, queue: int | None = None) -> None:
        """The same without the broker: waits until the slot comes back by itself."""
        context, layout = self._context, self._context.machine.start.layout
        magazine = self.session.pooled[0]
        for _ in range(times):
            while not magazine.ready and (done := magazine.reap(1)) is None:
                cells = [(number, context.read(number)) for number in layout.cells]
                open_cell = next((pair for pair in cells if state_of(pair[1]) != CellState.DONE), None)
                if open_cell is not None:
                    context.ask("until", *open_cell)
                elif self.session.guards:  # a child has yet to copy it
                    self.pump()
                self._mark()
            if not magazine.ready:
                magazine.ready.append(done)
            self.produce(1, tickets, queue)

    def discard(self, act: Callable[[], None] | None = None) -> None:
        """Discard the first ticket of the last publication."""
        self._cut()
        try:
            with self._visited_by(act):
                self.pool.discard(self.handle)  # type: ignore[arg-type]
        except (StaleHandle, HandleUsed):
            pass
        self.turn()

    # --- reading --------------------------------------------------------------------------------------

    def receive(self, number: int) -> bytes:
        """The handle that was posted as the so-manieth; waits for it."""
        self._cut()
        self.earlier, self.handle = self.handle, self._context.ask("fetch", number)
        return self.handle

    def open(self, act: Callable[[], None] | None = None) -> bool:
        """Open the handle; False when it is refused. *act* may come in its middle."""
        self._cut()
        with self._visited_by(act):
            self._context.buffer = self._open(self.handle)
        return self._context.buffer is not None

    def _open(self, handle: bytes) -> Any:
        """The buffer; None when it is refused."""
        context = self._context
        try:
            buffer = self.pool.open(handle)  # type: ignore[arg-type]
        except (StaleHandle, HandleUsed):
            return None
        except PoolClosed:
            if not self.session.is_closing:
                raise
            return None
        _, granted, tail = unpack_handle(handle)
        ticket = granted, (tail >> NBYTES_BITS & 15) + FIRST_CELL
        is_short = context.machine.start.is_direct and buffer._record.window.length < buffer.nbytes  # type: ignore[attr-defined]
        if is_short or ticket in context.won:
            context.buffer = buffer  # it is kept until the party is forgotten
            raise Wrong("a map is shorter than what was opened" if is_short else "a ticket was opened twice here")
        context.won |= {ticket}
        return buffer

    def _is_pending(self) -> bool:
        """Whether the handle's ticket can be taken."""
        _, granted, tail = unpack_handle(self.handle)
        try:
            tickets.pending_word(self.session, granted, tail)
        except (StaleHandle, HandleUsed):
            return False
        return True

    @property
    def _offset(self) -> int:
        """The byte of the handle's ticket."""
        return unpack_handle(self.handle)[2] >> NBYTES_BITS

    @property
    def has_buffer(self) -> bool:
        return self._context.buffer is not None

    def look(self) -> None:
        """Read for a while: the payload is looked at in every state."""
        self._context.ask("pass")

    def open_next(self, act: Callable[[], None] | None = None) -> bool:
        """Open the handle while something is open already."""
        self._cut()
        with self._visited_by(act):
            self._next = self._open(self.handle)
        return self._next is not None

    def release_next(self) -> None:
        self._context.visitor = self._next  # what is looked through just now
        self.look()
        self._next.release()
        self._context.visitor = self._next = None

    # --- in the middle of a call ------------------------------------------------------------------------

    @contextmanager
    def _visited_by(self, act: Callable[[], None] | None) -> Iterator[None]:
        if act is None:
            yield
            return
        with Visit(self._context, act):
            yield

    def read_within(self, handle: bytes) -> None:
        """Open, hold and release."""
        context = self._context
        context.visitor = self._open(handle)
        if context.visitor is not None:
            context.ask("pass")
            context.visitor.release()
            context.visitor = None

    def discard_within(self, handle: bytes) -> None:
        try:
            self.pool.discard(handle)  # type: ignore[arg-type]
        except (StaleHandle, HandleUsed):
            pass

    def produce_within(self) -> None:
        """Lease what there is at once, write and publish it; nobody learns the handle."""
        context = self._context
        try:
            context.visitor = self.pool.lease(NBYTES, timeout=0)
        except LeaseTimeout:
            return
        slot = context.visitor._slot
        context.store(context.machine.start.layout.payloads[0], slot.base | self.session.published)
        context.ask("pass")
        handle = context.visitor.publish()
        context.visitor = None
        context.ask("post", bytes(handle))

    def close_within(self) -> None:
        """`Pool.close`; what is in use then is ended by the helper (`_help`)."""
        self.session.is_closing = self.session.is_orphaned = self.pool._is_closed = True
        self._end()

    def _end(self) -> None:
        """`closing.close_unused`, if nothing is in use."""
        session = self.session
        session.close_magazines()
        session.look_after_views()
        if not session.is_in_use and session.say_goodbye():
            self._context.seat = None
            session.close_descriptors()

    def release(self, act: Callable[[], None] | None = None) -> None:
        with self._visited_by(act):
            self._context.buffer.release()
        self._context.buffer = None

    def give_back(self, number: int) -> None:
        """Receive, open and give back: the ticket may be won again, by anybody."""
        self.receive(number)
        if self.open():
            self._context.ask("pass")
            self._context.won = frozenset()
            self._context.buffer.give_back()
            self._context.buffer = None
        self.turn()

    def fork(self) -> None:
        """With the real hooks of the parent. The child (`scenarios.inherit`) reads what is open here, or
        copies what is leased."""
        forks._before()
        context, session = self._context, self.session
        inherited = ("C", context.lease._granted()) if context.buffer is None else ("R", context.buffer._granted)
        context.ask("fork", *inherited, heirs.copies_at(session.seat, session.guards.standing.number))
        forks._after_in_parent()

    def consume(self, number: int, *, is_good: bool = False) -> None:
        """Receive, open, hold and release. One that *is_good* must not be refused, but while somebody has its byte."""
        self.receive(number)
        while not (is_open := self.open()) and is_good and self._is_pending():
            self._step -= 1  # as it was before
            self._context.ask("free", self._offset)
        if is_open:
            self._context.ask("pass")  # it reads for a while: the payload is looked at in every state
            self.release()
        elif is_good:
            raise Wrong("a good handle is refused")
        self.turn()

    # --- the helper's part ------------------------------------------------------------------------------

    def turn(self) -> None:
        """What the helper does after each of its waits."""
        self._cut()
        self._help()

    def pump(self, mark: str = "") -> bool:
        """Wait for the broker and do what it says; False when a deadline passed first."""
        session, context = self.session, self._context
        connection: Any = session.connection
        if connection is None:
            self.reconnect()
            return True
        context.marks = (mark,)
        self._mark()
        in_time = connection.wait(forking.guards_of(session))
        context.marks = ()
        if in_time:
            if connection.pending != "freed":
                session.link.receive(connection)
            self._help()
        return in_time

    def _help(self) -> None:
        session = self.session
        if self._context.machine.start.is_direct:
            session.segments.pause()
            session.look_after_views()
            session.openings.forget_segments()
        elif session.guards or session.deferred.any:
            session.look_after_views()
        if session.is_orphaned and not session.is_over:
            self._end()
        if session.is_wanted:
            session.answer_recall()
        session.link.send_bells()

    def reconnect(self) -> None:
        """As the helper does it, without pauses."""
        session = self.session
        while session.connection is None:
            self._mark()
            session.reconnect(1.0)
            if session.is_over:
                raise Wrong("a living client has lost its seat")

    def serve(self) -> None:
        """Nothing more to do: only the helper goes on."""
        self._cut()
        while not self.session.is_over:
            self.pump()

    def close(self) -> None:
        """`Pool.close` and the end of the process: nothing is in use."""
        session = self.session
        self._cut()
        session.is_closing = True
        session.close_magazines()
        session.say_goodbye()
        self._context.seat = None
        session.close_descriptors()

    def exit(self) -> None:
        """The end of the process without a word."""
        self.session.is_over = True
