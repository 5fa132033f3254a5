"""The direct segments that a steady producer keeps: its next object lies where one lay that is done.

New pages cost more than the copy into them, a new map costs both sides a fault for every sixteen of
them, and each turn of the broker two switches. So a producer whose direct objects follow one another
stays the custodian of what it publishes, like of a slot: name and row stay, the generation counts on,
both sides keep their maps, and the broker is told nothing. Nothing is kept of a lone object, beyond
the share of the pool that spares have, or while somebody waits; what nobody used for `LIFETIME` goes
back.
"""

from __future__ import annotations

import time
from typing import Final

from ..protocol.sizing import Tier, page_round
from .direct import DirectSlot
from .magazine import Keeper, Magazine, Slot

#: A producer is steady that leases so soon, in seconds, after it published or released the last one.
STEADY: Final = 0.5
#: Seconds that a reader is given for a byte of it first: who waits for 256 MiB to be read is steady, too.
READING: Final = 2e-9
#: Seconds from one look at what lies here to the next; what lay here unused at both goes back.
LIFETIME: Final = 0.25
#: The largest part of the pool's limit that one seat keeps, in use or not, and the most segments.
SHARE: Final = 1 / 8
MOST: Final = 64
#: A segment serves an object of at least one part in so many of its size.
LARGEST_CUT: Final = 2


class Segments(Magazine):
    """Those of one seat. *ready* and *published* are as in every magazine, but of any size."""

    __slots__ = ("_is_steady", "_is_watched", "_kept", "_next_look", "_used_at")

    def __init__(self, session: Keeper, tier: Tier) -> None:
        super().__init__(session, tier, 1)
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

    def lease(self, nbytes: int) -> DirectSlot | None:
        """The segment for an object of *nbytes* bytes: the smallest that holds it and is not much
        larger, of those used last. None when there is none: then the broker is asked."""
        self._is_steady = time.monotonic() - self._used_at < STEADY
        if self.published and (done := self.reap(len(self.published))) is not None:
            self.ready.append(done)
        while (slot := self._best_for(nbytes)) is not None:
            try:
                self.ready.remove(slot)
            except ValueError:
                continue  # another thread took it
            assert isinstance(slot, DirectSlot)
            return slot
        return None

    def _best_for(self, nbytes: int) -> Slot | None:
        best, least, most = None, max(nbytes, 1), LARGEST_CUT * page_round(max(nbytes, 1))
        for slot in list(self.ready):
            if least <= slot.size <= most and (best is None or slot.size <= best.size):
                best = slot
        return best

    def keeps(self, slot: DirectSlot) -> bool:
        """Whether a segment that is just published or released stays here. Takes no lock that a
        finalizer could meet."""
        self._used_at = time.monotonic() + slot.size * READING
        session = self.session
        if session.header[slot.wanted] or session.prefers_direct or session.is_closing:
            return False
        if not slot.is_kept:
            slot.is_kept = self._is_steady and self._has_room(slot)
        return slot.is_kept

    def _has_room(self, slot: Slot) -> bool:
        kept = self._kept
        for row in list(kept):
            if not self.session.owns(row):
                kept.pop(row, None)
        if len(kept) >= MOST or sum(list(kept.values())) + slot.size > self.session.memory_limit * SHARE:
            return False
        kept[slot.row] = slot.size
        return True

    def watch(self) -> None:
        """Something lies here: the helper is to look whether it is used. Takes no lock."""
        if not self._is_watched:
            self.session.wake_helper()

    def pause(self) -> float | None:
        """For the helper, before it waits: when it has to look; None when nothing lies here. What
        comes after this call wakes it, or is found then."""
        was_watched, self._is_watched = self._is_watched, False
        if not (self.published or self.ready):
            return None
        self._is_watched = True
        if not was_watched:
            self._next_look = time.monotonic() + LIFETIME
        return max(0.0, self._next_look - time.monotonic())

    def look(self) -> None:
        """Return what was not used since the last look, if it is time."""
        if not self._is_watched or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LIFETIME
        if (done := self.reap(len(self.published))) is not None:
            self.ready.append(done)
        if slots := self._unused():
            self.session.return_to_broker(slots)

    def _unused(self) -> list[Slot]:
        """What lay in *ready* at the last look, taken out of it."""
        before = {id(slot): base for slot, base in self.resting}
        taken = []
        for slot in list(self.ready):
            if before.get(id(slot)) == slot.base:
                try:
                    self.ready.remove(slot)
                except ValueError:
                    continue  # another thread took it
                taken.append(slot)
        self.resting = [(slot, slot.base) for slot in list(self.ready)]
        return taken

    def rested(self) -> list[Slot]:
        """Nothing: `look` has returned it long before."""
        return []

    def forget_all(self) -> None:
        """The seat is over: their maps would keep the memory."""
        for slots in (self.ready, self.published):
            for slot in list(slots):
                slot.window = None
            slots.clear()
        self.resting = []
