"""The shared words: which of them are modelled, how parties see them, who may store what.

Only words that tell states apart are modelled: grant, extent, link and the used cells of one row,
the payload, the wanted flag of its tier and the seat table. Every other word is a constant:
what is stored in it is forgotten. A slot has one payload; of a direct segment each inode has its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shmpool.protocol.header import SEAT_STATE, WANTED, seat_at
from shmpool.protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GRANT,
    LINK,
    QUEUE_CELL,
    QUEUED_CELL,
    ROW_WORDS,
    STATE_MASK,
    STATE_SHIFT,
    generation_of,
    seat_of,
    state_of,
    tickets_of,
)
from shmpool.protocol.states import CellState, State
from shmpool.protocol.transitions import ALLOWED

if TYPE_CHECKING:
    from .machines import Context


Memory = tuple[int, ...]
#: The payload of a slot that has no pages.
NO_PAGES = 1 << 64


class Violation(Exception):
    """Something that must never happen did."""


class Column(list[int]):
    """A slice of words, as much of a memoryview as the product's scans ask for."""

    def tolist(self) -> list[int]:
        return list(self)

    def tobytes(self) -> bytes:
        return array("Q", self).tobytes()


class Layout:
    """The modelled words of one scenario, numbered; *names* are for people. *are_queued*: with those that say in which
    queue a publication lies."""

    def __init__(
        self, tickets: int, seats: int, row: int = 1, tier: int = 0, inodes: int = 1, *, are_queued: bool = False
    ) -> None:
        self.tickets = tickets
        self.seats = seats
        self.at = row * ROW_WORDS
        self.is_direct = inodes > 1
        payloads = [f"payload{inode or ''}" for inode in range(inodes)]
        self.names = ["grant", "extent", *(f"cell{i}" for i in range(tickets)), "link", *payloads, "wanted"]
        cells = range(FIRST_CELL, FIRST_CELL + tickets)
        self.ledger = {self.at + word: number for number, word in enumerate((GRANT, EXTENT, *cells, LINK))}
        self.grant, self.extent, self.first_cell, self.link = 0, 1, 2, 2 + tickets
        self.cells = range(2, 2 + tickets)
        #: By inode; a slot is number 0.
        self.payloads = range(self.link + 1, self.link + 1 + inodes)
        self.wanted = self.payloads.stop
        self.header = {WANTED + tier: self.wanted}
        self.seat_states: dict[int, int] = {}
        for seat in range(1, seats + 1):
            for word in range(SEAT_STATE + 1):
                self.header[seat_at(seat) + word] = len(self.names)
                self.names.append(f"seat{seat}.{('pid', 'start', 'uid', 'nonce', 'state')[word]}")
            self.seat_states[seat] = len(self.names) - 1
        #: Stored by brokers only: nobody's step can tell when a broker reads them.
        self.broker_only = frozenset(range(self.wanted, len(self.names)))
        self.marks = range(len(self.names), len(self.names) + 2 * are_queued)
        if are_queued:
            self.names += ["queue", "queued"]
            self.ledger |= zip((self.at + QUEUE_CELL, self.at + QUEUED_CELL), self.marks, strict=True)
        #: What `words[:n]`, the byte search for TAKEN cells, looks at.
        self.searched = {self.at + word: self.ledger[self.at + word] for word in cells}

    def snapshot(self, ledger: Sequence[int], header: Sequence[int]) -> list[int]:
        """The modelled words out of whole segments."""
        memory = [0] * len(self.names)
        for at, number in self.ledger.items():
            memory[number] = ledger[at]
        for at, number in self.header.items():
            memory[number] = header[at]
        return memory


class Words:
    """A segment as one party sees it. Each access of a modelled word is a step of its own."""

    __slots__ = ("_constants", "_context", "_numbers", "_searched")

    def __init__(
        self, context: Context, numbers: dict[int, int], searched: dict[int, int], constants: Sequence[int]
    ) -> None:
        self._context = context
        self._numbers = numbers
        self._searched = searched
        self._constants = constants

    def __len__(self) -> int:
        return len(self._constants)

    def __getitem__(self, at: Any) -> Any:
        if type(at) is slice:
            indices = range(*at.indices(len(self._constants)))
            seen = self._numbers if indices.step != 1 else self._searched
            return Column(self._context.read(seen[i]) if i in seen else self._constants[i] for i in indices)
        number = self._numbers.get(at)
        return self._constants[at] if number is None else self._context.read(number)

    def __setitem__(self, at: int, value: int) -> None:
        number = self._numbers.get(at)
        if number is not None:
            self._context.store(number, value)

    def swap(self, at: int, expected: int, value: int) -> bool:
        """Compare-and-swap, one step."""
        number = self._numbers.get(at)
        if number is None:
            return self._constants[at] == expected
        return self._context.swap(number, expected, value)


class Judge:
    """Says of every store that reaches memory whether its writer held the word's token."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._rules: list[Callable[..., str | None]] = [self._on_header] * len(layout.names)
        self._rules[layout.grant] = self._on_grant
        self._rules[layout.extent] = self._rules[layout.link] = self._on_shape
        for number in layout.payloads:
            self._rules[number] = self._on_payload
        for number in layout.marks:
            self._rules[number] = self._on_shape
        for number in layout.cells:
            self._rules[number] = self._on_cell

    def check(
        self, memory: Memory, number: int, value: int, seat: int | None, is_living: Callable[[int], bool]
    ) -> None:
        """*seat* is the writer's (0 the broker, None one that has none); *is_living* says of a
        seat whether a living process has it."""
        complaint = self._rules[number](memory, number, value, seat, is_living)
        if complaint:
            raise Violation(
                f"{complaint}: seat {seat} stores {describe(value)} over {describe(memory[number])}"
                f" in {self._layout.names[number]}"
            )

    def _on_grant(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        old = memory[number]
        source, target, holder = state_of(old), state_of(value), seat_of(old)
        if holder != seat and not (seat == 0 and not is_living(holder)):
            return f"a second writer: the custodian is seat {holder}"
        if (source, target) not in ALLOWED:
            return "no such move"
        grown = generation_of(value) - generation_of(old)
        if grown != ALLOWED[State(source), State(target)]:
            return f"the generation grows by {grown}"
        if source == State.PUBLISHED and grown:
            return self._reuse(memory, old)
        if target == State.PUBLISHED and source == State.LEASED:
            return None if self._is_described(memory, value) else "published before its cells and extent word"
        return None

    def _reuse(self, memory: Memory, old: int) -> str | None:
        layout = self._layout
        for number in layout.cells[: tickets_of(memory[layout.extent])]:
            cell = memory[number]
            if state_of(cell) != CellState.DONE or generation_of(cell) != generation_of(old):
                return f"early reuse: {layout.names[number]} says {describe(cell)}"
        return None

    def _is_described(self, memory: Memory, granted: int) -> bool:
        tickets = tickets_of(memory[self._layout.extent])
        taken = {granted, granted >> STATE_SHIFT + 8 << STATE_SHIFT + 8 | CellState.DONE << STATE_SHIFT}
        return tickets > 0 and all(memory[number] in taken for number in self._layout.cells[:tickets])

    def _on_shape(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        grant = memory[self._layout.grant]
        states = {State.LEASED} if seat else {State.FREE}
        if not seat and self._layout.is_direct:
            states.add(State.PUBLISHED)  # it names its publisher until that has gone
        is_mine = seat_of(grant) == seat and state_of(grant) in states
        return None if is_mine else f"not its custodian's: the row says {describe(grant)}"

    def _on_payload(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        grant = memory[self._layout.grant]
        is_mine = seat and seat_of(grant) == seat and state_of(grant) == State.LEASED
        if memory[number] == NO_PAGES:
            return "written where there are no pages"
        return None if is_mine else f"payload written without a lease: the row says {describe(grant)}"

    def _on_cell(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        old, grant, state = memory[number], memory[self._layout.grant], value >> STATE_SHIFT & STATE_MASK
        is_pending = state_of(old) == State.PUBLISHED and generation_of(old) == generation_of(value)
        is_taken = state_of(old) == CellState.TAKEN and generation_of(old) == generation_of(value)
        may_finish = seat_of(old) == seat or (seat == 0 and not is_living(seat_of(old)))
        if state == State.PUBLISHED and is_taken and may_finish:  # given back
            is_same = state_of(grant) == State.PUBLISHED and generation_of(grant) == generation_of(value)
            return None if is_same else f"a ticket given back of another publication: the row says {describe(grant)}"
        if state == State.PUBLISHED:
            # Of a direct segment custody passes to the broker with the publication.
            custodians = (seat, 0) if self._layout.is_direct else (seat,)
            is_mine = seat and seat_of(grant) == seat and seat_of(value) in custodians
            is_leased = state_of(grant) == State.LEASED and generation_of(grant) == generation_of(value)
            return None if is_mine and is_leased else "a ticket made without a lease"
        if state == CellState.TAKEN:
            # A broker takes it for a client that asks.
            is_theirs = seat in (seat_of(value), 0)
            return None if is_pending and is_theirs else "a double grant: the ticket was not pending"
        if state != CellState.DONE:
            return "no state of a cell"
        return None if is_pending or (is_taken and may_finish) else "a ticket closed by another than its holder"

    def _on_header(self, memory: Memory, number: int, value: int, seat: int | None, is_living: Any) -> str | None:
        return None if seat == 0 else "a client stores in the header"


def describe(word: int) -> str:
    """A grant word or a cell for people."""
    state = state_of(word)
    name = {**{int(s): s.name for s in State}, **{int(s): s.name for s in CellState}}.get(state)
    if name is None or word < 1 << STATE_SHIFT:
        return f"{word:#x}"
    return f"({name}, seat {seat_of(word)}, generation {generation_of(word)})"
