"""What the processes of a joinable queue have taken and not finished: counted for each seat.

A member's words are its own process's. What it claims is stored before HEAD: whoever dies between the two
has claimed nothing. A dead member's words count for nothing from the moment at which the broker has
cleared its seat, so who waits in `join` does not wait for what it had in its hands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol.header import SEAT_NONCE, SEAT_STATE, seat_at
from ..protocol.queues import CLAIMED, FINISHED, HEAD, LOW, MEMBER_WORDS, NONCE, TAKEN, first_member
from ..system.outside import own

if TYPE_CHECKING:
    from ..seat.session import Session

NONCE_MASK: Final = (1 << 48) - 1


def name_of(session: Session) -> int:
    """A seat and who has it, in one word that is not 0."""
    return session.seat << 48 | session.nonce & NONCE_MASK


def is_alive(session: Session, name: int) -> bool:
    """Whether that seat is still taken by who had it."""
    header, at = session.header, seat_at(name >> 48)
    try:
        return bool(header[at + SEAT_STATE]) and not (header[at + SEAT_NONCE] ^ name) & NONCE_MASK
    except own(IndexError):
        return False


class Members:
    """Those of one queue, as one of them sees them."""

    __slots__ = ("_at", "_first", "_seats", "_session", "_words")

    def __init__(self, words: memoryview[int], session: Session, seats: int) -> None:
        self._words, self._session, self._seats = words, session, seats
        self._first = first_member(seats)
        self._at = self._first + session.seat * MEMBER_WORDS

    def join(self) -> None:
        """Under T and H: whoever had this seat before counts no more."""
        words, at, name = self._words, self._at, name_of(self._session)
        if words[at + NONCE] != name:
            words[at + NONCE] = words[at + CLAIMED] = words[at + TAKEN] = words[at + FINISHED] = 0
            words[at + NONCE] = name

    def claim(self, granule: int, count: int) -> None:
        """Under H, before it is stored: so many items, from this granule on, are ours."""
        self._settle()
        self._words[self._at + CLAIMED] = granule << 32 | count

    def _settle(self) -> None:
        words, at = self._words, self._at
        claimed = words[at + CLAIMED]
        if claimed and claimed >> 32 != words[HEAD] >> 32:
            words[at + TAKEN] += claimed & LOW
        words[at + CLAIMED] = 0

    def note_done(self) -> None:
        """Under T: one is finished, whoever had taken it."""
        self._words[self._at + FINISHED] += 1

    @property
    def unfinished(self) -> int:
        """Items that the living have taken and not finished. What is taken meanwhile may be counted by who
        has asked for the queue's size before."""
        words, count, first = self._words, 0, self._first
        end = first + (self._seats + 1) * MEMBER_WORDS
        for seat, name in enumerate(words[first + NONCE : end : MEMBER_WORDS].tolist()):
            if name and is_alive(self._session, name):
                at = first + seat * MEMBER_WORDS
                claimed = words[at + CLAIMED]
                count += words[at + TAKEN] - words[at + FINISHED]
                if claimed and claimed >> 32 != words[HEAD] >> 32:
                    count += claimed & LOW
        return count
