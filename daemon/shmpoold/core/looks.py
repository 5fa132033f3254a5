"""Rows that are to be looked at: what returns and bells name, and what a client has that came back.

They are a set, so however often a row is named while it waits it is looked at once, and no
flood of bells is longer than the ledger. A message only says "look": what is done about a row
is decided when it is looked at, by what its words say then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .chores import NEVER, Chore, Chores, Lane

#: How many rows of one message are looked at in its turn, if looking is all that there is to do.
LOOKED_AT_PER_TURN = 128


class Looks:
    """The rows that nobody has looked at yet. *look(row, now)* is done for each and says what it
    cost, in units; it may be asked for a row that is no longer anybody's."""

    def __init__(self, chores: Chores, look: Callable[[int, float], int]) -> None:
        self._chores = chores
        self._look = look
        self._rows: set[int] = set()
        self._is_under_way = False

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, rows: Iterable[int], now: float) -> None:
        """Look at these rows: at the first of them now, at the others soon."""
        named = list(dict.fromkeys(rows))
        left = LOOKED_AT_PER_TURN
        for at, row in enumerate(named):
            if left <= 0:
                self.soon(named[at:], now)
                return
            left -= self._look(row, now)

    def soon(self, rows: Iterable[int], now: float) -> None:
        """Look at these rows as far as the present turn has room, then in later ones."""
        self._rows.update(rows)
        self.tick(now)

    @property
    def next_deadline(self) -> float:
        """When `tick` is due: at once, when looking has failed and rows are left."""
        return 0.0 if self._rows and not self._is_under_way else NEVER

    def tick(self, now: float) -> None:
        """Go on."""
        if self._rows and not self._is_under_way:
            self._is_under_way = True
            self._chores.begin(self._run(), now, Lane.LOOKS)

    def _run(self) -> Chore:
        """Those that are named meanwhile come after all that were there before."""
        rows: set[int] = set()
        try:
            while self._rows:
                rows, self._rows = self._rows, set()
                while rows:
                    yield self._look(rows.pop(), self._chores.now)
        finally:
            self._rows |= rows
            self._is_under_way = False
