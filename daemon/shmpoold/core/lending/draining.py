"""An orderly stop that removes the pool: nothing new is lent, what is idle is asked for, and the end is
when nothing is out any more. How long that may take is the shell's to say.

Once begun there is no way back. Clients hear that the broker is stopping and may try again, which is the
next one's business; what they hold stays theirs.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from shmpool.protocol.codes import Code
from shmpool.protocol.header import WANTED
from shmpool.protocol.messages import Direct, Refill, Refusal

from ..chores import NEVER
from ..connections.seats import Seat, Seats
from ..memory.inventory import Inventory
from ..outbox import Outbox
from .lending import Lending
from .recalls import PAUSE, RECALL_EVERY, RECALLED_PER_TURN

TEXT = "the broker is stopping and leases nothing any more"


class Draining:
    """Off until `begin`."""

    def __init__(
        self, lending: Lending, inventory: Inventory, seats: Seats, header: MutableSequence[int], outbox: Outbox
    ) -> None:
        self._lending = lending
        self._seats = seats
        self._inventory = inventory
        self._header = header
        self._outbox = outbox
        self.is_on = False
        self._next_round = NEVER
        #: Seats that the present round has not come to.
        self._round: list[int] = []
        self._next_turn = 0.0

    @property
    def is_done(self) -> bool:
        """Nothing is leased, unread, open or idle with anybody."""
        return self.is_on and not self._inventory.granted

    def begin(self, now: float) -> None:
        """Refuse who waits. The flags say to every release that its slot is wanted back."""
        self.is_on = True
        line = self._lending.line
        for request in line.all():
            line.cancel(request.connection, request.number)
            self._outbox.send(request.connection, Refusal(request.number, Code.STOPPING, TEXT))
        self._lending.raise_flags(now)
        for tier in self._lending.tiers:
            self._header[WANTED + tier.index] = 1
        self._next_round = now
        self.tick(now)

    def refuse(self, connection: int, seat: Seat, message: Refill | Direct, now: float) -> None:
        """Somebody asks for memory."""
        self._outbox.send(connection, Refusal(message.request, Code.STOPPING, TEXT))

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        if not self.is_on or self.is_done:
            return NEVER
        return self._next_turn if self._round else self._next_round

    def tick(self, now: float) -> None:
        """Ask everybody for what is idle, whether anybody waits for it or not, some in each turn; and again
        for what has become idle meanwhile."""
        if self.next_deadline > now:
            return
        if not self._round:
            self._round, self._next_round = list(self._seats.taken), now + RECALL_EVERY
        asked, self._round = self._round[:RECALLED_PER_TURN], self._round[RECALLED_PER_TURN:]
        for number in asked:
            self._lending.recalls.ask(number, now)
        self._next_turn = now + PAUSE
