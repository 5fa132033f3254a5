"""Lending: requests on their way from being asked to being granted, refused or waiting.

Covers the order in which memory is looked for (warm, cold, idle elsewhere, larger slots),
warming in slices, the making of direct segments, a full host, and the line of those who
wait. The memory is `inventory`'s; who is connected and what comes back is `broker`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import MutableSequence
from dataclasses import dataclass, field

from shmpool.protocol.codes import Code
from shmpool.protocol.header import WANTED
from shmpool.protocol.messages import Direct, Grant, Refill, Refusal
from shmpool.protocol.sizing import Tier, TierKind, format_bytes

from .actions import Warm
from .events import DirectCreated, DirectFailed, Warmed, WarmFailed
from .inventory import WARM_SLICE, Holding, Inventory
from .outbox import Outbox
from .recalls import Recalls
from .requests import Request, WaitingLine
from .rows import Rows
from .seats import Seat, Seats
from .slots import Span

#: While somebody waits: how often a full host is tried again (seconds).
RETRY_EVERY = 0.05
#: How many waiters are served in one turn of the loop.
SERVED_PER_TURN = 64
#: Rows that one request is granted at most, unless a single run has more.
GRANTED_PER_REQUEST = 256
#: Requests that one connection may have under way.
MOST_REQUESTS = 1024
#: A time that does not come.
NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Warming:
    """Holdings on their way from cold to granted, a slice at a time."""

    request: Request
    holdings: list[Holding]
    slices: deque[Span] = field(default_factory=deque)


class Lending:
    """Everything between a request and its answer."""

    def __init__(
        self,
        rows: Rows,
        header: MutableSequence[int],
        seats: Seats,
        inventory: Inventory,
        outbox: Outbox,
    ) -> None:
        self.rows = rows
        self.header = header
        self.seats = seats
        self.inventory = inventory
        self.tiers = inventory.tiers
        #: By tier, those that may serve it: itself, and of the pooled ones the larger.
        self._tiers_for = [
            [tier] + [t for t in self.tiers if tier.kind is t.kind is TierKind.POOLED and t.size > tier.size]
            for tier in self.tiers
        ]
        #: Any wanted flag is up.
        self._has_flags = True
        self.line = WaitingLine()
        #: By the slice that is being warmed: (tier, first row).
        self.warming: dict[tuple[int, int], Warming] = {}
        self.creating: dict[int, tuple[Request, Holding]] = {}
        #: The line is to be looked at.
        self.something_freed = False
        self.recalls = Recalls(seats, outbox)
        self._next_retry = 0.0
        #: The host is full: nothing is warmed for the line before this, unless something is freed.
        self.next_warming = 0.0
        self._outbox = outbox

    # --- requests --------------------------------------------------------------------------------

    def refill(self, connection: int, seat: Seat, message: Refill, now: float) -> str | None:
        """Somebody asks for slots or runs. Returns what is wrong with the message, if it is."""
        tier = self.tiers[message.tier] if message.tier < len(self.tiers) else None
        if tier is None or tier.kind is TierKind.DIRECT or (tier.kind is TierKind.POOLED and message.chunks != 1):
            return f"no refill of {message.chunks} chunks of tier {message.tier}"
        count = max(1, min(message.count, GRANTED_PER_REQUEST // message.chunks))
        # Nearly always there is something ready that nobody else waits for: then no request
        # needs to be remembered. What may have to be scrubbed goes the long way.
        if self.line.is_clear_for(connection) and not self.inventory.scrubber.is_on:
            holdings = self._take_ready(tier, message.chunks, count)
            if holdings:
                self._give(connection, message.request, seat, holdings, now)
                return None
        request = Request(connection, seat.number, message.request, tier, message.chunks, count, 0, message.queue, now)
        return self._ask(request, now)

    def direct(self, connection: int, seat: Seat, message: Direct, now: float) -> str | None:
        """Somebody asks for a direct segment. Returns what is wrong with the message."""
        nbytes = max(message.nbytes, 1)
        self.inventory.spares.note_request(now)
        request = Request(connection, seat.number, message.request, self.tiers[-1], 1, 1, nbytes, message.queue, now)
        return self._ask(request, now)

    def _ask(self, request: Request, now: float) -> str | None:
        most = self.inventory.limit - self.inventory.overhead
        if request.wanted_bytes > most or request.chunks > request.tier.capacity:
            text = (
                f"{format_bytes(request.wanted_bytes)} is more than this pool can ever hold:"
                f" {format_bytes(most)} (memory_limit {format_bytes(self.inventory.limit)} less its ledger)"
            )
            self._outbox.send(request.connection, Refusal(request.number, Code.TOO_LARGE, text))
            return None
        if self.line.count(request.connection) >= MOST_REQUESTS:
            text = f"{MOST_REQUESTS} requests of this client are under way"
            self._outbox.send(request.connection, Refusal(request.number, Code.QUOTA, text))
            return None
        if not self.line.begin(request):
            return f"request {request.number} is already under way"
        if self.line.is_behind(request.tier) or not self._serve(request, now):
            self._wait_or_refuse(request, now)
        return None

    def _serve(self, request: Request, now: float, *, may_warm: bool = True) -> bool:
        """Grant, or begin to warm, the least that satisfies a request or up to what it
        asked for; False when it has to wait."""
        if request.tier.kind is TierKind.DIRECT:
            return may_warm and self._create_direct(request)
        # The request's own tier, warm, then cold; only then the larger ones.
        for tier in self._tiers_for[request.tier.index]:
            if self._serve_ready(request, tier, now) or (may_warm and self._serve_cold(request, tier, now)):
                return True
        return False

    def _serve_ready(self, request: Request, tier: Tier, now: float) -> bool:
        count = 1 if self.line or tier is not request.tier else request.count
        holdings = self._take_ready(tier, request.chunks, count)
        self._grant_or_warm(request, holdings, now)
        return bool(holdings)

    def _take_ready(self, tier: Tier, chunks: int, count: int) -> list[Holding]:
        holdings: list[Holding] = []
        while len(holdings) < count and (holding := self.inventory.take_ready(tier, chunks)):
            holdings.append(holding)
        return holdings

    def _serve_cold(self, request: Request, tier: Tier, now: float) -> bool:
        count = 1 if self.line or tier is not request.tier else request.count
        holdings = self.inventory.take_cold(tier, request.chunks, count)
        self._grant_or_warm(request, holdings, now)
        return bool(holdings)

    def _grant_or_warm(self, request: Request, holdings: list[Holding], now: float) -> None:
        """Grant what was taken, once all of it is warm and nothing of it another user's."""
        uid = self.seats.taken[request.seat].peer.uid
        for holding in holdings:
            if self.inventory.scrubber.is_needed(holding.spans, uid):
                self.inventory.scrub(holding)
        slices = deque(self.inventory.to_warm(holdings))
        if slices:
            self._warm_next(Warming(request, holdings, slices))
        elif holdings:
            self._grant(request, holdings, now)

    def _create_direct(self, request: Request) -> bool:
        holding = self.inventory.take_direct(request.nbytes)
        if holding is not None:
            self.creating[holding.row] = (request, holding)
        return holding is not None

    def _grant(self, request: Request, holdings: list[Holding], now: float) -> None:
        self.line.end(request)
        self._give(request.connection, request.number, self.seats.taken[request.seat], holdings, now)

    def _give(self, connection: int, number: int, seat: Seat, holdings: list[Holding], now: float) -> None:
        rows = []
        for holding in holdings:
            self.inventory.grant(holding, seat.number, seat.peer.uid, now)
            seat.gain(holding.row, holding.nbytes)
            rows.append(holding.row)
        self._outbox.send(connection, Grant(number, rows))

    def _wait_or_refuse(self, request: Request, now: float) -> None:
        """In line, if the request wants that and anything is out that could come back, or others
        wait already."""
        if request.queue and (self.inventory.granted or self.warming or self.creating or self.line):
            if not self.line:
                self._next_retry = now + RETRY_EVERY
            self.line.join(request)
            self.recalls.begin(now)
            return
        self.line.end(request)
        code = Code.SHM_FULL if request.failure else Code.EXHAUSTED
        self._outbox.send(request.connection, Refusal(request.number, code, self._story(request)))

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

    def cancel(self, connection: int, number: int) -> None:
        """Somebody asks no longer."""
        request = self.line.cancel(connection, number)
        if request is not None:
            code = Code.SHM_FULL if request.failure else Code.CANCELLED
            self._outbox.send(connection, Refusal(number, code, self._story(request)))

    def serve_line(self, now: float) -> None:
        """After something was freed: the oldest waiter first; one that cannot be served holds
        up its own tier only. A turn that is too short for all goes on in the next."""
        self.something_freed = self._serve_turn(now)

    def _serve_turn(self, now: float) -> bool:
        may_warm = self.next_warming <= now
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
        self.warming[tier.index, row] = warming
        self._outbox.add(Warm(tier.index, row, count))

    def on_warmed(self, event: Warmed, now: float) -> None:
        """A slice has got its pages."""
        warming = self.warming.pop((event.tier, event.row))
        self.inventory.warmed(self.tiers[event.tier], event.row, event.count)
        if warming.request.is_gone:
            self._abandon(warming.holdings, now)
        elif warming.slices:
            self._warm_next(warming)
        else:
            self._grant(warming.request, warming.holdings, now)

    def on_warm_failed(self, event: WarmFailed, now: float) -> None:
        """A slice could not have them."""
        warming = self.warming.pop((event.tier, event.row))
        self._on_host_full(warming.request, warming.holdings, event.reason, now)

    def on_direct_created(self, event: DirectCreated, now: float) -> None:
        """A direct segment is there."""
        request, holding = self.creating.pop(event.row)
        self.inventory.direct_made(holding, request.nbytes)
        self._grant_or_free(request, holding, now)

    def _grant_or_free(self, request: Request, holding: Holding, now: float) -> None:
        if request.is_gone:
            self.inventory.remove_direct(holding)
            self._abandon([holding], now)
        else:
            self._grant(request, [holding], now)

    def on_direct_failed(self, event: DirectFailed, now: float) -> None:
        """It could not be made."""
        request, holding = self.creating.pop(event.row)
        self.rows.skip(event.row)  # a squatted name must not fail again and again
        self._on_host_full(request, [holding], event.reason, now)

    def _abandon(self, holdings: list[Holding], now: float) -> None:
        for holding in holdings:
            self.inventory.abandon(holding, now)
        self.something_freed = True

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
            self.next_warming = now + RETRY_EVERY
            self._wait_or_refuse(request, now)
        return None

    # --- time --------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        if self.something_freed:
            return 0.0  # the last turn did not get through the line
        return min(self.recalls.next_deadline, self._next_retry) if self.line else NEVER

    def tick(self, now: float) -> None:
        """Ask for what is idle, and try a host again that was full, while anybody waits."""
        if not self.line:
            return
        self.recalls.tick(now)
        if self._next_retry <= now:
            self._next_retry = now + RETRY_EVERY
            self.something_freed = True

    # --- the flags ---------------------------------------------------------------------------------

    def raise_flags(self) -> None:
        """The wanted flags in the header: short of memory, every tier can help; short of
        rows, the tier itself and the larger ones."""
        if not (self.line or self._has_flags):
            return
        if not self.line:
            self.recalls.rest()
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
        self._has_flags = bool(wanted)
