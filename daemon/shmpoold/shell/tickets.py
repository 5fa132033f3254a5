"""Closing tickets that nobody opened, as openers take them: under the byte lock, or by compare-and-swap; and taking
them for clients that cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shmpool.protocol.ledger import FIRST_CELL, GENERATION_FIELD, ROW_WORDS, STATE_SHIFT
from shmpool.protocol.states import CellState
from shmpool.system.locks import ByteLocks

from ..core.actions import CloseTicket, TakeTicket

if TYPE_CHECKING:
    from shmpool.system.atomics import Swap

#: Seconds until a busy byte is tried again, doubled each time.
FIRST_RETRY: Final = 0.01
LAST_RETRY: Final = 1.0

_DONE: Final = CellState.DONE << STATE_SHIFT
_TAKEN: Final = CellState.TAKEN << STATE_SHIFT


class TicketCloser:
    """Carries out CloseTicket and says *closed(row)* once the cell is no longer open. A
    byte that stays busy (its holder is stopped in the middle of opening) is tried until
    it is free or the cell has changed; asked for again meanwhile, it is tried once. With a *swap* nothing
    is busy ever."""

    def __init__(
        self, ledger: memoryview[int], locks: ByteLocks, closed: Callable[[int], None], swap: Swap | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ledger = ledger
        self._locks = locks
        self._closed = closed
        self._swap = swap
        self._retries: dict[CloseTicket, asyncio.TimerHandle] = {}

    def take_ticket(self, ticket: TakeTicket) -> None:
        """For a client that cannot."""
        assert self._swap is not None, "the pool's tickets are taken under locks"
        taken = ticket.pending & GENERATION_FIELD | _TAKEN | ticket.seat
        self._swap(_word_of(ticket), ticket.pending, taken)

    def close_ticket(self, ticket: CloseTicket) -> None:
        """Try now, and go on trying."""
        if ticket not in self._retries:
            self._try(ticket, FIRST_RETRY)

    def _try(self, ticket: CloseTicket, delay: float) -> None:
        self._retries.pop(ticket, None)
        if self._is_closed(ticket):
            self._closed(ticket.row)
            return

        def again() -> None:
            self._try(ticket, min(2 * delay, LAST_RETRY))

        self._retries[ticket] = self._loop.call_later(delay, again)

    def stop(self) -> None:
        """Try no more."""
        for retry in self._retries.values():
            retry.cancel()
        self._retries.clear()

    def _is_closed(self, ticket: CloseTicket) -> bool:
        at, done = _word_of(ticket), ticket.granted & GENERATION_FIELD | _DONE
        if self._swap is not None:
            self._swap(at, ticket.granted, done)  # else it was taken, or closed
            return True
        if self._ledger[at] != ticket.granted:
            return True  # and its byte may be wanted by who opens what was published there since
        byte = ticket.row * ROW_WORDS + ticket.cell
        if not self._locks.try_lock(byte):
            return self._ledger[at] != ticket.granted
        try:
            if self._ledger[at] == ticket.granted:
                self._ledger[at] = done
        finally:
            self._locks.unlock(byte)
        return True


def _word_of(ticket: CloseTicket | TakeTicket) -> int:
    return ticket.row * ROW_WORDS + FIRST_CELL + ticket.cell
