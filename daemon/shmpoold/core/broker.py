"""The broker's decisions: `Broker.handle(event, now)` returns the actions to take.

Covers connections and seats, refills and direct segments, returns and bells, death and
waiting. The memory itself is `inventory`'s, publications without a publisher are
`custody`'s, the restart scan is `adoption`'s. Times are seconds of one monotonic clock.

A message only says "look": whatever a client claims is read again in the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from typing import Any

from shmpool.protocol.codes import Code
from shmpool.protocol.header import (
    BROKER_PID,
    CRC,
    EPOCH,
    FIRST_TIER,
    LEDGER_VERSION,
    MAGIC,
    POOL_ID,
    ROWS,
    SEATS,
    TIERS,
    VERSION,
    WANTED,
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
    Grant,
    Hello,
    Message,
    Query,
    Recall,
    Refill,
    Refusal,
    Return,
    Role,
    Welcome,
)
from shmpool.protocol.sizing import Tier, TierKind, format_bytes, make_tiers, rows_of
from shmpool.protocol.states import State

from . import adoption, reports
from .actions import Action, Close, ProbeSeat, Send, Unwatch, Warm, WatchConnected
from .custody import Custody
from .events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Disconnected,
    Event,
    Peer,
    ProcessDied,
    Received,
    Ticked,
    TicketClosed,
    Warmed,
    WarmFailed,
)
from .inventory import WARM_SLICE, Holding, Inventory
from .requests import Request, WaitingLine
from .rows import Rows
from .seats import Away, Seat, Seats
from .settings import Settings
from .slots import Span

#: While somebody waits: how often clients are asked again to give back what is idle.
RECALL_EVERY = 0.05
#: How many waiters are served in one turn of the loop.
SERVED_PER_TURN = 64
#: How many bytes are cooled in one turn of the loop.
COOLED_PER_TURN = 4 * WARM_SLICE


@dataclass(slots=True, eq=False)
class Client:
    """One connection; it has a role from its hello on, and as a worker a seat."""

    connection: int
    peer: Peer
    role: Role | None = None
    seat: Seat | None = None


@dataclass(slots=True, eq=False)
class Warming:
    """Holdings on their way from cold to granted, a slice at a time."""

    request: Request
    holdings: list[Holding]
    slices: deque[Span] = field(default_factory=deque)


def format_header(header: MutableSequence[int], pool_id: int, tiers: tuple[Tier, ...], seats: int) -> None:
    """Write a new pool's facts into a header of zeros; the magic last, which commits it."""
    header[VERSION], header[POOL_ID] = LEDGER_VERSION, pool_id
    header[ROWS], header[TIERS], header[SEATS] = rows_of(tiers), len(tiers), seats
    for offset, word in enumerate(geometry_words(tiers)):
        header[FIRST_TIER + offset] = word
    header[CRC] = header_crc([MAGIC, *header[1 : header_words(seats)]])
    header[0] = MAGIC


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
            format_header(header, pool_id, make_tiers(settings.memory_limit, settings.sizing), settings.max_clients)
        header[EPOCH], header[BROKER_PID] = epoch, broker_pid
        self._out: list[Action] = []
        self.header = header
        self.settings = settings
        self.pool_id = pool_id
        self.epoch = epoch
        self.tiers = read_tiers(header)
        self.rows = Rows(ledger, rows_of(self.tiers))
        self.seats = Seats(header, header[SEATS])
        self.inventory = Inventory(self.rows, self.tiers, settings.memory_limit, self.seats.count, self._out.append)
        self.custody = Custody(self.rows, self.inventory, settings.handle_ttl, self._out.append, self._free)
        self.line = WaitingLine()
        self.clients: dict[int, Client] = {}
        self._warming: dict[tuple[int, int], Warming] = {}
        self._creating: dict[int, tuple[Request, Holding]] = {}
        self._something_freed = False
        self._next_recall = 0.0
        #: The host is full: nothing is warmed for the line before this, unless something is freed.
        self._next_warming = 0.0
        self._next_cooling = 0.0
        self.away = Away()
        self._on_event: dict[type[Any], Callable[[Any, float], None]] = {
            Connected: self._on_connected,
            Received: self._on_received,
            Disconnected: self._on_disconnected,
            ProcessDied: self._on_process_died,
            Warmed: self._on_warmed,
            WarmFailed: self._on_warm_failed,
            DirectCreated: self._on_direct_created,
            DirectFailed: self._on_direct_failed,
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
        if self._something_freed:
            self._something_freed = self._serve_line(now)
        self._raise_flags()
        return self._take_actions()

    def adopt(self, now: float) -> list[Action]:
        """Take over what an earlier broker left: rebuild everything from the rows."""
        adoption.adopt(self, now)
        return self._take_actions()

    def next_deadline(self) -> float | None:
        """When `Ticked` is due: the shell's only timer. None: not before another event."""
        deadlines = [] if (probe := self.away.next_probe) is None else [probe]
        if self._something_freed:
            deadlines.append(0.0)  # the last turn did not get through the line
        if self.line:
            deadlines.append(self._next_recall)
        if (sweep := self.custody.next_sweep(hurry=bool(self.line))) is not None:
            deadlines.append(sweep)
        if any(slots.has_ready for slots in self.inventory.maps[:-1]):
            deadlines.append(self._next_cooling)
        return min(deadlines, default=None)

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
            self._out += reports.answer(self, client.connection, message, now)
        elif client.seat is None:
            self._fault(client, Code.BAD_MESSAGE, f"an operator may only ask, not send {type(message).__name__}")
        else:
            self._on_message[type(message)](client, message, now)

    def _on_hello(self, client: Client, hello: Hello, now: float) -> None:
        if client.role is not None:
            return self._fault(client, Code.BAD_MESSAGE, "Hello comes once")
        if hello.magic != HELLO_MAGIC or hello.version != PROTOCOL_VERSION:
            text = f"this broker speaks {HELLO_MAGIC} protocol {PROTOCOL_VERSION}, not {hello.magic} {hello.version}"
            return self._fault(client, Code.WRONG_VERSION, text)
        client.role = Role(hello.role)
        resumed = False
        if client.role is Role.WORKER:
            resumed = self._resume(client, hello, now)
            if not resumed:
                client.seat = self.seats.take(client.peer, hello.nonce, client.connection)
                if client.seat is None:
                    return self._fault(
                        client, Code.NO_SEAT, f"all {self.seats.count} seats are taken; raise max_clients"
                    )
                self._out.append(WatchConnected(client.seat.number, client.connection))
        self._send(client.connection, self._welcome(client, resumed))
        return None

    def _resume(self, client: Client, hello: Hello, now: float) -> bool:
        """Give a client that lost its connection its seat again. A newer connection of the
        same client replaces one whose end has not been seen yet."""
        seat = self.seats.taken.get(hello.seat)
        if seat is None or hello.pool_id != self.pool_id or not seat.is_for(client.peer, hello.nonce):
            return False
        if seat.connection is not None:
            self._drop(seat.connection)
        self.away.come_back(seat)
        seat.peer = client.peer
        seat.connection, client.seat = client.connection, seat
        for row in list(seat.rows):
            self._settle(row, now)
        return True

    def _welcome(self, client: Client, resumed: bool) -> Welcome:
        settings, sizing = self.settings, self.settings.sizing
        return Welcome(
            version=PROTOCOL_VERSION,
            pool_id=self.pool_id,
            epoch=self.epoch,
            seat=client.seat.number if client.seat else 0,
            resumed=resumed,
            tiers=[tier.to_wire() for tier in self.tiers],
            seats=self.seats.count,
            thresholds=[
                sizing.medium_object_threshold, sizing.large_object_threshold, sizing.very_large_object_threshold,
            ],
            memory_limit=self.inventory.limit,
            lease_timeout_ms=round(settings.lease_timeout * 1000),
            magazine_bytes=settings.magazine_bytes,
            magazine_idle_ms=round(settings.magazine_idle * 1000),
            checksums=settings.checksums,
            tickets=settings.tickets,
        )  # fmt: skip

    def _on_disconnected(self, event: Disconnected, now: float) -> None:
        """The seat stays: its client may come back, or its pidfd or a probe tell of its end."""
        client = self.clients.pop(event.connection, None)
        self.line.cancel_all(event.connection)
        if client and client.seat and client.seat.connection == event.connection:
            client.seat.connection = None
            self.away.leave(client.seat, now)

    def _on_process_died(self, event: ProcessDied, now: float) -> None:
        seat = self.seats.taken.get(event.seat)
        if seat is not None:
            self._end_seat(seat, now)

    def _on_goodbye(self, client: Client, message: Goodbye, now: float) -> None:
        assert client.seat
        self._end_seat(client.seat, now)

    def _end_seat(self, seat: Seat, now: float) -> None:
        """Settle all that a seat held, then clear it. Its process is gone, has let go of its
        seat or has said that it holds nothing: nobody else writes these words any more."""
        self.away.come_back(seat)
        if seat.connection is not None:
            self._drop(seat.connection)
        for row in list(seat.rows):
            self._bury(seat, self.inventory.granted[row], now)
        for row, cell in list(self.rows.cells_taken_by(seat.number)):
            self.rows.finish_cell(row, cell)
            self._settle(row, now)
        reports.fold_counters(self.rows, seat.number)
        self._out.append(Unwatch(seat.number))
        self.seats.clear(seat)

    def _bury(self, seat: Seat, holding: Holding, now: float) -> None:
        """One row of a seat that ends."""
        word = self.rows.grant(holding.row)
        state, holder = state_of(word), seat_of(word)
        holding.orphaned_at = now
        if generation_of(word) < holding.birth:
            self._quarantine(holding)
        elif state == State.PUBLISHED and holder in (0, seat.number):
            holding.seat = 0  # the number may soon be another's
            self.rows.hand_over(holding.row)
            self.custody.accept(holding, now)
        elif state == State.RETURNED or (state in (State.IDLE, State.LEASED) and holder == seat.number):
            self._free(holding, now)
        else:
            self._quarantine(holding)
        seat.lose(holding.row, holding.nbytes)

    def _drop(self, connection: int) -> None:
        """End a connection that has nothing more to say to us."""
        self.clients.pop(connection, None)
        self.line.cancel_all(connection)
        self._out.append(Close(connection))

    def _fault(self, client: Client, code: Code, text: str) -> None:
        self._send(client.connection, Fault(code, text))
        if client.seat is not None:
            client.seat.connection = None
            self.away.leave(client.seat, 0.0)
        self._drop(client.connection)

    # --- requests --------------------------------------------------------------------------------

    def _on_refill(self, client: Client, message: Refill, now: float) -> None:
        tier = self.tiers[message.tier] if message.tier < len(self.tiers) else None
        if tier is None or tier.kind is TierKind.DIRECT or (tier.kind is TierKind.POOLED and message.chunks != 1):
            return self._fault(client, Code.BAD_MESSAGE, f"no refill of {message.chunks} chunks of tier {message.tier}")
        self._ask(client, message.request, tier, message.chunks, message.count, 0, message.queue, now)
        return None

    def _on_direct(self, client: Client, message: Direct, now: float) -> None:
        self._ask(client, message.request, self.tiers[-1], 1, 1, max(message.nbytes, 1), message.queue, now)

    def _ask(
        self, client: Client, number: int, tier: Tier, chunks: int, count: int, nbytes: int, queue: bool, now: float
    ) -> None:
        assert client.seat
        request = Request(client.connection, client.seat.number, number, tier, chunks, count, nbytes, queue, now)
        most = self.inventory.limit - self.inventory.overhead
        if request.wanted_bytes > most or chunks > tier.capacity:
            text = (
                f"{format_bytes(request.wanted_bytes)} is more than this pool can ever hold:"
                f" {format_bytes(most)} (memory_limit {format_bytes(self.inventory.limit)} less its ledger)"
            )
            return self._send(client.connection, Refusal(number, Code.TOO_LARGE, text))
        if not self.line.begin(request):
            return self._fault(client, Code.BAD_MESSAGE, f"request {number} is already under way")
        if self.line.is_behind(tier) or not self._serve(request, now):
            self._wait_or_refuse(request, now)
        return None

    def _serve(self, request: Request, now: float, *, may_warm: bool = True) -> bool:
        """Grant, or begin to warm, the least that satisfies a request or up to what it
        asked for; False when it has to wait."""
        if request.tier.kind is TierKind.DIRECT:
            return may_warm and self._create_direct(request)
        tiers = [request.tier]
        if request.tier.kind is TierKind.POOLED:
            tiers += [t for t in self.tiers if t.kind is TierKind.POOLED and t.size > request.tier.size]
        # The request's own tier, warm, then cold; only then the larger ones.
        return any(
            self._serve_ready(request, tier, now) or (may_warm and self._serve_cold(request, tier, now))
            for tier in tiers
        )

    def _serve_ready(self, request: Request, tier: Tier, now: float) -> bool:
        count = 1 if self.line or tier is not request.tier else request.count
        holdings: list[Holding] = []
        while len(holdings) < count and (holding := self.inventory.take_ready(tier, request.chunks)):
            holdings.append(holding)
        if holdings:
            self._grant(request, holdings, now)
        return bool(holdings)

    def _serve_cold(self, request: Request, tier: Tier, now: float) -> bool:
        count = 1 if self.line or tier is not request.tier else request.count
        holdings = self.inventory.take_cold(tier, request.chunks, count)
        slices = deque(self.inventory.to_warm(holdings))
        if slices:
            self._warm_next(Warming(request, holdings, slices))
        elif holdings:  # a scattered run of warm pieces
            self._grant(request, holdings, now)
        return bool(holdings)

    def _create_direct(self, request: Request) -> bool:
        holding = self.inventory.take_direct(request.nbytes)
        if holding is not None:
            self._creating[holding.row] = (request, holding)
        return holding is not None

    def _grant(self, request: Request, holdings: list[Holding], now: float) -> None:
        seat = self.seats.taken[request.seat]
        for holding in holdings:
            self.inventory.grant(holding, seat.number, now)
            seat.gain(holding.row, holding.nbytes)
        self.line.end(request)
        self._send(request.connection, Grant(request.number, [holding.row for holding in holdings]))

    def _wait_or_refuse(self, request: Request, now: float) -> None:
        """In line, if the request wants that and anything is out that could come back."""
        if request.queue and (self.inventory.granted or self._warming or self._creating):
            if not self.line:
                self._next_recall = now
            self.line.join(request)
            if self._next_recall <= now:
                self._recall(now)
            return
        self.line.end(request)
        code = Code.SHM_FULL if request.failure else Code.EXHAUSTED
        self._send(request.connection, Refusal(request.number, code, self._story(request)))

    def _story(self, request: Request) -> str:
        """Why there is nothing: tier, limit, and who holds most."""
        inventory = self.inventory
        text = (
            f"no {request.tier.label()} for {format_bytes(request.wanted_bytes)}: {format_bytes(inventory.held)} of"
            f" {format_bytes(inventory.limit)} (memory_limit) are held"
        )
        seat = max(self.seats.taken.values(), key=lambda seat: seat.nbytes, default=None)
        if seat is not None and seat.nbytes:
            text += f"; pid {seat.peer.pid} ({seat.peer.command}) holds most, {format_bytes(seat.nbytes)}"
        return f"{text}; {request.failure}" if request.failure else text

    def _on_cancel(self, client: Client, message: Cancel, now: float) -> None:
        request = self.line.cancel(client.connection, message.request)
        if request is not None:
            self._send(client.connection, Refusal(message.request, Code.CANCELLED, self._story(request)))

    def _serve_line(self, now: float) -> bool:
        """The oldest waiter first; one that cannot be served holds up its own tier only.
        Returns whether the turn was too short for all."""
        may_warm = self._next_warming <= now
        blocked: set[int] = set()
        for _ in range(SERVED_PER_TURN):
            heads = [request for request in self.line.heads() if request.tier.index not in blocked]
            if not heads:
                return False
            head = min(heads, key=lambda request: request.order)
            self.line.pop(head.tier)
            if not self._serve(head, now, may_warm=may_warm):
                self.line.join(head)
                blocked.add(head.tier.index)
        return bool(self.line)

    # --- warming ------------------------------------------------------------------------------------

    def _warm_next(self, warming: Warming) -> None:
        row, count = warming.slices.popleft()
        tier = warming.holdings[0].tier
        self._warming[tier.index, row] = warming
        self._out.append(Warm(tier.index, row, count))

    def _on_warmed(self, event: Warmed, now: float) -> None:
        warming = self._warming.pop((event.tier, event.row))
        self.inventory.warmed(self.tiers[event.tier], event.row, event.count)
        if warming.request.is_gone:
            self._abandon(warming.holdings, now)
        elif warming.slices:
            self._warm_next(warming)
        else:
            self._grant(warming.request, warming.holdings, now)

    def _on_warm_failed(self, event: WarmFailed, now: float) -> None:
        warming = self._warming.pop((event.tier, event.row))
        self._on_host_full(warming.request, warming.holdings, event.reason, now)

    def _on_direct_created(self, event: DirectCreated, now: float) -> None:
        request, holding = self._creating.pop(event.row)
        self._grant_or_free(request, holding, now)

    def _grant_or_free(self, request: Request, holding: Holding, now: float) -> None:
        if request.is_gone:
            self.inventory.remove_direct(holding)
            self._abandon([holding], now)
        else:
            self._grant(request, [holding], now)

    def _on_direct_failed(self, event: DirectFailed, now: float) -> None:
        request, holding = self._creating.pop(event.row)
        self.rows.skip(event.row)  # a squatted name must not fail again and again
        self._on_host_full(request, [holding], event.reason, now)

    def _abandon(self, holdings: list[Holding], now: float) -> None:
        for holding in holdings:
            self.inventory.abandon(holding, now)
        self._something_freed = True

    def _on_host_full(self, request: Request, holdings: list[Holding], reason: str, now: float) -> None:
        """The host has less room than the limit allows: trade in idle slots, else wait for
        what others hold, else say so."""
        if request.is_gone:
            return self._abandon(holdings, now)
        request.failure, request.count = reason, 1
        # Before its own half-warmed slots are idle: trading those in would go on for ever.
        cooled = self.inventory.cool(max(request.wanted_bytes, WARM_SLICE), float("inf"))
        self._abandon(holdings, now)
        if not self._serve(request, now, may_warm=cooled > 0):
            self._next_warming = now + RECALL_EVERY
            self._wait_or_refuse(request, now)
        return None

    # --- returns and bells -----------------------------------------------------------------------------

    def _on_return(self, client: Client, message: Return, now: float) -> None:
        assert client.seat
        for row in message.rows:
            holding = self.inventory.granted.get(row)
            if holding is not None and holding.seat == client.seat.number:
                self._settle(row, now)

    def _on_bell(self, client: Client, message: Bell, now: float) -> None:
        for row in message.rows:
            self._settle(row, now)

    def _settle(self, row: int, now: float) -> None:
        """Look at a granted row and do what its words ask for; nothing if they ask nothing."""
        holding = self.inventory.granted.get(row)
        if holding is None:
            return
        word = self.rows.grant(row)
        state, seat = state_of(word), seat_of(word)
        if state == State.RETURNED:
            # A direct segment's name must not come again: its generation must have grown.
            if generation_of(word) < holding.birth + (holding.tier.kind is TierKind.DIRECT):
                self._quarantine(holding)
            else:
                self._free(holding, now)
        elif state == State.PUBLISHED and seat == 0:
            self.custody.accept(holding, now)
        elif state == State.PUBLISHED and self.line and not self.rows.open_cells(row):
            self._recall_seat(seat)

    def _free(self, holding: Holding, now: float) -> None:
        self.custody.forget(holding)
        self.inventory.free(holding, now)
        seat = self.seats.taken.get(holding.seat)
        if seat is not None:
            seat.lose(holding.row, holding.nbytes)
        self._something_freed = True
        self._next_warming = 0.0
        if not self._next_cooling:
            self._next_cooling = now + self.settings.buffer_lifetime

    def _quarantine(self, holding: Holding) -> None:
        self.custody.forget(holding)
        self.inventory.quarantine(holding)
        seat = self.seats.taken.get(holding.seat)
        if seat is not None:
            seat.lose(holding.row, holding.nbytes)

    # --- time ----------------------------------------------------------------------------------------------

    def _on_ticked(self, event: Ticked, now: float) -> None:
        self._out += [ProbeSeat(number) for number in self.away.to_probe(now)]
        self.custody.sweep(now, hurry=bool(self.line))
        if self.line and self._next_recall <= now:
            self._recall(now)
            self._something_freed = True  # the host may have room again, too
        if self._next_cooling <= now:
            lifetime = self.settings.buffer_lifetime
            cooled = self.inventory.cool(COOLED_PER_TURN, now - lifetime)
            self._next_cooling = now + (RECALL_EVERY if cooled >= COOLED_PER_TURN else max(lifetime / 8, 0.1))

    def _recall(self, now: float) -> None:
        for seat in self.seats.taken.values():
            if seat.rows and seat.connection is not None:
                self._send(seat.connection, Recall())
        self._next_recall = now + RECALL_EVERY

    def _recall_seat(self, number: int) -> None:
        seat = self.seats.taken.get(number)
        if seat is not None and seat.connection is not None:
            self._send(seat.connection, Recall())

    def _raise_flags(self) -> None:
        """The wanted flags in the header: short of memory, every tier can help; short of
        rows, the tier itself and the larger ones."""
        wanted: set[int] = set()
        for request in self.line.heads():
            if request.failure or request.wanted_bytes > self.inventory.room:
                wanted.update(tier.index for tier in self.tiers)
            else:
                wanted.update(tier.index for tier in self.tiers if tier.index >= request.tier.index)
        for tier in self.tiers:
            flag = int(tier.index in wanted)
            if self.header[WANTED + tier.index] != flag:
                self.header[WANTED + tier.index] = flag

    def _send(self, connection: int, message: Message) -> None:
        self._out.append(Send(connection, message))

    def _take_actions(self) -> list[Action]:
        actions = self._out[:]
        self._out.clear()  # in place: others hold its append
        return actions
