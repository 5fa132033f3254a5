"""The pool's memory as far as it is nobody's, and the cap over all of it.

Covers what is warm, taking, warming and cooling slots, runs and spares, with the ledger's words
in their proper order. What was taken becomes somebody's in `inventory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import GENERATION_FIELD, STATE_SHIFT, generation_of
from shmpool.protocol.sizing import MIB, Tier, TierKind, page_round, rows_of
from shmpool.protocol.states import State

from ..actions import Cool, CreateDirect, RemoveDirect
from ..chores import NEVER
from ..outbox import Outbox
from ..rows import Rows
from .holding import Holding
from .scrubber import Scrubber
from .slots import FEW_PIECES, Extent, Mask, SlotMap
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


class Stock:
    """Slot maps, spares, and `held` against `limit` (both in bytes, ledger and header counted)."""

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
        #: Rows that are never given out again: a client wrote nonsense, or the generation ran out.
        self.quarantined: set[int] = set()
        self.scrubber = scrubber
        #: What the last `reserve` would have had, had there been time to cool so much.
        self.to_clear = 0
        #: It had to cool for it.
        self.has_cooled = False
        #: A segment that is used again shows the next user what the last one wrote.
        self.spares = Spares(limit, is_on=not scrubber.is_on)
        self._outbox = outbox

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

    def take_slots(self, tier: Tier, most: int) -> list[Holding]:
        """Up to so many slots that are warm and nobody's, looked at together."""
        slots, holdings = self.maps[tier.index], list[Holding]()
        while len(holdings) < most and (extents := slots.take_each(most - len(holdings))):
            for extent in extents:
                row, count = extent
                if self.rows.are(row, b"\1" * count) or self.are_sound(tier, (extent,)):
                    holdings += [Holding(at, tier, ((at, 1),)) for at in range(row, row + count)]
        return holdings

    def take_cold(self, tier: Tier, chunks: int, count: int) -> list[Holding]:
        """Up to *count* slots, or one run (scattered if need be), some of it cold; its
        memory is reserved from the cap, cooling idle slots elsewhere if it must. Empty
        when rows or memory are missing, or it takes long to make room: see `reserve`."""
        slots = self.maps[tier.index]
        if tier.size * chunks > self.room + self.idle:  # as `reserve` would say, once it has been looked for
            return []
        is_pooled = tier.kind is TierKind.POOLED
        while takings := self._find_slots(tier, count) if is_pooled else self._find_run(tier, chunks):
            extents = [extent for taking in takings for extent in taking]
            mask = slots.mask(extents)
            slots.take_all(mask)
            if not self.are_sound(tier, extents, mask):
                continue
            if self.reserve(tier.size * slots.count_cold(mask)):
                return [
                    Holding(taking[0][0], tier, taking, mask=mask if len(takings) == 1 else None) for taking in takings
                ]
            slots.put_back_all(mask)
            break
        return []

    def are_sound(self, tier: Tier, extents: Sequence[Extent], mask: Mask | None = None) -> bool:
        """Whether taken rows still say what we left in them. If not, somebody scribbled on the
        ledger: those that do not are quarantined, the others put back."""
        slots = self.maps[tier.index]
        if self.say_what_we_left(slots, mask or slots.mask(extents)):
            return True
        for row, count in extents:
            for at in range(row, row + count):
                if self.rows.are(at, slots.marks(at, 1)):
                    slots.put_back(at, 1)
                else:
                    self.quarantined.add(at)
        return False

    def say_what_we_left(self, slots: SlotMap, mask: Mask) -> bool:
        """Whether rows say FREE where they are warm, and COLD where not."""
        return self.rows.are_where(mask.first, mask.marks, slots.marks(mask.first, len(mask.marks)))

    def _find_slots(self, tier: Tier, count: int) -> list[tuple[Extent, ...]]:
        count = max(1, min(count, WARM_SLICE // tier.size, self.room // tier.size))
        row = self.maps[tier.index].find_unused(count)
        if row is None:
            count, row = 1, self.maps[tier.index].find_unused(1)
        return [] if row is None else [((at, 1),) for at in range(row, row + count)]

    def _find_run(self, tier: Tier, chunks: int) -> list[tuple[Extent, ...]]:
        row = self.maps[tier.index].find_unused(chunks)
        pieces = self.maps[tier.index].scatter(chunks) if row is None else ((row, chunks),)
        return [pieces] if pieces else []

    def take_direct(self, nbytes: int) -> Holding | None:
        """A row for a direct segment, its memory reserved from the cap; asks the shell to
        make the segment, or to look at a spare that serves as it lies, or is to be longer."""
        tier = self.tiers[-1]
        size = page_round(max(nbytes, 1))
        spare = self._take_spare(size)
        holding = self._take_direct_row() if spare is None else Holding(spare.row, tier, ((spare.row, 1),))
        if holding is None:
            return None
        holding.direct_bytes = size
        if spare is not None:
            self.held -= spare.nbytes
            holding.direct_bytes, holding.made_at = max(size, spare.nbytes), spare.made_at
        if not self.reserve(holding.direct_bytes, is_direct=True):
            if spare is not None:
                self.held += spare.nbytes
                self.spares.put_back(spare)
            else:
                self.maps[tier.index].put_back(holding.row, 1)
            return None
        if spare is not None and spare.nbytes >= size:
            holding.birth = spare.generation
        else:
            holding.birth = generation_of(self.rows.grant(holding.row))
        self._outbox.add(CreateDirect(holding.row, holding.birth, holding.direct_bytes, spare))
        return holding

    def _take_direct_row(self) -> Holding | None:
        """One that is nobody's, or whose segment lies spare and does not serve."""
        holding = self.take_ready(self.tiers[-1], 1)
        if holding is None and (spare := next(self.spares.idle_since(NEVER), None)) is not None:
            self.drop(spare)
            holding = self.take_ready(self.tiers[-1], 1)
        return holding

    def _take_spare(self, nbytes: int) -> Spare | None:
        while (spare := self.spares.take(nbytes)) is not None:
            if self.rows.are(spare.row, b"\1"):
                return spare
            self.quarantined.add(spare.row)  # somebody scribbled on it
            self.held -= spare.nbytes
            self._outbox.add(RemoveDirect(spare.row, spare.generation, may_be_mapped=True))
        return None

    def reserve(self, nbytes: int, *, is_direct: bool = False) -> bool:
        """Count *nbytes* as held, cooling idle slots to make room; False if it cannot be, and then
        nothing was cooled, or if it takes longer than one event may: then *to_clear* is *nbytes*."""
        self.to_clear = 0
        room = self.limit - self.held if is_direct and self.direct_may_grow else self.room
        short = nbytes - room
        self.has_cooled = short > 0
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

    def to_warm(self, holdings: list[Holding]) -> Iterator[Extent]:
        """What of taken holdings of one tier is still to be warmed, in slices: each is looked for when
        it is its turn."""
        tier = holdings[0].tier
        slots, longest = self.maps[tier.index], max(1, WARM_SLICE // max(1, tier.size))
        first = end = 0
        for extent in (extent for holding in holdings for extent in holding.extents):
            for row, count in slots.cold_extents(*extent):
                if row == end and row + count - first <= longest:
                    end = row + count
                    continue
                if end:
                    yield first, end - first
                for start in range(row, row + count, longest):
                    if start > row:
                        yield first, end - first
                    first, end = start, min(start + longest, row + count)
        if end:
            yield first, end - first

    def warmed(self, tier: Tier, row: int, count: int, now: float) -> bool:
        """Pages are there: the ledger may say FREE. False when somebody has scribbled on any of
        these rows meanwhile; the others say it."""
        slots = self.maps[tier.index]
        is_sound = self.rows.are(row, bytes(count))
        slots.set_warm(row, count, now)
        if is_sound:
            self.rows.free_cold(row, count)
        else:
            for at in range(row, row + count):
                if self.rows.are(at, bytes(1)):
                    self.rows.move(at, State.FREE)
                else:
                    self.quarantined.add(at)
        return is_sound

    def are_ready(self, holdings: list[Holding]) -> bool:
        """Whether all rows of taken holdings still say FREE."""
        for holding in holdings:
            if len(holding.extents) <= FEW_PIECES:
                if not all(self.rows.are(row, b"\1" * count) for row, count in holding.extents):
                    return False
                continue
            mask = holding.mask or self.maps[holding.tier.index].mask(holding.extents)
            if not self.rows.are_where(mask.first, mask.marks, b"\1" * len(mask.marks)):
                return False
        return True

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
                extent = slots.coolable(min(most_rows, -(-(nbytes - cooled) // slots.tier.size)))
                if extent is None:
                    break
                most_rows -= extent[1]
                if self.cool_extent(slots, *extent):
                    cooled += extent[1] * slots.tier.size
        return cooled

    def cool_extent(self, slots: SlotMap, row: int, count: int) -> bool:
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
        """Remove a spare that was taken out; its row is there for others."""
        self.maps[-1].put_back(spare.row, 1)
        self.held -= spare.nbytes
        self._outbox.add(RemoveDirect(spare.row, spare.generation))

    def scrub(self, holding: Holding) -> Iterator[int]:
        """Let a taken holding go cold, so that it is warmed with new pages; its memory stays
        counted. In steps; yields how many rows each step did."""
        slots = self.maps[holding.tier.index]
        for first, length in holding.extents:
            for start in range(first, first + length, BUILT_PER_STEP):
                count = min(BUILT_PER_STEP, first + length - start)
                for row, warm in slots.warm_extents(start, count):
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
