"""The moves of `get`: how items come out of a queue. What holds for `putting` holds here."""

from __future__ import annotations

from fcntl import fcntl
from queue import Empty
from typing import TYPE_CHECKING, Final
from weakref import proxy

from ..errors import FormatError, QueueShutDown
from ..protocol.handle import Handle, pack_handle
from ..system.locks import F_OFD_SETLK
from ..system.patience import spin
from . import layout, sleepers
from .hands import Hands
from .layout import (
    GETTERS_SLEEP,
    GRANULE_SHIFT,
    HEAD,
    HEAD_OWNER,
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
)
from .members import Members
from .memory import Scribbled
from .putting import Putting
from .threads import Thread, raise_interrupted

if TYPE_CHECKING:
    from ..buffer import Buffer
    from ..pool import BasePool
    from ..shared import Shared

#: What `get` gives: a kind, and the bytes or the opened buffer.
Found = tuple[int, "bytes | Buffer"]

_INLINE: Final = Kind.INLINE
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

    def get_fast(self, thread: Thread) -> bytes | Found | None:
        """Take one item, its bytes if it lies inline, where that takes nothing but a lock, some stores, and maybe
        a ticket; else None."""
        end = self.head_end
        before = thread.holds
        words = self.words
        if before or not self._gets_fast or words[HEAD] == words[TAIL]:
            return None
        found: bytes | Found
        opened: Buffer | None = None
        try:
            thread.holds = end.marked
            fcntl(thread.fd, F_OFD_SETLK, end.lock)
            head, tail = words[HEAD], words[TAIL]
            if head == tail:
                return None
            at = head >> 32
            place = at & self.mask
            start = self.first + (place << GRANULE_SHIFT)
            word = words[start >> 3]
            length = word >> LENGTH_SHIFT & LENGTH_MASK
            count = length + _ITEM_HEAD_AND_ROUNDING >> GRANULE_SHIFT
            if word & LOW != at or (tail >> 32) - at & LOW < count or place + count > self.granules or self.is_closed:
                return None
            words[HEAD_OWNER] = self._seat
            kind = word >> KIND_SHIFT
            if kind == _INLINE:
                found = bytes(self.raw[start + 8 : start + 8 + length])
            elif length != 16 or not _INLINE < kind < Kind.PAD or (opened := self._open(start >> 3)) is None:
                return None
            else:
                found = kind, opened
            words[HEAD] = head = (at + count & LOW) << 32 | (head + 1 & LOW)
            opened = None
        except (BlockingIOError, PermissionError):
            return None
        except BaseException:
            if opened is not None and words[HEAD] >> 32 == at:
                opened.give_back()
            raise
        finally:
            try:
                fcntl(thread.fd, F_OFD_SETLK, end.unlock)
            finally:
                thread.holds = before
        if words[PUTTERS_SLEEP] & _COUNT:
            self._wake_putters()
        if words[GETTERS_SLEEP] & _COUNT and words[TAIL] != head:
            self._wake_getters(1)  # pass the bell on
        if self.bell.is_watching and words[TAIL] == head:
            self.bell.drain()
        return found

    def await_item(self, deadline: float) -> bool:
        """Whether there is an item, or comes within a moment."""
        words = self.words
        tail = words[TAIL]
        return words[HEAD] != tail or (deadline != 0.0 and spin(words, TAIL, tail))

    def get(self, thread: Thread, most: int, deadline: float) -> list[Found]:
        """Take up to *most* items, at least one: pickled bytes, or opened buffers. Raises `Empty`,
        QueueShutDown, and FormatError for what somebody has scribbled on, which is stepped over."""
        words, end = self.words, self.head_end
        epoch, left, patience = 0, 0.0, None
        if self.hands is not None and not self.flags & Flag.JOINABLE:
            self.hands.release_own()
        while True:
            taken: list[Found] = []
            head = tail = lost = 0
            before = thread.holds
            if end in before:
                raise_interrupted()
            try:
                thread.holds = (end, *before)
                if not end.acquire(thread, deadline):
                    break
                self._check_open()
                words[HEAD_OWNER] = self._seat
                if epoch:
                    sleepers.get_up(words, GETTERS_SLEEP, epoch)
                    epoch = 0
                head, tail = words[HEAD], words[TAIL]
                if self._barrier:
                    self._barrier()
                if self.hands is not None and self.hands.take_over(head):
                    pass
                elif head != tail:
                    lost = self._take(head, tail, most, taken)
                elif words[ODD] & Odd.SHUT:
                    raise QueueShutDown("the queue was shut down")
                elif patience is not None and not patience.is_over:
                    epoch, left = sleepers.lie_down(words, GETTERS_SLEEP)
            finally:
                try:
                    fcntl(thread.fd, F_OFD_SETLK, end.unlock)
                finally:
                    thread.holds = before
            if head != tail:
                self._tell_of_room()
            if self.bell.is_watching and words[TAIL] == words[HEAD]:
                self.bell.drain()
            if self.hands is not None:
                taken = self.hands.copy_out()
            if taken:
                return taken
            if head == tail:
                patience = self._wait(patience, deadline, TAIL, self.tail_at, tail, epoch, left)
                if patience is None:
                    break
            elif not lost and self.hands is not None:  # all hands are full
                patience = self._wait(patience, deadline, HEAD, self.head_at, head, epoch, left)
                if patience is None:
                    break
        raise Empty

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
            while position != tail and len(taken) < most:
                try:
                    at, kind, length, following = self.look(position, tail)
                except Scribbled as scribbled:
                    if taken:
                        break  # it is told when it is the first
                    words[HEAD] = scribbled.following
                    raise FormatError(str(scribbled)) from None
                if kind == Kind.INLINE:
                    start = 8 * self.word_of(at) + ITEM_HEAD
                    taken.append((kind, bytes(self.raw[start : start + length])))
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
                    if not isinstance(item, bytes):
                        item.give_back()
            raise
        return lost

    def _open(self, word: int) -> Buffer | None:
        """Under H: the buffer of a handle; None for one whose taker died before he could say so, and for what
        was discarded."""
        handle = Handle(pack_handle(self.session.pool_id, self.words[word + 1], self.words[word + 2]))
        try:
            return self._pool.open(handle)
        except LookupError:
            return None
