"""The broker's decisions: `Broker.handle(event, now)` returns the actions to take.

Covers connections and seats, returns and bells, death and time. From a request to its
answer it is `lending`'s, the memory itself is `inventory`'s, publications without a
publisher are `custody`'s, the restart scan is `adoption`'s. Times are seconds of one monotonic clock.

A message only says "look": whatever a client claims is read again in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from typing import Any, Protocol

from shmpool.protocol.codes import Code
from shmpool.protocol.header import (
    BROKER_PID,
    CHECKSUMS,
    CRC,
    EPOCH,
    FIRST_TIER,
    LEDGER_VERSION,
    MAGIC,
    POOL_ID,
    PROPERTIES,
    ROWS,
    SEATS,
    SEATS_FILE,
    TICKETS_FILE,
    TIERS,
    VERSION,
    geometry_words,
    header_crc,
    header_words,
    read_tiers,
)
from shmpool.protocol.ledger import generation_of, seat_of, state_of
from shmpool.protocol.messages import (
    HELLO_MAGIC,
    PROTOCOL_VERSION,
    Bell,
    Cancel,
    Direct,
    Fault,
    Goodbye,
    Hello,
    Query,
    Refill,
    Return,
    Role,
    Setting,
    Welcome,
)
from shmpool.protocol.messages import Settings as SettingsMessage
from shmpool.protocol.sizing import Strategy, Tier, TierKind, make_tiers, rows_of
from shmpool.protocol.states import State

from .actions import Action, Close, WatchConnected
from .chores import NEVER, Chores
from .connections.endings import Endings
from .connections.seats import (
    Away,
    Seat,
    Seats,
)
from .events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Disconnected,
    Event,
    Peer,
    ProcessDied,
    ReadersGone,
    Received,
    Reconfigured,
    Ticked,
    TicketClosed,
    Unseen,
    Warmed,
    WarmFailed,
)
from .lending.lending import Lending
from .looks import Looks
from .memory.cooling import Cooling
from .memory.inventory import Holding, Inventory
from .memory.scrubber import Scrubber
from .objects.custody import Custody
from .outbox import Outbox
from .recovery import adoption
from .reports import Reports
from .reports.questions import Questions
from .rows import InvalidTransition, Rows
from .settings import Settings

#: Connections of operators at one time: they must not shut out workers.
MOST_OPERATORS = 64


class Part(Protocol):
    """A part of the broker that has something to do when time goes by."""

    @property
    def next_deadline(self) -> float:
        """When `tick` is due, `NEVER` for not before another event. Asked after every event."""

    def tick(self, now: float) -> None:
        """Do what is due, if anything is."""


@dataclass(slots=True, eq=False)
class Client:
    """One connection; it has a role from its hello on, and as a worker a seat."""

    connection: int
    peer: Peer
    role: Role | None = None
    seat: Seat | None = None


def format_header(
    header: MutableSequence[int], pool_id: int, tiers: tuple[Tier, ...], seats: int, settings: Settings
) -> None:
    """Write a new pool's facts into a header of zeros; the magic last, which commits it."""
    header[VERSION], header[POOL_ID] = LEDGER_VERSION, pool_id
    header[ROWS], header[TIERS], header[SEATS] = rows_of(tiers), len(tiers), seats
    header[PROPERTIES] = CHECKSUMS if settings.checksums else 0
    facts = {TICKETS_FILE: settings.tickets_file, SEATS_FILE: settings.seats_file, FIRST_TIER: geometry_words(tiers)}
    for first, words in facts.items():
        for offset, word in enumerate(words):
            header[first + offset] = word
    header[CRC] = header_crc([MAGIC, *header[1 : header_words(seats)]])
    header[0] = MAGIC


def _wrong_version(hello: Hello) -> str:
    if hello.magic != HELLO_MAGIC:
        return f"this broker speaks {HELLO_MAGIC} protocol {PROTOCOL_VERSION}, not {hello.magic} {hello.version}"
    both = f"this broker speaks protocol {PROTOCOL_VERSION}, this process protocol {hello.version}"
    if hello.version < PROTOCOL_VERSION:
        return f"{both}: restart the process with the broker's version of shmpool, it runs an older one"
    return f"{both}: restart the broker with the process's version of shmpool, it runs an older one"


class Broker:
    """The pure core. *ledger* and *header* are the words of the two segments: zeros for a
    new pool, else an earlier broker's, and then `adopt` must come before any event."""

    def __init__(
        self,
        ledger: MutableSequence[int],
        header: MutableSequence[int],
        settings: Settings,
        pool_id: int,
        epoch: int,
        broker_pid: int,
    ) -> None:
        is_new = header[0] != MAGIC
        if is_new:
            tiers = make_tiers(settings.memory_limit, settings.sizing)
            format_header(header, pool_id, tiers, settings.max_clients, settings)
        header[EPOCH], header[BROKER_PID] = epoch, broker_pid
        self.outbox = Outbox()
        self.settings = settings
        self.pool_id = pool_id
        self.epoch = epoch
        self.tiers = read_tiers(header)
        self.properties = header[PROPERTIES]
        self.rows = Rows(ledger, rows_of(self.tiers))
        self.seats = Seats(header, header[SEATS])
        self.inventory = Inventory(
            self.rows,
            self.tiers,
            settings.memory_limit,
            self.seats.count,
            self.outbox,
            Scrubber(settings.scrub),
        )
        self.custody = Custody(
            self.rows,
            self.inventory,
            settings.handle_ttl,
            self.outbox,
            self.free,
            is_hurried=lambda: bool(self.lending.line),
        )
        self.chores = Chores()
        self.lending = Lending(self.rows, header, self.seats, self.inventory, self.chores, self.outbox)
        self.lending.most_large = settings.max_concurrent_large_ops
        self.cooling = Cooling(self.inventory, self.chores, settings.buffer_lifetime)
        self.clients: dict[int, Client] = {}
        #: The connections among them that only ask.
        self.operators: set[int] = set()
        self.away = Away(self.outbox)
        self.looks = Looks(self.chores, self.settle)
        self.endings = Endings(self)
        self.reports = Reports(self.rows, self.inventory, self.seats, self.lending.line, self.chores, pool_id, epoch)
        self.lending.who_keeps_most = self.reports.who_keeps_most
        self.questions = Questions(self)
        #: What has something to do when time goes by, in the order in which it is done.
        self._parts: tuple[Part, ...] = (
            self.away, self.endings, self.looks, self.chores, self.reports, self.custody, self.lending, self.inventory,
            self.cooling,
        )  # fmt: skip
        self._on_event: dict[type[Any], Callable[[Any, float], object]] = {
            Connected: self._on_connected,
            Received: self._on_received,
            Disconnected: self._on_disconnected,
            ProcessDied: self._on_process_died,
            Unseen: self._on_unseen,
            ReadersGone: lambda event, now: self.endings.on_readers_gone(event.seat, now),
            Warmed: self.lending.on_warmed,
            WarmFailed: self.lending.on_warm_failed,
            DirectCreated: self.lending.on_direct_created,
            DirectFailed: self.lending.on_direct_failed,
            Reconfigured: self._on_reconfigured,
            TicketClosed: lambda event, now: self.custody.look(event.row, now),
            Ticked: self._on_ticked,
        }
        self._on_message: dict[type[Any], Callable[[Client, Any, float], None]] = {
            Refill: self._on_refill,
            Direct: self._on_direct,
            Cancel: self._on_cancel,
            Return: self._on_return,
            Bell: self._on_bell,
            Goodbye: self._on_goodbye,
        }
        if is_new:
            self.inventory.open_direct_rows()

    # --- what the shell calls ------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Decide what an event means. The actions are to be carried out in order."""
        self._on_event[type(event)](event, now)
        if self.lending.is_due:
            self.cooling.note_idle(now)
            self.lending.serve_line(now)
        self.lending.raise_flags()
        return self.outbox.take()

    def adopt(self, now: float) -> list[Action]:
        """Take over what an earlier broker left: rebuild everything from the rows."""
        adoption.adopt(self, now)
        return self.outbox.take()

    def finish_chores(self, now: float) -> list[Action]:
        """Do at once what would take several turns: while nobody is served yet."""
        while self.chores:
            now = max(now, self.chores.next_turn or now)
            self.chores.work(now)
        return self.outbox.take()

    def next_deadline(self) -> float | None:
        """When `Ticked` is due: the shell's only timer. None: not before another event.
        Asked after every event, so what there is nothing of costs next to nothing."""
        due = min([part.next_deadline for part in self._parts])
        return None if due == NEVER else due

    # --- connections and seats -----------------------------------------------------------------

    def _on_connected(self, event: Connected, now: float) -> None:
        self.clients[event.connection] = Client(event.connection, event.peer)

    def _on_received(self, event: Received, now: float) -> None:
        client = self.clients.get(event.connection)
        if client is None:
            return  # it was ended, and this was still on its way
        message = event.message
        if type(message) is Hello:
            self._on_hello(client, message, now)
        elif client.role is None:
            self._fault(client, Code.BAD_MESSAGE, f"Hello must come first, not {type(message).__name__}")
        elif type(message) is Query:
            self.questions.ask(client.connection, message, now)
        elif client.seat is None:
            self._fault(client, Code.BAD_MESSAGE, f"an operator may only ask, not send {type(message).__name__}")
        else:
            self._on_message[type(message)](client, message, now)

    def _on_hello(self, client: Client, hello: Hello, now: float) -> None:
        if client.role is not None:
            return self._fault(client, Code.BAD_MESSAGE, "Hello comes once")
        if hello.magic != HELLO_MAGIC or hello.version != PROTOCOL_VERSION:
            return self._fault(client, Code.WRONG_VERSION, _wrong_version(hello))
        client.role = Role(hello.role)
        if client.role is Role.OPERATOR:
            if len(self.operators) >= MOST_OPERATORS:
                text = f"{MOST_OPERATORS} operators are connected: shmpool stats and the like; try again later"
                return self._fault(client, Code.NO_SEAT, text)
            self.operators.add(client.connection)
        resumed = False
        if client.role is Role.WORKER:
            resumed = self._resume(client, hello, now)
            if not resumed:
                client.seat = self.seats.take(client.peer, hello.nonce, client.connection)
                if client.seat is None:
                    return self._fault(
                        client, Code.NO_SEAT, f"all {self.seats.count} seats are taken; raise max_clients"
                    )
            if client.seat is not None:
                self.outbox.add(WatchConnected(client.seat.number, client.connection))
        self.outbox.send(client.connection, self._welcome(client, resumed))
        return None

    def _resume(self, client: Client, hello: Hello, now: float) -> bool:
        """Give a client that lost its connection its seat again. A newer connection of the
        same client replaces one whose end has not been seen yet."""
        seat = self.seats.taken.get(hello.seat)
        if seat is None or seat.is_ending or hello.pool_id != self.pool_id or not seat.is_for(client.peer, hello.nonce):
            return False
        if seat.connection is not None:
            self._drop(seat.connection)
        self.away.come_back(seat)
        self.seats.resume(seat, client.peer, client.connection)
        client.seat = seat
        self.looks.soon(seat.rows, now)
        return True

    def _welcome(self, client: Client, resumed: bool) -> Welcome:
        return Welcome(
            version=PROTOCOL_VERSION,
            pool_id=self.pool_id,
            epoch=self.epoch,
            seat=client.seat.number if client.seat else 0,
            resumed=resumed,
            tiers=[tier.to_wire() for tier in self.tiers],
            seats=self.seats.count,
            properties=self.properties,
            tickets_file=list(self.settings.tickets_file),
            seats_file=list(self.settings.seats_file),
            settings=[[int(number), value] for number, value in self._settings().items()],
        )

    def _settings(self) -> dict[Setting, int]:
        settings, sizing = self.settings, self.settings.sizing
        return {
            Setting.MEMORY_LIMIT: self.inventory.limit,
            Setting.LEASE_TIMEOUT_MS: round(settings.lease_timeout * 1000),
            Setting.MAGAZINE_BYTES: settings.magazine_bytes,
            Setting.MAGAZINE_IDLE_MS: round(settings.magazine_idle * 1000),
            Setting.MEDIUM_OBJECT_THRESHOLD: sizing.medium_object_threshold,
            Setting.LARGE_OBJECT_THRESHOLD: sizing.large_object_threshold,
            Setting.VERY_LARGE_OBJECT_THRESHOLD: sizing.very_large_object_threshold,
            Setting.IS_POOLING: int(sizing.is_pooling),
            Setting.IS_CHUNKING: int(sizing.large_object_strategy is Strategy.CHUNKED),
            Setting.DEFAULT_BUFFER_SIZE: settings.default_buffer_size,
        }

    def _on_reconfigured(self, event: Reconfigured, now: float) -> None:
        """Take over what may change, and tell the clients what concerns them."""
        before = self._settings()
        self.settings = settings = self.settings.reloaded(event.settings)
        self.custody.ttl, self.cooling.lifetime = settings.handle_ttl, settings.buffer_lifetime
        self.lending.bound_large(settings.max_concurrent_large_ops)
        self.cooling.note_idle(now)  # what is idle may have been so for longer than it is to be now
        changed = [[int(number), value] for number, value in self._settings().items() if value != before[number]]
        for client in self.clients.values() if changed else ():
            if client.seat is not None:
                self.outbox.send(client.connection, SettingsMessage(changed))

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        """The seat stays: its client may come back, or its pidfd or a probe tell of its end."""
        client = self.clients.pop(event.connection, None)
        self.operators.discard(event.connection)
        self.lending.line.cancel_all(event.connection)
        if client and client.seat and client.seat.connection == event.connection:
            client.seat.connection = None
            self.away.leave(client.seat, now)

    def _on_process_died(self, event: ProcessDied, now: float) -> None:
        seat = self.seats.taken.get(event.seat)
        if seat is not None:
            self._end_seat(seat, now)

    def _on_unseen(self, event: Unseen, now: float) -> None:
        seat = self.seats.taken.get(event.seat)
        if seat is not None:
            seat.is_seen = False
            self.away.hide(seat, now)

    def _on_goodbye(self, client: Client, message: Goodbye, now: float) -> None:
        assert client.seat
        self._end_seat(client.seat, now)

    def _end_seat(self, seat: Seat, now: float) -> None:
        self.away.come_back(seat)
        if seat.connection is not None:
            self._drop(seat.connection)
            seat.connection = None
        self.endings.begin(seat, now)

    def _drop(self, connection: int) -> None:
        """End a connection that has nothing more to say to us."""
        self.clients.pop(connection, None)
        self.operators.discard(connection)
        self.lending.line.cancel_all(connection)
        self.outbox.add(Close(connection))

    def _fault(self, client: Client, code: Code, text: str) -> None:
        self.outbox.send(client.connection, Fault(code, text))
        if client.seat is not None:
            client.seat.connection = None
            self.away.leave(client.seat, 0.0)
        self._drop(client.connection)

    # --- requests --------------------------------------------------------------------------------

    def _on_refill(self, client: Client, message: Refill, now: float) -> None:
        assert client.seat
        if wrong := self.lending.refill(client.connection, client.seat, message, now):
            self._fault(client, Code.BAD_MESSAGE, wrong)

    def _on_direct(self, client: Client, message: Direct, now: float) -> None:
        assert client.seat
        self.custody.look_at_oldest(now)
        if wrong := self.lending.direct(client.connection, client.seat, message, now):
            self._fault(client, Code.BAD_MESSAGE, wrong)

    def _on_cancel(self, client: Client, message: Cancel, now: float) -> None:
        self.lending.cancel(client.connection, message.request, now)

    # --- returns and bells -----------------------------------------------------------------------------

    def _on_return(self, client: Client, message: Return, now: float) -> None:
        assert client.seat
        granted, seat = self.inventory.granted, client.seat.number
        self.looks.begin([row for row in message.rows if row in granted and granted[row].seat == seat], now)

    def _on_bell(self, client: Client, message: Bell, now: float) -> None:
        granted = self.inventory.granted
        self.looks.begin([row for row in message.rows if row in granted], now)

    def settle(self, row: int, now: float) -> int:
        """Look at a granted row and do what its words ask for; nothing if they ask nothing.
        Returns what it cost, in units."""
        holding = self.inventory.granted.get(row)
        if holding is None:
            return 1
        try:
            return self._settle(holding, now)
        except Exception as error:
            if self.inventory.granted.get(row) is holding:
                self.quarantine(holding)
            if not isinstance(error, InvalidTransition):  # the word has changed since it was looked at
                raise
        return 1

    def _settle(self, holding: Holding, now: float) -> int:
        row = holding.row
        word = self.rows.grant(row)
        state, seat = state_of(word), seat_of(word)
        if state == State.RETURNED:
            # A direct segment's name must not come again: its generation must have grown.
            if generation_of(word) < holding.birth + (holding.tier.kind is TierKind.DIRECT):
                self.quarantine(holding)
            else:
                return self.free(holding, now)
        elif state == State.PUBLISHED and seat == 0:
            self.custody.accept(holding, now)
        elif state == State.PUBLISHED and self.lending.line and not self.rows.open_cells(row):
            self.lending.recalls.ask(seat, now)
        return 1

    def free(self, holding: Holding, now: float) -> int:
        """Nobody may use it any more. A long run's rows become nobody's one after the other.
        Returns what it cost, in units."""
        self.custody.forget(holding)
        rest = self.inventory.free(holding, now)
        seat = self.seats.taken.get(holding.seat)
        if seat is not None:
            seat.lose(holding)
        self.lending.note_freed(now)
        if rest is None:
            return 1
        cost = next(rest, 0)
        if holding in self.inventory.leaving:
            self.chores.begin(self.lending.watched(rest), now, is_urgent=True)
        return 1 + cost

    def quarantine(self, holding: Holding) -> None:
        """What a client wrote makes no sense: never give it out again."""
        self.custody.forget(holding)
        self.inventory.quarantine(holding)
        seat = self.seats.taken.get(holding.seat)
        if seat is not None:
            seat.lose(holding)

    # --- time ----------------------------------------------------------------------------------------------

    def _on_ticked(self, event: Ticked, now: float) -> None:
        for part in self._parts:
            part.tick(now)
