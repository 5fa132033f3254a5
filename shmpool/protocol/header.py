"""The header's layout: the broker's own facts, which clients map read-only.

==================== ========================================================
words                content
==================== ========================================================
0-7                  magic, version, pool id, epoch, broker's pid, rows, tiers, seats
8                    CRC-32 of what must not change: words 0-2, 5-7, 9-13 and the tiers
9                    the pool's properties, for its whole life: bit 0 checksums; bits 8-11 how
                     tickets are taken (0: under byte locks, 1: by compare-and-swap)
10-13                device and inode of the tickets file, then of the seats file
14                   how many seats have ended, in all
16 + 4 * tier        kind, slot size, base row, capacity
144 + tier           the wanted flag: somebody waits for memory of this tier
256 + 16 * seat      pid, start time, uid, nonce, state of the seat, then the pid and the time
                     namespace in which its pid and start time were seen
==================== ========================================================

Words that are not named here are reserved, and 0.

The ledger segment has the rows first and then a block of counters for each seat, written
only by that seat (:mod:`.figures`).
"""

from __future__ import annotations

import zlib

from .figures import COUNTER_WORDS
from .ledger import ROW_WORDS
from .sizing import MAX_TIERS, PAGE, Tier, TierKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

#: "shmpool\0", little-endian.
MAGIC: Final = int.from_bytes(b"shmpool\0", "little")
#: Bumped with any change of header or ledger layout; see docs/protocol.md for how.
LEDGER_VERSION: Final = 2

VERSION: Final = 1
POOL_ID: Final = 2
EPOCH: Final = 3
BROKER_PID: Final = 4
ROWS: Final = 5
TIERS: Final = 6
SEATS: Final = 7
CRC: Final = 8
PROPERTIES: Final = 9
#: Device and inode of each.
TICKETS_FILE: Final = 10
SEATS_FILE: Final = 12
#: Ends what the CRC covers before the tiers.
END_OF_FACTS: Final = 14
#: Who takes over what the dead have left looks whether it has changed.
SEATS_ENDED: Final = 14
FIRST_TIER: Final = 16
TIER_WORDS: Final = 4
WANTED: Final = FIRST_TIER + MAX_TIERS * TIER_WORDS
FIRST_SEAT: Final = 256
SEAT_WORDS: Final = 16

SEAT_PID: Final = 0
SEAT_START: Final = 1
SEAT_UID: Final = 2
SEAT_NONCE: Final = 3
SEAT_STATE: Final = 4
SEAT_PID_NAMESPACE: Final = 5
SEAT_TIME_NAMESPACE: Final = 6

#: A property: clients sum what they publish and verify what they open.
CHECKSUMS: Final = 1 << 0
#: How tickets are taken: by compare-and-swap, or else under byte locks.
TICKETS_BY_CAS: Final = 1 << 8
#: All that this version knows. A pool with others is of a later one.
KNOWN_PROPERTIES: Final = CHECKSUMS | TICKETS_BY_CAS

assert WANTED + MAX_TIERS <= FIRST_SEAT


def header_words(seats: int) -> int:
    """Words of a header with *seats* seats besides the broker's."""
    return FIRST_SEAT + (seats + 1) * SEAT_WORDS


def header_bytes(seats: int) -> int:
    """Bytes of the header segment, whole pages."""
    return -(-header_words(seats) * 8 // PAGE) * PAGE


def ledger_bytes(rows: int, seats: int) -> int:
    """Bytes of the ledger segment: the rows, then the counters; whole pages."""
    return -(-(rows * ROW_WORDS + (seats + 1) * COUNTER_WORDS) * 8 // PAGE) * PAGE


def counters_at(rows: int, seat: int) -> int:
    """The first word of a seat's counters in the ledger segment."""
    return rows * ROW_WORDS + seat * COUNTER_WORDS


def seat_at(seat: int) -> int:
    """The first word of a seat in the header."""
    return FIRST_SEAT + seat * SEAT_WORDS


def geometry_words(tiers: Sequence[Tier]) -> list[int]:
    """The tier table as it stands in the header."""
    words: list[int] = []
    for tier in tiers:
        words += tier.to_wire()
    return words + [0] * ((MAX_TIERS - len(tiers)) * TIER_WORDS)


def is_of_another_version(words: Sequence[int]) -> bool:
    """Whether it is a header of shmpool's, but of an earlier or later layout."""
    return len(words) > VERSION and words[0] == MAGIC and words[VERSION] != LEDGER_VERSION


def header_crc(words: Sequence[int]) -> int:
    """The CRC over all that must stay as it was while the pool lives."""
    fixed = [*words[:EPOCH], *words[ROWS:CRC], *words[PROPERTIES:END_OF_FACTS], *words[FIRST_TIER:WANTED]]
    return zlib.crc32(b"".join(word.to_bytes(8, "little") for word in fixed))


def read_tiers(words: Sequence[int]) -> tuple[Tier, ...]:
    """The tiers that a header declares. Raises ValueError for what no header says."""
    tiers = []
    for index in range(words[TIERS]):
        kind, size, base, capacity = words[FIRST_TIER + index * TIER_WORDS :][:TIER_WORDS]
        tiers.append(Tier(index, TierKind(kind), size, base, capacity))
    return tuple(tiers)


def header_fault(words: Sequence[int]) -> str | None:
    """Why this is no header of ours, or None when all is well."""
    if len(words) < FIRST_SEAT:
        return f"it has {len(words)} words, a header has at least {FIRST_SEAT}"
    if words[0] != MAGIC:
        return f"magic is {words[0]:#x}, expected {MAGIC:#x}"
    if words[VERSION] != LEDGER_VERSION:
        return f"version is {words[VERSION]}, this broker reads {LEDGER_VERSION}"
    if words[CRC] != header_crc(words):
        return "the checksum of its geometry does not match"
    if len(words) < header_words(words[SEATS]):
        return f"it is too short for its {words[SEATS]} seats"
    if unknown := words[PROPERTIES] & ~KNOWN_PROPERTIES:
        return f"it has properties that this broker does not know ({unknown:#x})"
    return None
