"""Slots: what this client is custodian of, and what they and their leases ask of their seat."""

from __future__ import annotations

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
    from collections import deque
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

    class Place(Protocol):
        """Where a slot lies while nobody has it: its magazine (`seat.magazine`)."""

        ready: deque[Slot]
        published: deque[Slot]


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
    magazine: Place | None

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
