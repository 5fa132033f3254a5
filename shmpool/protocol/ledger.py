"""The ledger's layout: what each of a row's sixteen 64-bit words means.

A row is 128 bytes, two cache lines, so that neighbours share none:

==== ============ ==========================================================
word name         content, from the lowest bit
==== ============ ==========================================================
0    grant word   seat 16, state 8, generation 40
1    extent word  bytes asked for 40, tickets 8, chunks of the first extent 16
                  (of a published direct segment: its publisher's seat);
                  of a FOLLOWER: its head's row 24, the run's birth 40
2-14 cells        built like the grant word: PENDING equals the published
                  grant word, TAKEN names the reader's seat, DONE; of a shared
                  publication its name's length, its maker and its name; of a
                  stream's chunk the second says BOUND, with its generation, and
                  the third the stream's row 24 and its generation 40
15   link word    next extent's first row 24 (0: none), then of a head the
                  run's birth 40, of a later extent's first row its chunks 16
==== ============ ==========================================================

A run's **birth** is its head's generation when the broker granted the run. The head's
generation moves with each use while its followers stay as they were built, so a client
recycles a run with one store. A follower is occupied while its head is held and the
head's link word carries the birth that the follower names.

Every word is committed by one aligned 8-byte store through ``memoryview.cast("Q")``.
``struct.pack_into`` is forbidden on these words: it zeroes them first.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final


ROW_WORDS: Final = 16
ROW_BYTES: Final = ROW_WORDS * 8

GRANT: Final = 0
EXTENT: Final = 1
FIRST_CELL: Final = 2
MAX_TICKETS: Final = 13
LINK: Final = 15
#: In a pool with checksums, the payload's CRC-32: in the place of the last ticket, or of a shared publication's
#: last bytes of a name.
CHECKSUM: Final = LINK - 1

SEAT_BITS: Final = 16
STATE_BITS: Final = 8
GENERATION_BITS: Final = 40
STATE_SHIFT: Final = SEAT_BITS
GENERATION_SHIFT: Final = SEAT_BITS + STATE_BITS

SEAT_MASK: Final = (1 << SEAT_BITS) - 1
STATE_MASK: Final = (1 << STATE_BITS) - 1
MAX_GENERATION: Final = (1 << GENERATION_BITS) - 1
#: Added to a grant word, it bumps the generation.
ONE_GENERATION: Final = 1 << GENERATION_SHIFT
#: Keeps the generation of a grant word, in place.
GENERATION_FIELD: Final = MAX_GENERATION << GENERATION_SHIFT

#: The broker's seat.
BROKER: Final = 0
MAX_SEATS: Final = SEAT_MASK

ROW_BITS: Final = 24 - 4
#: Rows of one ledger; a row and a cell's number make 24 bits. Row 0 is never used,
#: because 0 in a link word means "none".
MAX_ROWS: Final = 1 << ROW_BITS

#: From here on one byte of the seats file for each seat. A client holds its seat's byte as
#: long as it may have the pool mapped: the kernel drops maps before locks, at death and at
#: exec. (In the tickets file, which is another so that its list of locks stays short, byte
#: row * 16 + cell is locked while a ticket is taken.)
SEAT_LOCKS: Final = 1 << 32

NBYTES_BITS: Final = 40
#: The largest object, in bytes.
MAX_NBYTES: Final = (1 << NBYTES_BITS) - 1
TICKETS_SHIFT: Final = NBYTES_BITS
CHUNKS_SHIFT: Final = NBYTES_BITS + 8
MAX_CHUNKS: Final = (1 << 16) - 1
#: Clears the ticket count of an extent word: what is left is the publication's shape.
SHAPE_MASK: Final = ~(0xFF << TICKETS_SHIFT) & ((1 << 64) - 1)

#: In the place of the ticket count: a shared publication, which has no tickets; kept until it is
#: dropped; kept as a cache.
SHARED: Final = 0x80
KEPT: Final = 0x01
CACHED: Final = 0x02
#: The first cell of one says, from the lowest bit: its name's length in bytes 8, its maker's uid 32, its
#: ttl in seconds 24 (0: none); the others hold the name.
NAME_BYTES: Final = 8 * (MAX_TICKETS - 1)
SUMMED_NAME_BYTES: Final = NAME_BYTES - 8
UID_SHIFT: Final = 8
TTL_SHIFT: Final = 40
MAX_TTL: Final = (1 << 24) - 1

#: Where a stream's chunk says that it is one, and of which: behind its only ticket.
BOUND_CELL: Final = FIRST_CELL + 1
BOUND_TO: Final = FIRST_CELL + 2

LINK_ROW_BITS: Final = 24
LINK_ROW_MASK: Final = (1 << LINK_ROW_BITS) - 1
#: A lease has at most so many extents: a bound for everybody who follows links. (Each is a map of the
#: kernel's in whoever looks at it, of which a process has 65,530.)
MAX_EXTENTS: Final = 4096

#: In the place of the ticket count of a shared publication: its bytes are a queue's.
QUEUE: Final = 0x04
#: Of a publication that lies in a queue: the words that say so, and in which; they are of cells that one with
#: a single ticket does not have.
QUEUE_CELL: Final = FIRST_CELL + 10
QUEUED_CELL: Final = FIRST_CELL + 11
#: The mark of the one, with the publication's own generation.
_QUEUED: Final = 0x20 << STATE_SHIFT
#: The other never looks like a mark: this is where its state would be.
_NO_STATE: Final = 0xFF << STATE_SHIFT
_ROW_LOW_BITS: Final = 16
_ROW_HIGH_BITS: Final = ROW_BITS - _ROW_LOW_BITS
_QUEUE_GENERATION_MASK: Final = (1 << GENERATION_BITS - _ROW_HIGH_BITS) - 1

assert GRANT < EXTENT < FIRST_CELL
assert FIRST_CELL + MAX_TICKETS == LINK == ROW_WORDS - 1
assert CHECKSUM == FIRST_CELL + MAX_TICKETS - 1
assert SEAT_BITS + STATE_BITS + GENERATION_BITS == 64
assert CHUNKS_SHIFT + 16 == 64


def grant_word(generation: int, state: int, seat: int) -> int:
    """Build a grant word or a cell."""
    return generation << GENERATION_SHIFT | state << STATE_SHIFT | seat


def seat_of(word: int) -> int:
    """The seat in a grant word or a cell; 0 is the broker."""
    return word & SEAT_MASK


def rows_that_say(words: memoryview, count: int, state: int, seat: int) -> list[int]:
    """The rows below *count* with this state and seat, whatever their generations. Bytes are searched:
    a millisecond for 74,000, an eighth of what a look at each of them takes."""
    column = words[: count * ROW_WORDS : ROW_WORDS].tobytes()
    said = grant_word(0, state, seat).to_bytes(GENERATION_SHIFT // 8, "little")
    found, at = [], column.find(said)
    while at >= 0:
        if at % 8 == 0:
            found.append(at // 8)
        at = column.find(said, at + 1)
    return found


def state_of(word: int) -> int:
    """The state in a grant word or a cell."""
    return word >> STATE_SHIFT & STATE_MASK


def generation_of(word: int) -> int:
    """The generation in a grant word or a cell."""
    return word >> GENERATION_SHIFT


def extent_word(nbytes: int, tickets: int, chunks: int) -> int:
    """Build the extent word of a row that heads a lease."""
    return nbytes | tickets << TICKETS_SHIFT | chunks << CHUNKS_SHIFT


def nbytes_of(extent: int) -> int:
    """Bytes asked for."""
    return extent & MAX_NBYTES


def tickets_of(extent: int) -> int:
    """Tickets made at publish, 0 before it."""
    return extent >> TICKETS_SHIFT & 0xFF


def is_queue(extent: int) -> bool:
    """Whether the extent word is that of a queue's memory, whose bytes change."""
    return bool(extent >> TICKETS_SHIFT & QUEUE) and is_shared(extent)


def is_shared(extent: int) -> bool:
    """Whether the extent word is a shared publication's."""
    return bool(extent >> TICKETS_SHIFT & SHARED)


def queued_word(generation: int) -> int:
    """What says that a publication of this generation lies in a queue."""
    return generation << GENERATION_SHIFT | _QUEUED


def queue_word(row: int, generation: int) -> int:
    """In which queue: its row, and the low part of its generation."""
    high = (generation & _QUEUE_GENERATION_MASK) << _ROW_HIGH_BITS | row >> _ROW_LOW_BITS
    return high << GENERATION_SHIFT | _NO_STATE | row & SEAT_MASK


def queue_row(word: int) -> int:
    """The row of the queue that such a word names."""
    return (word >> GENERATION_SHIFT & (1 << _ROW_HIGH_BITS) - 1) << _ROW_LOW_BITS | word & SEAT_MASK


def shared_cells(name: str, uid: int, ttl: int) -> list[int]:
    """What the cells of a shared publication say."""
    raw = name.encode()
    padded = raw.ljust(NAME_BYTES, b"\0")
    words = [int.from_bytes(padded[at : at + 8], "little") for at in range(0, NAME_BYTES, 8)]
    return [len(raw) | (uid & 0xFFFFFFFF) << UID_SHIFT | min(ttl, MAX_TTL) << TTL_SHIFT, *words]


def shared_facts(cells: Sequence[int]) -> tuple[str, int, int]:
    """Name, uid and ttl in the cells of a shared publication; no name where it is none."""
    length, uid, ttl = cells[0] & 0xFF, cells[0] >> UID_SHIFT & 0xFFFFFFFF, cells[0] >> TTL_SHIFT
    raw = b"".join(word.to_bytes(8, "little") for word in cells[1:MAX_TICKETS])
    try:
        return raw[:length].decode() if length <= NAME_BYTES else "", uid, ttl
    except UnicodeDecodeError:  # somebody scribbled
        return "", uid, ttl


def chunks_of(extent: int) -> int:
    """Chunks in the first extent; 1 for a pooled slot and a direct segment."""
    return extent >> CHUNKS_SHIFT


def follower_word(head: int, birth: int) -> int:
    """The extent word of a FOLLOWER: its head's row and the run's birth."""
    return birth << LINK_ROW_BITS | head


def head_of(follower_extent: int) -> int:
    """The head's row that a FOLLOWER names."""
    return follower_extent & LINK_ROW_MASK


def birth_of(word: int) -> int:
    """The birth in a FOLLOWER's extent word or in a head's link word."""
    return word >> LINK_ROW_BITS


def link_word(next_row: int, upper: int) -> int:
    """A link word; *upper* is the birth (of a head) or the chunks (of a later extent)."""
    return upper << LINK_ROW_BITS | next_row


def next_row_of(link: int) -> int:
    """The next extent's first row, 0 for none."""
    return link & LINK_ROW_MASK


def chunks_of_link(link: int) -> int:
    """The chunks of a later extent, from its first row's link word."""
    return link >> LINK_ROW_BITS & MAX_CHUNKS
