"""The moves of `get`: how items come out of a queue. What holds for `putting` holds here."""

from __future__ import annotations

from collections.abc import Sequence
from pickle import loads
from queue import Empty
from typing import TYPE_CHECKING, Any, Final
from weakref import proxy

from ..errors import FormatError, QueueShutDown
from ..protocol import queues as layout
from ..protocol.handle import Handle, pack_handle
from ..protocol.queues import (
    GETTERS_SLEEP,
    GRANULE_SHIFT,
    HEAD,
    INLINE_KINDS,
    ITEM_HEAD,
    KIND_SHIFT,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOW,
    ODD,
    PUTTERS_SLEEP,
    TAIL,
    Flag,
    Kind,
    Odd,
    moved,
)
from ..seat import tickets
from ..system.outside import own
from ..system.patience import spin
from . import compiled, runs, sleepers
from .hands import Hands
from .members import Members
from .memory import Scribbled
from .pickling import restore, restored
from .putting import Putting
from .sleepers import Rest

if TYPE_CHECKING:
    from ..buffer import Buffer
    from ..pool import BasePool
    from ..shared import Shared
    from ..system.patience import Patience

#: What `get` gives: a kind, and the bytes or the opened buffer.
Found = tuple[int, "bytes | Buffer"]

#: There was none to be had the short way.
MISSED: Final = object()
_INLINE: Final = Kind.INLINE
_BYTES: Final = Kind.BYTES
_TOKEN: Final = Kind.TOKEN
_HANDLES: Final = (Kind.HANDLE, Kind.PICKLED)
_COUNT: Final = sleepers.COUNT
_ITEM_HEAD_AND_ROUNDING: Final = ITEM_HEAD + layout.GRANULE_BYTES - 1


class Getting(Putting):
    """A queue, as who gets sees it."""

    def __init__(self, pool: BasePool, shared: Shared) -> None:
        super().__init__(pool, shared)
        self.hands = Hands(proxy(self), self._hand_count) if self.flags & Flag.REQUEUE else None
        self.members: Members | None = None
        if self.flags & Flag.JOINABLE and self.hands is None:
            self.members = Members(self.words, self.session, self.seats)
        #: Whether the short way will do.
        self._gets_fast = self._barrier is None and self.members is None and self.hands is None
        #: Where it has seen TAIL: what lies before that may be taken without another look. At first where there is
        #: nothing before it: any number may be one that HEAD is just coming to.
        self._seen_tail = self.words[HEAD]
        self.short_way = compiled.short_way(self) if compiled.short_way is not None else None

    def get_fast(self) -> Any:
        """Take one item, restored, where that takes nothing but a lock, some stores, and maybe a ticket; else
        `MISSED`."""
        end, words = self.head_end, self.words
        if not self._gets_fast or end.has_gate():
            return MISSED
        inside, kind, at = False, 0, 0
        found: Any = None
        opened: Buffer | None = None
        take, leave, version = end.now
        try:
            if end.take_gate(False):
                words[end.said] = end.name
                inside = True
                if (take(False) or end.insist(take)) and words[end.version] == version:
                    head, tail = words[HEAD], self._seen_tail
                    if not 0 < (tail - head & LOW) <= self.capacity:
                        self._seen_tail = tail = words[TAIL]
                    if head != tail:
                        at = head >> 32
                        place = at & self.mask
                        start = self.first + (place << GRANULE_SHIFT)
                        word = words[start >> 3]
                        length = word >> LENGTH_SHIFT & LENGTH_MASK
                        count = length + _ITEM_HEAD_AND_ROUNDING >> GRANULE_SHIFT
                        if (
                            word & LOW == at
                            and (tail >> 32) - at & LOW >= count
                            and place + count <= self.granules
                            and not self.is_closed
                        ):
                            kind = word >> KIND_SHIFT
                            if kind in INLINE_KINDS:
                                found = self.raw[start + 8 : start + 8 + length]
                            elif kind in _HANDLES and length == 16:
                                opened = self._open(start >> 3)
                                kind = kind if opened is not None else 0
                            else:
                                kind = 0
                            if kind:
                                words[HEAD] = head = (at + count & LOW) << 32 | (head + 1 & LOW)
                                if opened is not None:
                                    found, opened = opened, None
        except BaseException:
            if opened is not None and words[HEAD] >> 32 == at:
                opened.give_back()
            raise
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
        if not kind:
            return MISSED
        if words[PUTTERS_SLEEP] & _COUNT:
            self._wake_putters()
        if words[GETTERS_SLEEP] & _COUNT and words[TAIL] != head:
            self._wake_getters(1)  # pass the bell on
        if self.bell.is_watching and words[TAIL] == head:
            self.bell.drain()
        if kind == _BYTES:
            return found
        if kind == _INLINE:
            return loads(found)
        return Handle(found) if kind == _TOKEN else restore(kind, found)

    def get_run(self, most: int) -> tuple[int, Sequence[bytes]]:
        """Under H: take the first small items, of one kind, if nothing is out of the usual: their kind and contents."""
        words = self.words
        head, tail = words[HEAD], words[TAIL]
        at = head >> 32
        place = at & self.mask
        most = min(most, tail - head & LOW, (tail >> 32) - at & LOW, self.granules - place, LOW - at, runs.MOST_ITEMS)
        if most <= 0 or self.is_closed:
            return 0, ()
        kind, found = runs.load(self.raw, words, self.first + (place << GRANULE_SHIFT), at, most)
        if kind not in INLINE_KINDS or not found:
            return 0, ()
        words[HEAD] = moved(head, len(found), len(found))
        return kind, found

    def get_many(self, most: int, deadline: float) -> list[Any]:
        """Take up to *most* items, at least one, and restore them. Raises like `get`."""
        if self._gets_fast and self.await_item(deadline):
            got = self.under(self.head_end, deadline, self.get_run, most)
            if got and got[0]:
                self._tell_of_room()
                if self.bell.is_watching and self.words[TAIL] == self.words[HEAD]:
                    self.bell.drain()
                kind, found = got
                return list(found) if kind == _BYTES else list(map(loads if kind == _INLINE else Handle, found))
        return [restored(kind, found) for kind, found in self.get(most, deadline)]

    def await_item(self, deadline: float) -> bool:
        """Whether there is an item, or comes within a moment."""
        words = self.words
        tail = words[TAIL]
        return words[HEAD] != tail or (deadline != 0.0 and spin(words, TAIL, tail))

    def get(self, most: int, deadline: float) -> list[Found]:
        """Take up to *most* items, at least one: bytes, or opened buffers. Raises `Empty`,
        QueueShutDown, and FormatError for what somebody has scribbled on, which is stepped over."""
        words, rest, patience = self.words, Rest(), None
        if self.hands is not None and not self.flags & Flag.JOINABLE:
            self.hands.release_own()
        while True:
            taken: list[Found] = []
            got = self.under(self.head_end, deadline, self._get, most, patience, rest, taken)
            if got is None:
                break
            head, tail, lost = got
            if self._barrier:
                self._barrier()
            if head != tail:
                self._tell_of_room()
            if self.bell.is_watching and words[TAIL] == words[HEAD]:
                self.bell.drain()
            if self.hands is not None:
                taken = self.hands.copy_out()
            if taken:
                return taken
            if head == tail:
                patience = self._wait(patience, deadline, TAIL, self.tail_at, rest)
                if patience is None:
                    break
            elif not lost and self.hands is not None:  # all hands are full
                rest.seen = head
                patience = self._wait(patience, deadline, HEAD, self.head_at, rest)
                if patience is None:
                    break
        raise Empty

    def _get(self, most: int, patience: Patience | None, rest: Rest, taken: list[Found]) -> tuple[int, int, int]:
        """Under H: where HEAD and TAIL were, and how many items were stepped over. When there is none it lies down, if
        it has looked before."""
        words, lost = self.words, 0
        self._check_open()
        rest.get_up(words, GETTERS_SLEEP)
        head, tail = words[HEAD], words[TAIL]
        rest.seen = tail
        if self._barrier:
            self._barrier()
        if self.hands is not None and self.hands.take_over(head):
            pass
        elif head != tail:
            lost = self._take(head, tail, most, taken)
        elif words[ODD] & Odd.SHUT:
            raise QueueShutDown("the queue was shut down")
        elif patience is not None and not patience.is_over:
            rest.lie_down(words, GETTERS_SLEEP)
        return head, tail, lost

    def _tell_of_room(self) -> None:
        words = self.words
        if words[PUTTERS_SLEEP] & _COUNT:
            self._wake_putters()
        if words[GETTERS_SLEEP] & _COUNT and words[TAIL] != words[HEAD]:
            self._wake_getters(1)

    def _take(self, head: int, tail: int, most: int, taken: list[Found]) -> int:
        """Under H: take items from *head* on, and commit by HEAD. How many were stepped over, whose takers died
        before they could say so."""
        if self.hands is not None:
            return self.hands.take(head, tail, most)
        words, members = self.words, self.members
        position, lost = head, 0
        try:
            while True:
                if position == tail or len(taken) >= most:
                    break
                try:
                    at, kind, length, following = self.look(position, tail)
                except own(Scribbled) as scribbled:
                    if taken:
                        break  # it is told when it is the first
                    words[HEAD] = scribbled.following
                    raise FormatError(str(scribbled)) from None
                if kind in INLINE_KINDS:
                    start = 8 * self.word_of(at) + ITEM_HEAD
                    taken.append((kind, self.raw[start : start + length]))
                elif (opened := self._open(self.word_of(at))) is not None:
                    taken.append((kind, opened))
                else:
                    lost += 1
                position = following
            if members is not None and taken:
                members.claim(head >> 32, len(taken))
            words[HEAD] = position
        except BaseException:
            if words[HEAD] == head:
                for _, item in taken:  # their tickets are open again
                    if isinstance(item, bytes):
                        continue
                    item.give_back()
            raise
        return lost

    def _open(self, word: int) -> Buffer | None:
        """Under H: the buffer of a handle; None for one whose taker died before he could say so, and for what
        was discarded. What is only busy, and for a second, stays where it is: HandleUsed."""
        session, granted, tail = self.session, self.words[word + 1], self.words[word + 2]
        try:
            return self._pool.open(Handle(pack_handle(session.pool_id, granted, tail)))
        except own(LookupError):
            if tickets.is_pending(session, granted, tail):
                raise
            return None
