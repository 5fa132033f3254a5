"""The end of a seat: all that it held is settled, then it is cleared.

What it had open for reading comes last: children of its process may have inherited views, and
hold its readers' byte for as long. All else is settled at once, and who had nothing open is not
waited for, whoever holds the byte (a child by a bare fork(2) does in any case).

A seat may hold all rows there are, and a thousand may end at once, so this is a chore. A
broker that dies in the middle leaves a seat whose process is dead: the next one ends it.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from shmpool.protocol.ledger import generation_of, seat_of, state_of
from shmpool.protocol.states import State

from ..actions import ProbeReaders, Unwatch
from ..chores import NEVER, Chore, Chores, Lane
from ..lending.lending import Lending
from ..lending.returns import Returns
from ..memory.inventory import Inventory
from ..objects.custody import Custody
from ..outbox import Outbox
from ..reports.metrics import fold_counters
from ..rows import FEW_SEATS, InvalidTransition, Rows
from .seats import Seat, Seats

#: What one step of the search for tickets costs, in units: for many seats, and for a few. All that is
#: found may be of one step: it is settled row by row.
SEARCHING, SEARCHING_FOR_FEW = 64, 24
#: Seconds until a seat that is still read is looked at again, and between looks at the longest.
FIRST_LOOK, LONGEST_LOOK, GROWTH = 0.005, 0.25, 1.25
#: Seats looked at in one turn.
LOOKED_AT_PER_TURN = 64
#: Folding a seat's counters and clearing it, in units.
CLEARING = 8


#: Rows of seats that are settled together, if they are not of one seat; and units of that before those are
#: looked after that are settled.
SETTLED_TOGETHER, SETTLED_BETWEEN = 512, 2048


def _rows_of(seat: Seat) -> int:
    return len(seat.rows)


class Endings:
    """The seats that end. Their processes are gone, have let go of their seats or have said
    that they hold nothing: nobody else writes their words any more."""

    def __init__(
        self,
        rows: Rows,
        inventory: Inventory,
        seats: Seats,
        custody: Custody,
        returns: Returns,
        lending: Lending,
        chores: Chores,
        outbox: Outbox,
    ) -> None:
        self._rows = rows
        self._inventory = inventory
        self._table = seats
        self._custody = custody
        self._returns = returns
        self._lending = lending
        self._chores = chores
        self._outbox = outbox
        #: Whether the tickets of dead readers are open again.
        self.gives_back = False
        self._seats: list[Seat] = []
        #: Whether those that have least are next.
        self._is_least_next = False
        #: Settled but for what they had open, which may still be read; and what nobody reads.
        self.read: dict[int, Seat] = {}
        self._unread: list[Seat] = []
        #: Those of `read` whose byte was held when it was first looked at, to be searched for what they
        #: had open; and those that have not been looked at a second time.
        self._held: list[int] = []
        self._new: set[int] = set()
        self._next_look, self._pause = NEVER, FIRST_LOOK
        self._is_under_way = False

    def begin(self, seat: Seat, now: float) -> None:
        """End a seat; nothing happens when it ends already."""
        if seat.is_ending:
            return
        seat.is_ending = True
        self._custody.shared.names.give_up(seat.number)  # whoever waits in line need not wait for all the rest
        self._seats.append(seat)
        self._go_on(now)

    def forget(self, connection: int) -> None:
        """A connection is gone: nobody waits for a name over it, or tells what he holds."""
        self._custody.shared.names.cancel_all(connection)
        self._custody.shared.stop_telling(connection)

    def on_readers_gone(self, number: int, now: float) -> None:
        """What a seat had open can be settled, too."""
        seat = self.read.pop(number, None)
        self._new.discard(number)
        if seat is not None:
            self._unread.append(seat)
            self._go_on(now)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due: at once, when an ending has failed and was put back; else when seats
        that are read are to be looked at."""
        if self._is_due:
            return 0.0
        return self._next_look if self.read else NEVER

    def tick(self, now: float) -> None:
        """Go on, and look at the seats that are read, more and more rarely unless somebody waits."""
        self._go_on(now)
        if not self.read or now < self._next_look:
            return
        self._held += sorted(self._new)
        self._new.clear()
        self._go_on(now)
        for number in list(self.read)[:LOOKED_AT_PER_TURN]:
            self.read[number] = self.read.pop(number)  # to the end of the line
            self._outbox.add(ProbeReaders(number))
        self._pause = FIRST_LOOK if self._lending.line else min(GROWTH * self._pause, LONGEST_LOOK)
        self._next_look = now + self._pause

    @property
    def _is_due(self) -> bool:
        return bool(self._seats or self._held or self._unread) and not self._is_under_way

    def _go_on(self, now: float) -> None:
        if self._is_due:
            self._is_under_way = True
            self._chores.begin(self._run(), now, Lane.ENDINGS)

    def _run(self) -> Chore:
        """Those who have ended meanwhile are settled some at a time; one search finds the tickets
        of many. Who is not at his end when something fails is put back."""
        seats: list[Seat] = []
        held: list[int] = []
        unread: list[Seat] = []
        try:
            while self._seats or self._held or self._unread:
                settled = 0
                while self._seats and settled < SETTLED_BETWEEN:
                    seats = self._take_some()
                    for seat in seats:
                        for row in [*seat.rows, *self._custody.published_by(seat.number)]:
                            cost = self._bury_safely(seat, row)
                            settled += cost
                            yield cost
                    while seats:
                        self._await_readers(seats.pop())
                held, self._held = self._held, []
                if held:
                    yield from self._find_what_is_open(held)
                    held = []
                unread, self._unread = self._unread, []
                if unread:
                    yield from self._finish_tickets([seat.number for seat in unread])
                while unread:
                    yield from self._custody.shared.forget(unread[-1].number)
                    self._clear(unread[-1])
                    unread.pop()
                    yield CLEARING
        finally:
            self._seats = seats + self._seats
            self._held = held + self._held
            self._unread = unread + self._unread
            self._is_under_way = False

    def _take_some(self) -> list[Seat]:
        """Seats to settle together, with few rows in all: those that ended first and those that have least, in
        turns, so that who has little does not wait for the thousands of rows of others, nor these for ever."""
        if len(self._seats) == 1:
            seats, self._seats = self._seats, []
            return seats
        self._is_least_next = not self._is_least_next
        order = sorted(self._seats, key=_rows_of) if self._is_least_next else self._seats
        count = bisect_right(list(accumulate(map(_rows_of, order))), SETTLED_TOGETHER)
        taken = order[: max(1, count)]
        self._seats = (
            [seat for seat in self._seats if seat not in taken] if self._is_least_next else order[len(taken) :]
        )
        return taken

    def _await_readers(self, seat: Seat) -> None:
        self.read[seat.number] = seat
        self._new.add(seat.number)
        self._outbox.add(ProbeReaders(seat.number))
        self._pause = FIRST_LOOK
        self._next_look = self._chores.now + FIRST_LOOK

    def _bury_safely(self, seat: Seat, row: int) -> int:
        """A row that cannot be settled is given up: the seat must not stay for ever."""
        try:
            return self._bury(seat, row)
        except Exception as error:
            holding = self._inventory.granted.get(row)
            if holding is not None:
                self._inventory.quarantine(holding)
            if not isinstance(error, InvalidTransition):  # the word has changed since it was looked at
                raise
        return 1

    def _bury(self, seat: Seat, row: int) -> int:
        """Settle one row, if nobody has since the others were; returns what it cost, in units."""
        holding = self._inventory.granted.get(row)
        if holding is None or holding.publisher != seat.number:
            return 1
        word, now = self._rows.grant(row), self._chores.now
        state, holder = state_of(word), seat_of(word)
        holding.orphaned_at = now
        if generation_of(word) < holding.least:
            self._inventory.quarantine(holding)
        elif state == State.PUBLISHED and holder in (0, seat.number):
            return self._custody.take_over(holding, now)
        elif state == State.RETURNED or (state in (State.IDLE, State.LEASED) and holder == seat.number):
            return self._returns.free(holding, now)
        else:
            self._inventory.quarantine(holding)
        return 1

    def _find_what_is_open(self, seats: list[int]) -> Chore:
        """Wait no longer for those of these seats that have nothing open: no cell becomes theirs any more."""
        rows = self._rows
        asked, reading = [number for number in seats if number in self.read], set[int]()
        for first, end in self._inventory.where_tickets_may_be():
            reading |= {seat_of(rows.cell(*at)) for at in rows.cells_taken_by(asked, first, end)}
            yield SEARCHING if len(asked) > FEW_SEATS else SEARCHING_FOR_FEW
        for number in asked:
            if number not in reading and number in self.read and not self._custody.shared.may_hold(number):
                self._unread.append(self.read.pop(number))

    def _finish_tickets(self, seats: list[int]) -> Chore:
        """Store DONE in what these seats had open, or give it back."""
        rows = self._rows
        for first, end in self._inventory.where_tickets_may_be():
            yield SEARCHING if len(seats) > FEW_SEATS else SEARCHING_FOR_FEW
            for row, cell in rows.cells_taken_by(seats, first, end):
                # What a consumer of a queue had in its hands nobody would find again.
                (rows.reopen_cell if self.gives_back and not rows.is_queued(row) else rows.finish_cell)(row, cell)
                yield self._returns.settle(row, self._chores.now)

    def _clear(self, seat: Seat) -> None:
        self._inventory.drop_spares()  # whoever had a use for them may be this one
        fold_counters(self._rows, seat.number)
        self._outbox.add(Unwatch(seat.number))
        self._inventory.acquit(seat.number)
        self._lending.note_freed(self._chores.now)
        self._lending.quotas.usage.forget(seat)
        self._table.clear(seat)
