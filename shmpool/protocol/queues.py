"""A queue's memory: what each of its words means.

One shared publication, of which only the constant beginning is published; the rest of its slot is written by
every member, through a map of its own. Every change is committed by one aligned store of 8 bytes, under one of
two `locks` that no dead process keeps: the putters' (T) and the getters' (H); who needs both takes T first.

An item lies in one or more **granules** of 32 bytes, side by side. A count of granules and one of items
make a **position**, which only grows: items in the low half, where a futex looks, granules in the high half;
granule g lies at place g mod granules.

======== ========================================================================================
word     content
======== ========================================================================================
0-7      what tells a queue; granules; most items; maxsize; flags; hands; members; most bytes inline
16       TAIL: the position behind the last item put, stored last by each put: the commit (T)
24       HEAD: the position of the next item, the same for a get (H)
32       ODD: bits that make a put look twice: shut, shut at once, watched, intents (T)
40       getters that sleep, see `sleepers` (H)
48       putters that sleep (T)
56       CLAIM: the item that a getter was about to take last, and its hand (H)
57       RINGS: counts up when all that was put is finished (T), for who waits in `join`
64       DROPPED: items that *overflow* dropped (T)
72-73    which of T's and H's semaphores counts: a number that only grows
80-127   intents: row, generation and granule of a handle that is about to be put, 16 times (T)
128-191  T's semaphores and H's, 8 each
192-     who may be inside T, by seat, and who inside H: his seat and nonce
then     members of a joinable queue, by seat: nonce, claimed, taken, finished (T and H, H, H, T)
then     hands of a queue that gives back: owner, item, first word, then as many bytes as lie inline
then     granules
======== ========================================================================================

An item's first word has the low half of its first granule's number, its length 24 and its kind 8; behind it lie
the bytes, or grant word and tail of a handle. What does not fit before the last granule begins at the
first one again, behind a pad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

MAGIC: Final = int.from_bytes(b"\x93shmqueu", "little")
#: What the publication holds, in bytes.
PREFIX_BYTES: Final = 64

GRANULES: Final = 1
CAPACITY: Final = 2
MAXSIZE: Final = 3
FLAGS: Final = 4
HANDS: Final = 5
SEATS: Final = 6
MOST_INLINE: Final = 7

TAIL: Final = 16
HEAD: Final = 24
ODD: Final = 32
GETTERS_SLEEP: Final = 40
PUTTERS_SLEEP: Final = 48
CLAIM: Final = 56
RINGS: Final = 57
DROPPED: Final = 64
#: Of both ends.
SEMAPHORES: Final = 72
INTENTS: Final = 80
MOST_INTENTS: Final = 16
LOCKS: Final = 128
VERSIONS: Final = 8
SEMAPHORE_WORDS: Final = 4

#: A member's words.
NONCE: Final = 0
CLAIMED: Final = 1
TAKEN: Final = 2
FINISHED: Final = 3
MEMBER_WORDS: Final = 4
#: A hand's words.
OWNER: Final = 0
NUMBER: Final = 1
WORD: Final = 2
HAND_WORDS: Final = 4

GRANULE_BYTES: Final = 32
GRANULE_SHIFT: Final = 5
#: The first word of an item.
ITEM_HEAD: Final = 8
#: Granules of a handle.
HANDLE_GRANULES: Final = 1

LOW: Final = (1 << 32) - 1
LENGTH_SHIFT: Final = 32
LENGTH_MASK: Final = (1 << 24) - 1
KIND_SHIFT: Final = 56


# Plain numbers: those of `enum` cost as much as a store.


class Kind:
    """What an item is."""

    #: Pickled bytes.
    INLINE: Final = 1
    #: Of an object that `objects` has laid out in a lease.
    HANDLE: Final = 2
    #: Of a lease that holds the pickled bytes, which the queue had no room for.
    PICKLED: Final = 3
    PAD: Final = 4
    #: A `bytes` as it is.
    BYTES: Final = 5
    #: A `Handle` that a user put, as its bytes.
    TOKEN: Final = 6


#: Those whose bytes lie in the queue.
INLINE_KINDS: Final = (Kind.INLINE, Kind.BYTES, Kind.TOKEN)


class Flag:
    """How a queue was made."""

    JOINABLE: Final = 1
    DROP_OLDEST: Final = 2
    DROP_NEWEST: Final = 4
    REQUEUE: Final = 8


#: In the words of who makes one.
FLAG_NAMES: Final = {
    Flag.JOINABLE: "JoinableQueue",
    Flag.DROP_OLDEST: "overflow='drop_oldest'",
    Flag.DROP_NEWEST: "overflow='drop_newest'",
    Flag.REQUEUE: "on_dead_consumer='requeue'",
}
ALL_FLAGS: Final = sum(FLAG_NAMES)


class Odd:
    """Why a put looks twice."""

    SHUT: Final = 1
    SHUT_AT_ONCE: Final = 2
    WATCHED: Final = 4
    INTENTS: Final = 8


def granules_of(length: int) -> int:
    """Granules of an item of so many bytes."""
    return (length + ITEM_HEAD + GRANULE_BYTES - 1) >> GRANULE_SHIFT


def item_word(granule: int, kind: int, length: int) -> int:
    """The first word of an item."""
    return granule & LOW | length << LENGTH_SHIFT | kind << KIND_SHIFT


def moved(position: int, granules: int, items: int) -> int:
    """A position so much further."""
    return ((position >> 32) + granules & LOW) << 32 | (position + items & LOW)


def said_words(seats: int) -> int:
    """Words of those who may be inside one end: whole cache lines."""
    return -(-(seats + 1) // 8) * 8


def first_said(seats: int, end: int) -> int:
    """The first of them; *end* is 0 for T, 1 for H."""
    return LOCKS + 2 * VERSIONS * SEMAPHORE_WORDS + end * said_words(seats)


def first_member(seats: int) -> int:
    """The first member's first word."""
    return first_said(seats, 2)


def hand_words(most_inline: int) -> int:
    """Words of one hand."""
    return HAND_WORDS + (most_inline + 7 >> 3)


def first_hand(seats: int, flags: int) -> int:
    """The first hand's first word."""
    return first_member(seats) + ((seats + 1) * MEMBER_WORDS if flags & Flag.JOINABLE else 0)


def first_granule(seats: int, flags: int, hands: int, most_inline: int) -> int:
    """Where the granules begin, in bytes."""
    at = 8 * (first_hand(seats, flags) + hands * hand_words(most_inline))
    return -(-at // 64) * 64


# --- as one looks at it who is no member ------------------------------------------------------------------

#: Of a word of who sleeps at an end (`queues.sleepers`): how many, and behind them when that ends, in milliseconds.
SLEEPERS_MASK: Final = 0xFFFF
SLEEPERS_SHIFT: Final = 16
_SEAT_SHIFT: Final = 48


class Look(NamedTuple):
    """What a queue's words said at one moment. *inside*: the seats that are putting, and those that are getting, or
    died at it: they have the lock of that end, or are about to take it."""

    items: int
    capacity: int
    maxsize: int
    used_bytes: int
    dropped: int
    flags: int
    is_shut: bool
    waiting: tuple[int, int]
    inside: tuple[tuple[int, ...], tuple[int, ...]]


def looked_at_bytes(seats: int) -> int:
    """Of a queue's memory, from its beginning: what `look` reads."""
    return 8 * first_said(seats, 2)


def look(words: Sequence[int], seats: int, milliseconds: int) -> Look | None:
    """What the beginning of a queue's memory says, at a moment of the monotonic clock; None of what is no queue's."""
    if len(words) < first_said(seats, 2) or words[0] != MAGIC or words[SEATS] != seats:
        return None
    head, tail = words[HEAD], words[TAIL]
    waiting = tuple(
        word & SLEEPERS_MASK if word >> SLEEPERS_SHIFT >= milliseconds else 0
        for word in (words[PUTTERS_SLEEP], words[GETTERS_SLEEP])
    )
    inside = []
    for end in range(2):
        first = first_said(seats, end)
        inside.append(tuple(name >> _SEAT_SHIFT for name in words[first : first + seats + 1] if name))
    return Look(
        min(tail - head & LOW, words[CAPACITY]),
        words[CAPACITY],
        words[MAXSIZE],
        GRANULE_BYTES * min((tail >> 32) - (head >> 32) & LOW, words[GRANULES]),
        words[DROPPED],
        words[FLAGS] & ALL_FLAGS,
        bool(words[ODD] & Odd.SHUT),
        (waiting[0], waiting[1]),
        (inside[0], inside[1]),
    )
