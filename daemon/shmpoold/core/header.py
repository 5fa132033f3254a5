"""The header of a new pool: what its brokers and clients read of it for as long as it lives."""

from __future__ import annotations

from collections.abc import MutableSequence

from shmpool.protocol.header import (
    CHECKSUMS,
    CRC,
    FIRST_TIER,
    LEDGER_VERSION,
    MAGIC,
    POOL_ID,
    PROPERTIES,
    ROWS,
    SEATS,
    SEATS_FILE,
    TICKETS_BY_CAS,
    TICKETS_FILE,
    TIERS,
    VERSION,
    geometry_words,
    header_crc,
    header_words,
)
from shmpool.protocol.sizing import Tier, rows_of

from .settings import Settings


def properties_of(settings: Settings) -> int:
    """What a pool that is made with these settings has for its life."""
    return settings.checksums * CHECKSUMS | settings.tickets_by_cas * TICKETS_BY_CAS


def format_header(
    header: MutableSequence[int], pool_id: int, tiers: tuple[Tier, ...], seats: int, settings: Settings
) -> None:
    """Write a new pool's facts into a header of zeros; the magic last, which commits it."""
    header[VERSION], header[POOL_ID] = LEDGER_VERSION, pool_id
    header[ROWS], header[TIERS], header[SEATS] = rows_of(tiers), len(tiers), seats
    header[PROPERTIES] = properties_of(settings)
    facts = {TICKETS_FILE: settings.tickets_file, SEATS_FILE: settings.seats_file, FIRST_TIER: geometry_words(tiers)}
    for first, words in facts.items():
        for offset, word in enumerate(words):
            header[first + offset] = word
    header[CRC] = header_crc([MAGIC, *header[1 : header_words(seats)]])
    header[0] = MAGIC
