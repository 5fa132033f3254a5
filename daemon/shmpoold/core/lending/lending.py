"""Lending: requests on their way from being asked to being granted, refused or waiting.

Covers a full host, and the line of those who wait. In which order memory is looked for is the
`ladder`'s; the memory is `inventory`'s, what was taken of it on its way to being granted `grants`';
what is kept for whom is `earmarks`', who is asked to give back `recalls`', what is said to those who
get nothing `refusals`'.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from operator import attrgetter

from shmpool.protocol.codes import Code
from shmpool.protocol.header import WANTED
from shmpool.protocol.messages import (
    Direct,
    Refill,
    Refusal,
)
from shmpool.protocol.sizing import (
    Tier,
    TierKind,
    format_bytes,
    page_round,
)

from ..chores import (
    Chore,
    Chores,
)
from ..connections.seats import Seat, Seats
from ..memory.clearings import Clearings
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..memory.stock import BUILT_PER_STEP, COOLED_AT_ONCE, WARM_SLICE
from ..outbox import Outbox
from ..rows import Rows
from .earmarks import Earmarks
from .evictions import Evictions
from .grants import Grants
from .ladder import Ladder, places
from .large import LargeOperations
from .quotas import Quotas
from .recalls import Recalls
from .refusals import Refusals
from .requests import Request, Rung, WaitingLine

#: While somebody waits: how often a full host is tried again (seconds).
RETRY_EVERY = 0.05
#: How many waiters are tried in one turn of the loop, and after how many rows that they were given
#: it ends as well.
SERVED_PER_TURN, GIVEN_PER_TURN = 64, 512
#: Rows that one request is granted at most, unless a single run has more.
GRANTED_PER_REQUEST = 256
#: Requests that one process may have under way.
MOST_REQUESTS = 1024


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
        self.header = header
        self.inventory = inventory
        self.tiers = inventory.tiers
        #: Any wanted flag is up.
        self._has_flags = True
        self.line = WaitingLine()
        self.recalls = Recalls(seats, outbox, self._tiers_of_use)
        self.grants = Grants(rows, seats, inventory, self.line, chores, outbox, self)
        self.quotas = Quotas(
            seats, inventory, self.line, self.recalls, chores, outbox, self.grants.under_way, self.serve_or_wait
        )
        self.large = LargeOperations(inventory, self.grants)
        self.earmarks = Earmarks(inventory, self.line, self.large)
        self.clearings = Clearings(inventory, self.earmarks, chores, self.serve_or_wait)
        self.refusals = Refusals(inventory, self.earmarks, self.large)
        self.evictions = Evictions(inventory, chores, self.serve_or_wait)
        self.ladder = Ladder(
            inventory,
            self.line,
            self.grants,
            self.large,
            self.quotas,
            self.earmarks,
            self.clearings,
            self.evictions,
        )
        #: The line is to be looked at; and again from its beginning, once a turn has got through it.
        self.something_freed = self._begin_again = False
        self._next_retry = 0.0
        #: The host is full: nothing is warmed for the line before this, unless something is freed.
        self.next_warming = 0.0
        #: Nobody waits until the pool may grow again.
        self.is_refusing = False
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
            and (tier.kind is TierKind.POOLED or not self.large.most)
            and not self.clearings
            and not self.inventory.scrubber.is_on
            and not self.quotas.is_on
        ):
            holdings = self.ladder.take_ready(tier, message.chunks, count)
            if holdings:
                self.grants.give(connection, message.request, seat, holdings, now)
                self.ladder.served[Rung.READY] += 1
                return None
        request = Request(
            connection, seat.number, seat.process, message.request, tier, message.chunks, count, 0, message.queue, now
        )
        return self._ask(request, now)

    def direct(self, connection: int, seat: Seat, message: Direct, now: float) -> str | None:
        """Somebody asks for a direct segment. Returns what is wrong with the message."""
        nbytes = page_round(max(message.nbytes, 1))
        self.inventory.spares.note_request(now)
        direct = self.tiers[-1]
        request = Request(
            connection, seat.number, seat.process, message.request, direct, 1, 1, nbytes, message.queue, now
        )
        return self._ask(request, now)

    def _ask(self, request: Request, now: float) -> str | None:
        most = self.inventory.limit - self.inventory.overhead
        tier = request.tier
        if request.wanted_bytes > most or request.chunks > tier.capacity:
            if request.wanted_bytes > most:
                what = f"{format_bytes(request.wanted_bytes)} is"
                all_there_is = (
                    f"{format_bytes(most)} (memory_limit {format_bytes(self.inventory.limit)} less its ledger)"
                )
            else:
                what = f"{request.chunks} chunks of {format_bytes(tier.size)} are"
                all_there_is = f"it has {tier.capacity} of them"
            text = f"{what} more than this pool can ever hold: {all_there_is}"
            self._outbox.send(request.connection, Refusal(request.number, Code.TOO_LARGE, text))
            return None
        if self.line.count(request.process) >= MOST_REQUESTS:
            text = f"{MOST_REQUESTS} requests of this process are under way"
            self._outbox.send(request.connection, Refusal(request.number, Code.QUOTA, text))
            return None
        if not self.line.begin(request):
            return f"request {request.number} is already under way"
        if self._is_behind(tier) or not self.ladder.climb(request, now):
            self._wait_or_refuse(request, now)
        return None

    def _is_behind(self, tier: Tier) -> bool:
        """Whether somebody who waits for this tier has to be served first: who wants the same, or
        who has not been tried yet since something came back."""
        return self.line.is_behind(tier) and (tier.kind is TierKind.POOLED or self.something_freed)

    def note_granted(self, seat: int, nbytes: int, buffers: int = 1) -> None:
        """Buffers of so many bytes each are a seat's now."""
        if self.quotas.is_on:
            for _ in range(buffers):
                self.quotas.usage.note_granted(seat, nbytes)

    def note_served(self, request: Request, now: float) -> None:
        """A request has all that it gets."""
        self.ladder.count(request, now)
        self.line.end(request)

    def gave_up(self) -> None:
        """Something that was taken is nobody's again."""
        self.something_freed = True

    def _tiers_of_use(self) -> set[int]:
        """The tiers of which something has to come back, that anybody who waits may be served: short
        of memory, all of them; short of rows, those that the ladder looks in; those of the large
        operations, when there are too many of these."""
        inventory, wanted = self.inventory, set[int]()
        for request in self.line.heads():
            if self.large.are_full_for(request):
                wanted.update(tier.index for tier in self.tiers if tier.kind is not TierKind.POOLED)
            elif self.refusals.failure(request) or request.wanted_bytes > inventory.room + inventory.idle:
                wanted.update(tier.index for tier in self.tiers)
            else:
                wanted.update(tier.index for tier, _ in places(request, self.tiers))
                if self.ladder.has_fallback:
                    wanted.add(self.tiers[-1].index)
        return wanted

    def bound_large(self, most: int) -> None:
        """Bound the large operations anew. Who has one keeps it."""
        self.something_freed |= most != self.large.most
        self.large.most = most

    # --- who waits --------------------------------------------------------------------------------

    def serve_or_wait(self, request: Request, now: float) -> None:
        """Room was made for a request, or could not be."""
        self.something_freed = True
        if not (request.is_gone or self.ladder.climb(request, now)):
            self._wait_or_refuse(request, now)

    def _wait_or_refuse(self, request: Request, now: float) -> None:
        """In line, if the request wants that and anything is out that could come back, or others
        wait already."""
        may_come = self.line or self.ladder.is_anything_out or self.refusals.growth_stopped
        if request.queue and may_come and not self.is_refusing:
            if not self.line:
                self._next_retry = now + RETRY_EVERY
            self.line.join(request)
            if request.joined_at is None:
                request.joined_at = now
            self.earmarks.note_waiting(request, now)
            self.recalls.begin(now)
            return
        self.line.end(request)
        self.ladder.served[Rung.REFUSED] += 1
        code = Code.SHM_FULL if self.refusals.failure(request) else Code.EXHAUSTED
        self._outbox.send(request.connection, Refusal(request.number, code, self.refusals.story(request, now)))

    def cancel(self, connection: int, number: int, now: float) -> None:
        """Somebody asks no longer."""
        request = self.line.cancel(connection, number)
        if request is not None:
            self.ladder.served[Rung.WITHDRAWN] += 1
            code = Code.SHM_FULL if self.refusals.failure(request) else Code.CANCELLED
            text = self.quotas.story(request, now)
            if text is None:
                self._outbox.send(connection, Refusal(number, code, self.refusals.story(request, now)))
            else:
                self._outbox.send(connection, Refusal(number, Code.QUOTA, text))

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
        return self.something_freed or bool(self.line.places)

    def serve_line(self, now: float) -> None:
        """After something was freed: the oldest waiter first. One that cannot be served holds up
        those who want the same of its tier. A turn that is too short for all goes on in the next."""
        if self.something_freed:
            self._begin_again |= bool(self.line.places)
            self.something_freed = False
            self.line.begin_turn()
        self._serve_turn(now)
        if not self.line.places and self._begin_again:
            self._begin_again, self.something_freed = False, True

    def _serve_turn(self, now: float) -> None:
        """Try those in line, of each tier from where the last turn stopped."""
        may_warm, places = self.next_warming <= now, self.line.places
        given = 0
        for _ in range(SERVED_PER_TURN):
            if not places or given >= GIVEN_PER_TURN:
                return
            request = min(places.values(), key=attrgetter("order"))
            self.line.try_out(request)
            try:
                is_served = self.ladder.climb(request, now, may_warm=may_warm)
            except BaseException:
                self.line.settle(request, waits=self.line.knows(request))
                raise
            given += request.chunks if is_served else 0
            self.line.settle(request, waits=request.is_waiting or not is_served)

    def watched(self, steps: Iterator[int]) -> Chore:
        """The steps of something that becomes free."""
        for cost in steps:
            self.note_freed(self._chores.now)
            yield cost

    def on_host_full(self, request: Request, holdings: list[Holding], reason: str, now: float) -> None:
        """The host has less room than the limit allows: trade in idle slots, else wait for
        what others hold, else say so."""
        if request.is_gone:
            return self.grants.abandon(holdings, now)
        request.failure, request.count = reason, 1
        # Before its own half-warmed slots are idle: trading those in would go on for ever.
        cooled = self.inventory.cool(max(request.wanted_bytes, WARM_SLICE), COOLED_AT_ONCE)
        self.grants.abandon(holdings, now)
        if not self.ladder.climb(request, now, may_warm=cooled > 0):
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
        if self.earmarks.tick(now):
            self.something_freed = True
        if self._next_retry <= now:
            self._next_retry = now + RETRY_EVERY
            self.something_freed = True

    # --- the flags ---------------------------------------------------------------------------------

    def raise_flags(self, now: float) -> None:
        """The wanted flags in the header, of the tiers that can help."""
        if not (self.line or self._has_flags):
            return
        if not self.line:
            self.recalls.rest()
            self.earmarks.forget(now)
        wanted = self._tiers_of_use()
        for tier in self.tiers:
            flag = int(tier.index in wanted)
            if self.header[WANTED + tier.index] != flag:
                self.header[WANTED + tier.index] = flag
        self._has_flags = bool(wanted)
