"""Custody: the slots of which one seat is the custodian, from grant to return.

Every one stands in `_owned` from the moment that its grant was read until the broker is its
custodian again; where it is besides (a magazine, a lease, a thread that works with it) is not
recorded here. Giving one back is: the generation that no handle has named, RETURNED by one store,
then the word to the broker.
"""

from __future__ import annotations

import threading
from _weakref import ref
from functools import partial

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
from ..protocol.sizing import TierKind
from ..protocol.states import State
from ..system.outside import own
from .direct import DirectSlot
from .magazines import Magazines
from .slot import LAST_BASE, Slot
from .windows import WRITE, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

#: Slots that were returned whose records and windows are kept: they may be granted again.
#: Each window is a map of the kernel's.
MAX_RETURNED: Final = 2048


class _Returning:
    """That a thread is about to make the broker a row's custodian: as long as its call has this one."""

    __slots__ = ("__weakref__",)


class Custody(Magazines):
    """What one seat owns; a base of `Session`. Thread-safe."""

    def __init__(self) -> None:
        super().__init__()
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

    # --- slots that come -----------------------------------------------------------------------------

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
                if words[slot.word] != word or row in owned:
                    continue
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
            except own(KeyError, StopIteration, RuntimeError):  # another thread has been faster
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

    # --- what is owned -------------------------------------------------------------------------------

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
