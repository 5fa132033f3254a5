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
from sys import getrefcount

from ..errors import LeaseReleased
from ..protocol.handle import Handle
from ..protocol.header import WANTED
from ..protocol.ledger import (
    CHUNKS_SHIFT,
    FIRST_CELL,
    MAX_GENERATION,
    NBYTES_BITS,
    ONE_GENERATION,
    ROW_WORDS,
    STATE_SHIFT,
    TICKETS_SHIFT,
)
from ..protocol.sizing import Tier
from ..protocol.states import CellState, State
from .guards import Guards
from .seat import Seat
from .windows import AT_REST, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final, NoReturn, Protocol

    class Deferral(Protocol):
        """Where slots wait until their writers' views are gone (`seat.deferred`)."""

        def add_slot(self, slot: Slot, go_on: Callable[[], None], /) -> None:
            """A slot that its writer keeps a view of, or that a child has yet to copy, and what is to be done
            after that."""

        def look(self) -> None:
            """Settle the youngest releases whose views are gone."""

        def look_at_partings(self) -> None:
            """Go on with those whose views are gone."""

        def recover(self) -> None:
            """Settle all that nothing looks at any more."""


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
_DONE: Final = CellState.DONE << STATE_SHIFT
#: The last generation that a client uses, in its place in the grant word.
LAST_BASE: Final = (MAX_GENERATION - 1) * ONE_GENERATION


class Keeper(Seat):
    """A seat as its slots and their leases see it."""

    warned_of_views: bool
    deferred: Deferral
    guards: Guards

    def window_for(self, slot: Slot) -> Window:
        """The window through which a slot is written, made on its first use."""
        raise NotImplementedError

    def return_unpublished(self, slot: Slot) -> None:
        """A slot that was not published comes back. Takes no lock that a finalizer could meet."""
        raise NotImplementedError

    def return_to_broker(self, slots: list[Slot]) -> None:
        """Return slots to the broker."""
        raise NotImplementedError

    def return_soon(self, slot: Slot, state: State) -> None:
        """Make the broker the custodian of one row by one store. Takes no lock that a finalizer
        could meet."""
        raise NotImplementedError

    def owns(self, row: int) -> bool:
        """Whether this seat is the custodian of what a row heads."""
        raise NotImplementedError

    def owned_slot(self, row: int) -> Slot | None:
        """What a row heads, if this seat is its custodian."""
        raise NotImplementedError

    def keep_window(self, slot: Slot) -> None:
        """Keep the window of a slot that is the broker's: it may serve its next grant."""
        raise NotImplementedError

    def discard_in(self, ttl: float, handles: list[Handle]) -> None:
        """Discard the tickets of these handles that nobody opens within *ttl* seconds."""
        raise NotImplementedError

    def share_lease(self, lease: object, name: str | None, keep: object, ttl: float | None) -> Any:
        """Publish a lease of this seat's for any number of processes: its `Shared`."""
        raise NotImplementedError

    def warn_of_view(self) -> None:
        """A writer kept a view of what it published: say so, once."""
        raise NotImplementedError


class ViewTaken(LeaseReleased, AttributeError):
    """Another thread has taken the view, to publish or to release the lease."""

    def __init__(self) -> None:
        super().__init__("the lease is being published or released, by another thread or as its pool is closed")


class Origin:
    """What a lease that is over knows of its slot. Somebody may keep such a lease for long, and a slot that anybody
    knows is not found when an exception loses it (`recovery`)."""

    __slots__ = ("row", "session", "tier")

    def __init__(self, session: Keeper, tier: Tier, row: int) -> None:
        self.session = session
        self.tier = tier
        self.row = row

    @property
    def origin(self) -> Origin:
        return self

    def __getattr__(self, name: str) -> NoReturn:
        """What else a slot has is asked for by a thread under which another has ended the lease."""
        raise ViewTaken


class Slot:
    """A slot, a run or a direct segment whose custodian is this client.

    *base* is its generation in its place in the grant word; *word* the index of its row's
    first word, *first_cell* that of its first cell, *wanted* that of its tier in the header;
    *extents* its extents as (first row, chunks); *origin* what is left of it to a lease that is over;
    *extent_word* and *tail* what the extent word and a handle of a publication for one reader say besides its
    length; *done* what a finished cell of its last publication says, *last_cell* the index of that
    publication's last cell.
    """

    __slots__ = (
        "base", "done", "extent_word", "extents", "first_cell", "last_cell", "lease", "magazine", "origin", "row",
        "session", "size", "tail", "tier", "wanted", "window", "word",
    )  # fmt: skip

    #: A weak proxy of the lease that has it, or had it last; it costs half as much as a `ref`.
    lease: Any
    window: Window | None
    magazine: Magazine | None

    def __init__(self, session: Keeper, tier: Tier, extents: tuple[tuple[int, int], ...], size: int, base: int) -> None:
        self.session = session
        self.tier = tier
        self.extents = extents
        self.row = extents[0][0]
        self.origin: Any = Origin(session, tier, self.row)
        self.word = self.row * ROW_WORDS
        self.first_cell = self.word + FIRST_CELL
        self.extent_word = 1 << TICKETS_SHIFT | extents[0][1] << CHUNKS_SHIFT
        self.tail = self.row << 4 + NBYTES_BITS
        self.wanted = WANTED + tier.index
        self.size = size
        self.base = base
        self.done = 0
        self.last_cell = 0
        self.lease = None
        self.window = None
        self.magazine = None

    @property
    def has_views(self) -> bool:
        """Whether a user still has a view of its window."""
        return self.window is not None and getrefcount(self.window) != AT_REST

    @property
    def first_chunks(self) -> int:
        """Chunks of the first extent, for the extent word."""
        return self.extents[0][1]

    def prepare_return(self) -> None:
        """Custody is about to pass to another while views may live."""

    @property
    def is_noted(self) -> bool:
        """Whether its publication was made whole, with what readers will say when they are done: its
        handles may be on their way."""
        return self.done == self.base | _DONE

    def is_done(self, words: memoryview[int]) -> bool:
        """Whether every ticket of its last publication is done."""
        done = self.done
        return all(words[cell] == done for cell in range(self.first_cell, self.last_cell + 1))


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
            except IndexError:  # another thread took it
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
            except IndexError:  # another thread took it
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
        except IndexError:  # another thread took it
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
        except IndexError:  # another thread took it
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
            except IndexError:
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
            except IndexError:
                break
        self.resting = [(slot, slot.base) for slot in list(self.ready)]
        return taken
