"""Earmarks: what becomes free is kept for whoever has waited long, in turns with the others.

Who waits for much would wait for ever beside those who take little, and often: each time that
something comes back, one of them is there. So a waiter that has aged, and for which enough **has
come back** in total since it began to wait, has a **turn**: for a second at most, nothing of what
it needs (bytes, or chunks of its tier) goes to anybody else. The turn ends sooner when nothing more
comes back. Then the **others** have theirs, for as long as that took, and what was gathered stays
with the waiter. A turn that gathered no more than those before it was in vain: nothing is kept
then, the others have nine times as long, so that at most a tenth is lost to it, and enough has to
come back anew for whoever wants as much. So it has when turns took twice as long in all as it took
to come back.

What living leases make impossible keeps nothing from anybody: what was out when a waiter came, and
still is, has not come back. Turns go by process, not by request: whoever waits and had none for
longest has the next one, with its oldest request that had fewest. Who goes in the middle of its
turn, and asks again, has the others rest as after one in vain.

Bounds, counted from when enough has come back in total: the waiter is served within `TURN` if
it comes back that fast again, else within twice the time that it takes to; and later by two `AGE`, by
the rest after the last turn (nine `TURN` at the longest, where that was in vain), by the turns in vain
until one is as patient as returns are rare (three at most, and ten seconds with their rests), and by as
much for each other process for which enough has come back. A request that fits into what is free waits for two turns at
most. What a client recycles in its own magazines is not touched by any of this.
"""

from __future__ import annotations

from collections.abc import Callable

from shmpool.protocol.sizing import Tier, TierKind

from ..chores import NEVER
from ..memory.inventory import Inventory
from ..memory.turnover import BYTES
from .large import LargeOperations
from .requests import Request, WaitingLine

#: Seconds after which a waiter has a turn.
AGE = 0.1
#: The longest turn.
TURN = 1.0
#: A turn ends when nothing more was gathered for twice the longest pause between two returns
#: lately, but not before so many seconds. What the pause is thought to be before anything came back,
#: and what is left of a long one after a shorter one.
SHORTEST_TURN, FIRST_PAUSE, FADING = 0.02, 0.02, 0.7
#: A pause in which nobody worked is long, too, and others wait meanwhile: so a turn goes on in vain for so
#: many seconds at first, and for twice as many after each one that was in vain, up to `TURN`.
FIRST_PATIENCE = 0.15
#: How many times as long as a turn that was in vain the others have then.
FUTILE = 9
#: How many processes are looked at for one that has a turn.
CONSIDERED = 16


class Earmarks:
    """Whose turn it is, and what others may take meanwhile."""

    def __init__(self, inventory: Inventory, line: WaitingLine, large: LargeOperations) -> None:
        self._inventory = inventory
        self._line = line
        self._large = large
        #: Bytes of caches that nobody holds, which are given up for whom they suffice for.
        self.cached: Callable[[], int] = lambda: 0
        #: Bytes that are being cooled for requests that they will suffice for.
        self.promised = 0
        #: Whose turn it is, or for whom something is kept while the others have theirs.
        self._waiter: Request | None = None
        self._is_turn = False
        #: What is kept, in bytes, or in chunks of the waiter's tier.
        self._kept = 0
        self._began = 0.0
        #: What was there for the waiter at the best moment of its turn, and when.
        self._best, self._best_at = 0, 0.0
        #: How long the last turn took.
        self._took = 0.0
        #: Of which turns were in vain, by what they gathered: who wants as much, and since when it has to
        #: come back.
        self._in_vain: dict[int, tuple[int, float]] = {}
        #: And how long the next one may go on in vain, where that is not `FIRST_PATIENCE`.
        self._patience: dict[int, float] = {}
        #: No turn begins before this.
        self._rests_until = 0.0
        #: Nobody who waits has aged before this.
        self._ages_at = NEVER
        #: When something came back last, and the longest pause before that lately.
        self._freed_at, self._pause = float("inf"), FIRST_PAUSE

    # --- what is there ------------------------------------------------------------------------

    def amount(self, request: Request) -> int:
        """How much there is for a request, in bytes, or chunks of its tier."""
        if request.tier.kind is not TierKind.CHUNK:
            return self._nbytes
        return min(self._chunks(request), self._nbytes // request.tier.size)

    def has_come_back(self, request: Request) -> bool:
        """Whether what a request wants is there, or was at one time or another since it began to wait."""
        turnover, moment = self._inventory.turnover, request.awaits_since
        if self._nbytes + self.cached() + turnover.since(moment, BYTES) < request.wanted_bytes:
            return False
        is_bytes = request.tier.kind is not TierKind.CHUNK
        return is_bytes or self._chunks(request) + turnover.since(moment, request.tier.index) >= request.chunks

    @property
    def _nbytes(self) -> int:
        return self._inventory.room + self._inventory.idle - self.promised

    def _chunks(self, request: Request) -> int:
        slots = self._inventory.maps[request.tier.index]
        return slots.placeable if slots.unused >= request.chunks else slots.unused

    def allow(self, request: Request, tier: Tier, nbytes: int) -> int:
        """How many slots, runs or segments of *nbytes* bytes each a request may take out of a
        tier, of those that it asks for."""
        waiter = self._waiter
        if waiter is None and not self.promised:
            return request.count
        inventory, free = self._inventory, self._nbytes
        if waiter is not None and waiter is not request and waiter.is_in_line:
            if waiter.tier.kind is not TierKind.CHUNK:
                free -= self._kept
            else:
                free -= self._kept * waiter.tier.size
                if tier is waiter.tier:
                    free = min(free, (inventory.maps[tier.index].unused - self._kept) * tier.size)
        return max(0, min(request.count, free // max(1, nbytes)))

    # --- turns --------------------------------------------------------------------------------

    def note_waiting(self, request: Request, now: float) -> None:
        """Somebody begins to wait."""
        if not request.awaits_since:
            self._inventory.turnover.mark(now)
            request.awaits_since = now
        self._ages_at = min(self._ages_at, request.since + AGE)

    def note_freed(self, now: float) -> None:
        """Something has come back."""
        if now > self._freed_at:
            self._pause = max(min(now - self._freed_at, TURN), FADING * self._pause)
        self._freed_at = now

    @property
    def next_deadline(self) -> float:
        """When `tick` is due, while anybody waits."""
        return self._turn_ends if self._is_turn else max(self._rests_until, self._ages_at)

    @property
    def _turn_ends(self) -> float:
        assert self._waiter is not None
        patience = min(2 * self._pause, self._patience.get(_kind(self._waiter), FIRST_PATIENCE))
        return min(self._began + TURN, self._best_at + max(patience, SHORTEST_TURN))

    def tick(self, now: float) -> bool:
        """Begin or end a turn, if it is time. True when somebody may be served now who might not
        before."""
        waiter = self._waiter
        if waiter is not None and not waiter.is_in_line:
            self._leave(waiter, now)
            return True
        if self._is_turn and waiter is not None:
            amount = self.amount(waiter)
            if amount > self._best:
                self._best, self._best_at = amount, now
            if now < self._turn_ends:
                return False
            self._end(waiter, amount, now)
            return True
        if now >= max(self._rests_until, self._ages_at):
            self._begin(waiter or self._choose(now), now)
        return False

    def _choose(self, now: float) -> Request | None:
        """Of the processes that wait whichever had no turn for longest, and has a request that has aged and
        for which enough has come back; of its requests whichever had the fewest turns, and came first."""
        self._ages_at = NEVER
        processes = self._line.processes(CONSIDERED + 1)
        for process in processes[:CONSIDERED]:
            ready: list[Request] = []
            for request in self._line.standing(process):
                ages_at = request.since + AGE
                if ages_at <= now:
                    if self._may_have_turn(request):
                        ready.append(request)
                    else:
                        ages_at = now + AGE
                self._ages_at = min(self._ages_at, ages_at)
            if ready:
                self._line.had_turn(process)
                return min(ready, key=lambda request: (request.turns, request.order))
        if len(processes) > CONSIDERED:
            for process in processes[:CONSIDERED]:
                self._line.had_turn(process)
            self._ages_at = now + AGE
        return None

    def _may_have_turn(self, request: Request) -> bool:
        if self._large.are_full_for(request):  # memory would not help it, for now
            return False
        if (in_vain := self._in_vain.get(_kind(request))) is not None:
            wanted, since = in_vain
            if _wanted(request) >= wanted and since > request.awaits_since:
                request.awaits_since, request.spent = since, 0.0
        return self.has_come_back(request)

    def _begin(self, waiter: Request | None, now: float) -> None:
        if waiter is None:
            return
        waiter.turns += 1
        waiter.is_kept_for = True
        self._waiter, self._is_turn, self._began = waiter, True, now
        self._kept = _wanted(waiter)
        self._best, self._best_at = self.amount(waiter), now
        if not waiter.spent:
            waiter.gathered, waiter.allowance = self._best, max(TURN, 2 * (now - waiter.awaits_since))

    def _end(self, waiter: Request, amount: int, now: float) -> None:
        self._took = now - self._began
        waiter.spent += self._took
        if self._best > waiter.gathered and waiter.spent < waiter.allowance:
            waiter.gathered = self._best
            self._patience.pop(_kind(waiter), None)
            self._is_turn, self._kept = False, amount
            self._rests_until = now + self._took
        else:
            self._inventory.turnover.mark(now, exactly=True)
            kind = _kind(waiter)
            self._in_vain[kind] = _wanted(waiter), now
            self._patience[kind] = min(TURN, 2 * self._patience.get(kind, FIRST_PATIENCE))
            waiter.awaits_since, waiter.spent = now, 0.0
            self._rest(now, FUTILE * self._took)

    def _leave(self, waiter: Request, now: float) -> None:
        """It was served, which others may be as well; or it is gone, and its turn was in vain."""
        if self._is_turn:
            self._took = now - self._began
        if waiter.is_gone:
            self._rest(now, FUTILE * self._took)
        else:
            self._patience.pop(_kind(waiter), None)
            self._rest(now, self._took if self._is_turn else 0.0)

    def forget(self, now: float) -> None:
        """Nobody waits any more."""
        if self._waiter is not None:
            self._leave(self._waiter, now)
        self._ages_at = NEVER

    def _rest(self, now: float, seconds: float) -> None:
        """Nothing is kept for anybody, for so long at least."""
        self._keep_nothing()
        self._rests_until = now + seconds

    def _keep_nothing(self) -> None:
        if self._waiter is not None:
            self._waiter.is_kept_for = False
        self._waiter, self._is_turn, self._kept = None, False, 0


def _kind(request: Request) -> int:
    """What is gathered for it."""
    return request.tier.index if request.tier.kind is TierKind.CHUNK else BYTES


def _wanted(request: Request) -> int:
    """How much of that it needs."""
    return request.chunks if request.tier.kind is TierKind.CHUNK else request.wanted_bytes
