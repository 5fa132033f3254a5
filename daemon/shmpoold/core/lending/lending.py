"""Lending: requests on their way from being asked to being granted, refused or waiting.

Covers the order in which memory is looked for (warm, cold, idle elsewhere, larger slots),
warming in slices, the making of direct segments, a full host, and the line of those who
wait. The memory is `inventory`'s; who is connected and what comes back is `broker`'s; what
is kept for whom is `earmarks`', who is asked to give back `recalls`'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from shmpool.protocol.codes import Code
from shmpool.protocol.header import WANTED
from shmpool.protocol.ledger import MAX_EXTENTS
from shmpool.protocol.messages import (
    Direct,
    Grant,
    Refill,
    Refusal,
)
from shmpool.protocol.sizing import (
    Tier,
    TierKind,
    format_bytes,
    page_round,
)

from ..actions import Warm
from ..chores import (
    Chore,
    Chores,
)
from ..connections.seats import Seat, Seats
from ..events import (
    DirectCreated,
    DirectFailed,
    Warmed,
    WarmFailed,
)
from ..memory.clearings import Clearings
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..memory.slots import Span
from ..memory.stock import BUILT_PER_STEP, COOLED_AT_ONCE, WARM_SLICE
from ..outbox import Outbox
from ..rows import Rows
from .earmarks import Earmarks
from .quotas import Quotas
from .recalls import Recalls
from .requests import Request, WaitingLine

#: While somebody waits: how often a full host is tried again (seconds).
RETRY_EVERY = 0.05
#: How many waiters are tried in one turn of the loop, and after how many rows that they were given
#: it ends as well.
SERVED_PER_TURN, GIVEN_PER_TURN = 64, 512
#: How many waiters of each tier may have a turn of their own.
CONSIDERED = 16
#: Rows that one request is granted at most, unless a single run has more.
GRANTED_PER_REQUEST = 256
#: Requests that one connection may have under way.
MOST_REQUESTS = 1024
#: More large operations than there can be: they are not bounded.
UNBOUNDED = 1 << 40


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
        chores: Chores,
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
        #: Those that lose another user's pages first.
        self.scrubbing: set[Warming] = set()
        self.creating: dict[int, tuple[Request, Holding]] = {}
        #: Long runs whose followers are being written, by their heads.
        self.building: dict[int, Holding] = {}
        #: How many runs and direct segments may be out at a time, 0 for any number.
        self.most_large = 0
        self.recalls = Recalls(seats, outbox, self._is_of_use)
        self.quotas = Quotas(
            seats, inventory, self.line, self.recalls, chores, outbox, self._under_way, self._serve_or_wait
        )
        self.earmarks = Earmarks(inventory)
        self.clearings = Clearings(inventory, self.earmarks, chores, self._serve_or_wait)
        #: The line is to be looked at.
        self.something_freed = False
        #: By tier, where the last turn stopped that did not get through the line.
        self._places: dict[int, int] = {}
        self._next_retry = 0.0
        #: The host is full: nothing is warmed for the line before this, unless something is freed.
        self.next_warming = 0.0
        #: Why the pool does not grow now, for refusals; and whether nobody waits until it does.
        self.growth_stopped = ""
        self.is_refusing = False
        #: A sentence for refusals; the ledger tells it, which is the reports' to read.
        self.who_keeps_most: Callable[[float], str] = lambda now: ""
        self._chores = chores
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
        if (
            self.line.is_clear_for(connection)
            and message.chunks <= BUILT_PER_STEP
            and (tier.kind is TierKind.POOLED or not self.most_large)
            and not self.clearings
            and not self.inventory.scrubber.is_on
            and not self.quotas.is_on
        ):
            holdings = self._take_ready(tier, message.chunks, count)
            if holdings:
                self._give(connection, message.request, seat, holdings, now)
                return None
        request = Request(connection, seat.number, message.request, tier, message.chunks, count, 0, message.queue, now)
        return self._ask(request, now)

    def direct(self, connection: int, seat: Seat, message: Direct, now: float) -> str | None:
        """Somebody asks for a direct segment. Returns what is wrong with the message."""
        nbytes = page_round(max(message.nbytes, 1))
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
        if self._is_behind(request.tier) or not self._serve(request, now):
            self._wait_or_refuse(request, now)
        return None

    def _is_behind(self, tier: Tier) -> bool:
        """Whether somebody who waits for this tier has to be served first: who wants the same, or
        who has not been tried yet since something came back."""
        return self.line.is_behind(tier) and (tier.kind is TierKind.POOLED or self.something_freed)

    def _serve(self, request: Request, now: float, *, may_warm: bool = True) -> bool:
        """Grant, or begin to warm, the least that satisfies a request or up to what it
        asked for; False when it has to wait."""
        inventory = self.inventory
        inventory.to_clear = 0
        room = self.quotas.room(request, now) if self.quotas.is_on else None
        if self.quotas.is_on and not (room and room.count(request.wanted_bytes)):
            self.quotas.hold(request, now)
            return True
        # The request's own tier, warm, then cold; only then the larger ones.
        for tier in self._tiers_for[request.tier.index]:
            nbytes = request.nbytes or tier.size * request.chunks
            most = self.earmarks.allow(request, tier, nbytes)
            if room is not None:
                most = min(most, room.count(nbytes))
            if tier.kind is not TierKind.POOLED:
                most = min(most, self._large_left)
            if most <= 0:
                continue
            if self.line or tier is not request.tier:
                most = 1
            if tier.kind is TierKind.DIRECT:
                if may_warm and self._create_direct(request):
                    return True
            elif self._serve_slots(request, tier, most, now, may_warm=may_warm):
                return True
            if inventory.to_clear:
                self.clearings.begin(request, inventory.to_clear, now)
                return True
        return False

    def _under_way(self) -> Iterator[tuple[int, int, int]]:
        """Seat, bytes and buffers of what is taken and not granted yet."""
        taken = [(one.request, holding) for one in {*self.warming.values()} for holding in one.holdings]
        for request, holding in (*taken, *self.creating.values()):
            if not request.is_gone:
                yield request.seat, holding.nbytes, 1
        for holding in self.building.values():
            yield holding.seat, holding.nbytes, 1

    def _serve_slots(self, request: Request, tier: Tier, most: int, now: float, *, may_warm: bool) -> bool:
        holdings = self._take_ready(tier, request.chunks, most)
        if not holdings and may_warm:
            holdings = self.inventory.take_cold(tier, request.chunks, most)
        return self._grant_or_warm(request, holdings, now)

    def _take_ready(self, tier: Tier, chunks: int, count: int) -> list[Holding]:
        holdings: list[Holding] = []
        while len(holdings) < count and (holding := self.inventory.take_ready(tier, chunks)):
            holdings.append(holding)
        return holdings

    def _grant_or_warm(self, request: Request, holdings: list[Holding], now: float) -> bool:
        """Grant what was taken, once all of it is warm and nothing of it another user's. False
        when nothing was."""
        if not holdings:
            return False
        with self._answering(request, holdings, now):
            uid = self.seats.taken[request.seat].peer.uid
            unclean = [one for one in holdings if self.inventory.scrubber.is_needed(one.spans, uid)]
            warming = Warming(request, holdings)
            if unclean:
                self.scrubbing.add(warming)
                self._chores.begin(self._scrub(warming, unclean), now, is_urgent=True)
            else:
                self._warm_or_grant(warming, now)
        return True

    def _scrub(self, warming: Warming, unclean: list[Holding]) -> Chore:
        with self._answering(warming.request, warming.holdings, self._chores.now):
            try:
                for holding in unclean:
                    for cost in self.inventory.scrub(holding):
                        yield cost
                        if warming.request.is_gone:
                            self._abandon(warming.holdings, self._chores.now)
                            return
            finally:
                self.scrubbing.discard(warming)
            self._warm_or_grant(warming, self._chores.now)

    def _warm_or_grant(self, warming: Warming, now: float) -> None:
        warming.slices = deque(self.inventory.to_warm(warming.holdings))
        if warming.slices:
            self._warm_next(warming)
        else:
            self._grant(warming.request, warming.holdings, now)

    def _create_direct(self, request: Request) -> bool:
        holding = self.inventory.take_direct(request.nbytes)
        if holding is not None:
            self.creating[holding.row] = (request, holding)
        return holding is not None

    def _grant(self, request: Request, holdings: list[Holding], now: float) -> None:
        """Grant what is ready: a long run once its followers are written."""
        if not self.inventory.are_ready(holdings):
            self._try_others(request, holdings, now)
            return
        if holdings[0].chunks > BUILT_PER_STEP:
            holdings[0].seat = request.seat
            self.building[holdings[0].row] = holdings[0]
            self._chores.begin(self._build(request, holdings[0]), now, is_urgent=True)
            return
        self._give(request.connection, request.number, self.seats.taken[request.seat], holdings, now)
        self.line.end(request)

    def _build(self, request: Request, holding: Holding) -> Chore:
        with self._answering(request, [holding], self._chores.now):
            try:
                yield from self.inventory.build(holding)
            finally:
                del self.building[holding.row]
            if not request.is_gone:
                seat = self.seats.taken[request.seat]
                self._commit(request.connection, request.number, seat, [holding], self._chores.now)
                self.line.end(request)
                return
            self.inventory.give_head(holding, self._chores.now)
        yield from self.watched(self.inventory.take_apart(holding, self._chores.now))

    def _give(self, connection: int, number: int, seat: Seat, holdings: list[Holding], now: float) -> None:
        try:
            for holding in holdings:
                if holding.spans != ((holding.row, 1),):
                    for _ in self.inventory.build(holding):
                        pass
            self._commit(connection, number, seat, holdings, now)
        except Exception:
            self._abandon(holdings, now)
            raise

    def _commit(self, connection: int, number: int, seat: Seat, holdings: list[Holding], now: float) -> None:
        rows: list[int] = []
        try:
            for holding in holdings:
                self.inventory.grant(holding, seat.number, seat.peer.uid, now)
                seat.gain(holding)
                if self.quotas.is_on:
                    self.quotas.usage.note_granted(seat.number, holding.nbytes)
                rows.append(holding.row)
        finally:
            if rows:  # what stands in the ledger is granted, whatever became of the others
                self._outbox.send(connection, Grant(number, rows))

    # --- large operations -------------------------------------------------------------------------

    @property
    def _large_left(self) -> int:
        """How many more runs and direct segments may be granted. What is on its way counts."""
        if not self.most_large:
            return UNBOUNDED
        warming = sum(len(one.holdings) for one in self.unfinished_warmings() if one.holdings[0].is_large)
        under_way = len(self.creating) + len(self.building) + warming
        return self.most_large - self.inventory.large - under_way

    def _is_bounded(self, request: Request) -> bool:
        """Whether it waits for another large operation's end, whatever memory there is."""
        return request.tier.kind is not TierKind.POOLED and self._large_left <= 0

    def _is_of_use(self, seat: Seat) -> bool:
        """Whether what a seat has idle might serve anybody who waits: not a slot, where they all
        wait for the end of a large operation."""
        return bool(seat.large) or not self.line or not all(map(self._is_bounded, self.line.heads()))

    def bound_large(self, most: int) -> None:
        """Bound the large operations anew. Who has one keeps it."""
        self.something_freed |= most != self.most_large
        self.most_large = most

    # --- who waits --------------------------------------------------------------------------------

    def _serve_or_wait(self, request: Request, now: float) -> None:
        """Room was made for a request, or could not be."""
        self.something_freed = True
        if not (request.is_gone or self._serve(request, now)):
            self._wait_or_refuse(request, now)

    def _wait_or_refuse(self, request: Request, now: float) -> None:
        """In line, if the request wants that and anything is out that could come back, or others
        wait already."""
        if request.queue and (self.line or self._is_anything_out or self.growth_stopped) and not self.is_refusing:
            if not self.line:
                self._next_retry = now + RETRY_EVERY
            self.line.join(request)
            self.earmarks.note_waiting(request)
            self.recalls.begin(now)
            return
        self.line.end(request)
        code = Code.SHM_FULL if self._failure(request) else Code.EXHAUSTED
        self._outbox.send(request.connection, Refusal(request.number, code, self._story(request, now)))

    @property
    def _is_anything_out(self) -> bool:
        inventory = self.inventory
        is_unfinished = self.warming or self.scrubbing or self.creating or self.building or self.clearings
        return bool(inventory.granted or inventory.leaving or is_unfinished)

    def _story(self, request: Request, now: float) -> str:
        """Why there is nothing: what is missing, and who keeps most."""
        text = f"no {request.tier.label()} for {format_bytes(request.wanted_bytes)}: {self._missing(request)}"
        if most := self.who_keeps_most(now):
            text += f"; {most}"
        failure = self._failure(request)
        return f"{text}; {failure}" if failure else text

    def _failure(self, request: Request) -> str:
        """What of the host is in the way; empty while nothing is."""
        return request.failure or self.growth_stopped

    def _missing(self, request: Request) -> str:
        inventory, tier = self.inventory, request.tier
        slots = inventory.maps[tier.index]
        if self._is_bounded(request):
            return f"{self.most_large} large operations (max_concurrent_large_ops) are under way"
        held = f"{format_bytes(inventory.held)} of {format_bytes(inventory.limit)} (memory_limit) are held"
        if request.wanted_bytes > inventory.room + inventory.idle:
            return f"{held}, {format_bytes(inventory.idle)} of them idle" if inventory.idle else held
        if slots.unused < request.chunks:
            return f"{slots.unused} of its {tier.capacity} {slots.unit} are free, {request.chunks} are needed"
        if tier.kind is TierKind.CHUNK and slots.placeable < request.chunks:
            return (
                f"{slots.unused} chunks are free, but in too many pieces: the {MAX_EXTENTS} largest, as many as a lease"
                f" may have, are {slots.placeable} chunks"
            )
        if self.earmarks.allow(request, tier, request.wanted_bytes):
            return held
        return f"what is free is kept for a request that has waited longer; {held}"

    def cancel(self, connection: int, number: int, now: float) -> None:
        """Somebody asks no longer."""
        request = self.line.cancel(connection, number)
        if request is not None:
            code = Code.SHM_FULL if self._failure(request) else Code.CANCELLED
            text = self.quotas.story(request, now)
            refusal = Refusal(number, Code.QUOTA, text) if text else Refusal(number, code, self._story(request, now))
            self._outbox.send(connection, refusal)

    # --- the line --------------------------------------------------------------------------------

    def note_freed(self, now: float) -> None:
        """Something has come back."""
        self.something_freed = True
        self.next_warming = 0.0
        self.earmarks.note_freed(now)
        self.quotas.note_freed()

    @property
    def is_due(self) -> bool:
        """Whether somebody in the line is to be tried."""
        return self.something_freed or bool(self._places)

    def serve_line(self, now: float) -> None:
        """After something was freed: the oldest waiter first. One that cannot be served holds up
        those who want the same of its tier. A turn that is too short for all goes on in the next."""
        places, self._places = self._places, {}
        begin_again = self.something_freed and bool(places)
        self.something_freed = False
        if not self._serve_turn(places, now) and begin_again:
            self.something_freed = True

    def _serve_turn(self, places: dict[int, int], now: float) -> bool:
        """From these places of the queues on; whether somebody is left who was not tried."""
        may_warm = self.next_warming <= now
        at = {index: places.get(index, 0) for index in self.line.tiers()}
        given = 0
        for _ in range(SERVED_PER_TURN):
            if given >= GIVEN_PER_TURN:
                break
            waiting = [(request.order, index) for index in at if (request := self.line.at(index, at[index]))]
            if not waiting:
                return False
            _, index = min(waiting)
            request = self.line.at(index, at[index])
            assert request is not None
            if request.is_gone:
                at[index] += 1
                continue
            self.line.leave(index, at[index])
            if self._serve(request, now, may_warm=may_warm):
                given += request.chunks
            else:
                self.line.join(request)
                if request.tier.kind is TierKind.POOLED:
                    del at[index]
                else:
                    at[index] += 1
        self._places = at
        return bool(at)

    # --- warming ------------------------------------------------------------------------------------

    def unfinished_warmings(self) -> set[Warming]:
        """All whose holdings do not have all of their pages yet."""
        return self.scrubbing.union(self.warming.values())

    def _warm_next(self, warming: Warming) -> None:
        row, count = warming.slices.popleft()
        tier = warming.holdings[0].tier
        self.warming[tier.index, row] = warming
        self._outbox.add(Warm(tier.index, row, count))

    def on_warmed(self, event: Warmed, now: float) -> None:
        """A slice has got its pages."""
        warming = self.warming.pop((event.tier, event.row))
        with self._answering(warming.request, warming.holdings, now):
            is_sound = self.inventory.warmed(self.tiers[event.tier], event.row, event.count, now)
            if warming.request.is_gone and is_sound:
                self._abandon(warming.holdings, now)
            elif not is_sound:
                self._try_others(warming.request, warming.holdings, now)
            elif warming.slices:
                self._warm_next(warming)
            else:
                self._grant(warming.request, warming.holdings, now)

    def on_warm_failed(self, event: WarmFailed, now: float) -> None:
        """A slice could not have them."""
        warming = self.warming.pop((event.tier, event.row))
        with self._answering(warming.request, warming.holdings, now):
            self._on_host_full(warming.request, warming.holdings, event.reason, now)

    def on_direct_created(self, event: DirectCreated, now: float) -> None:
        """A direct segment is there."""
        request, holding = self.creating.pop(event.row)
        with self._answering(request, [holding], now):
            self.inventory.direct_made(holding, request.nbytes)
            if request.is_gone:
                self.inventory.remove_direct(holding)
                self._abandon([holding], now)
            else:
                self._grant(request, [holding], now)

    def on_direct_failed(self, event: DirectFailed, now: float) -> None:
        """It could not be made."""
        request, holding = self.creating.pop(event.row)
        with self._answering(request, [holding], now):
            if self.inventory.are_ready([holding]):
                self.rows.skip(event.row)  # a squatted name must not fail again and again
            self._on_host_full(request, [holding], event.reason, now)

    def _abandon(self, holdings: list[Holding], now: float) -> None:
        for holding in holdings:
            self.inventory.abandon(holding, now)
        self.something_freed = True

    def _try_others(self, request: Request, holdings: list[Holding], now: float) -> None:
        """Somebody has scribbled on what a request was to be granted: it gets something else."""
        for holding in holdings:
            if holding.tier.kind is TierKind.DIRECT:
                self.inventory.remove_direct(holding)
        self._abandon(holdings, now)
        if not (request.is_gone or self._serve(request, now)):
            self._wait_or_refuse(request, now)

    @contextmanager
    def _answering(self, request: Request, holdings: list[Holding], now: float) -> Iterator[None]:
        """Whatever goes wrong meanwhile: nothing stays under way for ever. What was taken and not
        granted is given up, and the request refused, unless it goes on otherwise."""
        try:
            yield
        except Exception:
            self._abandon(holdings, now)
            if not (request.is_gone or request.is_waiting) and self.line.knows(request):
                self.line.end(request)
                text = "the broker has failed with this request, its log says how; ask again"
                self._outbox.send(request.connection, Refusal(request.number, Code.EXHAUSTED, text))
            raise

    def watched(self, steps: Iterator[int]) -> Chore:
        """The steps of something that becomes free."""
        for cost in steps:
            self.note_freed(self._chores.now)
            yield cost

    def _on_host_full(self, request: Request, holdings: list[Holding], reason: str, now: float) -> None:
        """The host has less room than the limit allows: trade in idle slots, else wait for
        what others hold, else say so."""
        if request.is_gone:
            return self._abandon(holdings, now)
        request.failure, request.count = reason, 1
        # Before its own half-warmed slots are idle: trading those in would go on for ever.
        cooled = self.inventory.cool(max(request.wanted_bytes, WARM_SLICE), COOLED_AT_ONCE)
        self._abandon(holdings, now)
        if not self._serve(request, now, may_warm=cooled > 0):
            self.next_warming = now + RETRY_EVERY
            self._wait_or_refuse(request, now)
        return None

    # --- time --------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        if self.is_due:
            return 0.0  # the last turn did not get through the line
        if not self.line:
            return self.quotas.next_deadline
        waiting = min(self.recalls.next_deadline, self._next_retry, self.earmarks.next_deadline)
        return min(waiting, self.quotas.next_deadline)

    def tick(self, now: float) -> None:
        """Ask for what is idle, let those who wait take turns, and try a host again that was full,
        while anybody waits."""
        self.quotas.tick(now)
        if not self.line:
            return
        self.recalls.tick(now)
        # Memory is not kept for those whom it would not help.
        if self.earmarks.tick((one for one in self.line.first(CONSIDERED) if not self._is_bounded(one)), now):
            self.something_freed = True
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
            self.earmarks.forget()
        wanted: set[int] = set()
        for request in self.line.heads():
            if self._is_bounded(request):
                wanted.update(tier.index for tier in self.tiers if tier.kind is not TierKind.POOLED)
            elif self._failure(request) or request.wanted_bytes > self.inventory.room:
                wanted.update(tier.index for tier in self.tiers)
            else:
                wanted.update(tier.index for tier in self.tiers if tier.index >= request.tier.index)
        for tier in self.tiers:
            flag = int(tier.index in wanted)
            if self.header[WANTED + tier.index] != flag:
                self.header[WANTED + tier.index] = flag
        self._has_flags = bool(wanted)
