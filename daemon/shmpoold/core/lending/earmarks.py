"""Earmarks: what becomes free is kept for whoever has waited long, in turns with the others.

Who waits for much would wait for ever beside those who take little, and often: each time that
something comes back, one of them is there. So a waiter that has aged has a **turn**: for a
second at most, nothing of what it needs (bytes, or chunks of its tier) goes to anybody else.
The turn ends sooner when nothing more comes back. Then the **others** have theirs, for as long
as that took, and what was gathered stays with the waiter. A turn that gathered no more than
those before it shows that living leases make the request impossible for now: nothing is kept
then, and the others have nine times as long, so that at most a tenth is lost to it.

Turns go by process, not by request: whoever waits and had none for longest has the next one, with
its oldest request that had fewest. And what turns have shown holds for everybody who waits for as
much: ten thousand that wait for what is impossible cost the others what one does. So does one that
goes in the middle of its turn, and asks again.

Bounds, counted from when enough has come back in total: the waiter is served within `TURN` if
it comes back that fast, else within twice the time that it takes to; and later by `AGE` and
`LONGEST_REST` at most, and by as much for each other process that waits. Where the turns of
others have shown as much to be impossible, and it comes back slowly, it is later by `REMEMBERED`,
or nine times what those turns took. A request that fits into what is free waits for two turns at
most. What a client recycles in its own magazines is not touched by any of this.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmpool.protocol.sizing import Tier, TierKind

from ..chores import NEVER
from ..memory.inventory import Inventory
from .large import LargeOperations
from .requests import Request, WaitingLine

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
#: How many processes are looked at for one that has a turn.
CONSIDERED = 16


@dataclass(slots=True)
class Shown:
    """What turns have gathered at most, and until when nobody tries anew whether it could be more: for so
    long that the time in which something was kept, the others' turns between included, is a tenth."""

    amount: int
    until: float
    spent: float = 0.0

    def note(self, amount: int, seconds: float, now: float) -> None:
        """A turn of so many seconds has gathered more."""
        self.amount = max(self.amount, amount)
        self.spent += 2 * seconds
        self.until = now + max(REMEMBERED, FUTILE * self.spent)


class Earmarks:
    """Whose turn it is, and what others may take meanwhile."""

    def __init__(self, inventory: Inventory, line: WaitingLine, large: LargeOperations) -> None:
        self._inventory = inventory
        self._line = line
        self._large = large
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
        #: What turns have shown: of the chunks of a tier by its index, of bytes by -1.
        self._shown: dict[int, Shown] = {}
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
        """Of the processes that wait whichever had no turn for longest, and has a request that has aged;
        of its requests whichever had the fewest turns, and came first."""
        self._ages_at = NEVER
        processes = self._line.processes(CONSIDERED + 1)
        for process in processes[:CONSIDERED]:
            aged: list[Request] = []
            for request in self._line.standing(process):
                ages_at = request.since + AGE
                if self._large.are_full_for(request):  # memory would not help it, for now
                    ages_at = now + AGE
                elif ages_at <= now:
                    aged.append(request)
                self._ages_at = min(self._ages_at, ages_at)
            if aged:
                self._line.had_turn(process)
                return min(aged, key=lambda request: (request.turns, request.order))
        if len(processes) > CONSIDERED:
            for process in processes[:CONSIDERED]:
                self._line.had_turn(process)
            self._ages_at = now + AGE
        return None

    def _begin(self, waiter: Request | None, now: float) -> None:
        if waiter is None:
            return
        waiter.turns += 1
        waiter.is_kept_for = True
        self._waiter, self._is_turn, self._began = waiter, True, now
        self._kept = waiter.chunks if waiter.tier.kind is TierKind.CHUNK else waiter.wanted_bytes
        self._best, self._best_at = self.amount(waiter), now
        if now - waiter.gathered_at > REMEMBERED:
            waiter.gathered, waiter.gathered_at = self._best, now
        if (shown := self._shown.get(_kind(waiter))) is None or now > shown.until:
            self._shown[_kind(waiter)] = Shown(self._best, now + REMEMBERED)

    def _end(self, waiter: Request, amount: int, now: float) -> None:
        seconds = now - self._began
        shown = self._shown[_kind(waiter)]
        most, is_more = shown.amount, self._best > waiter.gathered
        if is_more:
            waiter.gathered, waiter.gathered_at = self._best, now
        if is_more and (self._best > most or self._kept <= most):
            self._is_turn, self._kept = False, amount
            self._rests_until = now + seconds
            shown.note(self._best, seconds, now)
        else:
            self._rest(now, min(FUTILE * seconds, LONGEST_REST))

    def _leave(self, waiter: Request, now: float) -> None:
        """It was served, which others may be as well; or it is gone, and its turn was in vain."""
        seconds = now - self._began if self._is_turn else 0.0
        if waiter.is_gone:
            seconds = min(FUTILE * seconds, LONGEST_REST)
        else:
            self._shown.pop(_kind(waiter), None)
        self._rest(now, seconds)

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
    return request.tier.index if request.tier.kind is TierKind.CHUNK else -1
