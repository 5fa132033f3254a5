"""The direct segments that a steady producer keeps: its next object lies where one lay that is done.

New pages cost more than the copy into them, a new map costs both sides a fault for every sixteen of
them, and each turn of the broker two switches. So a producer whose direct objects follow one another
stays the custodian of what it publishes, like of a slot: name and row stay, the generation counts on,
both sides keep their maps, and the broker is told nothing. What is kept lies on a **shelf**, a magazine
of those of one size, and is leased like any slot (`live_lease`). Nothing is kept of a lone object, beyond
the share of the pool that spares have, or while somebody waits; what nobody used for `LIFETIME` goes
back.
"""

from __future__ import annotations

import time

from ..protocol.ledger import EXTENT, LINK, ROW_WORDS, birth_of, generation_of, nbytes_of, seat_of, state_of
from ..protocol.sizing import PAGE_SHIFT, Tier, page_round
from ..protocol.states import State
from ..system.outside import own
from .direct import DirectSlot
from .magazine import Magazine
from .slot import Keeper, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: A producer is steady that leases so soon, in seconds, after it published or released the last one.
STEADY: Final = 0.5
#: Seconds that a reader is given for a byte of it first: who waits for 256 MiB to be read is steady, too.
READING: Final = 2e-9
#: Seconds from one look at what lies here to the next; what lay here unused at both goes back.
LIFETIME: Final = 0.25
#: The largest part of the pool's limit that all seats together keep, in use or not, and the most
#: segments of one.
SHARE: Final = 1 / 8
MOST: Final = 64
#: A segment serves an object of at least one part in so many of its size.
LARGEST_CUT: Final = 2
#: Sizes that a lease finds the shelf of by itself.
KNOWN_SIZES: Final = 256


class Shelf(Magazine):
    """The kept segments of one size."""

    __slots__ = ("bases",)

    def __init__(self, session: Keeper, tier: Tier, size: int) -> None:
        super().__init__(session, tier, 1, size)
        #: What was used here, at the last look: the newest generation of each row, added up.
        self.bases = 0

    def rested(self) -> list[Slot]:
        """Nothing: `Segments.look` has returned it long before."""
        return []


class Segments:
    """Those of one seat."""

    __slots__ = ("_is_steady", "_is_watched", "_kept", "_next_look", "_session", "_tier", "_used_at", "shelves")

    def __init__(self, session: Keeper, tier: Tier) -> None:
        self._session, self._tier = session, tier
        #: Size in pages -> the shelf that what is kept next goes to. (More than one may have a size.)
        self.shelves: dict[int, Shelf] = {}
        #: When an object was published or released last, and whether the one that is leased now
        #: followed it soon.
        self._used_at = float("-inf")
        self._is_steady = False
        #: The sizes of those that were kept once, by row. Rows, not slots: who is in no magazine and
        #: no lease must be found lost.
        self._kept: dict[int, int] = {}
        #: The helper looks again by itself, at that time.
        self._is_watched = False
        self._next_look = 0.0

    @property
    def in_use(self) -> list[Shelf]:
        """The shelves that something belongs to, wherever it is."""
        kept, found = self._kept, dict[int, Shelf]()
        for row in list(kept):
            slot = self._session.owned_slot(row)
            if slot is None:
                kept.pop(row, None)
            elif isinstance(slot, DirectSlot) and slot.is_kept and isinstance(slot.magazine, Shelf):
                found[id(slot.magazine)] = slot.magazine
            # else another thread is just about to keep it: a row that is forgotten now would never be returned
        return list(found.values())

    def lease(self, nbytes: int) -> DirectSlot | None:
        """The segment for an object of *nbytes* bytes: the smallest that holds it and is not much
        larger, of those used last. None when there is none: then the broker is asked."""
        self._is_steady = time.monotonic() - self._used_at < STEADY
        least, most = max(nbytes, 1), LARGEST_CUT * page_round(max(nbytes, 1))
        for shelf in sorted(self.in_use, key=lambda shelf: shelf.size):
            if least <= shelf.size <= most and (slot := shelf.take()) is not None:
                assert isinstance(slot, DirectSlot)
                return slot
        return None

    def keeps(self, slot: DirectSlot) -> bool:
        """Whether a segment that is just published or released stays here. Takes no lock that a
        finalizer could meet."""
        self._used_at = time.monotonic() + slot.size * READING
        session = self._session
        if session.header[slot.wanted] or session.prefers_direct or session.is_closing:
            return False
        if not slot.is_kept and self._is_steady and self._has_room(slot):
            slot.magazine, slot.is_kept = self._shelf(slot.size), True
        return slot.is_kept

    def _shelf(self, size: int) -> Shelf:
        pages = size >> PAGE_SHIFT
        shelf = self.shelves.get(pages)
        if shelf is None:
            if len(self.shelves) >= KNOWN_SIZES:
                self.shelves.clear()
            shelf = self.shelves.setdefault(pages, Shelf(self._session, self._tier, size))
        return shelf

    def _has_room(self, slot: Slot) -> bool:
        kept = self._kept
        for row in list(kept):
            if not self._session.owns(row):
                kept.pop(row, None)
        ours, most = sum(list(kept.values())) + slot.size, self._session.memory_limit * SHARE
        if len(kept) >= MOST or ours > most or ours + self._kept_by_others() > most:
            return False
        kept[slot.row] = slot.size
        return True

    def _kept_by_others(self) -> int:
        """Bytes, as the ledger says: in rows that a client has although they were published."""
        session, tier = self._session, self._tier
        words, total = session.words, 0
        for row, word in enumerate(words[tier.base * ROW_WORDS : tier.end * ROW_WORDS : ROW_WORDS].tolist(), tier.base):
            if seat_of(word) not in (0, session.seat):
                at = row * ROW_WORDS
                if state_of(word) == State.PUBLISHED or generation_of(word) > birth_of(words[at + LINK]):
                    total += page_round(max(1, nbytes_of(words[at + EXTENT])))
        return total

    def __bool__(self) -> bool:
        """Whether anything is kept, in use or not."""
        return bool(self.in_use)

    def watch(self) -> None:
        """Something is kept: the helper is to look whether it is used. Takes no lock."""
        if not self._is_watched:
            self._session.wake_helper()

    def pause(self) -> float | None:
        """For the helper, before it waits: when it has to look; None when nothing is kept. What
        comes after this call wakes it, or is found then."""
        was_watched, self._is_watched = self._is_watched, False
        if not self.in_use:
            return None
        self._is_watched = True
        if not was_watched:
            self._next_look = time.monotonic() + LIFETIME
        return max(0.0, self._next_look - time.monotonic())

    def look(self) -> None:
        """Return what was not used since the last look, if it is time."""
        now = time.monotonic()
        if not self._is_watched or now < self._next_look:
            return
        self._next_look = now + LIFETIME
        unused: list[Slot] = []
        for shelf in self.in_use:
            shelf.reap_all()
            unused += _unused(shelf)
        if self._is_used():
            self._used_at = max(self._used_at, now - LIFETIME)  # since the look before, or later
        if unused:
            self._session.return_to_broker(unused)

    def _is_used(self) -> bool:
        """Whether anything was leased since this was asked last."""
        is_used = False
        for shelf in self.in_use:
            bases = sum(slot.base for row in list(self._kept) if (slot := self._session.owned_slot(row)) is not None
                        and slot.magazine is shelf)  # fmt: skip
            is_used |= bases > shelf.bases
            shelf.bases = bases
        return is_used

    def forget_all(self) -> None:
        """The seat is over: their maps would keep the memory."""
        for shelf in self.in_use:
            for slots in (shelf.ready, shelf.published):
                for slot in list(slots):
                    slot.window = None
                slots.clear()
            shelf.resting = []
        self.shelves.clear()


def _unused(shelf: Shelf) -> list[Slot]:
    """What lay on a shelf at the last look, taken off it."""
    before = {id(slot): base for slot, base in shelf.resting}
    taken = []
    for slot in list(shelf.ready):
        if before.get(id(slot)) == slot.base:
            try:
                shelf.ready.remove(slot)
            except own(ValueError):
                continue  # another thread took it
            taken.append(slot)
    shelf.resting = [(slot, slot.base) for slot in list(shelf.ready)]
    return taken
