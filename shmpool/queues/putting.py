"""The moves of `put`: how items come into a queue.

What is stored, and in which order, is the protocol (see `protocol.queues`): a death between any two stores loses at
most what was in that process's own hands. Signals may raise behind any call. What is locked is unlocked by a
call in a ``finally``, never in a function that is called there, which could be interrupted before it does so
(`Memory.under`; the short way does the same in place).
"""

from __future__ import annotations

from collections.abc import Sequence
from queue import Full
from typing import TYPE_CHECKING, Final
from weakref import proxy

from ..errors import QueueShutDown
from ..protocol import queues as layout
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
from ..protocol.queues import (
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
    Flag,
    Kind,
    Odd,
    granules_of,
    item_word,
    moved,
)
from ..protocol.states import State
from ..system.outside import own
from . import runs, sleepers
from .bell import Bell
from .memory import Memory
from .sleepers import Rest

if TYPE_CHECKING:
    from ..pool import BasePool
    from ..shared import Shared
    from ..system.patience import Patience
    from .pickling import Item

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
        #: Where TAIL was after the last put of this process, and where it has seen HEAD. As long as nobody else puts,
        #: HEAD need not be read anew where there was room: the getters' cache lines are theirs.
        self._last_tail = self._seen_head = -1

    def put_fast(self, data: bytes, kind: int) -> bool:
        """Put one item inline, where that takes nothing but a lock and some stores. False: it was not put."""
        end = self.tail_end
        if not self._puts_fast or end.has_gate():
            return False
        words, length, inside, is_put = self.words, len(data), False, False
        count = length + _ITEM_HEAD_AND_ROUNDING >> GRANULE_SHIFT
        take, leave, version = end.now
        try:
            if end.take_gate(False):
                words[end.said] = end.name
                inside = True
                if (take(False) or end.insist(take)) and words[end.version] == version:
                    tail = words[TAIL]
                    if tail != self._last_tail:
                        self._seen_head = words[HEAD]
                    head, at = self._seen_head, tail >> 32
                    place = at & self.mask
                    if (at - (head >> 32) & LOW) + count > self.inline_limit or (tail - head & LOW) >= self.capacity:
                        self._seen_head = head = words[HEAD]
                    if (
                        (at - (head >> 32) & LOW) + count <= self.inline_limit
                        and place + count <= self.granules
                        and (tail - head & LOW) < self.capacity
                        and not words[ODD]
                        and length <= self.most_inline
                        and not self.is_closed
                    ):
                        start = self.first + (place << GRANULE_SHIFT)
                        self.raw[start + 8 : start + 8 + length] = data
                        words[start >> 3] = at | length << LENGTH_SHIFT | kind << KIND_SHIFT
                        words[TAIL] = self._last_tail = (at + count & LOW) << 32 | (tail + 1 & LOW)
                        is_put = True
        finally:
            try:
                leave()
            except own(AssertionError):
                pass
            finally:
                if inside:
                    words[end.said] = 0
                try:
                    end.leave_gate()
                except own(AssertionError):
                    pass
        if is_put and words[GETTERS_SLEEP] & _COUNT:
            self._wake_getters(1)
        return is_put

    def put_run(self, items: Sequence[bytes], kind: int) -> int:
        """Under T: put the first of some small items of one kind, if nothing is out of the usual: how many."""
        words = self.words
        tail, head = words[TAIL], words[HEAD]
        at = tail >> 32
        place = at & self.mask
        count = min(
            len(items),
            self.inline_limit - (at - (head >> 32) & LOW),
            self.granules - place,
            self.capacity - (tail - head & LOW),
            LOW - at,
            runs.MOST_ITEMS,
        )
        if count <= 0 or self._barrier or words[ODD] or self.is_closed:
            return 0
        runs.store(self.raw, self.first + (place << GRANULE_SHIFT), at, kind, items[:count])
        words[TAIL] = moved(tail, count, count)
        return count

    def put(self, items: Sequence[Item], deadline: float) -> int:
        """Put them in order, as many at once as there is room for; how many were put, less only when
        the deadline came. Raises `Full` when none were, QueueShutDown, NoRoomInline."""
        words = self.words
        done, rest, patience = 0, Rest(), None
        while True:
            stored = self.under(self.tail_end, deadline, self._put, items, done, deadline, patience, rest)
            if stored is None:
                break
            done += stored
            if stored:
                self.tell_of_items(stored, rest.odd)
            if done == len(items):
                if words[PUTTERS_SLEEP] & _COUNT:
                    self._wake_putters()  # there may be room for more of them
                return done
            if not stored:
                patience = self._wait(patience, deadline, HEAD, self.head_at, rest)
                if patience is None:
                    break
        if not done:
            raise Full
        return done

    def _put(self, items: Sequence[Item], done: int, deadline: float, patience: Patience | None, rest: Rest) -> int:
        """Under T: how many were put, or dropped. For none it lies down, if it has looked before."""
        words = self.words
        self._check_open()
        rest.get_up(words, PUTTERS_SLEEP)
        rest.odd = odd = words[ODD]
        if odd & Odd.SHUT:
            raise QueueShutDown("the queue was shut down")
        if odd & Odd.INTENTS:
            self._discard_intents()
        if odd & Odd.WATCHED and not self.bell.make_ready():
            rest.odd = odd & ~Odd.WATCHED  # who begins to watch behind this put sees what it put
        seen = words[HEAD]  # before the look for room: what is taken behind it ends the sleep
        stored = self._store(items, done, deadline)
        if stored < 0:
            raise NoRoomInline(done)
        if done + stored < len(items) and self.flags & Flag.DROP_NEWEST:
            words[DROPPED] += len(items) - done - stored
            return len(items) - done
        if not stored:
            rest.seen = seen
            if patience is not None and not patience.is_over:
                rest.lie_down(words, PUTTERS_SLEEP)
        return stored

    def tell_of_items(self, count: int, odd: int = 0) -> None:
        """So many were put, *odd* as it was."""
        if self._barrier:
            self._barrier()
        if self.words[GETTERS_SLEEP] & _COUNT:
            self._wake_getters(count)
        if odd & Odd.WATCHED:
            self.bell.ring()

    def _store(self, items: Sequence[Item], done: int, deadline: float) -> int:
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
                    if not self._discard_oldest(deadline):
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
                    words[start >> 3] = item_word(at, item.kind, len(data))
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

    def _discard_oldest(self, deadline: float) -> bool:
        """Under T: drop an item, or what stands at HEAD. False when H cannot be had."""
        if self.under(self.head_end, deadline, self.discard_items, 1) is None:
            return False
        self.words[DROPPED] += 1
        return True
