"""The moves of `put`: how items come into a queue.

What is stored, and in which order, is the protocol (see `layout`): a death between any two stores loses at
most what was in that process's own hands. Signals may raise behind any call. What is locked is unlocked by a
call in a ``finally``, never in a function that is called there, which could be interrupted before it does so.
"""

from __future__ import annotations

from collections.abc import Sequence
from fcntl import fcntl
from queue import Full
from typing import TYPE_CHECKING, Final
from weakref import proxy

from ..errors import QueueShutDown
from ..protocol.handle import unpack_handle
from ..protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GENERATION_SHIFT,
    NBYTES_BITS,
    QUEUE_CELL,
    QUEUED_CELL,
    ROW_WORDS,
    generation_of,
    nbytes_of,
    queued_word,
    state_of,
)
from ..protocol.states import State
from ..system.locks import F_OFD_SETLK
from . import layout, sleepers
from .bell import Bell
from .layout import (
    DROPPED,
    GETTERS_SLEEP,
    GRANULE_SHIFT,
    HANDLE_GRANULES,
    HEAD,
    INTENTS,
    ITEM_HEAD,
    KIND_SHIFT,
    LENGTH_SHIFT,
    LOW,
    MOST_INTENTS,
    ODD,
    PUTTERS_SLEEP,
    TAIL,
    TAIL_OWNER,
    Flag,
    Kind,
    Odd,
    granules_of,
    item_word,
    moved,
)
from .memory import Memory
from .threads import Thread, raise_interrupted

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..shared import Shared
    from .pickling import Item

_INLINE: Final = Kind.INLINE
#: Where the number of intents stands.
_INTENTS_SHIFT: Final = 8
_COUNT: Final = sleepers.COUNT
_ITEM_HEAD_AND_ROUNDING: Final = ITEM_HEAD + layout.GRANULE_BYTES - 1


class NoRoomInline(Exception):
    """The queue's memory is half full, and what is left is for handles: the item behind those that were
    put, *done*, is to be put in a lease."""

    def __init__(self, done: int) -> None:
        super().__init__(done)
        self.done = done


class Putting(Memory):
    """A queue, as who puts sees it."""

    def __init__(self, pool: BasePool, shared: Shared) -> None:
        super().__init__(pool, shared)
        self.bell = Bell(proxy(self))  # no circle: what nobody has is gone at once
        #: Whether the short way will do.
        self._puts_fast = self._barrier is None

    def put_fast(self, thread: Thread, data: bytes) -> bool:
        """Put one item inline, where that takes nothing but a lock and some stores. False: it was not put."""
        end = self.tail_end
        before = thread.holds
        if before or not self._puts_fast:
            return False
        words, length = self.words, len(data)
        count = length + _ITEM_HEAD_AND_ROUNDING >> GRANULE_SHIFT
        try:
            thread.holds = end.marked
            fcntl(thread.fd, F_OFD_SETLK, end.lock)
            tail, head = words[TAIL], words[HEAD]
            at = tail >> 32
            place = at & self.mask
            if (
                (at - (head >> 32) & LOW) + count > self.inline_limit
                or place + count > self.granules
                or (tail - head & LOW) >= self.capacity
                or words[ODD]
                or length > self.most_inline
                or self.is_closed
            ):
                return False
            words[TAIL_OWNER] = self._seat
            start = self.first + (place << GRANULE_SHIFT)
            self.raw[start + 8 : start + 8 + length] = data
            words[start >> 3] = at | length << LENGTH_SHIFT | _INLINE << KIND_SHIFT
            words[TAIL] = (at + count & LOW) << 32 | (tail + 1 & LOW)
        except (BlockingIOError, PermissionError):
            return False
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, end.unlock)
            finally:
                thread.holds = before
        if words[GETTERS_SLEEP] & _COUNT:
            self._wake_getters(1)
        return True

    def put(self, thread: Thread, items: Sequence[Item], deadline: float) -> int:
        """Put them in order, as many at once as there is room for; how many were put, less only when
        the deadline came. Raises `Full` when none were, QueueShutDown, NoRoomInline."""
        words, end = self.words, self.tail_end
        done, epoch, left, patience = 0, 0, 0.0, None
        while True:
            stored, head, odd = 0, 0, 0
            before = thread.holds
            if end in before:
                raise_interrupted()
            try:
                thread.holds = (end, *before)
                if not end.acquire(thread, deadline):
                    break
                self._check_open()
                words[TAIL_OWNER] = self._seat
                if epoch:
                    sleepers.get_up(words, PUTTERS_SLEEP, epoch)
                    epoch = 0
                odd = words[ODD]
                if odd & Odd.SHUT:
                    raise QueueShutDown("the queue was shut down")
                if odd & Odd.INTENTS:
                    self._discard_intents()
                stored = self._store(thread, items, done, deadline)
                if stored < 0:
                    raise NoRoomInline(done)
                done += stored
                if done < len(items) and self.flags & Flag.DROP_NEWEST:
                    words[DROPPED] += len(items) - done
                    done = len(items)
                elif not stored:
                    head = words[HEAD]
                    if patience is not None and not patience.is_over:
                        epoch, left = sleepers.lie_down(words, PUTTERS_SLEEP)
            finally:
                try:
                    fcntl(thread.fd, F_OFD_SETLK, end.unlock)
                finally:
                    thread.holds = before
            if stored:
                self._tell_of_items(stored, odd)
            if done == len(items):
                if words[PUTTERS_SLEEP] & _COUNT:
                    self._wake_putters()  # there may be room for more of them
                return done
            if not stored:
                patience = self._wait(patience, deadline, HEAD, self.head_at, head, epoch, left)
                if patience is None:
                    break
        if not done:
            raise Full
        return done

    def _tell_of_items(self, count: int, odd: int) -> None:
        if self.words[GETTERS_SLEEP] & _COUNT:
            self._wake_getters(count)
        if odd & Odd.WATCHED:
            self.bell.ring()

    def _store(self, thread: Thread, items: Sequence[Item], done: int, deadline: float) -> int:
        """Under T: as many of them as there is room for, or in DROP_OLDEST all; the commit is one store. -1 when
        the first of them must go into a lease."""
        count, drops = 0, bool(self.flags & Flag.DROP_OLDEST)
        words = self.words
        tail = words[TAIL]
        position, intents = tail, 0
        try:
            for item in items[done:]:
                data = item.inline
                need = HANDLE_GRANULES if data is None else granules_of(len(data))
                while True:
                    at, head = position >> 32, words[HEAD]
                    place = at & self.mask
                    pad = self.granules - place if place + need > self.granules else 0
                    used = (at - (head >> 32) & LOW) + pad + need
                    is_full = (position - head & LOW) >= self.capacity or used > self.granules
                    if not (drops and is_full) or head == tail:
                        break
                    if not self._discard_oldest(thread, deadline):
                        return 0
                if is_full or (data is None and intents == MOST_INTENTS):
                    break
                if need > HANDLE_GRANULES and used > self.inline_limit:
                    if not count:
                        return -1
                    break
                if pad:
                    words[self.word_of(at)] = item_word(at, Kind.PAD, 0)
                    position = moved(position, pad, 0)
                    at = position >> 32
                if data is None:
                    self._store_handle(item, at, intents)
                    intents += 1
                else:
                    start = self.first + ((at & self.mask) << GRANULE_SHIFT)
                    self.raw[start + ITEM_HEAD : start + ITEM_HEAD + len(data)] = data
                    words[start >> 3] = item_word(at, Kind.INLINE, len(data))
                position = moved(position, need, 1)
                count += 1
            if self._barrier:
                self._barrier()
            words[TAIL] = position
            if intents:
                words[ODD] &= Odd.SHUT | Odd.SHUT_AT_ONCE | Odd.WATCHED
        except BaseException:
            if intents and words[TAIL] == tail:
                self._discard_intents()
            raise
        return count

    def _store_handle(self, item: Item, at: int, intents: int) -> None:
        """Under T: publish a lease. First it is noted which: it is nobody else's until TAIL is stored, and who
        comes after us must find it if we do not come so far."""
        words, session, lease = self.words, self.session, item.lease
        assert lease is not None
        slot = lease._slot
        generation = slot.base >> GENERATION_SHIFT
        intent = INTENTS + 3 * intents
        words[intent], words[intent + 1], words[intent + 2] = slot.row, generation, at
        words[ODD] = words[ODD] & 7 | Odd.INTENTS | intents + 1 << _INTENTS_SHIFT
        ledger = session.words
        ledger[slot.word + QUEUE_CELL] = self._queue_word
        ledger[slot.word + QUEUED_CELL] = queued_word(generation)
        handle = lease.publish()
        place = self.word_of(at)
        _, words[place + 1], words[place + 2] = unpack_handle(handle)
        words[place] = item_word(at, item.kind, 16)

    def _discard_intents(self) -> None:
        """Under T: a putter that died, or was interrupted, left handles that no getter will see."""
        words, ledger = self.words, self.session.words
        odd, tail = words[ODD], words[TAIL] >> 32
        for number in range(min(odd >> _INTENTS_SHIFT, MOST_INTENTS)):
            row, generation, at = words[INTENTS + 3 * number : INTENTS + 3 * number + 3].tolist()
            if (at - tail & LOW) >= 1 << 31 or not 0 < row < self.session.rows:
                continue  # TAIL went past it: it was put
            granted, extent = ledger[row * ROW_WORDS + FIRST_CELL], ledger[row * ROW_WORDS + EXTENT]
            if generation_of(granted) == generation and state_of(granted) == State.PUBLISHED:
                self.discard(granted, row << 4 + NBYTES_BITS | nbytes_of(extent))
        words[ODD] = odd & 7

    def _discard_oldest(self, thread: Thread, deadline: float) -> bool:
        """Under T: drop an item, or what stands at HEAD. False when H cannot be had."""
        words, end = self.words, self.head_end
        before = thread.holds
        if end in before:
            raise_interrupted()
        try:
            thread.holds = (end, *before)
            if not end.acquire(thread, deadline):
                return False
            self.discard_items(1)
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, end.unlock)
            finally:
                thread.holds = before
        words[DROPPED] += 1
        return True
