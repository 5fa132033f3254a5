"""The pool's memory as far as it is somebody's: what is granted, and what becomes of it at its end.

Does not know connections or requests: who is granted what, and who waits, is the broker's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shmpool.protocol.ledger import (
    GENERATION_FIELD,
    MAX_GENERATION,
    STATE_SHIFT,
    extent_word,
    follower_word,
    generation_of,
    link_word,
    state_of,
)
from shmpool.protocol.sizing import Tier, TierKind
from shmpool.protocol.states import State

from ..actions import RemoveDirect
from ..outbox import Outbox
from ..owners import Owner
from ..rows import Rows
from .holding import Holding
from .scrubber import Scrubber
from .slots import FEW_PIECES, Extent
from .stock import BUILT_PER_STEP, Stock
from .turnover import Turnover

if TYPE_CHECKING:
    from ..connections.seats import Seat


#: What it costs to have the pages of a row replaced that came back too old, in units.
RETIRING = 12
#: Rows whose tickets are searched together.
SEARCHED_PER_STEP = 1024


class Inventory(Stock):
    """The stock, and what of it is granted, leaving or quarantined."""

    def __init__(
        self, rows: Rows, tiers: tuple[Tier, ...], limit: int, seats: int, outbox: Outbox, scrubber: Scrubber
    ) -> None:
        super().__init__(rows, tiers, limit, seats, outbox, scrubber)
        self.granted: dict[int, Holding] = {}
        self.turnover = Turnover()
        #: How much was granted once and is not any more.
        self.over = 0
        #: By so many rows, how many of them may have tickets: those of what is granted or quarantined.
        self._per_step = SEARCHED_PER_STEP
        self._with_tickets = [0] * (rows.count // self._per_step + 1)
        #: How many of these are runs or direct segments.
        self.large = 0
        #: By tier, how many are runs in several pieces.
        self.scattered: Counter[int] = Counter()
        #: Runs that have ended, and what of them is not nobody's yet.
        self.leaving: dict[Holding, list[Extent]] = {}
        #: By seat, the bytes of its direct segments that are quarantined and may be mapped.
        self.condemned: Counter[int] = Counter()

    def tier_of(self, row: int) -> Tier:
        """The tier that a row belongs to."""
        for tier in self.tiers:
            if row < tier.end:
                return tier
        raise ValueError(f"no tier has row {row}")

    def where_tickets_may_be(self) -> Iterator[tuple[int, int]]:
        """The rows to search for them, from and to before, as it is when each is asked for: some at a time."""
        for block, first in enumerate(range(0, self.rows.count, self._per_step)):
            if self._with_tickets[block]:
                yield first, first + self._per_step

    def build(self, holding: Holding) -> Iterator[int]:
        """Write the followers of a taken run in steps, before `grant`; yields how many rows each
        step wrote. If it is not granted after all, `take_apart` undoes it."""
        head = holding.row
        holding.birth = generation_of(self.rows.grant(head))
        holding.following = following = 0
        for first, count in reversed(holding.extents):
            for start in range(first, first + count, BUILT_PER_STEP):
                end = min(start + BUILT_PER_STEP, first + count)
                for row in range(start, end):
                    if row != head:
                        link = link_word(following, count) if row == first else 0
                        self.rows.describe(row, follower_word(head, holding.birth), link)
                        self.rows.move(row, State.FOLLOWER)
                yield end - start
            if first != head:
                holding.following = following = first

    def grant(self, holding: Holding, seat: Seat, now: float) -> None:
        """Write it into the ledger as (IDLE, seat): its followers were built first, the head's
        grant word comes last, so that one store commits the whole."""
        head = holding.row
        if holding.extents == ((head, 1),) and holding.tier.kind is not TierKind.DIRECT:
            holding.birth = generation_of(self.rows.grant(head))
        holding.least = generation_of(self.rows.grant(head))
        # A direct segment's length must outlive the broker, for the cap of the next one.
        extent = extent_word(holding.direct_bytes, 0, holding.extents[0][1])
        self.rows.describe(head, extent, link_word(holding.following, holding.birth))
        self.rows.move(head, State.IDLE, seat.number)
        holding.publisher, holding.granted_at = seat.number, now
        holding.made_at = holding.made_at or now
        self.scrubber.note(holding.extents, seat.peer.uid)
        self.hold(holding, seat)

    def grant_slots(self, holdings: list[Holding], seat: Seat, now: float) -> None:
        """The same for single slots of one tier: what they have in common is done once. Where one fails, those before
        it are granted."""
        rows, number, extent, granted = self.rows, seat.number, extent_word(0, 0, 1), list[Holding]()
        try:
            for holding in holdings:
                head = holding.row
                holding.birth = holding.least = birth = generation_of(rows.grant(head))
                rows.describe(head, extent, link_word(0, birth))
                rows.move(head, State.IDLE, number)
                holding.publisher, holding.granted_at = number, now
                holding.made_at = holding.made_at or now
                granted.append(holding)
        finally:
            if granted:
                self._hold_slots(granted, seat)

    def _hold_slots(self, holdings: list[Holding], seat: Seat) -> None:
        """`hold` for what was just granted of one tier."""
        first, per_step, with_tickets = holdings[0], self._per_step, self._with_tickets
        rows = [holding.row for holding in holdings]
        self.granted.update(zip(rows, holdings, strict=True))
        self.turnover.add(first, len(rows))
        self.large += first.is_large * len(rows)
        for holding in holdings:
            with_tickets[holding.row // per_step] += 1
            holding.owner = seat
        seat.gain_alike(first, rows)
        if self.scrubber.is_on:
            for holding in holdings:
                self.scrubber.note(holding.extents, seat.peer.uid)

    def abandon(self, holding: Holding, now: float) -> None:
        """Give up a holding that was taken and not granted: what does not say what we left in it is
        quarantined, the rest is nobody's. Does nothing the second time, or for one that was granted."""
        if holding.is_over or holding.owner is not None:
            return
        holding.is_over = True
        slots = self.maps[holding.tier.index]
        if holding.tier.kind is TierKind.DIRECT:
            self.held -= holding.direct_bytes
        mask = holding.mask or slots.mask(holding.extents)
        self.held -= holding.tier.size * slots.count_cold(mask)
        if len(holding.extents) > FEW_PIECES and not self.quarantined and self.say_what_we_left(slots, mask):
            slots.put_back_all(mask)
            return
        for first, count in holding.extents:
            rows = range(first, first + count)
            if self.quarantined.isdisjoint(rows) and self.rows.are(first, slots.marks(first, count)):
                slots.give(first, count, now)
                continue
            for row in rows:
                if row not in self.quarantined:
                    self._abandon_row(holding, row, now)

    def _abandon_row(self, holding: Holding, row: int, now: float) -> None:
        slots = self.maps[holding.tier.index]
        is_built = self.rows.grant(row) & ~GENERATION_FIELD == State.FOLLOWER << STATE_SHIFT
        if is_built and self.rows.extent(row) == follower_word(holding.row, holding.birth):
            self.rows.move(row, State.FREE)
        if self.rows.are(row, slots.marks(row, 1)):
            slots.give(row, 1, now)
        else:
            self.quarantined.add(row)

    def hold(self, holding: Holding, owner: Owner) -> None:
        """It is *owner*'s from now on, and nobody else's."""
        if holding.owner is not None:
            holding.owner.lose(holding)
        else:
            self.granted[holding.row] = holding
            self.turnover.add(holding)
            self._with_tickets[holding.row // self._per_step] += 1
            self.large += holding.is_large
            self.scattered[holding.tier.index] += len(holding.extents) > 1
        holding.owner = owner
        owner.gain(holding)

    def _let_go(self, holding: Holding) -> None:
        if holding.owner is not None:
            del self.granted[holding.row]
            self.turnover.remove(holding)
            self.over += 1
            self._with_tickets[holding.row // self._per_step] -= 1
            self.large -= holding.is_large
            self.scattered[holding.tier.index] -= len(holding.extents) > 1
            holding.owner.lose(holding)
            holding.owner = None

    def free(self, holding: Holding, now: float) -> Iterator[int] | None:
        """End a holding that nobody may use any more: the head first, which commits it. A
        direct segment whose client lives may become a spare. Returns the steps of what is left
        to do, if anything is: a run's followers."""
        head = holding.row
        generation = self.rows.move(head, State.FREE)
        self._let_go(holding)
        if holding.tier.kind is TierKind.DIRECT:
            if generation < MAX_GENERATION and self._keep(holding, now):
                return None
            self.held -= holding.direct_bytes
            self._outbox.add(RemoveDirect(head, holding.birth))
        self.give(holding.tier, head, generation, now)
        return None if holding.extents == ((head, 1),) else self.take_apart(holding, now)

    def _keep(self, holding: Holding, now: float) -> bool:
        """Whether a direct segment that is done becomes a spare, with its row."""
        if now - holding.made_at > self.max_age:
            self.retired += 1
            return False
        return holding.orphaned_at is None and self.spares.keep(
            holding.row, holding.birth, holding.direct_bytes, now, holding.made_at
        )

    def give_head(self, holding: Holding, now: float) -> None:
        """Make the head of a run nobody's that was built and not granted."""
        holding.is_over = True
        self.maps[holding.tier.index].give(holding.row, 1, now)

    def take_apart(self, holding: Holding, now: float) -> Iterator[int]:
        """Make the followers of a run nobody's, in steps; yields what each step cost, in units.
        Its head names them no longer, so a crash in the middle loses nothing."""
        (head, count), *others = holding.extents
        left = [*others[::-1], (head + 1, count - 1)]
        self.leaving[holding] = left
        while left:
            first, count = left.pop()
            step = min(count, BUILT_PER_STEP)
            if step < count:
                left.append((first + step, count - step))
            retired = self.retired
            for row in range(first, first + step):
                self._free_follower(holding.tier, row, now)
            yield step + RETIRING * (self.retired - retired)
        del self.leaving[holding]

    def _free_follower(self, tier: Tier, row: int, now: float) -> None:
        if state_of(self.rows.grant(row)) == State.FOLLOWER:
            self.give(tier, row, self.rows.move(row, State.FREE), now)
        else:  # somebody scribbled on it
            self.quarantined.add(row)

    def remove_direct(self, holding: Holding) -> None:
        """Unlink a direct segment that was made and not granted."""
        self._outbox.add(RemoveDirect(holding.row, holding.birth))

    def direct_segments(self) -> set[tuple[int, int]]:
        """(row, generation) of every direct segment that a row names; others are leftovers."""
        return {(row, held.birth) for row, held in self.granted.items() if held.tier.kind is TierKind.DIRECT}

    def quarantine(self, holding: Holding) -> None:
        """A client left nonsense in its row: never give it out again. Its memory is lost with it,
        but for a direct segment, which has a name of its own: that is unlinked, and counts for as
        long as its seat, whose process has it mapped."""
        self._let_go(holding)
        if holding.tier.kind is TierKind.DIRECT:
            if holding.publisher:
                self.condemned[holding.publisher] += holding.direct_bytes
            else:
                self.held -= holding.direct_bytes
            self._outbox.add(RemoveDirect(holding.row, holding.birth, may_be_mapped=True))
        for row, count in holding.extents:
            self.set_aside(row, count)

    def set_aside(self, row: int, count: int = 1) -> None:
        """Rows that somebody may have open are never given out again."""
        for at in range(row, row + count):
            self.quarantined.add(at)
            self._with_tickets[at // self._per_step] += 1

    def has_any(self, first: int, end: int) -> bool:
        """Whether any of these rows may be granted or quarantined; of all others the ledger need not be read."""
        return any(self._with_tickets[first // self._per_step : (end - 1) // self._per_step + 1])

    def acquit(self, seat: int) -> None:
        """A seat has ended, and nothing that was quarantined is mapped any more."""
        self.held -= self.condemned.pop(seat, 0)

    def give(self, tier: Tier, row: int, generation: int, now: float) -> None:
        """Make a row that says FREE nobody's, unless its generation has run out; it goes cold when its
        pages are too old."""
        if generation >= MAX_GENERATION:
            self.rows.retire(row)
            self.quarantined.add(row)
            return
        slots = self.maps[tier.index]
        slots.give(row, 1, now)
        if now - slots.warmed_at(row) > self.max_age and tier.kind is not TierKind.DIRECT:
            self.retired += self.cool_extent(slots, row, 1)
