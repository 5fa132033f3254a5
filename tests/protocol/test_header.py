"""The header's layout, its checksum, and each fault it can have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool.protocol import header
from shmpool.protocol.figures import COUNTER_WORDS
from shmpool.protocol.ledger import MAX_SEATS, ROW_WORDS
from shmpool.protocol.sizing import DEFAULT_SIZING, MAX_TIERS, MIB, PAGE, Tier, make_tiers, rows_of

TIERS = make_tiers(64 * MIB, DEFAULT_SIZING)
SEATS = 16


def make_header(tiers: tuple[Tier, ...] = TIERS, seats: int = SEATS) -> list[int]:
    words = [0] * (header.header_bytes(seats) // 8)
    words[0], words[header.VERSION], words[header.POOL_ID] = header.MAGIC, header.LEDGER_VERSION, 0xABCDEF
    words[header.EPOCH], words[header.BROKER_PID] = 1, 4242
    words[header.ROWS], words[header.TIERS], words[header.SEATS] = rows_of(tiers), len(tiers), seats
    words[header.FIRST_TIER : header.WANTED] = header.geometry_words(tiers)
    words[header.CRC] = header.header_crc(words)
    return words


def test_a_well_made_header_has_no_fault_and_gives_its_tiers_back() -> None:
    words = make_header()
    assert header.header_fault(words) is None
    assert header.read_tiers(words) == TIERS


def test_the_magic_reads_as_the_name() -> None:
    assert header.MAGIC.to_bytes(8, "little") == b"shmpool\0"


@pytest.mark.parametrize(
    ("word", "value", "fault"),
    [
        (0, 0, "magic"),
        (header.VERSION, 1, "version is 1"),
        (header.POOL_ID, 1, "checksum"),
        (header.ROWS, 1, "checksum"),
        (header.TIERS, 1, "checksum"),
        (header.SEATS, 2**63, "checksum"),
        (header.PROPERTIES, header.CHECKSUMS, "checksum"),
        (header.TICKETS_FILE, 1, "checksum"),
        (header.SEATS_FILE + 1, 1, "checksum"),
        (header.FIRST_TIER + 1, 8192, "checksum"),
        (header.WANTED - 1, 1, "checksum"),
        (header.CRC, 0, "checksum"),
    ],
)
def test_each_fixed_word_is_guarded(word: int, value: int, fault: str) -> None:
    words = make_header()
    words[word] = value
    assert fault in (header.header_fault(words) or "")


@pytest.mark.parametrize(
    "word", [header.EPOCH, header.BROKER_PID, header.WANTED, header.FIRST_SEAT, header.seat_at(SEATS)]
)
def test_words_that_change_in_a_pools_life_are_not_in_the_checksum(word: int) -> None:
    words = make_header()
    words[word] += 1
    assert header.header_fault(words) is None


@pytest.mark.parametrize("length", [0, 1, header.FIRST_SEAT - 1])
def test_a_header_that_is_too_short_is_a_fault(length: int) -> None:
    assert f"it has {length} words" in (header.header_fault(make_header()[:length]) or "")


def test_a_header_without_room_for_its_seats_is_a_fault() -> None:
    words = make_header()
    assert "too short for its 16 seats" in (header.header_fault(words[: header.header_words(SEATS) - 1]) or "")
    assert header.header_fault(words[: header.header_words(SEATS)]) is None


def test_a_property_that_this_version_does_not_know_is_a_fault() -> None:
    words = make_header()
    words[header.PROPERTIES] = 1 << 9
    words[header.CRC] = header.header_crc(words)
    assert "does not know (0x200)" in (header.header_fault(words) or "")


@given(st.lists(st.integers(0, 2**64 - 1), max_size=300))
def test_garbage_is_a_fault_and_never_an_error(words: list[int]) -> None:
    assert header.header_fault(words)


def test_a_kind_that_no_tier_has_is_a_value_error() -> None:
    words = make_header()
    words[header.FIRST_TIER] = 9
    with pytest.raises(ValueError, match="9"):
        header.read_tiers(words)


def test_an_absurd_number_of_tiers_is_a_value_error() -> None:
    words = make_header()
    words[header.TIERS] = 2**62
    with pytest.raises(ValueError):
        header.read_tiers(words)


@given(st.integers(1, MAX_SEATS))
def test_areas_do_not_overlap_and_segments_are_whole_pages(seats: int) -> None:
    assert header.FIRST_TIER + MAX_TIERS * header.TIER_WORDS == header.WANTED
    assert header.WANTED + MAX_TIERS <= header.FIRST_SEAT == header.seat_at(0)
    assert header.seat_at(seats) + header.SEAT_WORDS == header.header_words(seats)
    assert header.header_words(seats) * 8 <= header.header_bytes(seats) < header.header_words(seats) * 8 + PAGE
    assert header.header_bytes(seats) % PAGE == 0


@given(st.integers(1, 2**20), st.integers(1, MAX_SEATS))
def test_counters_lie_behind_the_rows_and_inside_the_ledger(rows: int, seats: int) -> None:
    assert header.counters_at(rows, 0) == rows * ROW_WORDS
    end = header.counters_at(rows, seats) + COUNTER_WORDS
    assert end * 8 <= header.ledger_bytes(rows, seats) < end * 8 + PAGE


def test_the_words_are_pinned_because_other_processes_read_them() -> None:
    facts = (header.VERSION, header.POOL_ID, header.EPOCH, header.BROKER_PID, header.ROWS, header.TIERS, header.SEATS)
    assert facts == tuple(range(1, 8))
    files = (header.TICKETS_FILE, header.SEATS_FILE, header.END_OF_FACTS)
    assert (header.CRC, header.PROPERTIES, *files) == (8, 9, 10, 12, 14)
