"""A queue's memory as one process sees it: where everything lies, and what lies at a position.

Nothing is locked in here, and nothing pickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..errors import FormatError, LeaseReleased, ShmpoolError
from ..protocol import queues as layout
from ..protocol.ledger import LINK, ROW_WORDS, birth_of, generation_of, queue_word
from ..protocol.names import direct_name
from ..protocol.queues import (
    ALL_FLAGS,
    CAPACITY,
    DROPPED,
    FLAGS,
    GETTERS_SLEEP,
    GRANULE_SHIFT,
    GRANULES,
    HANDLE_GRANULES,
    HANDS,
    HEAD,
    INLINE_KINDS,
    KIND_SHIFT,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOW,
    MAGIC,
    MAXSIZE,
    MOST_INLINE,
    PUTTERS_SLEEP,
    RINGS,
    SEATS,
    TAIL,
    Kind,
    granules_of,
    item_word,
    moved,
)
from ..protocol.sizing import TierKind
from ..seat import tickets
from ..seat.windows import WRITE, Piece, Window
from ..system import futex, libc
from ..system.here import HERE, OURS
from ..system.outside import own
from ..system.patience import Patience, spin
from ..system.segments import open_segment
from . import sleepers
from .locks import HEAD_END, TAIL_END, End, raise_interrupted
from .sleepers import Rest

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..seat.session import Session
    from ..shared import Shared

ALL: Final = (1 << 31) - 1
_ITEM_KINDS: Final = (*INLINE_KINDS, Kind.HANDLE, Kind.PICKLED)
R = TypeVar("R")


class Scribbled(Exception):
    """At *position* there is no item; *following* is the next position that looks as if there were one."""

    def __init__(self, position: int, word: int, following: int) -> None:
        super().__init__(f"the queue's item {position & LOW} is damaged: its first word says {word:#x}")
        self.following = following


class Memory:
    """That of one queue, of one session."""

    __slots__ = ("__dict__", "__weakref__", "is_closed", "short_way")

    #: What the compiled part has of it.
    short_way: Any

    def __init__(self, pool: BasePool, shared: Shared) -> None:
        self._pool = pool
        #: Holds it for this process as long as it is open.
        self._buffer = shared.open()
        record = self._buffer._record
        self.session: Session = record.session  # type: ignore[assignment]
        self.row = record.row
        self.generation = generation_of(self._buffer._granted)
        try:
            self._window = self._map()
            self.words = memoryview(self._window).cast("Q")
            #: Whose slices are bytes, for half of what those of a memoryview take.
            self.raw = self._window
            self._read_geometry()
        except BaseException:
            self._buffer.release()
            raise
        at = libc.address_of(self._window)
        self.tail_at, self.head_at, self.rings_at = at + 8 * TAIL, at + 8 * HEAD, at + 8 * RINGS
        self._barrier = self.session.barrier
        self.tail_end = End(self.session, self.words, at, self.row, TAIL_END, self.seats)
        self.head_end = End(self.session, self.words, at, self.row, HEAD_END, self.seats)
        self.tail_end.sit_down()
        self.head_end.sit_down()
        self._queue_word = queue_word(self.row, self.generation)
        self.is_closed = False

    def _map(self) -> Window:
        """A map of the whole slot, to write."""
        session, row = self.session, self.row
        if session.tier_of(row).kind is TierKind.DIRECT:
            birth = birth_of(session.words[row * ROW_WORDS + LINK])  # its name stays when it is leased anew
            fd = open_segment(direct_name(session.pool_id, row, birth), writable=True)
            pieces = [Piece(fd, 0, os.fstat(fd).st_size)]
        elif session.tier_of(row).kind is TierKind.POOLED:
            pieces = [session.piece(row, 1, writable=True)]
        else:
            pieces = [session.piece(first, count, writable=True) for first, count in session.extents_of(row)]
        window = session.windows.make(pieces, WRITE)
        window.is_sparse = True  # a forked child maps it anew, and needs no copy
        return window

    def _read_geometry(self) -> None:
        words = self.words
        if words[0] != MAGIC:
            raise FormatError("this shared publication is no queue")
        self.granules, self.capacity, self.most_inline = words[GRANULES], words[CAPACITY], words[MOST_INLINE]
        self.flags, self._hand_count, self.seats = words[FLAGS] & ALL_FLAGS, words[HANDS], words[SEATS]
        self.first = layout.first_granule(self.seats, self.flags, self._hand_count, self.most_inline)
        self.mask = self.granules - 1
        #: Beyond so many granules there is room for handles alone: for as many as the queue may have items.
        kept = HANDLE_GRANULES * self.capacity if words[MAXSIZE] else self.granules // 8
        self.inline_limit = self.granules - kept
        is_right = 0 < self.granules <= 1 << 31 and self.granules & self.mask == 0 and self.capacity > 0
        if not (is_right and self.first + (self.granules << GRANULE_SHIFT) <= len(self._window)):
            raise FormatError(
                f"the queue's memory is damaged: it has {len(self._window)} bytes, and says {self.granules} granules"
            )

    # --- figures ------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Items that were put and not taken."""
        words = self.words
        while True:
            head = words[HEAD]
            size = words[TAIL] - head & LOW
            if words[HEAD] == head:
                return size

    @property
    def dropped(self) -> int:
        """Items that `overflow` dropped."""
        return self.words[DROPPED]

    # --- under a lock -----------------------------------------------------------------------------------

    def under(self, end: End, deadline: float, body: Callable[..., R], *arguments: Any) -> R | None:
        """Lock an end, and do what *body* says; None when that was not possible in time. Whoever is
        interrupted in the middle lets go. Raises RuntimeError in a signal handler that has interrupted this thread
        there."""
        if end.has_gate():
            raise_interrupted()
        me = get_ident()
        try:
            return body(*arguments) if end.acquire(deadline) else None
        finally:
            try:
                end.now[1]()
            except own(AssertionError):
                pass
            finally:
                if end.holder == me:
                    self.words[end.said] = end.holder = 0
                try:
                    end.leave_gate()
                except own(AssertionError):
                    pass

    # --- what lies where ----------------------------------------------------------------------------

    def word_of(self, granule: int) -> int:
        return self.first + ((granule & self.mask) << GRANULE_SHIFT) >> 3

    def look(self, position: int, tail: int) -> tuple[int, int, int, int]:
        """The item at a position: its granule, kind and length, and the position behind it. Raises Scribbled."""
        words, at, end = self.words, position >> 32, tail >> 32
        word = words[self.word_of(at)]
        if word == item_word(at, Kind.PAD, 0):
            pad = self.granules - (at & self.mask)
            if pad < end - at & LOW:
                position = moved(position, pad, 0)
                at = position >> 32
                word = words[self.word_of(at)]
        if count := self._granules_at(word, at, end):
            kind, length = word >> KIND_SHIFT, word >> LENGTH_SHIFT & LENGTH_MASK
            following = moved(position, count, 1)
            return at, kind, length, tail if following >> 32 == end else following
        raise Scribbled(position, word, self._following(position, tail))

    def _granules_at(self, word: int, at: int, end: int) -> int:
        """The granules of the item whose first word this is; 0 for what is none."""
        kind, length = word >> KIND_SHIFT, word >> LENGTH_SHIFT & LENGTH_MASK
        count = granules_of(length)
        is_right = length <= self.most_inline if kind in INLINE_KINDS else length == 16
        if word & LOW != at or kind not in _ITEM_KINDS or not is_right:
            return 0
        return count if count <= (end - at & LOW) and (at & self.mask) + count <= self.granules else 0

    def _following(self, position: int, tail: int) -> int:
        """The next position that looks like an item's, behind one that somebody has scribbled on. From a HEAD or TAIL
        that was scribbled on itself, and lies further off than there are granules, all is stepped over."""
        end, at = tail >> 32, (position >> 32) + 1 & LOW
        if end - at & LOW >= self.granules:
            return tail
        while at != end:
            if self._granules_at(self.words[self.word_of(at)], at, end):
                return at << 32 | (position + 1 & LOW)
            at = at + 1 & LOW
        return tail

    def discard(self, granted: int, tail: int) -> None:
        try:
            tickets.discard_handle(self.session, granted, tail)
        except own(ShmpoolError):
            pass  # it was opened, or its publisher is gone

    def discard_items(self, most: int) -> bool:
        """Under H: discard so many items and commit by HEAD. True."""
        words = self.words
        position, tail = words[HEAD], words[TAIL]
        while most and position != tail:
            try:
                at, kind, _, following = self.look(position, tail)
            except own(Scribbled) as scribbled:
                position = scribbled.following
                continue
            if kind in (Kind.HANDLE, Kind.PICKLED):
                word = self.word_of(at)
                self.discard(words[word + 1], words[word + 2])
            position = following
            most -= 1
        words[HEAD] = position
        return True

    # --- waiting ------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.is_closed:
            raise ValueError("the queue was closed by another thread")

    def _check_here(self) -> None:
        if self.session.is_over or not HERE[OURS]:
            raise LeaseReleased("the queue's pool is gone, or belongs to the parent of this fork")
        self._check_open()

    def _wake_getters(self, count: int) -> None:
        if sleepers.any_asleep(self.words[GETTERS_SLEEP]):
            futex.wake(self.tail_at, count)

    def _wake_putters(self) -> None:
        """If there is room enough: waking for each item would have each side wait for the other."""
        words = self.words
        head, tail = words[HEAD], words[TAIL]
        is_roomy = (
            4 * (tail - head & LOW) <= 3 * self.capacity
            and 4 * ((tail >> 32) - (head >> 32) & LOW) <= 3 * self.granules
        )
        if is_roomy and sleepers.any_asleep(words[PUTTERS_SLEEP]):
            futex.wake(self.head_at, 1)

    def _wait(self, patience: Patience | None, deadline: float, word: int, at: int, rest: Rest) -> Patience | None:
        """Look again and again for a while; then sleep, for those who have lain down. None when the time is over."""
        if patience is None:
            if deadline == 0.0:
                return None
            patience = Patience(deadline)
            spin(self.words, word, rest.seen)
        elif patience.is_over:
            return None
        elif rest.epoch:
            patience.sleep(at, rest.seen, rest.left)
        self._check_here()
        return patience
