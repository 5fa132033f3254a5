"""The ledger as the core sees it: rows moved by one store each, checked against the table.

Only rows whose custodian is the broker are moved here. What a living client wrote is
read with suspicion: it may be anything.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Iterable, Iterator, MutableSequence
from typing import Final

from shmpool.protocol.census import snapshot
from shmpool.protocol.ledger import (
    BOUND_CELL,
    BOUND_TO,
    BROKER,
    CACHED,
    CHUNKS_SHIFT,
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    KEPT,
    LINK,
    MAX_GENERATION,
    MAX_ROWS,
    MAX_TICKETS,
    QUEUE,
    QUEUE_CELL,
    QUEUED_CELL,
    ROW_WORDS,
    STATE_SHIFT,
    TICKETS_SHIFT,
    UID_SHIFT,
    birth_of,
    generation_of,
    grant_word,
    is_shared,
    next_row_of,
    queue_row,
    queue_word,
    queued_word,
    seat_of,
    shared_facts,
    state_of,
    tickets_of,
)
from shmpool.protocol.states import CellState, State
from shmpool.protocol.transitions import ALLOWED

_STATES: Final = frozenset(State)
#: What a grant word has more as FREE than as COLD: its generation stays.
_FREED: Final = State.FREE << STATE_SHIFT
assert not int(State.COLD) and not ALLOWED[State.COLD, State.FREE]
_SET: Final = re.compile(b"\1")
#: So many seats are searched for one by one.
FEW_SEATS: Final = 4


class InvalidTransition(RuntimeError):
    """The core was about to make a move that the table does not have: a bug of ours."""


class Rows:
    """The ledger's rows over a sequence of 64-bit words."""

    __slots__ = ("count", "words")

    def __init__(self, words: MutableSequence[int], count: int) -> None:
        self.words = words
        self.count = count

    def grant(self, row: int) -> int:
        """The grant word of a row."""
        return self.words[row * ROW_WORDS]

    def extent(self, row: int) -> int:
        """The extent word of a row."""
        return self.words[row * ROW_WORDS + EXTENT]

    def link(self, row: int) -> int:
        """The link word of a row."""
        return self.words[row * ROW_WORDS + LINK]

    def describe(self, row: int, extent: int, link: int) -> None:
        """Write the two words that must stand before the grant word is stored."""
        self.words[row * ROW_WORDS + EXTENT] = extent
        self.words[row * ROW_WORDS + LINK] = link

    def move(self, row: int, target: State, seat: int = BROKER) -> int:
        """Commit a move by one store; the generation grows where the table says so.
        Returns the generation after it."""
        at = row * ROW_WORDS
        word = self.words[at]
        bumps = ALLOWED.get((state_of(word), target))  # type: ignore[arg-type]  # a State is its number
        if bumps is None:
            source = state_of(word)
            name = State(source).name if source in _STATES else f"state {source}"
            raise InvalidTransition(f"row {row}: {name} -> {target.name} (grant word {word:#x})")
        generation: int = min(generation_of(word) + bumps, MAX_GENERATION)
        self.words[at] = grant_word(generation, target, seat)
        return generation

    def free_cold(self, row: int, count: int) -> None:
        """Move rows that were just seen to say COLD to FREE, by a store each: a fifth of what `move` takes for each,
        which a start does for 4096."""
        words = self.words
        for at in range(row * ROW_WORDS, (row + count) * ROW_WORDS, ROW_WORDS):
            words[at] |= _FREED

    def skip(self, row: int) -> None:
        """Let a FREE row skip a generation: the name that it makes cannot be had."""
        self.words[row * ROW_WORDS] = grant_word(generation_of(self.grant(row)) + 1, State.FREE, BROKER)

    def retire(self, row: int) -> None:
        """Take a row out of use for good: its generation would wrap."""
        self.words[row * ROW_WORDS] = grant_word(MAX_GENERATION, State.COLD, BROKER)

    def hand_over(self, row: int) -> None:
        """Make the broker the custodian of a publication whose publisher is gone."""
        self.words[row * ROW_WORDS] = grant_word(generation_of(self.grant(row)), State.PUBLISHED, BROKER)

    def disown(self, row: int) -> None:
        """The publisher of a direct segment in the broker's custody has gone: its seat's
        number may soon be another's."""
        self.words[row * ROW_WORDS + EXTENT] &= (1 << CHUNKS_SHIFT) - 1

    def open_cells(self, row: int) -> list[tuple[int, int]]:
        """(cell, word) of a publication's tickets that are not done; a cell that makes no
        sense for this generation counts as open: it is never freed on garbage."""
        at = row * ROW_WORDS
        done = self.words[at] & GENERATION_FIELD | CellState.DONE << STATE_SHIFT
        tickets = min(tickets_of(self.words[at + EXTENT]), MAX_TICKETS)
        cells = ((cell, self.words[at + FIRST_CELL + cell]) for cell in range(tickets))
        return [(cell, word) for cell, word in cells if word != done]

    def cell(self, row: int, cell: int) -> int:
        """The word of a ticket."""
        return self.words[row * ROW_WORDS + FIRST_CELL + cell]

    def is_stranded(self, row: int) -> bool:
        """Whether a publication is a chunk of a stream that nobody reads, nor can come to."""
        at = row * ROW_WORDS
        mark, bound = self.words[at + BOUND_CELL], self.words[at + BOUND_TO]
        stream, generation = next_row_of(bound), birth_of(bound)
        if (
            tickets_of(self.words[at + EXTENT]) != 1
            or mark != self.words[at] & GENERATION_FIELD | CellState.BOUND << STATE_SHIFT
            or not 0 < stream < self.count
        ):
            return False
        word, ticket = self.grant(stream), self.cell(stream, 0)
        is_there = state_of(word) == State.PUBLISHED and generation_of(word) == generation == generation_of(ticket)
        return not is_there or state_of(ticket) == CellState.DONE

    def finish_cell(self, row: int, cell: int) -> None:
        """Store DONE in a cell whose holder is dead."""
        at = row * ROW_WORDS + FIRST_CELL + cell
        self.words[at] = self.words[at] & GENERATION_FIELD | CellState.DONE << STATE_SHIFT

    def reopen_cell(self, row: int, cell: int) -> None:
        """Make the ticket of a dead reader PENDING again, as if it had given it back."""
        at, granted = row * ROW_WORDS + FIRST_CELL + cell, self.grant(row)
        if state_of(granted) == State.PUBLISHED and generation_of(granted) == generation_of(self.words[at]):
            self.words[at] = granted
        else:  # somebody scribbled
            self.finish_cell(row, cell)

    def is_shared(self, row: int) -> bool:
        """Whether a row is a shared publication, whose cells are none."""
        word = self.grant(row)
        return state_of(word) == State.PUBLISHED and seat_of(word) == BROKER and is_shared(self.extent(row))

    # --- queues ---------------------------------------------------------------------------------------

    def is_queue(self, row: int) -> bool:
        """Whether a row is a queue's memory."""
        return self.is_shared(row) and bool(tickets_of(self.extent(row)) & QUEUE)

    def is_queued(self, row: int) -> bool:
        """Whether a row is a publication that was put into a queue."""
        word = self.grant(row)
        mark = self.words[row * ROW_WORDS + QUEUED_CELL]
        return (
            mark == queued_word(generation_of(word)) and state_of(word) == State.PUBLISHED and not self.is_shared(row)
        )

    def is_in_queue(self, row: int) -> bool:
        """Whether it was, and the queue is still there."""
        if not self.is_queued(row):
            return False
        named = self.words[row * ROW_WORDS + QUEUE_CELL]
        queue = queue_row(named)
        return 0 < queue < self.count and self.is_queue(queue) and queue_word(queue, self.generation(queue)) == named

    def queued(self, first: int, end: int) -> list[int]:
        """The rows from *first* to before *end* that were put into queues."""
        marks = self.words[first * ROW_WORDS + QUEUED_CELL : min(end, self.count) * ROW_WORDS : ROW_WORDS]
        mark = queued_word(0)
        found = [first + at for at, word in enumerate(marks) if word & ~GENERATION_FIELD == mark]
        return [row for row in found if self.is_queued(row)]

    def pending_cells(self, row: int) -> list[tuple[int, int]]:
        """(cell, word) of the tickets that nobody has opened. Whose seat they name does not matter: after a
        restart nobody knows who had published."""
        generation = self.generation(row)
        return [
            (cell, word)
            for cell, word in self.open_cells(row)
            if state_of(word) == State.PUBLISHED and generation_of(word) == generation
        ]

    def generation(self, row: int) -> int:
        """The generation of a row."""
        return generation_of(self.grant(row))

    # --- shared publications ------------------------------------------------------------------------------

    def shared_facts(self, row: int) -> tuple[str, int, int]:
        """Name, maker's uid and ttl of a shared publication."""
        at = row * ROW_WORDS + FIRST_CELL
        return shared_facts(self.words[at : at + MAX_TICKETS])

    def note_maker(self, row: int, uid: int) -> None:
        """Write the maker's uid."""
        at = row * ROW_WORDS + FIRST_CELL
        self.words[at] = self.words[at] & ~(0xFFFFFFFF << UID_SHIFT) | uid << UID_SHIFT

    def unname(self, row: int) -> None:
        """Take a shared publication's name away, and what keeps it without anybody who holds it."""
        at = row * ROW_WORDS
        self.words[at + EXTENT] &= ~((KEPT | CACHED) << TICKETS_SHIFT)
        self.words[at + FIRST_CELL] &= ~0xFF

    def cells_taken_by(self, seats: Collection[int], first: int = 0, end: int = MAX_ROWS) -> Iterator[tuple[int, int]]:
        """(row, cell) of every cell of the rows from *first* to before *end* that says TAKEN by
        one of these seats, searched for when the first is asked for.

        Seat and state are byte-aligned. For a few seats their bytes are searched together, 40 us a
        seat for 1,024 rows; for many they are compared column by column, 0.2 to 0.5 ms, whatever
        stands in the cells. A loop over those that say TAKEN takes 2.
        """
        raw = snapshot(self.words, first, min(end, self.count))
        if len(seats) <= FEW_SEATS:
            found: Iterable[int] = sorted(
                at for seat in seats for at in _marks(raw, CellState.TAKEN << STATE_SHIFT | seat)
            )
        else:
            found = _taken_words(raw, seats)
        for at in found:
            row, word = divmod(at, ROW_WORDS)
            if FIRST_CELL <= word < FIRST_CELL + MAX_TICKETS and not self.is_shared(first + row):
                tickets = tickets_of(self.words[(first + row) * ROW_WORDS + EXTENT])
                if word < FIRST_CELL + tickets or not 0 < tickets <= MAX_TICKETS:  # behind them: a checksum, a bond
                    yield first + row, word - FIRST_CELL

    def are(self, row: int, states: bytes) -> bool:
        """Whether the rows from *row* on say these states, and the broker's seat, whatever their
        generations: bytes are compared, 30 us for 10^4 rows."""
        if len(states) == 1:
            return self.words[row * ROW_WORDS] & ~GENERATION_FIELD == states[0] << STATE_SHIFT
        column = self.words[row * ROW_WORDS : (row + len(states)) * ROW_WORDS : ROW_WORDS]
        raw = column.tobytes() if isinstance(column, memoryview) else array("Q", column).tobytes()
        return raw[STATE_SHIFT // 8 :: 8] == states and not (any(raw[0::8]) or any(raw[1::8]))

    def are_where(self, first: int, mask: bytes | bytearray, states: bytes) -> bool:
        """The same for those of the rows from *first* on that *mask* marks by 1, of as many states: as
        long numbers, a millisecond for 10^4 rows however many are marked."""
        column = self.words[first * ROW_WORDS : (first + len(mask)) * ROW_WORDS : ROW_WORDS]
        raw = column.tobytes() if isinstance(column, memoryview) else array("Q", column).tobytes()
        differ = _number(raw[STATE_SHIFT // 8 :: 8]) ^ _number(states)
        return not (differ | _number(raw[0::8]) | _number(raw[1::8])) & (_number(mask) * 0xFF)

    def given_back(self, first: int, end: int) -> list[int]:
        """The rows from *first* to before *end* whose client has made the broker their custodian, by RETURNED or with
        a publication, and those that were the broker's before and say so: bytes are searched."""
        column = self.words[first * ROW_WORDS : min(end, self.count) * ROW_WORDS : ROW_WORDS]
        raw = column.tobytes() if isinstance(column, memoryview) else array("Q", column).tobytes()
        states, found = raw[STATE_SHIFT // 8 :: 8], list[int]()
        for state in (State.RETURNED, State.PUBLISHED):
            if state not in states:  # nearly always
                continue
            said, at = bytes((0, 0, state)), -1
            while (at := raw.find(said, at + 1)) >= 0:
                if at % 8 == 0:
                    found.append(first + at // 8)
        return found

    def grant_words(self) -> list[int]:
        """All grant words at once, by row: a snapshot for scans and reports."""
        column = self.words[: self.count * ROW_WORDS : ROW_WORDS]
        return column.tolist() if isinstance(column, memoryview) else list(column)


def is_published(word: int, seat: int) -> bool:
    """Whether a grant word is a publication in this seat's custody."""
    return state_of(word) == State.PUBLISHED and seat_of(word) == seat


def _marks(raw: bytes, mark: int) -> Iterator[int]:
    """The words that say this state and seat, counted from the first."""
    pattern = re.compile(re.escape(mark.to_bytes(STATE_SHIFT // 8 + 1, "little")))
    return (found.start() // 8 for found in pattern.finditer(raw) if found.start() % 8 == 0)


def _taken_words(raw: bytes, seats: Collection[int]) -> Iterator[int]:
    """The words that say TAKEN by any of these seats, counted from the first. Each column of bytes
    becomes a number with a 1 for each that fits; of seats whose high bytes agree at once."""
    taken = _fitting(raw[STATE_SHIFT // 8 :: 8], (CellState.TAKEN,))
    if not taken:
        return iter(())
    lows: dict[int, list[int]] = {}
    for seat in seats:
        lows.setdefault(seat >> 8, []).append(seat & 0xFF)
    low_column, high_column = raw[0::8], raw[1::8]
    theirs = 0
    for high, low in lows.items():
        theirs |= _fitting(high_column, (high,)) & _fitting(low_column, low)
    return (found.start() for found in _SET.finditer((theirs & taken).to_bytes(len(low_column), "little")))


def _number(column: bytes | bytearray) -> int:
    return int.from_bytes(column, "little")


def _fitting(column: bytes, values: Collection[int]) -> int:
    table = bytearray(256)
    for value in values:
        table[value] = 1
    return int.from_bytes(column.translate(table), "little")
