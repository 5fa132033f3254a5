"""Custody: the slots of which one seat is the custodian, from grant to return.

Every one stands in `_owned` from the moment that its grant was read until the broker is its
custodian again; where it is besides (a magazine, a lease, a thread that works with it) is not
recorded here. Giving one back is: the generation that no handle has named, RETURNED by one store,
then the word to the broker.
"""

from __future__ import annotations

import threading
import time
from _weakref import ref
from functools import partial

from ..errors import InvalidSize
from ..protocol.ledger import (
    EXTENT,
    GENERATION_FIELD,
    ONE_GENERATION,
    ROW_WORDS,
    SEAT_MASK,
    STATE_SHIFT,
    nbytes_of,
    rows_that_say,
    state_of,
)
from ..protocol.messages import MAX_ROWS_PER_MESSAGE, Return
from ..protocol.sizing import PAGE_SHIFT, Tier, TierKind, chunk_run, pooled_tier
from ..protocol.states import State
from . import recovery
from .deferred import DeferredReleases
from .direct import DirectSlot
from .magazine import LAST_BASE, Keeper, Magazine, Slot
from .records import Reader
from .segments import Segments
from .windows import WRITE, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

#: Slots that were returned whose records and windows are kept: they may be granted again.
#: Each window is a map of the kernel's.
MAX_RETURNED: Final = 2048
#: Seconds for which recalls leave a steady stream what it uses; a pause longer than this ends a series of them.
KEPT_FOR: Final = 1.0
RECALLS_PAUSE: Final = 0.25


class _Returning:
    """That a thread is about to make the broker a row's custodian: as long as its call has this one."""

    __slots__ = ("__weakref__",)


class Custody(Keeper, Reader):
    """The magazines of one seat and all that it owns; the base of `Session`. Thread-safe."""

    deferred: DeferredReleases

    def __init__(self) -> None:
        super().__init__()
        #: When the last recall came, and when everything idle was returned, or a series of recalls began.
        self._recalled_at = self._all_returned_at = float("-inf")
        #: Every slot whose custodian is this seat, by its head's row.
        self._owned: dict[int, Slot] = {}
        #: Of rows that are owned no more, and whose word is about to say so. Weak: an interrupted call leaves none.
        self._returning: dict[int, ref[_Returning]] = {}
        #: What is just being returned, by row. What an exception leaves here was not stored, or the broker was not
        #: told: the next recall does it.
        self._untold: dict[int, Slot] = {}
        #: Slots that were ours, by row. Making a window anew costs as much as all else that a
        #: client does for a grant.
        self._returned: dict[int, Slot] = {}
        #: For rows that say IDLE: to know one and to give one back exclude each other. Nothing is called with it, so
        #: no finalizer of the user's comes in between, and waits for what waits for this.
        self._owned_lock = threading.RLock()
        #: Under 0: who looks for what is lost.
        self._finder: dict[int, object] = {}

    # --- magazines ---------------------------------------------------------------------------------

    def apply(self, settings: list[list[int]]) -> None:
        """Take over settings, of a welcome or changed since."""
        super().apply(settings)
        if hasattr(self, "magazines"):
            self._choose_fast_path()

    @property
    def _pooled_limit(self) -> int:
        """Objects below this size are pooled."""
        sizing = self.sizing
        return min(sizing.large_object_threshold, sizing.pooled_sizes[-1] + 1) if sizing.is_pooling else 0

    def _choose_fast_path(self) -> None:
        """Leases below these sizes look for a magazine before anything else, larger ones for a shelf: none
        while direct segments are preferred."""
        self.pooled_below = 0 if self.prefers_direct else self._pooled_limit
        self.chunked_below = 0 if self.prefers_direct else self.sizing.very_large_object_threshold
        self.shelves = {} if self.prefers_direct else self.segments.shelves

    def _make_tables(self) -> None:
        """Size in pages -> magazine, so that choosing one costs a look-up. A size that is
        exactly a threshold is told apart by the caller."""
        sizing = self.sizing
        self._make_timed()
        #: The direct segments that are kept.
        self.segments = Segments(self, self.tiers[-1])
        self._choose_fast_path()
        self.magazines: dict[tuple[int, int], Magazine] = {}
        self.pooled: list[Magazine] = []
        for pages in range((self._pooled_limit - 1 >> PAGE_SHIFT) + 2):
            tier = pooled_tier(pages << PAGE_SHIFT, self.tiers) or self.tiers[len(sizing.pooled_sizes) - 1]
            self.pooled.append(self.magazine(tier, 1))
        # Filled on demand; the very-large threshold may be far up.
        self.chunked: dict[int, Magazine] = {}

    def magazine(self, tier: Tier, chunks: int) -> Magazine:
        """The magazine of a tier's slots or of its runs of a length."""
        key = tier.index, chunks
        return self.magazines.get(key) or self.magazines.setdefault(key, Magazine(self, tier, chunks))

    @property
    def all_magazines(self) -> list[Magazine]:
        """With the shelves of what is kept."""
        return [*self.magazines.copy().values(), *self.segments.in_use]

    def run_magazine(self, nbytes: int) -> Magazine:
        """The magazine of the runs that hold *nbytes* bytes with least waste."""
        choice = chunk_run(nbytes, self.tiers)
        if choice is None:
            largest = max((t.size * t.capacity for t in self.tiers if t.kind is TierKind.CHUNK), default=0)
            raise InvalidSize(
                f"{nbytes} bytes fit no chunk tier of this pool, the largest holds {largest}: lease them DIRECT"
            )
        return self.magazine(*choice)

    def window_for(self, slot: Slot) -> Window:
        """The window through which a slot is written, made on its first use."""
        if slot.window is None:
            try:
                if isinstance(slot, DirectSlot):
                    return slot.map()
                pieces = [self.piece(row, count, writable=True) for row, count in slot.extents]
                slot.window = self.windows.make(pieces, WRITE)
            except BaseException:
                self.return_unpublished(slot)  # the lease fails, the slot is not lost
                raise
        return slot.window

    # --- slots that come -----------------------------------------------------------------------------

    def adopt_rows(self, rows: Iterable[int]) -> list[Slot]:
        """The records of those rows that say (IDLE, this seat) and that are not known yet."""
        words, owned, idle = self.words, self._owned, self.idle
        found = []
        for row in rows:
            word = words[row * ROW_WORDS]
            if word & ~GENERATION_FIELD == idle and row not in owned:
                found.append((word, self._make_slot(row, word & GENERATION_FIELD)))
        slots = []
        with self._owned_lock:
            for word, slot in found:
                row = slot.row
                if words[slot.word] == word and row not in owned:
                    owned[row] = slot
                    slots.append(slot)
        return slots

    def _make_slot(self, row: int, base: int) -> Slot:
        known = self._returned.pop(row, None)
        if known is not None and (known.tier.kind is TierKind.POOLED or known.extents == self.extents_of(row)):
            known.base = base
            return known
        tier = self.tier_of(row)
        if tier.kind is TierKind.DIRECT:
            size = nbytes_of(self.words[row * ROW_WORDS + EXTENT])
            return DirectSlot(self, tier, row, size, base, self.segments)
        if tier.kind is TierKind.POOLED:
            slot = Slot(self, tier, ((row, 1),), tier.size, base)
            slot.magazine = self.magazine(tier, 1)
            return slot
        extents = self.extents_of(row)
        chunks = sum(count for _, count in extents)
        slot = Slot(self, tier, extents, chunks * tier.size, base)
        slot.magazine = self.magazine(tier, chunks)
        return slot

    def _adopt_unknown(self) -> None:
        """Rows that say (IDLE, this seat) and that no magazine knows: their grant was lost
        with the old connection."""
        idle = rows_that_say(self.words, self.rows, State.IDLE, self.seat)  # after a restart all search at once
        self.return_unwanted(*self.adopt_rows(idle))

    def return_unwanted(self, *slots: Slot | None) -> None:
        """Slots that nobody waits for any more: into their magazines, or back. After the seat's end
        they are not ours."""
        for slot in slots:
            if slot is None or self.is_over:
                continue
            if slot.magazine is not None and not isinstance(slot, DirectSlot):
                slot.magazine.ready.appendleft(slot)
            else:  # a new direct segment has no pages yet
                self.return_to_broker([slot])

    # --- slots that go -------------------------------------------------------------------------------

    def return_to_broker(self, slots: list[Slot]) -> None:
        """Return slots to the broker, each with a generation that no handle has named."""
        returned = State.RETURNED << STATE_SHIFT
        # RETURNED in the ledger, then forgotten here, then the word: the broker may free the row as soon as it
        # is stored. A word that is lost with its connection is made good when the seat is taken up again, when
        # the broker looks at all its rows; one that an exception loses is told at the next recall.
        if self.barrier:
            self.barrier()
        rows = [slot.row for slot in slots]
        words, owned, untold, seat = self.words, self._owned, self._untold, self.seat
        for slot, row in zip(slots, rows, strict=True):
            with self._owned_lock:  # a row that is forgotten and still IDLE looks like a lost grant
                word = words[slot.word]
                if word & SEAT_MASK == seat:  # else an exception came behind this store the last time
                    base = (word & GENERATION_FIELD) + ONE_GENERATION
                    if slot.base < base:
                        slot.base = base
                    untold[row] = slot
                    words[slot.word] = slot.base | returned
                if row in owned:
                    del owned[row]
            self.keep_window(slot)
        for at in range(0, len(rows), MAX_ROWS_PER_MESSAGE):
            self.send(Return(rows[at : at + MAX_ROWS_PER_MESSAGE]))
        for row in rows:
            self._untold.pop(row, None)

    def keep_window(self, slot: Slot) -> None:
        """Keep what a slot is seen through, unless a user has a view of it. A direct segment has
        another name when it comes again."""
        if slot.window is None or slot.has_views or isinstance(slot, DirectSlot):
            slot.window = None
            return
        if len(self._returned) >= MAX_RETURNED:
            try:
                del self._returned[next(iter(self._returned))]
            except (KeyError, StopIteration, RuntimeError):  # another thread has been faster
                pass
        self._returned[slot.row] = slot

    def return_soon(self, slot: Slot, state: State) -> None:
        """Make the broker the custodian of one row by one store, and have it look soon. Takes no
        lock that a finalizer could meet."""
        self._untold[slot.row] = slot
        self._return_row(slot, state)
        self.ring_soon(slot.row)
        self._untold.pop(slot.row, None)

    def _return_row(self, slot: Slot, state: State) -> None:
        """Make the broker the custodian of a row by one store. It is forgotten before, since it may be granted to
        us again at once; but the seat does not end before the store, whoever closes the pool meanwhile: the broker
        would free the row, and the store meet another's. An exception before the store leaves all as it was."""
        words, word = self.words, self.words[slot.word]
        under_way = _Returning()
        self._returning[slot.row] = ref(under_way, partial(self._returning.pop, slot.row))
        try:
            self._owned.pop(slot.row, None)
            if self.barrier:
                self.barrier()
            words[slot.word] = slot.base | state << STATE_SHIFT
        except BaseException:
            if words[slot.word] == word:
                self._owned.setdefault(slot.row, slot)
            raise
        del under_way

    def return_unpublished(self, slot: Slot) -> None:
        """A slot that was not published comes back: to its magazine, or to the broker if
        somebody waits for its tier. Takes no lock that a finalizer could meet."""
        slot.base += ONE_GENERATION
        assert slot.magazine is not None
        if slot.base > LAST_BASE:
            self.return_soon(slot, State.RETURNED)
            return
        self.words[slot.word] = slot.base | self.idle
        slot.magazine.ready.append(slot)
        if self.header[slot.wanted]:
            self.is_wanted = True
            self.wake_helper()

    def return_idle(self) -> None:
        """Somebody waits: reap, and return what is idle. What a steady stream goes on using stays
        here, for a second at most: then all goes back that is idle just then, so that neither
        the stream stands still beside who waits for much, nor who waits for little beside streams
        that have all there is."""
        now = time.monotonic()
        if now > self._recalled_at + RECALLS_PAUSE:
            self._all_returned_at = now  # the first one of a series
        self._recalled_at = now
        if now < self._all_returned_at + KEPT_FOR:
            self._return_all(everything=False)
        else:
            self.return_all()

    def return_all(self) -> None:
        """Reap, and return everything that is idle, or lost."""
        self._all_returned_at = time.monotonic()
        self._return_all(everything=True)

    def _return_all(self, *, everything: bool) -> None:
        self.deferred.recover()
        if self._untold:
            self._tell_untold()
        for magazine in self.all_magazines:
            magazine.newest = None  # it would keep a lost slot known
            magazine.reap_all()
            slots = magazine.idle(everything=everything)
            magazine.batch = 1
            if slots:
                self.return_to_broker(slots)
        self._return_left()

    def _return_left(self) -> None:
        """What nobody knows. Two must not both find one: who comes while another looks leaves it to him."""
        me, finder = object(), self._finder
        try:
            if finder.setdefault(0, me) is me:
                slots = recovery.left_slots(self, self._owned)
                if slots:
                    self.return_to_broker(slots)
        finally:
            if 0 in finder and finder[0] is me:
                del finder[0]

    def _tell_untold(self) -> None:
        """Go on with what an exception has left: a slot whose word was not stored is ours, and nobody's."""
        told = []
        for row in list(self._untold):
            if row in self._returning or (slot := self._untold.pop(row, None)) is None:
                continue  # its thread goes on with it
            word = self.words[slot.word]
            if word & SEAT_MASK == self.seat and state_of(word) != State.IDLE:
                self._owned.setdefault(row, slot)
            else:
                told.append(row)
        self.ring_all(told)

    def return_rested(self) -> bool:
        """Return what was not used; False when nothing idle is left."""
        for magazine in self.all_magazines:
            magazine.reap_rested()
            slots = magazine.rested()
            if slots:
                self.return_to_broker(slots)
        return any(magazine.ready or magazine.published for magazine in self.all_magazines)

    def close_magazines(self) -> None:
        """Return what is idle and hand the publications to the broker."""
        self.note_timed()
        self.return_all()
        rows = []
        for magazine in self.all_magazines:
            while magazine.published:
                slot = magazine.published.popleft()
                slot.window = None
                self._return_row(slot, State.PUBLISHED)  # the last store: the row is the broker's now
                rows.append(slot.row)
        self.ring_all(rows)

    def owns(self, row: int) -> bool:
        return row in self._owned

    def owned_slot(self, row: int) -> Slot | None:
        return self._owned.get(row)

    def written_rows(self) -> set[int]:
        """At a fork, so it is quick where nothing is leased: what is in no magazine. All are counted by
        one call in C, since slots move between them, and what is parted is looked at last, since what is
        leased may be parted with meanwhile."""
        if not hasattr(self, "magazines"):
            return set()
        lying = [slots for magazine in self.all_magazines for slots in (magazine.ready, magazine.published)]
        owned, *others = list(map(len, [self._owned, *lying]))
        rows = set()
        if owned != sum(others):
            leased, words = self.leased, self.words
            for slot in self.owned:
                if words[slot.word] & ~GENERATION_FIELD == leased or slot.has_views:
                    rows.add(slot.row)
        return rows | self.deferred.rows(are_read=False)

    def abandon_windows(self) -> list[Slot]:
        """In a forked child: the parent's views are all that is left of what it could write to. Returns the slots."""
        slots = list(self._owned.values())
        for slot in slots:
            slot.window = None
        self._returned.clear()
        return slots

    @property
    def owns_any(self) -> bool:
        """Whether this seat is the custodian of anything (after `close_magazines`: of what
        is leased or just being leased)."""
        return bool(self._owned or self._returning)

    @property
    def owned(self) -> list[Slot]:
        """The slots whose custodian this seat is."""
        return list(self._owned.copy().values())

    def _forget_slots(self) -> None:
        """The seat is over, or another process's: nothing of this is used again."""
        self._returned.clear()
        self._untold.clear()
        if hasattr(self, "segments"):
            self.segments.forget_all()
