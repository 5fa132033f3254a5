"""Earmarks: what becomes free is kept for whoever has waited long, in turns with the others.

Who waits for much would wait for ever beside those who take little, and often: each time that
something comes back, one of them is there. So a waiter that has aged has a **turn**: for a
second at most, nothing of what it needs (bytes, or chunks of its tier) goes to anybody else.
The turn ends sooner when nothing more comes back. Then the **others** have theirs, for as long
as that took, and what was gathered stays with the waiter. A turn that gathered no more than
those before it shows that living leases make the request impossible for now: nothing is kept
then, and the others have nine times as long, so that at most a tenth is lost to it.

Bounds, counted from when enough has come back in total: the waiter is served within `TURN` if
it comes back that fast, else within twice the time that it takes to; and later by `AGE` and
`LONGEST_REST` at most. A request that fits into what is free waits for two turns at most.
What a client recycles in its own magazines is not touched by any of this.
"""

from __future__ import annotations

from collections.abc import Iterable

from shmpool.protocol.sizing import Tier, TierKind

from ..chores import NEVER
from ..memory.inventory import Inventory
from .requests import Request

#: Seconds after which a waiter has a turn.
AGE = 0.1
#: The longest turn.
TURN = 1.0
#: A turn ends when nothing more was gathered for twice the longest pause between two returns
#: lately, but not before so many seconds. What the pause is thought to be before anything came back.
SHORTEST_TURN, FIRST_PAUSE = 0.02, 0.02
#: How many times as long as a futile turn the others have then, and how long at most.
FUTILE, LONGEST_REST = 9, 2.0
#: What was gathered at most is forgotten after so many seconds: leases end.
REMEMBERED = 5.0


class Earmarks:
    """Whose turn it is, and what others may take meanwhile."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
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
        #: No turn begins before this.
        self._rests_until = 0.0
        #: Nobody who waits has aged before this.
        self._ages_at = NEVER
        #: When something came back last, and the longest pause before that lately.
        self._freed_at, self._pause = float("inf"), FIRST_PAUSE

    # --- what is there ------------------------------------------------------------------------

    def amount(self, request: Request) -> int:
        """How much there is for a request, in bytes, or chunks of its tier."""
        inventory = self._inventory
        nbytes = inventory.room + inventory.idle - self.promised
        if request.tier.kind is not TierKind.CHUNK:
            return nbytes
        slots = inventory.maps[request.tier.index]
        chunks = slots.placeable if slots.unused >= request.chunks else slots.unused
        return min(chunks, nbytes // request.tier.size)

    def allow(self, request: Request, tier: Tier, nbytes: int) -> int:
        """How many slots, runs or segments of *nbytes* bytes each a request may take out of a
        tier, of those that it asks for."""
        waiter = self._waiter
        if waiter is None and not self.promised:
            return request.count
        inventory = self._inventory
        free = inventory.room + inventory.idle - self.promised
        if waiter is not None and waiter is not request and waiter.is_in_line:
            if waiter.tier.kind is not TierKind.CHUNK:
                free -= self._kept
            else:
                free -= self._kept * waiter.tier.size
                if tier is waiter.tier:
                    free = min(free, (inventory.maps[tier.index].unused - self._kept) * tier.size)
        return max(0, min(request.count, free // max(1, nbytes)))

    # --- turns --------------------------------------------------------------------------------

    def note_waiting(self, request: Request) -> None:
        """Somebody begins to wait."""
        self._ages_at = min(self._ages_at, request.since + AGE)

    def note_freed(self, now: float) -> None:
        """Something has come back."""
        if now > self._freed_at:
            self._pause = max(min(now - self._freed_at, TURN), self._pause / 2)
        self._freed_at = now

    @property
    def next_deadline(self) -> float:
        """When `tick` is due, while anybody waits."""
        return self._turn_ends if self._is_turn else max(self._rests_until, self._ages_at)

    @property
    def _turn_ends(self) -> float:
        return min(self._began + TURN, self._best_at + max(2 * self._pause, SHORTEST_TURN))

    def tick(self, waiting: Iterable[Request], now: float) -> bool:
        """Begin or end a turn, if it is time. True when somebody may be served now who might not
        before. *waiting* are those who could have a turn."""
        waiter = self._waiter
        if waiter is not None and not waiter.is_in_line:
            self._rest(now, now - self._began if self._is_turn else 0.0)
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
            self._begin(waiter or self._choose(waiting, now), now)
        return False

    def _choose(self, waiting: Iterable[Request], now: float) -> Request | None:
        """Of those who have aged whoever had the fewest turns, and came first."""
        aged = []
        self._ages_at = NEVER
        for request in waiting:
            if request.since + AGE <= now:
                aged.append(request)
            self._ages_at = min(self._ages_at, request.since + AGE)
        return min(aged, key=lambda request: (request.turns, request.order), default=None)

    def _begin(self, waiter: Request | None, now: float) -> None:
        if waiter is None:
            return
        waiter.turns += 1
        self._waiter, self._is_turn, self._began = waiter, True, now
        self._kept = waiter.chunks if waiter.tier.kind is TierKind.CHUNK else waiter.wanted_bytes
        self._best, self._best_at = self.amount(waiter), now
        if now - waiter.gathered_at > REMEMBERED:
            waiter.gathered, waiter.gathered_at = self._best, now

    def _end(self, waiter: Request, amount: int, now: float) -> None:
        seconds = now - self._began
        if self._best > waiter.gathered:
            waiter.gathered, waiter.gathered_at = self._best, now
            self._is_turn, self._kept = False, amount
            self._rests_until = now + seconds
        else:
            self._rest(now, min(FUTILE * seconds, LONGEST_REST))

    def forget(self) -> None:
        """Nobody waits any more."""
        self._waiter, self._is_turn, self._kept = None, False, 0
        self._ages_at = NEVER

    def _rest(self, now: float, seconds: float) -> None:
        """Nothing is kept for anybody, for so long at least."""
        self._waiter, self._is_turn, self._kept = None, False, 0
        self._rests_until = now + seconds
