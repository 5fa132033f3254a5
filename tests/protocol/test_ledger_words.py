"""The ledger's words: packing and unpacking agree, fields do not touch each other."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shmpool.protocol import ledger
from shmpool.protocol.states import CellState, State

generations = st.integers(0, ledger.MAX_GENERATION)
seats = st.integers(0, ledger.MAX_SEATS)
states = st.integers(0, ledger.STATE_MASK)
rows = st.integers(0, ledger.MAX_ROWS - 1)
nbytes = st.integers(0, ledger.MAX_NBYTES)
chunks = st.integers(0, ledger.MAX_CHUNKS)
U64 = 2**64 - 1


@given(generations, states, seats)
def test_grant_words_round_trip(generation: int, state: int, seat: int) -> None:
    word = ledger.grant_word(generation, state, seat)
    assert 0 <= word <= U64
    assert ledger.generation_of(word) == generation
    assert ledger.state_of(word) == state
    assert ledger.seat_of(word) == seat


parts = st.tuples(generations, states, seats)


@given(parts, parts)
def test_different_grant_words_differ(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (ledger.grant_word(*one) == ledger.grant_word(*other)) == (one == other)


@given(st.integers(0, ledger.MAX_GENERATION - 1), states, seats)
def test_one_generation_bumps_only_the_generation(generation: int, state: int, seat: int) -> None:
    word = ledger.grant_word(generation, state, seat)
    assert word + ledger.ONE_GENERATION == ledger.grant_word(generation + 1, state, seat)
    assert word & ledger.GENERATION_FIELD == ledger.grant_word(generation, 0, 0)


@given(nbytes, st.integers(0, 255), chunks)
def test_extent_words_round_trip(size: int, tickets: int, run: int) -> None:
    word = ledger.extent_word(size, tickets, run)
    assert 0 <= word <= U64
    assert ledger.nbytes_of(word) == size
    assert ledger.tickets_of(word) == tickets
    assert ledger.chunks_of(word) == run
    assert word & ledger.SHAPE_MASK == ledger.extent_word(size, 0, run)


@given(rows, generations)
def test_follower_words_round_trip(head: int, birth: int) -> None:
    word = ledger.follower_word(head, birth)
    assert 0 <= word <= U64
    assert ledger.head_of(word) == head
    assert ledger.birth_of(word) == birth


@given(rows, generations)
def test_link_words_of_a_head_round_trip(next_row: int, birth: int) -> None:
    word = ledger.link_word(next_row, birth)
    assert 0 <= word <= U64
    assert ledger.next_row_of(word) == next_row
    assert ledger.birth_of(word) == birth


@given(rows, chunks)
def test_link_words_of_a_later_extent_round_trip(next_row: int, run: int) -> None:
    word = ledger.link_word(next_row, run)
    assert ledger.next_row_of(word) == next_row
    assert ledger.chunks_of_link(word) == run


def test_a_row_is_two_cache_lines_with_thirteen_cells() -> None:
    assert ledger.ROW_BYTES == 128
    assert ledger.MAX_TICKETS == 13
    assert ledger.FIRST_CELL + ledger.MAX_TICKETS == ledger.LINK


def test_row_and_cell_fit_the_handle_and_the_link_word() -> None:
    assert (ledger.MAX_ROWS - 1) * 16 + 15 < 2**24
    assert ledger.MAX_ROWS <= ledger.LINK_ROW_MASK + 1


def test_states_and_cell_states_fit_their_byte_and_never_meet() -> None:
    values = [*State, *CellState]
    assert len({int(value) for value in values}) == len(values)
    assert all(0 <= value <= ledger.STATE_MASK for value in values)


def test_a_fresh_row_of_zeros_is_cold_and_the_brokers() -> None:
    assert ledger.state_of(0) == State.COLD
    assert ledger.seat_of(0) == ledger.BROKER


def ledger_of(grants: dict[int, int], count: int) -> memoryview:
    words = memoryview(bytearray(count * ledger.ROW_BYTES)).cast("Q")
    for row, word in grants.items():
        words[row * ledger.ROW_WORDS] = word
    return words


@given(st.dictionaries(st.integers(0, 63), parts, max_size=20), states, seats)
def test_rows_are_found_by_what_they_say(said: dict[int, tuple[int, int, int]], state: int, seat: int) -> None:
    grants = {row: ledger.grant_word(*parts) for row, parts in said.items()}
    unsaid = [] if state or seat else [row for row in range(64) if row not in grants]
    expected = [row for row, (_, *rest) in said.items() if rest == [state, seat]] + unsaid
    assert ledger.rows_that_say(ledger_of(grants, 64), 64, state, seat) == sorted(expected)


def test_words_that_say_it_across_their_borders_are_not_found() -> None:
    """Of all rows the bytes look alike, from the second or the third on."""
    grants = {row: ledger.grant_word(0x0001_0201, 1, 0x0201) for row in range(64)}
    assert ledger.rows_that_say(ledger_of(grants, 64), 64, 2, 0x0102) == []
    assert ledger.rows_that_say(ledger_of(grants, 64), 64, 1, 0x0201) == list(range(64))


def test_a_row_that_says_something_else_costs_no_step_of_the_search() -> None:
    """Every client of a broker that came back searches the whole ledger at once."""

    def steps(count: int) -> int:
        taken = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal taken
            frame.f_trace_opcodes = True
            taken += event == "opcode"
            return trace

        words = ledger_of({row: ledger.grant_word(row, State.LEASED, 3) for row in range(0, count, 2)}, count)
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 looks at settrace whether any frame wants them
        sys.settrace(trace)
        try:
            ledger.rows_that_say(words, count, State.IDLE, 7)
        finally:
            sys.settrace(before)
        return taken

    steps(100)  # CPython 3.13 does not tell of the instructions of a function's first call
    assert steps(50_000) == steps(100) > 0


@given(st.integers(1, ledger.MAX_ROWS - 1), st.integers(0, ledger.MAX_GENERATION))
def test_a_queue_s_word_names_its_row(row: int, generation: int) -> None:
    assert ledger.queue_row(ledger.queue_word(row, generation)) == row


def test_a_queue_s_word_names_the_last_row_there_can_be() -> None:
    row = ledger.MAX_ROWS - 1
    assert ledger.queue_row(ledger.queue_word(row, 5)) == row
