"""Magazines: the slots that this client is custodian of, ready to be leased again.

A slot that was published comes back by reaping: its cells say DONE. Of those the oldest is
leased first: the newest is still in its reader's cache, on another core, which costs the next
writer more than fetching the oldest from the cache that they share (64 KiB: four times as much). But no
more of them take turns than that cache holds: who has more leaves the oldest where they are. What was
released unpublished is in our own cache and is leased first of all.
The deques are used without a lock: append and pop are atomic under the GIL, and a slot
that is in none of them belongs to the one thread that took it out.
"""

from __future__ import annotations

from collections import deque

from ..protocol.ledger import ONE_GENERATION
from ..protocol.sizing import Tier
from ..system.outside import own
from .slot import LAST_BASE, Keeper, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Bytes of done publications that take turns: more than one core's own cache holds, so that they have left it when
#: their turn comes, and less than the cores' shared one.
TURNS_BYTES: Final = 4 << 20
#: Those that are still with their readers are among them; but so many are taken at a time, where they are done, however
#: many are not: to look past these takes as long as a lease.
TOGETHER: Final = 8
#: Publications looked at in one reap, when none of them is done.
REAP_SCAN: Final = 64
#: Slots that a recall leaves besides as many as are out with readers, if they were used lately.
KEPT: Final = 2
#: The first batch has no more bytes: slots that came and are not needed are leased by turns all the same, and so many
#: fit into a core's nearest cache.
FIRST_BYTES: Final = 64 << 10


class Magazine:
    """The slots of one tier (or the runs of one length) that this client holds.

    *ready* are to be leased, from the right; *published* wait for their readers.
    A slot in *ready* already has its next generation in *base*, whatever the ledger says.
    """

    __slots__ = (
        "batch", "chunks", "newest", "published", "ready", "resting", "session", "size", "tier", "turns", "words",
    )  # fmt: skip

    def __init__(self, session: Keeper, tier: Tier, chunks: int, size: int | None = None) -> None:
        """*size*: of its slots, where it is not the tier's."""
        self.session = session
        self.tier = tier
        self.chunks = chunks
        self.size = tier.size * chunks if size is None else size
        #: How many slots take turns, where there are more.
        self.turns = max(1, TURNS_BYTES // self.size)
        self.words = session.words
        self.ready: deque[Slot] = deque()
        self.published: deque[Slot] = deque()
        self.batch = max(1, min(session.first_batch, FIRST_BYTES // max(1, self.size)))
        #: What lay in *ready* at the last look of the helper, to see what rests there.
        self.resting: list[tuple[Slot, int]] = []
        #: The newest publication at that look, with its generation.
        self.newest: tuple[Slot, int] | None = None

    def reap(self, scan: int = REAP_SCAN, *, as_many: bool = False) -> Slot | None:
        """Move done publications to *ready*; returns the oldest of them, leased out of it.

        Looks at the oldest first and stops at the first that is not done once one was; one
        slow reader at the front holds nobody up. Where there are more than take turns it looks at the newest
        first, and leaves the others where they are once it has so many; unless it is to move *as many* as are done.
        """
        words, published, ready = self.words, self.published, self.ready
        oldest, left = None, len(published)
        if left > self.turns and not as_many and (slot := self._reap_newest(scan)) is not None:
            return slot
        if left > scan:
            left = scan
        while left:
            left -= 1
            try:
                slot = published.popleft()
            except own(IndexError):  # another thread took it
                break
            if words[slot.last_cell] == slot.done and (slot.last_cell == slot.first_cell or slot.is_done(words)):
                slot.base += ONE_GENERATION
                if slot.base > LAST_BASE:
                    self.session.return_to_broker([slot])
                elif oldest is None:
                    oldest = slot
                else:
                    ready.appendleft(slot)
            elif oldest is not None:
                published.appendleft(slot)
                break
            else:
                published.append(slot)
        return oldest

    def reap_all(self) -> None:
        """Move done publications to *ready*, however many take turns."""
        slot = self.reap(len(self.published), as_many=True)
        if slot is not None:
            self.ready.append(slot)

    def _reap_newest(self, scan: int) -> Slot | None:
        words, published = self.words, self.published
        oldest, left, busy = None, self.turns, list[Slot]()
        while left and scan:
            scan -= 1
            try:
                slot = published.pop()
            except own(IndexError):  # another thread took it
                break
            if words[slot.last_cell] != slot.done or (slot.last_cell != slot.first_cell and not slot.is_done(words)):
                busy.append(slot)
                continue
            slot.base += ONE_GENERATION
            if slot.base > LAST_BASE:
                self.session.return_to_broker([slot])
                continue
            if oldest is not None:
                self.ready.append(oldest)
            else:
                left = max(left - len(busy), min(left, TOGETHER))
            oldest = slot
            left -= 1
        if busy:
            published.extend(reversed(busy))
        return oldest

    def pop(self) -> Slot | None:
        """The ready slot that is to be leased next."""
        try:
            return self.ready.pop() if self.ready else None
        except own(IndexError):  # another thread took it
            return None

    def take(self) -> Slot | None:
        """A ready slot, or a done publication, looking at all of them."""
        return (self.pop() if self.ready else None) or self.reap(len(self.published))

    def grow(self) -> int:
        """How many to ask for now; the next time twice as many."""
        session = self.session
        most = max(1, min(session.max_batch, session.magazine_bytes // self.size))
        batch = min(self.batch, most)
        self.batch = min(2 * batch, most)
        return batch

    def reap_rested(self) -> None:
        """Reap all, if nothing was published since the last call: who publishes reaps himself."""
        try:
            slot = self.published[-1] if self.published else None
        except own(IndexError):  # another thread took it
            slot = None
        if slot is None:
            return
        newest, self.newest = self.newest, (slot, slot.base)
        if newest == self.newest:
            self.reap_all()

    def rested(self) -> list[Slot]:
        """Half of the slots that nobody used since the last call, the coldest first, taken
        out of *ready*; and smaller batches from now on."""
        before = {id(slot): base for slot, base in self.resting}
        idle = 0
        for slot in list(self.ready):
            if before.get(id(slot)) != slot.base:
                break
            idle += 1
        taken = []
        for _ in range(-(-idle // 2)):
            try:
                taken.append(self.ready.popleft())
            except own(IndexError):
                break
        if taken:
            self.batch = max(1, self.batch // 2)
        self.resting = [(slot, slot.base) for slot in list(self.ready)]
        return taken

    def idle(self, *, everything: bool) -> list[Slot]:
        """What somebody else may have, taken out of *ready*. Unless it is *everything*, as many stay
        as are out with readers just now, and two more, of those that were used since the last look."""
        before = {id(slot): base for slot, base in self.resting}
        used = [slot for slot in list(self.ready) if before.get(id(slot)) != slot.base]
        taken = []
        for _ in range(len(self.ready) - (0 if everything else min(len(used), len(self.published) + KEPT))):
            try:
                taken.append(self.ready.popleft())
            except own(IndexError):
                break
        self.resting = [(slot, slot.base) for slot in list(self.ready)]
        return taken
