"""The queue's protocol as an explicit-state model: all interleavings of a few puts and gets, a death before
or after every store, and the broker's sweep at any time after it.

A process is a generator of steps; a step is one store, or a look and the store that a lock makes one with it.
`explore` walks every order in which the steps of all can come. Mutants leave one ingredient out; each must be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

#: Of a ticket: its lease is still written; it may be taken; by whom it is; done.
LEASED, PENDING, DONE = "leased", "pending", "done"


class Cell(NamedTuple):
    """The number and the item that a cell says it has."""

    number: int = -1
    item: str = ""


NONE = Cell()


@dataclass(frozen=True)
class State:
    """All that there is. *at* is each process's place in its program, *holds* what it has read."""

    tail: int = 0
    head: int = 0
    cells: tuple[Cell, ...] = ()
    #: The number and the item that a putter has noted; (-1, "") none.
    intent: Cell = NONE
    tickets: tuple[tuple[str, str], ...] = ()
    tail_lock: int = -1
    head_lock: int = -1
    at: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    left: tuple[tuple[str, ...], ...] = ()
    committed: tuple[str, ...] = ()
    got: tuple[str, ...] = ()
    swept: frozenset[int] = frozenset()

    def ticket(self, item: str) -> str:
        return dict(self.tickets).get(item, "")

    def with_ticket(self, item: str, state: str) -> State:
        return replace(self, tickets=tuple(sorted({**dict(self.tickets), item: state}.items())))

    def to(self, process: int, place: str, holds: str | None = None) -> State:
        at = (*self.at[:process], place, *self.at[process + 1 :])
        if holds is None:
            return replace(self, at=at)
        return replace(self, at=at, holds=(*self.holds[:process], holds, *self.holds[process + 1 :]))


class Violation(AssertionError):
    """What must not happen."""


@dataclass
class Model:
    """*puts* are what each putter puts, *gets* how many each getter takes; *deaths* may come in all."""

    puts: tuple[tuple[str, ...], ...]
    gets: tuple[int, ...]
    cells: int = 2
    deaths: int = 1
    mutant: str = ""
    seen: int = field(default=0)

    def start(self) -> State:
        left = (*self.puts, *(("get",) * count for count in self.gets))
        return State(cells=(NONE,) * self.cells, at=("idle",) * len(left), holds=("",) * len(left), left=left)

    def explore(self) -> int:
        """Walk all; the number of states. Raises Violation."""
        start = self.start()
        known, waiting = {start}, [start]
        while waiting:
            state = waiting.pop()
            followers = list(self.followers(state))
            self.check(state)
            if not any(True for follower in followers if follower != state):
                self.check_end(state)
            for follower in followers:
                if follower not in known:
                    known.add(follower)
                    waiting.append(follower)
        self.seen = len(known)
        return len(known)

    def followers(self, state: State) -> Iterator[State]:
        dead = sum(place == "dead" for place in state.at)
        for process, place in enumerate(state.at):
            if place == "dead":
                if process not in state.swept:
                    yield self.sweep(state, process)
                continue
            is_putter = process < len(self.puts)
            yield from self.put(state, process, place) if is_putter else self.get(state, process, place)
            if dead < self.deaths and (place != "idle" or state.left[process]):
                yield self.die(state, process)

    def die(self, state: State, process: int) -> State:
        tail_lock = -1 if state.tail_lock == process else state.tail_lock
        head_lock = -1 if state.head_lock == process else state.head_lock
        return replace(state.to(process, "dead"), tail_lock=tail_lock, head_lock=head_lock)

    def sweep(self, state: State, process: int) -> State:
        """What it had leased is free, what it had taken is done; what it had published stays."""
        swept = replace(state, swept=state.swept | {process})
        for item, ticket in state.tickets:
            if ticket == f"taken by {process}" or (ticket == LEASED and item in self.puts_of(process)):
                swept = swept.with_ticket(item, DONE)
        return swept

    def puts_of(self, process: int) -> tuple[str, ...]:
        return self.puts[process] if process < len(self.puts) else ()

    # --- put --------------------------------------------------------------------------------------------

    def put(self, state: State, process: int, place: str) -> Iterator[State]:
        left = state.left[process]
        item = left[0] if left else ""
        cell = state.tail % self.cells
        if place == "idle" and left:
            yield state.with_ticket(item, LEASED).to(process, "written")
        elif place == "written" and (state.tail_lock < 0 or self.mutant == "no lock for putters"):
            yield replace(state.to(process, "locked"), tail_lock=process)
        elif place == "locked":
            if state.tail - state.head >= self.cells:
                yield replace(state.to(process, "written"), tail_lock=-1)  # full: waits, and tries again
            else:
                yield self.without_leftover(state).to(process, "clear")
        elif place == "clear":
            if self.mutant == "committed before it is stored":
                yield self.commit(state, item).to(process, "committed first", str(cell))
            elif self.mutant == "published before it is noted":
                yield state.with_ticket(item, PENDING).to(process, "published first")
            else:
                yield replace(state, intent=Cell(state.tail, item)).to(process, "noted")
        elif place == "published first":
            yield replace(state, intent=Cell(state.tail, item)).to(process, "published")
        elif place == "committed first":
            at = int(state.holds[process])
            cells = (*state.cells[:at], Cell(state.tail - 1, item), *state.cells[at + 1 :])
            yield replace(state, cells=cells).with_ticket(item, PENDING).to(process, "committed", "")
        elif place == "noted":
            yield state.with_ticket(item, PENDING).to(process, "published")
        elif place == "published":
            yield self.named(state, cell, item).to(process, "named")
        elif place == "named":
            yield self.commit(state, item).to(process, "committed")
        elif place == "committed" and state.intent != NONE:
            yield replace(state, intent=NONE)
        elif place == "committed":
            rest = (*state.left[:process], left[1:], *state.left[process + 1 :])
            unlocked = -1 if state.tail_lock == process else state.tail_lock
            yield replace(state.to(process, "idle"), tail_lock=unlocked, left=rest)

    def without_leftover(self, state: State) -> State:
        """What a putter had noted that died, unless TAIL went past it."""
        number, item = state.intent
        if self.mutant == "leftovers stay":
            return state
        state = replace(state, intent=NONE)
        is_put = number < state.tail and self.mutant != "leftovers are taken for not put"
        return state.with_ticket(item, DONE) if not is_put and state.ticket(item) == PENDING else state

    def named(self, state: State, cell: int, item: str) -> State:
        return replace(state, cells=(*state.cells[:cell], Cell(state.tail, item), *state.cells[cell + 1 :]))

    def commit(self, state: State, item: str) -> State:
        return replace(state, tail=state.tail + 1, committed=(*state.committed, item))

    # --- get --------------------------------------------------------------------------------------------

    def get(self, state: State, process: int, place: str) -> Iterator[State]:
        left = state.left[process]
        item = state.holds[process]
        if place == "idle" and left and (state.head_lock < 0 or self.mutant == "no lock for getters"):
            yield replace(state.to(process, "locked"), head_lock=process)
        elif place == "locked":
            if state.head == state.tail:
                yield replace(state.to(process, "idle"), head_lock=-1)  # empty: waits, and tries again
                return
            number, found = state.cells[state.head % self.cells]
            if number != state.head:
                raise Violation(f"a getter reads a cell that has another item: {state}")
            if self.mutant == "HEAD before the ticket":
                yield replace(state, head=state.head + 1).to(process, "to take", found)
            elif state.ticket(found) == PENDING:
                yield state.with_ticket(found, f"taken by {process}").to(process, "taken", found)
            elif self.mutant != "stops at what is done":
                yield replace(state, head=state.head + 1).to(process, "stepped over", "")
        elif place == "to take":
            yield state.with_ticket(item, f"taken by {process}").to(process, "committed")
        elif place == "taken":
            yield replace(state, head=state.head + 1).to(process, "committed")
        elif place == "stepped over":
            yield replace(state.to(process, "idle"), head_lock=self.unlocked(state, process))
        elif place == "committed":
            if item in state.got:
                raise Violation(f"{item} is got twice: {state}")
            rest = (*state.left[:process], left[1:], *state.left[process + 1 :])
            done = state.with_ticket(item, DONE).to(process, "idle", "")
            yield replace(done, got=(*state.got, item), left=rest, head_lock=self.unlocked(state, process))

    def unlocked(self, state: State, process: int) -> int:
        return -1 if state.head_lock == process else state.head_lock

    # --- what must hold -----------------------------------------------------------------------------------

    def check(self, state: State) -> None:
        if not 0 <= state.tail - state.head <= self.cells:
            raise Violation(f"HEAD and TAIL are apart by {state.tail - state.head}: {state}")
        if len(set(state.committed)) != len(state.committed):
            raise Violation(f"an item is in it twice: {state}")
        if len(self.gets) == 1:  # with more, who took first may come back last
            for puts in self.puts:
                order = [item for item in state.got if item in puts]
                if order != sorted(order, key=puts.index):
                    raise Violation(f"a putter's items are out of order: {state}")

    def check_end(self, state: State) -> None:
        """Nothing can happen any more."""
        for process, place in enumerate(state.at):
            if place == "dead":
                continue
            is_getter = process >= len(self.puts)
            if state.left[process] and (state.tail > state.head if is_getter else state.tail - state.head < self.cells):
                raise Violation(f"process {process} is blocked: {state}")
        dead = sum(place == "dead" for place in state.at[len(self.puts) :])  # what a putter has put is no longer his
        there = {cell.item for cell in self.inside(state) if state.ticket(cell.item) == PENDING}
        lost = set(state.committed) - set(state.got) - there
        if len(lost) > dead:
            raise Violation(f"{lost} are lost: {state}")
        known = {cell.item for cell in self.inside(state)}
        if self.mutant != "leftovers stay" and state.intent.number == state.tail:
            known.add(state.intent.item)  # the next put, or the queue's end, closes it
        for item, ticket in state.tickets:
            if ticket == PENDING and item not in known:
                raise Violation(f"nobody knows of {item} any more: {state}")

    def inside(self, state: State) -> list[Cell]:
        return [state.cells[number % self.cells] for number in range(state.head, state.tail)]
