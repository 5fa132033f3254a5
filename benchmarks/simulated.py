"""The broker's core with a ledger and clients that are no processes: only its own work is timed.

What it asks of the shell (pages, segments) is done at once; clients store what real ones would."""

from __future__ import annotations

import gc
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    ROW_WORDS,
    SHARED,
    chunks_of,
    extent_word,
    generation_of,
    grant_word,
    nbytes_of,
    seat_of,
    shared_cells,
    state_of,
)
from shmpool.protocol.messages import (
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Grant,
    Hello,
    Message,
    Query,
    Refill,
    Role,
    Topic,
    Welcome,
)
from shmpool.protocol.sizing import make_tiers, rows_of
from shmpool.protocol.states import CellState, State
from shmpoold.core.actions import Action, CreateDirect, ProbeReaders, Send, Warm
from shmpoold.core.broker import Broker
from shmpoold.core.events import (
    Connected,
    DirectCreated,
    Disconnected,
    Event,
    Peer,
    ProcessDied,
    ReadersGone,
    Received,
    Ticked,
    Warmed,
)
from shmpoold.core.settings import Settings
from shmpoold.shell.service import COLLECTED_AFTER

OPERATOR = 1_000_000
#: Seconds between two turns of the loop.
TURN = 0.001


@contextmanager
def collecting_as_the_daemon() -> Iterator[None]:
    """Garbage is collected as often as there, and what is here now is not looked at."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class SimulatedPool:
    """One broker and so many clients, by the number of their connection, from 1 on."""

    def __init__(self, settings: Settings, clients: int) -> None:
        settings = replace(settings, max_clients=clients + 64)
        tiers, seats = make_tiers(settings.memory_limit, settings.sizing), settings.max_clients
        self.ledger: Any = memoryview(bytearray(ledger_bytes(rows_of(tiers), seats))).cast("Q")
        header: Any = memoryview(bytearray(header_bytes(seats))).cast("Q")
        self.core = Broker(self.ledger, header, settings, pool_id=1, epoch=1, broker_pid=1)
        self.tiers = tiers
        self.now = 1000.0
        self.clients = clients
        #: By connection: its seat, and the rows that it leased, those first that came first.
        self.seats: dict[int, int] = {}
        self.rows: dict[int, list[int]] = {client: [] for client in range(1, clients + 1)}
        self.sent: list[Send] = []
        self._numbers = itertools.count(1)
        self._newcomers = itertools.count(clients + 1)
        for client in range(1, clients + 1):
            self.handle(self.connecting(client), self.hello(client))
        self.handle(self.connecting(OPERATOR), self.hello(OPERATOR, Role.OPERATOR))

    # --- the broker's time -----------------------------------------------------------------------

    def timed(self, *events: Event) -> float:
        """Let the broker handle these; seconds of CPU for each, with finding its next deadline."""
        handle, next_deadline, now = self.core.handle, self.core.next_deadline, self.now
        wanted: list[list[Action]] = []
        started = time.thread_time_ns()
        for event in events:
            wanted.append(handle(event, now))
            next_deadline()
        took = (time.thread_time_ns() - started) / len(events)
        for actions in wanted:
            self._obey(actions)
        return took / 1e9

    def timed_each(self, event: Event) -> float:
        """The longest that the broker takes for this event, or for one that it brings about at once."""
        longest, left = 0.0, deque([event])
        while left:
            started = time.thread_time_ns()
            actions = self.core.handle(left.popleft(), self.now)
            self.core.next_deadline()
            longest = max(longest, time.thread_time_ns() - started)
            left += self._note(actions)
        return longest / 1e9

    def handle(self, *events: Event) -> None:
        """The same, not timed."""
        for event in events:
            self._obey(self.core.handle(event, self.now))

    def turns(self) -> list[float]:
        """What is under way goes on to its end, in turns: the CPU seconds of each."""
        took = []
        while self.core.chores:
            self.now += TURN
            took.append(self.timed(Ticked()))
        return took

    def _obey(self, actions: Sequence[Action]) -> None:
        left = deque(self._note(actions))
        while left:
            left += self._note(self.core.handle(left.popleft(), self.now))

    def _note(self, actions: Sequence[Action]) -> list[Event]:
        """Do what the core asks of the shell; what comes of it."""
        events: list[Event] = []
        for action in actions:
            if isinstance(action, Send):
                self.sent.append(action)
                if isinstance(action.message, Welcome):
                    self.seats[action.connection] = action.message.seat
            elif isinstance(action, Warm):
                events.append(Warmed(action.tier, action.row, action.count))
            elif isinstance(action, CreateDirect):
                events.append(DirectCreated(action.row))
            elif isinstance(action, ProbeReaders):
                events.append(ReadersGone(action.seat))
        return events

    def granted(self) -> list[tuple[int, int]]:
        """(connection, row) of all that was granted since it was asked last."""
        sent, self.sent = self.sent, []
        return [(one.connection, row) for one in sent if isinstance(one.message, Grant) for row in one.message.rows]

    def waiting(self) -> list[int]:
        """The numbers of the requests that wait, the oldest first."""
        return [request.number for request in sorted(self.core.lending.line.all(), key=lambda one: one.order)]

    # --- events ----------------------------------------------------------------------------------

    def connecting(self, connection: int) -> Event:
        return Connected(connection, Peer(pid=connection, uid=1000, gid=1000, start_time=1, command=f"w{connection}"))

    def hello(self, connection: int, role: Role = Role.WORKER) -> Event:
        return Received(connection, Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, connection, 0, 0))

    def newcomer(self) -> int:
        return next(self._newcomers)

    def asking(self, topic: Topic) -> Event:
        return Received(OPERATOR, Query(next(self._numbers), topic))

    def refilling(self, client: int, tier: int, count: int = 1, *, chunks: int = 1, queue: bool = True) -> Event:
        return Received(client, Refill(self.next_number(), tier, chunks, count, queue))

    def saying(self, client: int, message: Message) -> Event:
        return Received(client, message)

    def leaving(self, client: int) -> Event:
        return Disconnected(client)

    def dying(self, client: int) -> Event:
        return ProcessDied(self.seats[client])

    def next_number(self) -> int:
        return next(self._numbers)

    # --- what clients store ----------------------------------------------------------------------

    def fill(self, leases: int, tiers: Sequence[int]) -> None:
        """Every client leases its part; a third of it is published, a third open by the next client."""
        for client in self.rows:
            wanted = leases * client // self.clients - leases * (client - 1) // self.clients
            for tier in itertools.cycle(tiers):
                if len(self.rows[client]) >= wanted:
                    break
                self.handle(self.refilling(client, tier, min(256, wanted - len(self.rows[client])), queue=False))
                self.rows[client] += [row for _, row in self.granted()]
            for number, row in enumerate(self.rows[client]):
                self._use(client % self.clients + 1, row, number % 3)

    def _use(self, reader: int, row: int, how: int) -> None:
        self._store(row, State.LEASED)
        if how:
            self.publish(row)
        if how == 2:
            at = row * ROW_WORDS
            self.ledger[at + FIRST_CELL] = grant_word(
                generation_of(self.ledger[at]), CellState.TAKEN, self.seats[reader]
            )

    def publish(self, row: int, *, is_direct: bool = False) -> None:
        at, word = row * ROW_WORDS, self.ledger[row * ROW_WORDS]
        extent, seat = self.ledger[at + EXTENT], seat_of(word)
        granted = grant_word(generation_of(word), State.PUBLISHED, 0 if is_direct else seat)
        shape = seat if is_direct else chunks_of(extent)
        self.ledger[at + EXTENT] = extent_word(nbytes_of(extent) or 1000, 1, shape)
        self.ledger[at + FIRST_CELL] = granted
        self.ledger[at] = granted

    def share(self, row: int, name: str = "", keep: int = 0, ttl: int = 0) -> None:
        """Make a leased slot a shared publication, in the broker's custody."""
        at, word = row * ROW_WORDS, self.ledger[row * ROW_WORDS]
        for cell, content in enumerate(shared_cells(name, 1000, ttl)):
            self.ledger[at + FIRST_CELL + cell] = content
        extent = self.ledger[at + EXTENT]
        self.ledger[at + EXTENT] = extent_word(nbytes_of(extent) or 1000, SHARED | keep, chunks_of(extent))
        self.ledger[at] = grant_word(generation_of(word), State.PUBLISHED, 0)

    def finish(self, row: int) -> None:
        """Its reader is done."""
        word = self.ledger[row * ROW_WORDS]
        self.ledger[row * ROW_WORDS + FIRST_CELL] = grant_word(generation_of(word), CellState.DONE, 0)

    def give_back(self, row: int) -> None:
        word = self.ledger[row * ROW_WORDS]
        assert state_of(word) == State.IDLE
        self.ledger[row * ROW_WORDS] = grant_word(generation_of(word) + 1, State.RETURNED, 0)

    def _store(self, row: int, state: State) -> None:
        word = self.ledger[row * ROW_WORDS]
        self.ledger[row * ROW_WORDS] = grant_word(generation_of(word), state, seat_of(word))
