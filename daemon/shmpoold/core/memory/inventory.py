"""The pool's memory: what is warm, what is granted, and the cap over all of it.

Covers taking, warming, cooling and freeing of slots, runs and direct segments, with the
ledger's words in their proper order. Does not know connections or requests: who is
granted what, and who waits, is the broker's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from shmpool.protocol.header import header_bytes, ledger_bytes
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
from shmpool.protocol.sizing import (
    MIB,
    Tier,
    TierKind,
    page_round,
    rows_of,
)
from shmpool.protocol.states import State

from ..actions import (
    Cool,
    CreateDirect,
    RemoveDirect,
)
from ..chores import NEVER
from ..outbox import Outbox
from ..rows import Rows
from .scrubber import Scrubber
from .slots import SlotMap, Span
from .spares import Spare, Spares

#: Pages are reserved in slices of at most so many bytes (0.1 ms each), so that warming
#: does not hold up the loop.
WARM_SLICE = MIB
#: A number of bytes that nobody has.
UNBOUNDED = 1 << 62
#: How many rows are cooled within one event.
COOLED_AT_ONCE = 256
#: How many rows of a run are written, or scrubbed, in one step.
BUILT_PER_STEP = 64
#: The grant word of a warm row that is nobody's, without its generation.
WARM = State.FREE << STATE_SHIFT


@dataclass(slots=True, eq=False)
class Holding:
    """Something granted: a slot, a run or several, a direct segment. It goes by its
    head's row; *spans* are its extents in order."""

    row: int
    tier: Tier
    spans: tuple[Span, ...]
    seat: int = 0
    #: Bytes of a direct segment, whole pages.
    direct_bytes: int = 0
    #: The broker is the custodian of its publication.
    in_custody: bool = False
    #: When its publisher was seen to be gone.
    orphaned_at: float | None = None
    #: When it was granted; ages are the broker's.
    granted_at: float = 0.0
    #: When a direct segment's pages were reserved first, by whichever object.
    made_at: float = 0.0
    #: The head's generation when it was granted: a run's birth, a direct segment's name.
    birth: int = 0
    #: The first row of a run's second extent, 0 for none.
    following: int = 0
    #: It was given up before it was granted.
    is_over: bool = False

    @property
    def nbytes(self) -> int:
        """Memory that it holds, in bytes."""
        return self.direct_bytes or self.tier.size * self.chunks

    @property
    def is_large(self) -> bool:
        """It is a run or a direct segment: one of the large operations that may be bounded."""
        return self.tier.kind is not TierKind.POOLED

    @property
    def chunks(self) -> int:
        """How many rows it has."""
        chunks = 0
        for _, count in self.spans:
            chunks += count
        return chunks


class Inventory:
    """Slot maps, direct segments, and `held` against `limit` (both in bytes, ledger and
    header counted)."""

    def __init__(
        self,
        rows: Rows,
        tiers: tuple[Tier, ...],
        limit: int,
        seats: int,
        outbox: Outbox,
        scrubber: Scrubber,
    ) -> None:
        self.rows = rows
        self.tiers = tiers
        self.limit = limit
        self.overhead = header_bytes(seats) + ledger_bytes(rows_of(tiers), seats)
        self.held = self.overhead
        #: More than that is not held while the host is short of memory; no bound at other times.
        self.ceiling = UNBOUNDED
        #: Whether direct segments are exempt from it.
        self.direct_may_grow = False
        #: Slots of each tier that idleness does not cool, and whether a tier has fewer.
        self.floors = [0] * len(tiers)
        self.is_below_floor = False
        #: Seconds after which pages are replaced, and how many slots and segments that was so for.
        self.max_age = NEVER
        self.retired = 0
        #: What was held already when the pool was taken over: more than a limit lowered
        #: meanwhile, or than a damaged ledger can account for. Nothing is reserved over the limit.
        self.adopted = 0
        self.maps = [SlotMap(tier) for tier in tiers]
        self.granted: dict[int, Holding] = {}
        #: How many of these are runs or direct segments.
        self.large = 0
        #: Runs that have ended, and what of them is not nobody's yet.
        self.leaving: dict[Holding, list[Span]] = {}
        #: Rows that are never given out again: a client wrote nonsense, or the generation ran out.
        self.quarantined: set[int] = set()
        #: By seat, the bytes of its direct segments that are quarantined and may be mapped.
        self.condemned: Counter[int] = Counter()
        self.scrubber = scrubber
        #: What the last `reserve` would have had, had there been time to cool so much.
        self.to_clear = 0
        #: A segment that is used again shows the next user what the last one wrote.
        self.spares = Spares(limit, is_on=not scrubber.is_on)
        self._outbox = outbox

    def tier_of(self, row: int) -> Tier:
        """The tier that a row belongs to."""
        for tier in self.tiers:
            if row < tier.end:
                return tier
        raise ValueError(f"no tier has row {row}")

    @property
    def room(self) -> int:
        """Bytes that may still be reserved."""
        return min(self.limit, self.ceiling) - self.held

    @property
    def has_ready(self) -> bool:
        """Whether any slot or chunk is warm, nobody's and above its tier's floor: something that may
        be cooled."""
        return any(
            slots.ready and slots.warm > floor for slots, floor in zip(self.maps[:-1], self.floors, strict=False)
        )

    @property
    def idle(self) -> int:
        """Bytes that are held and nobody's: of warm slots, and of spares."""
        nbytes = self.spares.nbytes
        for slots in self.maps:
            nbytes += slots.ready * slots.tier.size
        return nbytes

    def open_direct_rows(self) -> None:
        """Make the rows of direct segments grantable: they have no pages of their own."""
        tier = self.tiers[-1]
        self.maps[tier.index].take(tier.base, tier.capacity)
        self.warmed(tier, tier.base, tier.capacity, 0.0)
        self.maps[tier.index].give(tier.base, tier.capacity, 0.0)

    # --- taking ------------------------------------------------------------------------------

    def take_ready(self, tier: Tier, chunks: int) -> Holding | None:
        """A slot or a contiguous run that is warm and nobody's."""
        slots = self.maps[tier.index]
        while (row := slots.take_ready(chunks)) is not None:
            is_free_slot = chunks == 1 and self.rows.grant(row) & ~GENERATION_FIELD == WARM
            if is_free_slot or self.are_sound(tier, ((row, chunks),)):
                return Holding(row, tier, ((row, chunks),))
        return None

    def take_cold(self, tier: Tier, chunks: int, count: int) -> list[Holding]:
        """Up to *count* slots, or one run (scattered if need be), some of it cold; its
        memory is reserved from the cap, cooling idle slots elsewhere if it must. Empty
        when rows or memory are missing, or it takes long to make room: see `reserve`."""
        slots = self.maps[tier.index]
        is_pooled = tier.kind is TierKind.POOLED
        while takings := self._find_slots(tier, count) if is_pooled else self._find_run(tier, chunks):
            spans = [span for taking in takings for span in taking]
            for row, length in spans:
                slots.take(row, length)
            if not self.are_sound(tier, spans):
                continue
            if self.reserve(tier.size * sum(length for _, length in self._cold(tier, spans))):
                return [Holding(taking[0][0], tier, taking) for taking in takings]
            for row, length in spans:
                slots.put_back(row, length)
            break
        return []

    def are_sound(self, tier: Tier, spans: Iterable[Span]) -> bool:
        """Whether taken rows still say what we left in them. If not, somebody scribbled on the
        ledger: those that do not are quarantined, the others put back."""
        slots = self.maps[tier.index]
        if all(self.rows.are(row, slots.marks(row, count)) for row, count in spans):
            return True
        for row, count in spans:
            for at in range(row, row + count):
                if self.rows.are(at, slots.marks(at, 1)):
                    slots.put_back(at, 1)
                else:
                    self.quarantined.add(at)
        return False

    def _find_slots(self, tier: Tier, count: int) -> list[tuple[Span, ...]]:
        count = max(1, min(count, WARM_SLICE // tier.size, self.room // tier.size))
        row = self.maps[tier.index].find_unused(count)
        if row is None:
            count, row = 1, self.maps[tier.index].find_unused(1)
        return [] if row is None else [((at, 1),) for at in range(row, row + count)]

    def _find_run(self, tier: Tier, chunks: int) -> list[tuple[Span, ...]]:
        row = self.maps[tier.index].find_unused(chunks)
        pieces = self.maps[tier.index].scatter(chunks) if row is None else [(row, chunks)]
        return [tuple(pieces)] if pieces else []

    def _cold(self, tier: Tier, spans: list[Span]) -> list[Span]:
        slots = self.maps[tier.index]
        return [cold for row, count in spans for cold in slots.cold_spans(row, count)]

    def take_direct(self, nbytes: int) -> Holding | None:
        """A row for a direct segment, its memory reserved from the cap; asks the shell to
        make the segment, of a spare where there is one. `direct_made` when it has."""
        tier = self.tiers[-1]
        size = page_round(max(nbytes, 1))
        holding = self.take_ready(tier, 1)
        if holding is None:
            return None
        spare = self.spares.take(size)
        if spare is not None:
            self.held -= spare.nbytes
        # A spare has all of its pages until it is cut to size.
        holding.direct_bytes = size if spare is None else max(size, spare.nbytes)
        holding.made_at = spare.made_at if spare is not None else 0.0
        if not self.reserve(holding.direct_bytes, is_direct=True):
            self.maps[tier.index].put_back(holding.row, 1)
            if spare is not None:
                self.held += spare.nbytes
                self.spares.put_back(spare)
            return None
        holding.birth = generation_of(self.rows.grant(holding.row))
        self._outbox.add(CreateDirect(holding.row, holding.birth, size, spare))
        return holding

    def direct_made(self, holding: Holding, nbytes: int) -> None:
        """The segment is there, and has the size that was asked for."""
        size = page_round(max(nbytes, 1))
        self.held -= holding.direct_bytes - size
        holding.direct_bytes = size

    def reserve(self, nbytes: int, *, is_direct: bool = False) -> bool:
        """Count *nbytes* as held, cooling idle slots to make room; False if it cannot be, and then
        nothing was cooled, or if it takes longer than one event may: then *to_clear* is *nbytes*."""
        self.to_clear = 0
        room = self.limit - self.held if is_direct and self.direct_may_grow else self.room
        short = nbytes - room
        if short > 0:
            if short > self.idle:
                return False
            if self._rows_to_cool(short) > COOLED_AT_ONCE:
                self.to_clear = nbytes
                return False
            if self.cool(short, COOLED_AT_ONCE) < short:  # somebody scribbled on what was idle
                return False
        self.held += nbytes
        return True

    def _rows_to_cool(self, nbytes: int) -> int:
        """About how many rows `cool` cools for so many bytes."""
        nbytes -= self.spares.nbytes
        rows = 0
        for slots in self._richest():
            if nbytes <= 0:
                break
            count = min(slots.ready, -(-nbytes // slots.tier.size))
            nbytes -= count * slots.tier.size
            rows += count
        return rows

    def _richest(self) -> list[SlotMap]:
        """The tiers that have anything idle, those with most bytes of it first."""
        idle = [slots for slots in self.maps if slots.ready and slots.tier.kind is not TierKind.DIRECT]
        return sorted(idle, key=lambda slots: -slots.ready * slots.tier.size)

    # --- warming -----------------------------------------------------------------------------

    def to_warm(self, holdings: list[Holding]) -> list[Span]:
        """What of taken holdings of one tier is still to be warmed, in slices."""
        if not holdings:
            return []
        tier = holdings[0].tier
        longest = max(1, WARM_SLICE // max(1, tier.size))
        slices: list[Span] = []
        for row, count in self._cold(tier, [span for holding in holdings for span in holding.spans]):
            if slices and sum(slices[-1]) == row and slices[-1][1] + count <= longest:
                slices[-1] = (slices[-1][0], slices[-1][1] + count)
            else:
                slices += [(at, min(longest, row + count - at)) for at in range(row, row + count, longest)]
        return slices

    def warmed(self, tier: Tier, row: int, count: int, now: float) -> bool:
        """Pages are there: the ledger may say FREE. False when somebody has scribbled on any of
        these rows meanwhile; the others say it."""
        slots = self.maps[tier.index]
        is_sound = self.rows.are(row, bytes(count))
        slots.set_warm(row, count, now)
        for at in range(row, row + count):
            if is_sound or self.rows.are(at, bytes(1)):
                self.rows.move(at, State.FREE)
            else:
                self.quarantined.add(at)
        return is_sound

    def are_ready(self, holdings: list[Holding]) -> bool:
        """Whether all rows of taken holdings still say FREE."""
        return all(self.rows.are(row, b"\1" * count) for holding in holdings for row, count in holding.spans)

    def abandon(self, holding: Holding, now: float) -> None:
        """Give up a holding that was taken and not granted: what does not say what we left in it is
        quarantined, the rest is nobody's. Does nothing the second time, or for one that was granted."""
        if holding.is_over or self.granted.get(holding.row) is holding:
            return
        holding.is_over = True
        slots = self.maps[holding.tier.index]
        if holding.tier.kind is TierKind.DIRECT:
            self.held -= holding.direct_bytes
        for first, count in holding.spans:
            self.held -= holding.tier.size * sum(length for _, length in slots.cold_spans(first, count))
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

    def cool(self, nbytes: int, most_rows: int) -> int:
        """Give up spares, then cool ready slots, from the tiers that have most of them, until
        *nbytes* bytes came back or so many rows were cooled. Returns the bytes that did."""
        cooled = 0
        spares = self.spares.idle_since(float("inf"))
        while cooled < nbytes and (spare := next(spares, None)):
            self.drop(spare)
            cooled += spare.nbytes
        for slots in self._richest():
            while cooled < nbytes and most_rows > 0:
                span = slots.coolable(min(most_rows, -(-(nbytes - cooled) // slots.tier.size)))
                if span is None:
                    break
                most_rows -= span[1]
                if self.cool_span(slots, *span):
                    cooled += span[1] * slots.tier.size
        return cooled

    def cool_span(self, slots: SlotMap, row: int, count: int) -> bool:
        """Cool ready slots; False when somebody has scribbled on any of them, then none of them."""
        slots.take(row, count)
        if not self.are_sound(slots.tier, ((row, count),)):
            return False
        slots.put_back(row, count)
        self._cool(slots, row, count)
        self.held -= count * slots.tier.size
        return True

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        look = self.spares.next_look
        return NEVER if look is None else look

    def tick(self, now: float) -> None:
        """Remove the spares that nobody had a use for."""
        for spare in self.spares.old(now):
            self.drop(spare)

    def drop_spares(self) -> None:
        """Remove them all."""
        for spare in self.spares.idle_since(float("inf")):
            self.drop(spare)

    def drop(self, spare: Spare) -> None:
        """Remove a spare that was taken out."""
        self.held -= spare.nbytes
        self._outbox.add(RemoveDirect(spare.row, spare.generation))

    def scrub(self, holding: Holding) -> Iterator[int]:
        """Let a taken holding go cold, so that it is warmed with new pages; its memory stays
        counted. In steps; yields how many rows each step did."""
        slots = self.maps[holding.tier.index]
        for first, length in holding.spans:
            for start in range(first, first + length, BUILT_PER_STEP):
                count = min(BUILT_PER_STEP, first + length - start)
                for row, warm in slots.warm_spans(start, count):
                    self._cool(slots, row, warm)
                yield count

    def _cool(self, slots: SlotMap, row: int, count: int) -> None:
        for at in range(row, row + count):
            self.rows.move(at, State.COLD)  # before the pages go: a crash between only wastes them
        slots.set_cold(row, count)
        if slots.warm < self.floors[slots.tier.index]:
            self.is_below_floor = True
        self.scrubber.forget(row, count)
        self._outbox.add(Cool(slots.tier.index, row, count))

    # --- granting and freeing ---------------------------------------------------------------------

    def build(self, holding: Holding) -> Iterator[int]:
        """Write the followers of a taken run in steps, before `grant`; yields how many rows each
        step wrote. If it is not granted after all, `take_apart` undoes it."""
        head = holding.row
        holding.birth = generation_of(self.rows.grant(head))
        holding.following = following = 0
        for first, count in reversed(holding.spans):
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

    def grant(self, holding: Holding, seat: int, uid: int, now: float) -> None:
        """Write it into the ledger as (IDLE, seat): its followers were built first, the head's
        grant word comes last, so that one store commits the whole."""
        head = holding.row
        if holding.spans == ((head, 1),):
            holding.birth = generation_of(self.rows.grant(head))
        # A direct segment's length must outlive the broker, for the cap of the next one.
        extent = extent_word(holding.direct_bytes, 0, holding.spans[0][1])
        self.rows.describe(head, extent, link_word(holding.following, holding.birth))
        self.rows.move(head, State.IDLE, seat)
        holding.seat, holding.granted_at = seat, now
        holding.made_at = holding.made_at or now
        self.scrubber.note(holding.spans, uid)
        self.hold(holding)

    def hold(self, holding: Holding) -> None:
        """It is somebody's."""
        self.granted[holding.row] = holding
        self.large += holding.is_large

    def _let_go(self, holding: Holding) -> None:
        if self.granted.pop(holding.row, None) is not None:
            self.large -= holding.is_large

    def free(self, holding: Holding, now: float) -> Iterator[int] | None:
        """End a holding that nobody may use any more: the head first, which commits it. A
        direct segment whose client lives may become a spare. Returns the steps of what is left
        to do, if anything is: a run's followers."""
        head = holding.row
        generation = self.rows.move(head, State.FREE)
        self._let_go(holding)
        if holding.tier.kind is TierKind.DIRECT and not self._keep(holding, now):
            self.held -= holding.direct_bytes
            self._outbox.add(RemoveDirect(head, holding.birth))
        self.give(holding.tier, head, generation, now)
        return None if holding.spans == ((head, 1),) else self.take_apart(holding, now)

    def _keep(self, holding: Holding, now: float) -> bool:
        """Whether a direct segment that is done becomes a spare."""
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
        """Make the followers of a run nobody's, in steps; yields how many rows each step did.
        Its head names them no longer, so a crash in the middle loses nothing."""
        (head, count), *others = holding.spans
        left = [*others[::-1], (head + 1, count - 1)]
        self.leaving[holding] = left
        while left:
            first, count = left.pop()
            step = min(count, BUILT_PER_STEP)
            if step < count:
                left.append((first + step, count - step))
            for row in range(first, first + step):
                self._free_follower(holding.tier, row, now)
            yield step
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
            if holding.seat:
                self.condemned[holding.seat] += holding.direct_bytes
            else:
                self.held -= holding.direct_bytes
            self._outbox.add(RemoveDirect(holding.row, holding.birth, may_be_mapped=True))
        self.quarantined.update(at for row, count in holding.spans for at in range(row, row + count))

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
            self.retired += self.cool_span(slots, row, 1)
