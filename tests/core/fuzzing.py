"""The core among clients that may say and store anything: random messages of every kind that the schema accepts,
random words in what they hold, deaths, restarts, a host that fails.

What a client stores lies in its own rows, and in the cells of publications; what it says may name anything. The
simulation (`simulation`) is the other half: clients that follow the protocol, and that nobody loses anything.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from harness import POOL_ID, make_words, small_settings

from shmpool.protocol import sizing
from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    LINK,
    MAX_TICKETS,
    ROW_WORDS,
    SHARED,
    TICKETS_SHIFT,
    birth_of,
    generation_of,
    grant_word,
    seat_of,
    shared_cells,
    state_of,
)
from shmpool.protocol.messages import (
    FROM_CLIENT,
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Account,
    Bell,
    Cancel,
    Direct,
    Drop,
    Find,
    Goodbye,
    Hello,
    Hold,
    Holds,
    LetGo,
    Message,
    MessageError,
    Query,
    Refill,
    Return,
    Role,
    Share,
    Take,
    Welcome,
    decode,
    encode,
)
from shmpool.protocol.sizing import KIB, TierKind, make_tiers, rows_of
from shmpool.protocol.states import CellState, State
from shmpoold.core.actions import (
    Action,
    Close,
    CloseTicket,
    Cool,
    CreateDirect,
    ProbeReaders,
    ProbeSeat,
    RemoveDirect,
    Send,
    TakeTicket,
    Warm,
    WatchAdopted,
)
from shmpoold.core.broker import Broker
from shmpoold.core.events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Disconnected,
    Event,
    MemoryRead,
    Peer,
    ProcessDied,
    ReadersGone,
    Received,
    Reconfigured,
    Started,
    Ticked,
    TicketClosed,
    Unseen,
    Warmed,
    WarmFailed,
)
from shmpoold.core.memory.pressure import Room
from shmpoold.core.recovery import invariants

DIRECT_ROWS = 16
MOST_CLIENTS = 8
#: Actions of one event.
MOST_ACTIONS = 2000
#: After so many it is looked whether all has come back; so many come behind that at most.
TICKS = 500
NAMES = ("a", "b", "c", "ä" * 48, "x" * 96)


@dataclass(slots=True)
class Peerless:
    """A connection, and what its client believes."""

    number: int
    peer: Peer
    nonce: int
    seat: int = 0
    is_open: bool = True
    role: Role = Role.WORKER


class Fuzz:
    """One seed, one course. `run` raises with its seed on anything that does not hold."""

    def __init__(self, seed: int) -> None:
        self.random = chance = random.Random(seed)
        self.settings = small_settings(
            memory_limit=chance.choice((320, 900)) * KIB,
            handle_ttl=5.0,
            max_clients=MOST_CLIENTS + 2,
            max_concurrent_large_ops=chance.choice((0, 2)),
            client_quota_buffers=chance.choice((0, 8)),
            uid_quota_bytes=chance.choice((0, 100 * KIB)),
            max_buffer_age=chance.choice((None, 2.0)),
            scrub=chance.random() < 0.3,
            give_back=chance.random() < 0.3,
        )
        with patch.object(sizing, "DIRECT_ROWS", DIRECT_ROWS):
            self.tiers = make_tiers(self.settings.memory_limit, self.settings.sizing)
        seats, rows = self.settings.max_clients, rows_of(self.tiers)
        self.overhead = ledger_bytes(rows, seats) + header_bytes(seats)
        self.ledger: Any = make_words(ledger_bytes(rows, seats) // 8)
        self.header: Any = make_words(header_bytes(seats) // 8)
        self.now, self.epoch, self.last = 1000.0, 0, 0
        self.clients: dict[int, Peerless] = {}
        self.events: deque[Event] = deque()
        self.shell: list[Warm | CreateDirect | CloseTicket] = []
        self.warm: dict[int, int] = {}
        self.direct: dict[tuple[int, int], int] = {}
        #: Rows into which somebody has scribbled.
        self.scribbled: set[int] = set()
        self.said: Counter[str] = Counter()
        self._start()

    # --- the broker ------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.epoch += 1
        with patch.object(sizing, "DIRECT_ROWS", DIRECT_ROWS):
            self.core = Broker(self.ledger, self.header, self.settings, POOL_ID, self.epoch, broker_pid=1)
        if self.epoch > 1:
            self._obey(self.core.adopt(self.now, self.direct))
            named = self.core.inventory.direct_segments()
            self.direct = {name: nbytes for name, nbytes in self.direct.items() if name in named}
        self.handle(Started())

    def restart(self) -> None:
        self.shell.clear()
        self.events.clear()
        for client in self.clients.values():
            client.is_open = False
        self._start()

    def handle(self, event: Event) -> None:
        """One event, and all that it brings about at once."""
        self.events.append(event)
        while self.events:
            actions = self.core.handle(self.events.popleft(), self.now)
            assert len(actions) < MOST_ACTIONS
            self._obey(actions)
            self.core.next_deadline()
        reserved = self.overhead + sum(self.warm.values()) + sum(self.direct.values())
        held, limit = self.core.inventory.held, self.core.inventory.limit
        assert reserved <= held <= max(limit, self.core.inventory.adopted), f"{reserved} reserved, {held} held"

    def _obey(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                encode(action.message)
                client = self.clients.get(action.connection)
                if client is not None and isinstance(action.message, Welcome):
                    client.seat = action.message.seat
            elif isinstance(action, Close):
                if action.connection in self.clients:
                    self.clients[action.connection].is_open = False
                    self.events.append(Disconnected(action.connection))
            elif isinstance(action, Warm | CreateDirect | CloseTicket):
                self.shell.append(action)
            elif isinstance(action, Cool):
                for row in range(action.row, action.row + action.count):
                    self.warm.pop(row, None)
            elif isinstance(action, RemoveDirect):
                self.direct.pop((action.row, action.generation), None)
            elif isinstance(action, TakeTicket):
                at = action.row * ROW_WORDS + FIRST_CELL + action.cell
                if self.ledger[at] == action.pending:
                    self.ledger[at] = grant_word(generation_of(action.pending), CellState.TAKEN, action.seat)
            elif isinstance(action, ProbeReaders):
                self.events.append(ReadersGone(action.seat))
            elif isinstance(action, WatchAdopted):
                self.events.append(self.random.choice((ProcessDied(action.seat), Unseen(action.seat))))
            elif isinstance(action, ProbeSeat) and self.random.random() < 0.1:
                self.events.append(ProcessDied(action.seat))

    def answer(self) -> None:
        """The shell does something that it was asked for, or cannot."""
        if not self.shell:
            return
        action, fails = self.shell.pop(self.random.randrange(len(self.shell))), self.random.random() < 0.1
        if isinstance(action, Warm):
            if fails:
                self.handle(WarmFailed(action.tier, action.row, action.count, "no room"))
                return
            self.warm |= dict.fromkeys(range(action.row, action.row + action.count), self.tiers[action.tier].size)
            self.handle(Warmed(action.tier, action.row, action.count))
        elif isinstance(action, CreateDirect):
            if action.spare is not None:
                self.direct.pop((action.spare.row, action.spare.generation), None)
            if not fails:
                self.direct[action.row, action.generation] = action.nbytes
            self.handle(DirectFailed(action.row, "no room") if fails else DirectCreated(action.row))
        else:
            at = action.row * ROW_WORDS + FIRST_CELL + action.cell
            if self.ledger[at] == action.granted:
                self.ledger[at] = grant_word(generation_of(action.granted), CellState.DONE, 0)
            self.handle(TicketClosed(action.row))

    # --- what happens --------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        moves = (self.speak, self.store, self.answer, self.tick, self.connect, self.leave, self.die, self.disturb)
        weights = (40, 30, 30, 15, 4, 1, 0.6, 0.6)
        for number, move in enumerate(self.random.choices(moves, weights, k=steps)):
            move()
            if number % 20 == 0:
                invariants.check(self.core)
        self.wind_down()

    def _client(self) -> Peerless | None:
        there = [client for client in self.clients.values() if client.is_open]
        return self.random.choice(there) if there else None

    def connect(self) -> None:
        """Anew, or as one that has lost its connection."""
        lost = [client for client in self.clients.values() if not client.is_open and client.seat]
        self.last += 1
        if lost and self.random.random() < 0.6:
            before = self.random.choice(lost)
            client = Peerless(self.last, before.peer, before.nonce, before.seat)
            del self.clients[before.number]
        elif sum(client.is_open for client in self.clients.values()) < MOST_CLIENTS:
            peer = Peer(self.last, self.random.choice((0, 1000)), 0, self.last, f"client {self.last}")
            client = Peerless(self.last, peer, self.random.getrandbits(64))
            client.role = Role.OPERATOR if self.random.random() < 0.1 else Role.WORKER
        else:
            return
        self.clients[client.number] = client
        self.handle(Connected(client.number, client.peer))
        if self.random.random() < 0.95:
            self._say(client, self._hello(client))

    def _hello(self, client: Peerless) -> Message:
        return Hello(
            HELLO_MAGIC, PROTOCOL_VERSION, client.role, client.nonce, POOL_ID if client.seat else 0, client.seat
        )

    def leave(self) -> None:
        client = self._client()
        if client is not None:
            client.is_open = False
            self.handle(Disconnected(client.number))

    def die(self) -> None:
        seats = list(self.core.seats.taken)
        if seats:
            self._die(self.random.choice(seats))

    def _die(self, seat: int) -> None:
        for client in [client for client in self.clients.values() if client.seat == seat]:
            del self.clients[client.number]
        self.handle(ProcessDied(seat))

    def tick(self) -> None:
        self.now += self.random.choice((0.0, 0.001, 0.01, 0.1, 1.0))
        due = self.core.next_deadline()
        if due is not None and due <= self.now:
            self.handle(Ticked())

    def disturb(self) -> None:
        """The broker is killed, reads its settings again, or hears of memory."""
        what = self.random.randrange(3)
        if what == 0:
            self.restart()
        elif what == 1:
            quota = self.random.choice((0, 4, 8))
            self.settings = replace(self.settings, client_quota_buffers=quota)
            self.handle(Reconfigured(self.settings))
        else:
            free = self.random.choice((10, 500, 900))
            self.handle(MemoryRead((Room("the host's memory", 1000, free, bounds_pool=False),), None))

    # --- what clients say ----------------------------------------------------------------------------------

    def speak(self) -> None:
        client = self._client()
        if client is not None and client.role is Role.OPERATOR and self.random.random() < 0.9:
            self._say(client, Query(self._number(), self.random.randrange(6)))
        elif client is not None:
            self._say(client, self._message(client))

    def _say(self, client: Peerless, message: Message) -> None:
        try:
            message = decode(encode(message), FROM_CLIENT)
        except MessageError:
            return  # its connection would end there
        self.said[type(message).__name__] += 1
        self.handle(Received(client.number, message))

    def _number(self) -> int:
        return self.random.choice((1, 2, 3, self.random.randrange(1, 40), 1 << 16, (1 << 32) - 1))

    def _rows(self, client: Peerless) -> list[int]:
        seat = self.core.seats.taken.get(client.seat)
        own, chance = list(seat.rows) if seat else [], self.random
        rows = chance.sample(own, min(len(own), chance.randint(1, 5)))
        rows += [chance.randrange(1, self.tiers[-1].end) for _ in range(chance.randrange(3))]
        return rows or [chance.choice((1, (1 << 20) - 1))]

    def _message(self, client: Peerless) -> Message:
        chance, number, rows = self.random, self._number(), self._rows(client)
        queue, name = chance.random() < 0.7, chance.choice(NAMES)
        generation = generation_of(self.ledger[rows[0] * ROW_WORDS]) if rows[0] < self.core.rows.count else 7
        sizes = (0, 1, 5000, 100 * KIB, self.settings.memory_limit, (1 << 40) - 1)
        message: Message = chance.choice((
            lambda: Refill(number, chance.randrange(2), 1, chance.randint(1, 4), queue),
            lambda: Refill(number, 2, chance.choice((1, 2, 5, 12)), chance.choice((1, 1, 2)), queue),
            lambda: Refill(number, chance.randrange(2), 1, 256, queue),
            lambda: Direct(number, chance.choice(sizes), queue),
            lambda: Cancel(number),
            lambda: Return(rows),
            lambda: Bell(rows * chance.choice((1, 1, 50))),
            lambda: Query(number, chance.randrange(6)),
            lambda: Take(number, rows[0], chance.randrange(MAX_TICKETS), self._word(rows[0]), queue),
            lambda: Account([[row, queue, "work.py:1 in work"] for row in rows[:8]], queue),
            lambda: Share(number, self._shared_row(client, rows[0]), self._number(),
                          chance.choice((0, 0, 1000, 1 << 31))),
            lambda: Hold(number, rows[0], generation),
            lambda: LetGo([self._number() for _ in range(chance.randint(1, 5))]),
            lambda: Holds([[self._number(), row, generation] for row in rows], queue),
            lambda: Find(number, name, chance.randrange(3), queue),
            lambda: Drop(number, name),
        ))()  # fmt: skip
        if chance.random() < 0.02:  # what ends the connection, or the seat
            absurd = Refill(number, chance.randrange(6), 65_535, 256, queue)
            message = chance.choice((self._hello(client), Goodbye(), absurd, Share(number, 1, 1, 1)))
        return message

    def _shared_row(self, client: Peerless, other: int) -> int:
        seat = self.core.seats.taken.get(client.seat)
        shared = self.core.rows.is_shared
        rows = [row for row, held in self.core.inventory.granted.items()
                if seat is not None and held.publisher == seat.number and shared(row)]  # fmt: skip
        return self.random.choice(rows) if rows else other

    def _word(self, row: int) -> int:
        return int(self.ledger[row * ROW_WORDS]) if row < self.core.rows.count else 0

    # --- what clients store --------------------------------------------------------------------------------

    def store(self) -> None:
        """As the protocol asks, mostly; else anything, anywhere in a row of its own."""
        seats = [seat for seat in self.core.seats.taken.values() if seat.rows and not seat.is_ending]
        chance = self.random
        if chance.random() < 0.3:
            self._read()
        if not seats:
            return
        seat = chance.choice(seats)
        row = chance.choice(list(seat.rows))
        at, word = row * ROW_WORDS, self.ledger[row * ROW_WORDS]
        if seat_of(word) != seat.number or chance.random() < 0.03:
            self.scribbled.add(row)
            cell = chance.choice((0, EXTENT, FIRST_CELL, FIRST_CELL + 12, LINK))
            states = (*State, *CellState, 99)
            self.ledger[at + cell] = chance.choice((
                chance.getrandbits(64),
                grant_word(generation_of(word) + chance.choice((-1, 0, 1, 5)) & 0xFFFF, chance.choice(states),
                           chance.choice((0, seat.number, seat.number + 1))),
            ))  # fmt: skip
        elif state_of(word) == State.IDLE:
            if chance.random() < 0.5:
                self.ledger[at] = grant_word(generation_of(word), State.LEASED, seat.number)
            else:
                self.ledger[at] = grant_word(generation_of(word) + 1, State.RETURNED, 0)
        elif state_of(word) == State.LEASED:
            self._publish(row, word, seat.number)
        elif state_of(word) == State.PUBLISHED and chance.random() < 0.3:
            self.ledger[at] = grant_word(generation_of(word), State.PUBLISHED, 0)  # handed over

    def _publish(self, row: int, word: int, seat: int) -> None:
        at, chance, extent = row * ROW_WORDS, self.random, self.ledger[row * ROW_WORDS + EXTENT]
        is_direct = self.core.inventory.granted[row].tier.kind is TierKind.DIRECT
        if chance.random() < 0.3:
            for cell, content in enumerate(shared_cells(chance.choice(("", *NAMES)), 1000, chance.choice((0, 3)))):
                self.ledger[at + FIRST_CELL + cell] = content
            tickets, custodian = SHARED | chance.choice((0, 1, 2)), 0
        else:
            tickets, custodian = chance.choice((1, 2, 13)), 0 if is_direct else seat
        granted = grant_word(generation_of(word), State.PUBLISHED, custodian)
        shape = seat << TICKETS_SHIFT + 8 if is_direct else extent >> TICKETS_SHIFT + 8 << TICKETS_SHIFT + 8
        self.ledger[at + EXTENT] = extent & (1 << TICKETS_SHIFT) - 1 | tickets << TICKETS_SHIFT | shape
        if not tickets & SHARED:
            for cell in range(tickets):
                self.ledger[at + FIRST_CELL + cell] = granted
        self.ledger[at] = granted

    def _read(self) -> None:
        """Somebody takes a ticket, or is done with one."""
        rows = list(self.core.inventory.granted)
        if not rows or not self.core.seats.taken:
            return
        row, seat = self.random.choice(rows), self.random.choice(list(self.core.seats.taken))
        word = self.ledger[row * ROW_WORDS]
        if state_of(word) != State.PUBLISHED or self.core.rows.is_shared(row):
            return
        for cell in range(MAX_TICKETS):
            at = row * ROW_WORDS + FIRST_CELL + cell
            mark = self.ledger[at]
            if generation_of(mark) != generation_of(word):
                return
            if state_of(mark) == State.PUBLISHED:
                self.ledger[at] = grant_word(generation_of(word), CellState.TAKEN, seat)
            elif state_of(mark) == CellState.TAKEN:
                self.ledger[at] = grant_word(generation_of(word), CellState.DONE, 0)

    # --- the end ----------------------------------------------------------------------------------------------

    def wind_down(self) -> None:
        """Everybody goes. What nobody scribbled on comes back, but for what is shared for good."""
        for seat in list(self.core.seats.taken):
            self._die(seat)
        for client in list(self.clients.values()):
            if client.is_open:
                client.is_open = False
                self.handle(Disconnected(client.number))
        for ticks in range(1, 20_000):
            while self.shell:
                self.answer()
            due = self.core.next_deadline()
            if due is None or due > self.now + 60.0 or (ticks % TICKS == 0 and not self._still_out()):
                break
            self.now = max(self.now + 0.0001, due)
            self.handle(Ticked())
        invariants.check(self.core)
        assert self._still_out() == {}
        assert self.core.inventory.quarantined <= self.scribbled | self._of_scribbled_runs()

    def _still_out(self) -> dict[str, Any]:
        """Seats, requests, and granted rows that nobody scribbled on."""
        left = {row for row in self.core.inventory.granted if not self.core.rows.is_shared(row)} - self.scribbled
        out = {"seats": list(self.core.seats.taken), "requests": len(self.core.lending.line), "rows": left}
        return {name: what for name, what in out.items() if what}

    def _of_scribbled_runs(self) -> set[int]:
        """A run is given up whole."""
        births = {(row, birth_of(self.ledger[row * ROW_WORDS + LINK])) for row in self.scribbled}
        chunks = {tier.index for tier in self.tiers if tier.kind is TierKind.CHUNK}
        return {row for tier in self.tiers if tier.index in chunks and births for row in range(tier.base, tier.end)}
