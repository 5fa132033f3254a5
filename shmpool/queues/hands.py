"""Hands: what the consumers of a queue that gives back have taken and not finished.

A getter writes an item down in a free hand before it stores HEAD, and stays its owner until the item is
finished: the next `get` of that thread, or `task_done`. The ticket of a handle stays open meanwhile: what
a hand says decides whose it is. The hands of a dead process are taken over, one store each, by who comes next; so an
item comes at least once. Objects in leases are copied out, for their memory goes with the hand.
"""

from __future__ import annotations

from collections import deque
from threading import get_ident
from typing import TYPE_CHECKING, Final

from ..errors import FormatError
from ..protocol.header import SEATS_ENDED
from ..protocol.ledger import MAX_NBYTES
from ..protocol.queues import (
    CLAIM,
    HAND_WORDS,
    HEAD,
    INLINE_KINDS,
    ITEM_HEAD,
    KIND_SHIFT,
    LENGTH_MASK,
    LENGTH_SHIFT,
    LOW,
    NUMBER,
    OWNER,
    WORD,
    first_hand,
    hand_words,
)
from ..seat import tickets
from ..system.outside import own
from .members import is_alive, name_of
from .memory import Memory, Scribbled

if TYPE_CHECKING:
    from ..buffer import Buffer

_NOBODYS: Final = 1
_CLAIM_SHIFT: Final = 16
_HAND_MASK: Final = 0xFFFF
_HALF: Final = 1 << 31


class Hands:
    """Those of one queue, as one process sees them."""

    def __init__(self, ring: Memory, count: int) -> None:
        self._ring, self._words, self._session = ring, ring.words, ring.session
        self._me = name_of(ring.session)
        self._first = first_hand(ring.seats, ring.flags)
        self._stride = hand_words(ring.most_inline)
        self._end = self._first + count * self._stride
        #: This process's that are not finished, by thread: oldest first; and those that its `get` has just taken.
        self._held: dict[int, deque[int]] = {}
        self._new: dict[int, list[int]] = {}
        #: How many seats had ended when we last looked whose the hands are; -1: look.
        self._seen = -1

    @property
    def _owners(self) -> list[int]:
        return self._words[self._first + OWNER : self._end : self._stride].tolist()

    @property
    def count(self) -> int:
        """How many are somebody's."""
        return sum(1 for owner in self._owners if owner)

    # --- taking -----------------------------------------------------------------------------------------

    def take_over(self, head: int) -> bool:
        """Under H: take what a dead consumer had in its hands, one item. False when there is none."""
        ended = self._session.header[SEATS_ENDED]
        if ended == self._seen:
            return False
        words = self._words
        for number, owner in enumerate(self._owners):
            if not owner or (owner != _NOBODYS and is_alive(self._session, owner)):
                continue
            hand = self._first + number * self._stride
            if (words[hand + NUMBER] - (head >> 32) & LOW) < _HALF:
                words[hand + OWNER] = 0  # it died before it had stored HEAD
                continue
            words[hand + OWNER] = self._me
            self._hold(hand)
            return True
        self._seen = ended
        return False

    def take(self, head: int, tail: int, most: int) -> int:
        """Under H: write items down in hands, and commit each by HEAD. How many."""
        ring, words = self._ring, self._words
        position = head
        count = 0
        while position != tail and count < most:
            try:
                number = self._owners.index(0)
            except own(ValueError):
                break  # all hands are full
            hand = self._first + number * self._stride
            try:
                at, _, length, following = ring.look(position, tail)
            except own(Scribbled) as scribbled:
                if count:
                    break
                words[HEAD] = scribbled.following
                raise FormatError(str(scribbled)) from None
            claim = words[CLAIM]
            if claim >> _CLAIM_SHIFT == at + 1:  # of one who died before he had stored HEAD
                other = claim & _HAND_MASK
                words[self._first + other * self._stride + OWNER] = 0
            words[CLAIM] = at + 1 << _CLAIM_SHIFT | number
            start = 8 * ring.word_of(at)
            words[hand + NUMBER] = at
            words[hand + WORD] = words[start >> 3]
            ring.raw[8 * (hand + HAND_WORDS) : 8 * (hand + HAND_WORDS) + length] = ring.raw[
                start + ITEM_HEAD : start + ITEM_HEAD + length
            ]
            words[hand + OWNER] = self._me
            words[HEAD] = position = following
            self._hold(hand)
            count += 1
        return count

    def _hold(self, hand: int) -> None:
        self._new.setdefault(get_ident(), []).append(hand)

    def copy_out(self) -> list[tuple[int, bytes | Buffer]]:
        """What this thread has just taken. What was discarded meanwhile is none."""
        hands = self._new.pop(get_ident(), None)
        if not hands:
            return []
        found: list[tuple[int, bytes | Buffer]] = []
        try:
            held = self._held.setdefault(get_ident(), deque())
            while True:
                if not hands:
                    break
                hand = hands[0]
                content = self._content(hand)
                if content is None:
                    self._words[hand + OWNER] = 0
                else:
                    found.append((self._words[hand + WORD] >> KIND_SHIFT, content))
                    held.append(hand)
                del hands[0]
        except BaseException:
            self._seen = -1
            for hand in hands:
                self._words[hand + OWNER] = _NOBODYS  # whoever comes next has it
            raise
        return found

    def _content(self, hand: int) -> bytes | None:
        words, at = self._words, 8 * (hand + HAND_WORDS)
        word = words[hand + WORD]
        if word >> KIND_SHIFT in INLINE_KINDS:
            length = min(word >> LENGTH_SHIFT & LENGTH_MASK, self._ring.most_inline)
            return self._ring.raw[at : at + length]
        granted, tail = words[hand + HAND_WORDS], words[hand + HAND_WORDS + 1]
        try:
            record = self._session.openings.find(granted, tail)
        except own(LookupError):
            return None
        window = record.window
        if window is None:
            return None
        content = bytes(memoryview(window)[: tail & MAX_NBYTES])
        # Nobody has closed its ticket meanwhile, so these are its bytes.
        return None if tickets.why_not(self._session, record, granted, tail & MAX_NBYTES) else content

    # --- finishing --------------------------------------------------------------------------------------

    def release_own(self) -> None:
        """What this thread had taken is finished."""
        held = self._held.get(get_ident())
        while held:
            self._release(held[0])
            held.popleft()

    def release_oldest(self) -> None:
        """What this thread, or else any of this process, had taken first."""
        held = self._held.get(get_ident()) or next(filter(None, list(self._held.values())), None)
        if not held:
            raise ValueError("task_done() called for an item that another process has taken")
        self._release(held[0])
        held.popleft()

    def release_all(self) -> None:
        """This process leaves the queue."""
        for held in list(self._held.values()):
            while held:
                try:
                    self._release(held.popleft())
                except own(IndexError):
                    pass

    def abandon(self) -> None:
        """As `release_all`, without a lock: tickets are closed with the queue."""
        for held in list(self._held.values()):
            for hand in list(held):
                self._words[hand + OWNER] = 0

    def _release(self, hand: int) -> None:
        words = self._words
        if words[hand + OWNER] != self._me:
            return
        if words[hand + WORD] >> KIND_SHIFT not in INLINE_KINDS:
            self._ring.discard(words[hand + HAND_WORDS], words[hand + HAND_WORDS + 1])
        words[hand + OWNER] = 0
