"""The pool's memory: what is warm, what is granted, and the cap over all of it.

Covers taking, warming, cooling and freeing of slots, runs and direct segments, with the
ledger's words in their proper order. Does not know connections or requests: who is
granted what, and who waits, is the broker's business.
"""

from __future__ import annotations

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
from shmpool.protocol.sizing import MIB, Tier, TierKind, page_round, rows_of
from shmpool.protocol.states import State

from .actions import Cool, CreateDirect, RemoveDirect
from .outbox import Outbox
from .rows import Rows
from .scrubber import Scrubber
from .slots import SlotMap, Span
from .spares import Spare, Spares

#: Pages are reserved in slices of at most so many bytes (0.1 ms each), so that warming
#: does not hold up the loop.
WARM_SLICE = MIB
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
    #: The head's generation when it was granted: a run's birth, a direct segment's name.
    birth: int = 0

    @property
    def nbytes(self) -> int:
        """Memory that it holds, in bytes."""
        if self.direct_bytes:
            return self.direct_bytes
        chunks = 0
        for _, count in self.spans:
            chunks += count
        return self.tier.size * chunks


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
        #: What was held already when the pool was taken over: more than a limit lowered
        #: meanwhile, or than a damaged ledger can account for. Nothing is reserved over the limit.
        self.adopted = 0
        self.maps = [SlotMap(tier) for tier in tiers]
        self.granted: dict[int, Holding] = {}
        #: Rows that are never given out again: a client wrote nonsense, or the generation ran out.
        self.quarantined: set[int] = set()
        self.scrubber = scrubber
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
        return self.limit - self.held

    @property
    def has_ready(self) -> bool:
        """Whether any slot or chunk is warm and nobody's: something that may be cooled."""
        return any(slots.has_ready for slots in self.maps[:-1])

    def open_direct_rows(self) -> None:
        """Make the rows of direct segments grantable: they have no pages of their own."""
        tier = self.tiers[-1]
        self.maps[tier.index].take(tier.base, tier.capacity)
        self.warmed(tier, tier.base, tier.capacity)
        self.maps[tier.index].give(tier.base, tier.capacity, 0.0)

    # --- taking ------------------------------------------------------------------------------

    def take_ready(self, tier: Tier, chunks: int) -> Holding | None:
        """A slot or a contiguous run that is warm and nobody's."""
        slots = self.maps[tier.index]
        while (row := slots.take_ready(chunks)) is not None:
            is_free_slot = chunks == 1 and self.rows.grant(row) & ~GENERATION_FIELD == WARM
            if is_free_slot or self._are_sound(slots, [(row, chunks)]):
                return Holding(row, tier, ((row, chunks),))
        return None

    def take_cold(self, tier: Tier, chunks: int, count: int) -> list[Holding]:
        """Up to *count* slots, or one run (scattered if need be), some of it cold; its
        memory is reserved from the cap, cooling idle slots elsewhere if it must. Empty
        when rows or memory are missing."""
        slots = self.maps[tier.index]
        is_pooled = tier.kind is TierKind.POOLED
        while takings := self._find_slots(tier, count) if is_pooled else self._find_run(tier, chunks):
            spans = [span for taking in takings for span in taking]
            for row, length in spans:
                slots.take(row, length)
            if not self._are_sound(slots, spans):
                continue
            if self.reserve(tier.size * sum(length for _, length in self._cold(tier, spans))):
                return [Holding(taking[0][0], tier, taking) for taking in takings]
            for row, length in spans:
                slots.put_back(row, length)
            break
        return []

    def _are_sound(self, slots: SlotMap, spans: list[Span]) -> bool:
        """Whether just taken rows still say what we left in them. If not, somebody scribbled
        on the ledger: those that do not are quarantined, the others put back."""
        rows = [at for row, count in spans for at in range(row, row + count)]
        bad = {at for at in rows if self.rows.grant(at) & ~GENERATION_FIELD != (WARM if slots.is_warm(at) else 0)}
        self.quarantined |= bad
        for at in rows if bad else ():
            if at not in bad:
                slots.put_back(at, 1)
        return not bad

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
        if not self.reserve(holding.direct_bytes):
            self.maps[tier.index].put_back(holding.row, 1)
            if spare is not None:
                self._outbox.add(RemoveDirect(spare.row, spare.generation))
            return None
        self._outbox.add(CreateDirect(holding.row, generation_of(self.rows.grant(holding.row)), size, spare))
        return holding

    def direct_made(self, holding: Holding, nbytes: int) -> None:
        """The segment is there, and has the size that was asked for."""
        size = page_round(max(nbytes, 1))
        self.held -= holding.direct_bytes - size
        holding.direct_bytes = size

    def reserve(self, nbytes: int) -> bool:
        """Count *nbytes* as held, cooling idle slots to make room; False if it cannot be."""
        if nbytes > self.room:
            self.cool(nbytes - self.room, idle_since=float("inf"))
        if nbytes > self.room:
            return False
        self.held += nbytes
        return True

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

    def warmed(self, tier: Tier, row: int, count: int) -> None:
        """Pages are there: the ledger may say FREE."""
        self.maps[tier.index].set_warm(row, count)
        for at in range(row, row + count):
            self.rows.move(at, State.FREE)

    def abandon(self, holding: Holding, now: float) -> None:
        """Give up a holding that was taken and not granted."""
        slots = self.maps[holding.tier.index]
        if holding.tier.kind is TierKind.DIRECT:
            self.held -= holding.direct_bytes
        for row, count in holding.spans:
            self.held -= holding.tier.size * sum(length for _, length in slots.cold_spans(row, count))
            slots.give(row, count, now)

    def cool(self, nbytes: int, idle_since: float) -> int:
        """Give up spares, then cool ready slots, both unused since *idle_since*, until *nbytes*
        bytes came back; slots from the tiers that have most of them. Returns the bytes that did."""
        cooled = 0
        spares = self.spares.idle_since(idle_since)
        while cooled < nbytes and (spare := next(spares, None)):
            self._drop(spare)
            cooled += spare.nbytes
        tiers = sorted(
            (slots for slots in self.maps if slots.tier.kind is not TierKind.DIRECT),
            key=lambda slots: -slots.ready * slots.tier.size,
        )
        for slots in tiers:
            if cooled >= nbytes:
                break
            most = -(-(nbytes - cooled) // slots.tier.size)
            for row, count in list(slots.coolable(most, idle_since)):
                slots.take(row, count)
                if not self._are_sound(slots, [(row, count)]):
                    continue
                slots.put_back(row, count)
                self._cool(slots, row, count)
                cooled += count * slots.tier.size
                self.held -= count * slots.tier.size
        return cooled

    def drop_old_spares(self, now: float) -> None:
        """Remove the spares that nobody had a use for."""
        for spare in self.spares.old(now):
            self._drop(spare)

    def drop_spares(self) -> None:
        """Remove them all."""
        for spare in self.spares.idle_since(float("inf")):
            self._drop(spare)

    def _drop(self, spare: Spare) -> None:
        self.held -= spare.nbytes
        self._outbox.add(RemoveDirect(spare.row, spare.generation))

    def scrub(self, holding: Holding) -> None:
        """Let a taken holding go cold, so that it is warmed with new pages; its memory stays
        counted."""
        slots = self.maps[holding.tier.index]
        for first, length in holding.spans:
            for at in range(first, first + length):
                if slots.is_warm(at):
                    self._cool(slots, at, 1)

    def _cool(self, slots: SlotMap, row: int, count: int) -> None:
        for at in range(row, row + count):
            self.rows.move(at, State.COLD)  # before the pages go: a crash between only wastes them
        slots.set_cold(row, count)
        self.scrubber.forget(row, count)
        self._outbox.add(Cool(slots.tier.index, row, count))

    # --- granting and freeing ---------------------------------------------------------------------

    def grant(self, holding: Holding, seat: int, uid: int, now: float) -> None:
        """Write it into the ledger as (IDLE, seat): followers first, the head's grant word
        last, so that one store commits the whole."""
        head = holding.row
        birth = generation_of(self.rows.grant(head))
        following = 0 if holding.spans == ((head, 1),) else self._join_followers(holding, birth)
        # A direct segment's length must outlive the broker, for the cap of the next one.
        extent = extent_word(holding.direct_bytes, 0, holding.spans[0][1])
        self.rows.describe(head, extent, link_word(following, birth))
        self.rows.move(head, State.IDLE, seat)
        holding.seat, holding.granted_at, holding.birth = seat, now, birth
        self.scrubber.note(holding.spans, uid)
        self.granted[head] = holding

    def _join_followers(self, holding: Holding, birth: int) -> int:
        """Build a run's rows but for the head; returns the row that the head links to."""
        head = holding.row
        following = 0
        for first, count in reversed(holding.spans):
            for row in range(first, first + count):
                if row != head:
                    link = link_word(following, count) if row == first else 0
                    self.rows.describe(row, follower_word(head, birth), link)
                    self.rows.move(row, State.FOLLOWER)
            if first != head:
                following = first
        return following

    def free(self, holding: Holding, now: float) -> None:
        """End a holding that nobody may use any more: the head first, which commits it. A
        direct segment whose client lives may become a spare."""
        head = holding.row
        generation = self.rows.move(head, State.FREE)
        del self.granted[head]
        if holding.tier.kind is TierKind.DIRECT and not (
            holding.orphaned_at is None and self.spares.keep(head, holding.birth, holding.direct_bytes, now)
        ):
            self.held -= holding.direct_bytes
            self._outbox.add(RemoveDirect(head, holding.birth))
        for row, count in holding.spans:
            for at in range(row, row + count):
                if at != head:
                    self._free_follower(holding.tier, at, now)
        self.give(holding.tier, head, generation, now)

    def _free_follower(self, tier: Tier, row: int, now: float) -> None:
        if state_of(self.rows.grant(row)) == State.FOLLOWER:
            self.give(tier, row, self.rows.move(row, State.FREE), now)
        else:  # somebody scribbled on it
            self.quarantined.add(row)

    def remove_direct(self, holding: Holding) -> None:
        """Unlink a direct segment that was made and not granted."""
        self._outbox.add(RemoveDirect(holding.row, generation_of(self.rows.grant(holding.row))))

    def direct_segments(self) -> set[tuple[int, int]]:
        """(row, generation) of every direct segment that a row names; others are leftovers."""
        return {(row, held.birth) for row, held in self.granted.items() if held.tier.kind is TierKind.DIRECT}

    def quarantine(self, holding: Holding) -> None:
        """A client left nonsense in its row: never give it out again. Its memory is lost
        with it, but for a direct segment, which has a name of its own."""
        self.granted.pop(holding.row, None)
        if holding.tier.kind is TierKind.DIRECT:
            self.held -= holding.direct_bytes
            self._outbox.add(RemoveDirect(holding.row, holding.birth, may_be_mapped=True))
        self.quarantined.update(at for row, count in holding.spans for at in range(row, row + count))

    def give(self, tier: Tier, row: int, generation: int, now: float) -> None:
        """Make a row that says FREE nobody's, unless its generation has run out."""
        if generation >= MAX_GENERATION:
            self.rows.retire(row)
            self.quarantined.add(row)
        else:
            self.maps[tier.index].give(row, 1, now)
