"""Seeded mistakes: each leaves one ingredient of the protocol out, and must be found.

Most are made from the product's own source by replacing a line, so that a mutant is always
today's code but for that line; where the line is no longer there, `rewritten` says so.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from shmpool.buffer import EndedBuffer, LiveBuffer
from shmpool.direct_lease import DirectLease
from shmpool.life import forks
from shmpool.link.link import Link
from shmpool.live_lease import LiveLease
from shmpool.pool import BasePool
from shmpool.protocol.ledger import GENERATION_FIELD, ROW_WORDS, SEAT_LOCKS, STATE_SHIFT
from shmpool.protocol.messages import Message
from shmpool.protocol.states import CellState
from shmpool.seat import deferred, records, tickets
from shmpool.seat.deferred import DeferredReleases
from shmpool.seat.ending import Ending
from shmpool.seat.guards import Guards
from shmpool.seat.magazine import Magazine
from shmpool.seat.segments import Segments
from shmpool.seat.session import Session
from shmpool.seat.slot import Slot
from shmpoold.core.connections.clients import Clients
from shmpoold.core.connections.endings import Endings
from shmpoold.core.lending.returns import Returns
from shmpoold.core.lending.sweep import Sweep
from shmpoold.core.memory.inventory import Inventory
from shmpoold.core.memory.slots import SlotMap
from shmpoold.core.memory.stock import Stock
from shmpoold.core.objects.custody import Custody
from shmpoold.core.objects.queues import Queues
from shmpoold.core.rows import Rows
from shmpoold.shell.tickets import TicketCloser
from shmpoold.shell.watches import Watches

from . import brokers, clients, world
from .clients import Client
from .memory import Words
from .scenarios import (
    LONG,
    SCENARIO,
    SHORT,
    Scenario,
    by_asking,
    by_swaps,
    produce,
    produce_direct,
    read,
    read_good,
    recycle,
)


@dataclass(frozen=True)
class Mutant:
    """*scenario* is where it shows, in all *modes*; in the other mode it does not. The smaller, the sooner
    it is found."""

    name: str
    scenario: Scenario
    make: Callable[[], AbstractContextManager[None]]
    modes: tuple[str, ...] = ("SC", "TSO")


def rewritten(function: Any, *replacements: tuple[str, str]) -> Any:
    """The function with parts of its source replaced; of one that has a compiled twin, that is the plain one."""
    function = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in replacements:
        assert source.count(old) == 1, f"{function.__qualname__} no longer has one {old!r}: mend the mutant"
        source = source.replace(old, new)
    code = compile(source, f"<mutant of {function.__qualname__}>", "exec", __future__.annotations.compiler_flag)
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    made[function.__name__].source = source
    return made[function.__name__]


def rewrite(owner: Any, name: str, *replacements: tuple[str, str]) -> Callable[[], AbstractContextManager[None]]:
    """A mutant of one method."""

    @contextmanager
    def make() -> Iterator[None]:
        with patch.object(owner, name, rewritten(getattr(owner, name), *replacements)):
            yield

    return make


def together(*makers: Callable[[], AbstractContextManager[None]]) -> Callable[[], AbstractContextManager[None]]:
    """A mutant of several mistakes."""

    @contextmanager
    def make() -> Iterator[None]:
        with ExitStack() as stack:
            for maker in makers:
                stack.enter_context(maker())
            yield

    return make


# --- those that are no single line ----------------------------------------------------------------------


@contextmanager
def lock_left_out() -> Iterator[None]:
    """Tickets are taken without their lock. Seats keep theirs."""

    def fcntl(fd: int, command: int, lock: bytes, real: Any = clients.fcntl) -> None:
        if fd == clients.SEAT:
            real(fd, command, lock)

    with patch.object(clients, "fcntl", fcntl):
        yield


@contextmanager
def swap_in_two_steps() -> Iterator[None]:
    """Who would swap looks, and then stores."""

    def swap(self: Words, at: int, expected: int, value: int) -> bool:
        if self[at] != expected:
            return False
        self[at] = value
        return True

    with patch.object(Words, "swap", swap):
        yield


@contextmanager
def broker_closes_without_lock() -> Iterator[None]:
    """Expiry looks and stores without the ticket's lock."""

    class NoLocks(brokers.ByteLocks):
        def try_lock(self, offset: int) -> bool:
            return offset < SEAT_LOCKS or super().try_lock(offset)

        def unlock(self, offset: int) -> None:
            if offset >= SEAT_LOCKS:
                super().unlock(offset)

    with patch.object(brokers, "ByteLocks", NoLocks):
        yield


@contextmanager
def lock_is_no_barrier() -> Iterator[None]:
    """A lock in user space that does not order stores; the kernel's does."""
    with patch.object(world.World, "are_barriers", False):
        yield


@contextmanager
def done_before_the_view_is_gone() -> Iterator[None]:
    """Release tells everybody first and lets go of the view afterwards."""

    def release(self: LiveBuffer) -> None:
        record, granted = self._record, self._granted
        words = record.session.words
        words[record.cell] = granted & GENERATION_FIELD | CellState.DONE << STATE_SHIFT
        is_changed = words[record.word] != granted
        self.view.release()
        del self.view
        self.__class__ = EndedBuffer  # type: ignore[assignment]
        if is_changed:
            record.session.ring(record.row)

    with patch.object(LiveBuffer, "release", release):
        yield


@contextmanager
def old_replies_kept() -> Iterator[None]:
    """What an old socket still had is handled after the new one's first message."""
    receive, close = Link.receive, Link.close_connection

    def close_late(self: Link, connection: Any = None) -> None:
        late = vars(self).setdefault("late", [])
        while (frame := connection.unread()) is not None:
            late.append(frame)
        close(self, connection)

    def receive_both(self: Link, connection: Any) -> None:
        receive(self, connection)
        if self.connection is not None:
            for frame in vars(self).pop("late", []):
                message: Message = clients.decode(frame, clients.FROM_BROKER)
                self.handle(message)

    with patch.object(Link, "close_connection", close_late), patch.object(Link, "receive", receive_both):
        yield


@contextmanager
def grants_trusted() -> Iterator[None]:
    """A grant is taken for the truth, the row is not read."""

    def adopt_rows(self: Session, rows: Iterable[int]) -> list[Slot]:
        slots = []
        for row in rows:
            word, tier = self.words[row * ROW_WORDS], self.tier_of(row)
            slot = Slot(self, tier, ((row, 1),), tier.size, word & GENERATION_FIELD)
            slot.magazine = self.magazine(tier, 1)
            if self._owned.setdefault(row, slot) is slot:
                slots.append(slot)
        return slots

    with patch.object(Session, "adopt_rows", adopt_rows):
        yield


_LOST = "if pending and rows.is_queued(row) and not rows.is_in_queue(row) and rows.pending_cells(row) == pending:"
TRUSTING = "    for row in rows:\n        if row in granted: self.free(granted[row], now)"

# --- scenarios that have just what a mistake needs to show ------------------------------------------------


def come_twice(client: Client) -> None:
    """Lease, and give the slot back, twice; and leave with a lease."""
    for _ in range(2):
        if client.lease():
            client.release_lease()
        client.return_idle()
    client.lease()
    client.close()


ONE_HANDLE = Scenario("one handle", (("publisher", recycle), ("reader1", read(0)), ("reader2", read(0))))
EXPIRY = Scenario("expiry", (("publisher", produce(then=Client.exit)), ("reader", read(0))), expiry=True)
LONGER = Scenario(
    "a longer object", (("producer", produce_direct(SHORT, LONG)), ("reader", read_good(0, 1))), is_direct=True
)
KEPT = (("producer", produce_direct(SHORT)), ("reader", read(0)))
KEPT_BY_THE_DEAD = Scenario("kept by the dead", KEPT, mortal=frozenset({"producer"}), faults=1, is_direct=True)
KEPT_OVER_A_RESTART = Scenario("kept over a restart", KEPT, restarts=1, is_direct=True)
OLD_REPLIES = Scenario("old replies", (("publisher", come_twice), ("heir", produce())), restarts=1)

MUTANTS: tuple[Mutant, ...] = (
    # The five of the issue.
    Mutant("the lock left out", ONE_HANDLE, lock_left_out),
    Mutant(
        "a cell of another generation accepted", ONE_HANDLE,
        rewrite(BasePool, "open", (
            "words[record.cell] == granted == words[record.word]",
            "words[record.cell] & 0xFFFFFF == granted & 0xFFFFFF == words[record.word] & 0xFFFFFF",
        )),
    ),
    Mutant(
        "the seat cleared before its rows", SCENARIO["restart x sweep"],
        together(
            rewrite(Clients, "end", ("self._away.come_back(seat)\n",
                                     "self._away.come_back(seat)\n    self._seats.clear(seat)\n")),
            rewrite(Endings, "_clear", ("self._table.clear(seat)", "pass")),
        ),
    ),
    Mutant(
        "a doorbell trusted", SCENARIO["close x reader's bell"],
        rewrite(Returns, "on_bell", ("    self.looks.begin([row for row in rows if row in granted], now)", TRUSTING)),
    ),
    Mutant("the old socket's replies not discarded", OLD_REPLIES, together(old_replies_kept, grants_trusted)),
    # More.
    Mutant("expiry without the lock", EXPIRY, broker_closes_without_lock),
    Mutant("a lock that is no barrier", ONE_HANDLE, lock_is_no_barrier, ("TSO",)),
    Mutant("DONE before the view is gone", SCENARIO["publisher x reader"], done_before_the_view_is_gone),
    Mutant(
        "the grant word before the cells", SCENARIO["publisher x reader"],
        rewrite(LiveLease, "publish",
                ("    words[slot.first_cell] = granted\n", "    words[word] = granted\n"),
                ("    words[word] = granted\n        self.__class__",
                 "    words[slot.first_cell] = granted\n        self.__class__")),
    ),
    Mutant(
        "the generation not bumped", ONE_HANDLE,
        rewrite(Magazine, "reap", ("slot.base += ONE_GENERATION", "slot.base += 0")),
    ),
    Mutant(
        "a run of tickets judged by its last", SCENARIO["readers of two tickets"],
        rewrite(Slot, "is_done", ("all(words[cell] == done for", "any(words[cell] == done for")),
    ),
    Mutant(
        "a ticket closed without a look", SCENARIO["reader x discard"],
        rewrite(tickets, "_under_lock", ("check(session", "mark == session.taken and check(session")),
    ),
    Mutant(
        "a dead reader's tickets left open", SCENARIO["restart x sweep"],
        rewrite(Endings, "_finish_tickets",
                ("rows.cells_taken_by(seats, first, end)", "[]")),
    ),
    Mutant(
        "a ticket given back under another generation", SCENARIO["reader that gives back x reader"],
        rewrite(deferred, "release",
                ("granted if ticket.is_given_back", "granted + (1 << 24) if ticket.is_given_back")),
    ),
    Mutant(
        "a dead reader's ticket given back under another generation", SCENARIO["dead reader's ticket x reader"],
        rewrite(Rows, "reopen_cell", ("self.words[at] = granted", "self.words[at] = granted + (1 << 24)")),
    ),
    Mutant(
        "custody ended with tickets out", SCENARIO["publisher's death x sweep"],
        rewrite(Custody, "look", ("1 if self._rows.open_cells(row) else ", "")),
    ),
    Mutant(
        "a free that keeps the generation", SCENARIO["publisher's death x sweep"],
        rewrite(Rows, "move", ("generation_of(word) + bumps", "generation_of(word)")),
    ),
    Mutant(
        "a reader that does not look for the custodian", SCENARIO["close x reader's bell"],
        rewrite(LiveBuffer, "release",
                ("if words[record.word] != granted or session.header[record.wanted]:", "if False:")),
        ("SC",),
    ),
    # By compare-and-swap.
    Mutant("a swap in two steps", by_swaps(ONE_HANDLE), swap_in_two_steps),
    Mutant(
        "a swap of whatever the cell says", by_swaps(ONE_HANDLE),
        rewrite(BasePool, "open", ("swap(record.cell, granted,", "swap(record.cell, words[record.cell],")),
    ),
    Mutant(
        "a discard that swaps whatever the cell says", by_swaps(SCENARIO["reader x discard"]),
        rewrite(tickets, "_pending", ("return cell if cell == granted & ~SEAT_MASK else granted", "return cell")),
    ),
    Mutant(
        "expiry that stores", by_swaps(EXPIRY),
        rewrite(TicketCloser, "_is_closed",
                ("self._swap(at, ticket.granted, done)", "self._ledger[at] = done")),
    ),
    Mutant(
        "an answer believed", by_asking(ONE_HANDLE),
        rewrite(tickets, "_ask",
                ("if session.words[cell] == taken:\n                continue\n", "break\n")),
    ),
    # A call in the middle of another one of its thread.
    Mutant(
        "a seat that ends in the middle of its own open", SCENARIO["close within open"],
        rewrite(Ending, "say_goodbye", ("    if self.is_nested:\n", "    if False:\n")),
    ),
    Mutant(
        "a swap in the middle of an open that says the gate is free",
        SCENARIO["discard and close within open, by swaps"],
        rewrite(tickets, "_change", ("elif session.is_nested:", "elif False:")),
    ),
    Mutant(
        "an open in the middle of another that unlocks its byte", SCENARIO["open within open x reader"],
        rewrite(BasePool, "open", ("if session.is_gate_used and session.is_nested:", "if False:")),
    ),
    # Direct segments, kept and spare.
    Mutant(
        "custody passed on twice", SCENARIO["reader's death x heir"],
        rewrite(DirectLease, "_await_readers", ("if slot.is_passed_on:", "if False:")),
    ),
    Mutant(
        "a kept segment leased before its reader is done", SCENARIO["kept segment x reader"],
        rewrite(Magazine, "reap", ("if words[slot.last_cell] == slot.done and", "if True and")),
    ),
    Mutant(
        "a kept segment returned before its reader is done", SCENARIO["kept segment x its look"],
        rewrite(Segments, "look", ("if unused:", "if (unused := unused + [*shelf.published]):")),
    ),
    Mutant(
        "a spare made longer by its own name", LONGER,
        rewrite(Stock, "take_direct", ("if spare is not None and spare.nbytes >= size:", "if spare is not None:")),
    ),
    Mutant(
        "a map believed whatever its segment is called", SCENARIO["kept segment x longer object"],
        rewrite(records, "map_record",
                ("sizes, links = (len(window),), ((record.word + LINK, link),)",
                 "sizes, links = (len(window),), ()")),
    ),
    Mutant(
        "a segment found by its publication's generation", SCENARIO["kept segment x newcomer"],
        rewrite(records, "map_record", ("birth_of(link), nbytes", "granted >> 24, nbytes")),
    ),
    Mutant(
        "a dead producer's segment removed under its reader", KEPT_BY_THE_DEAD,
        rewrite(Custody, "look", ("1 if self._rows.open_cells(row) else ", "")),
    ),
    Mutant(
        "a living row's segment taken for a leftover by the next broker", KEPT_OVER_A_RESTART,
        rewrite(Inventory, "direct_segments", ("if held.tier.kind is TierKind.DIRECT", "if False")),
    ),
    # Forks.
    Mutant(
        "settled at once, whoever inherited", SCENARIO["fork x publisher"],
        rewrite(Endings, "_await_readers",
                ("self.read[seat.number] = seat\n", "self._unread.append(seat)\n    return\n")),
    ),
    Mutant(
        "a release that does not ask for forks", SCENARIO["fork x publisher"],
        rewrite(LiveBuffer, "release", ("or not HERE[UNSHARED]\n", "\n")),
    ),
    Mutant(
        "DONE before the guards are looked at", SCENARIO["fork x publisher"],
        rewrite(DeferredReleases, "_settle",
                ("session.guards.between(ticket._fork, ticket._last_fork)",
                 "finish(ticket._record, ticket._granted) or session.guards.between(ticket._fork, ticket._last_fork)")),
    ),
    Mutant(
        "the guard made after the fork", SCENARIO["fork x publisher"],
        rewrite(forks, "_make_ready",
                ("guards.stand_ready()",
                 "[setattr(one, 'standing', guards.Guard()) for one in guards._seats] != []"),
                ("setstate__(_IS_OVER)",
                 "setstate__((lambda: (guards.stand_ready(), setitem(HERE, FORKING, 0)), (), {}, None))")),
    ),
    Mutant(
        "the guard dropped before the fork", SCENARIO["fork x publisher"],
        rewrite(Guards, "stand", ("guard.is_certain = True\n        except own(SegmentGone",
                                  "guard.is_certain, guard.page = True, None\n        except own(SegmentGone")),
    ),
    Mutant(
        "a release that does not have the fork noted", SCENARIO["fork x publisher"],
        rewrite(DeferredReleases, "_settle", ("if not note_forks():", "if False:")),
    ),
    Mutant(
        "an open that counts the fork to come", SCENARIO["fork x publisher"],
        rewrite(BasePool, "open", ("buffer._fork = session.forks\n", "buffer._fork = session.forks + 1\n")),
    ),
    Mutant(
        "a lease that ends whoever has to copy it", SCENARIO["fork of a writer x reader"],
        rewrite(Guards, "note_release", ("return self.awaits_copy(row)", "return False")),
    ),
    Mutant(
        "a dead writer's rows freed whoever has to copy them", SCENARIO["fork of a writer x its death"],
        rewrite(Watches, "_tell_end", ("self._is_copied(seat)", "True")),
    ),
    Mutant(
        "a slot used again before it is copied", SCENARIO["fork of a writer x waiter"],
        rewrite(Guards, "awaits_copy", (" or any(row in guard.copied for guard in self._guards)", "")),
    ),
    Mutant(
        "copies that are not waited for once the fork is over", SCENARIO["fork of a writer x reader"],
        rewrite(Guards, "note", ("guard.copied = self._session.written_rows() | set(self._ended)\n", "pass\n")),
    ),
    Mutant(
        "a readers' byte given up with the seat's sweep", SCENARIO["fork x restart"],
        rewrite(Endings, "tick", ("self._outbox.add(ProbeReaders(number))", "self.on_readers_gone(number, now)")),
    ),
    Mutant(
        "a process that cannot be seen taken for dead", SCENARIO["restart abroad x leaving publisher"],
        rewrite(Clients, "on_unseen", ("self._away.hide(seat, now)", "self.end(seat, now)")),
    ),
    # The broker's chores.
    Mutant(
        "the end of a queue judged by two publications", SCENARIO["gone queue x publisher"],
        rewrite(Queues, "_lost", (_LOST, "if rows.is_queued(row) and not rows.is_in_queue(row):"),
                ("return pending\n", "return rows.pending_cells(row)\n")),
    ),
    Mutant(
        "what lies in no queue closed with one", SCENARIO["gone queue x publisher of what is queued nowhere"],
        together(
            rewrite(Queues, "_lost", ("rows.is_queued(row) and", "")),
            rewrite(Rows, "queued", ("[row for row in found if self.is_queued(row)]", "found")),
        ),
    ),
    Mutant(
        "no sweep of what the living gave back", SCENARIO["lost bells x waiter"],
        rewrite(Sweep, "tick", ("if self.next_deadline <= now:", "if False:")),
    ),
    Mutant(
        "no sweep of what was handed over", SCENARIO["lost bells x direct"],
        rewrite(Rows, "given_back", ("(State.RETURNED, State.PUBLISHED)", "(State.RETURNED,)")),
    ),
    Mutant(
        "a sweep that frees what was handed over", SCENARIO["lost bells x direct"],
        rewrite(Returns, "_settle", ("self._custody.accept(holding, now)", "self.free(holding, now)")),
    ),
    Mutant(
        "a row that does not say that it is cold", SCENARIO["cooling x waiter"],
        rewrite(Stock, "_cool", ("self.rows.move(at, State.COLD)", "pass")),
    ),
    Mutant(
        "a cold slot that is thought warm", SCENARIO["cooling x waiter"],
        rewrite(SlotMap, "set_cold", ("self._warm[extent] = self._ready[extent] = bytes(count)", "pass")),
    ),
    # Store buffers can hide a reader's DONE from the broker and the custodian from the reader.
    Mutant(
        "no sweep", SCENARIO["close x reader's bell"],
        rewrite(Custody, "next_sweep", ("if not self._queue:", "if True:")),
        ("TSO",),
    ),
)  # fmt: skip
