"""Joining: how a session takes its seat, and takes it up again when the broker was away."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable

from .. import hints
from ..errors import BrokerUnavailable, ShmpoolError
from ..link.connection import Connection, Interruption
from ..link.hello import await_welcome, greet, reach
from ..protocol.header import WANTED
from ..protocol.messages import Role, Welcome
from ..system.outside import own
from .holds import HoldTable
from .mapping import SeatTaken
from .supply import Supply


class Joining(Supply):
    """A session as far as it joins a pool."""

    #: Shared publications that are open here.
    holds: HoldTable

    def discard_seat(self) -> None:
        """The seat is gone. Views stay readable, nothing is stored for them any more."""
        raise NotImplementedError

    def close_descriptors(self) -> None:
        """Close what this session has open. Twice is fine."""
        raise NotImplementedError

    def join(self, find: Callable[[], str], deadline: float, is_closed: Callable[[], bool]) -> None:
        """Take a seat of the broker at the address that *find* says. Raises BrokerUnavailable, and
        has nothing open then."""
        try:
            has_seat = False
            while True:  # again where the broker has that seat to clear, and another for us, or none at all
                if has_seat:
                    break
                has_seat = self._take_seat(*self._knock(find, deadline, is_closed))
            self._make_tables()
            self._warn_of_tickets()
        except BaseException:
            self.close_descriptors()
            raise

    def _knock(
        self, find: Callable[[], str], deadline: float, is_closed: Callable[[], bool]
    ) -> tuple[Connection, Welcome]:
        self.nonce = int.from_bytes(os.urandom(8))
        self.address, self.link.connection, welcome = await_welcome(find, self.nonce, deadline, is_closed)
        return self.link.connection, welcome

    def _take_seat(self, connection: Connection, welcome: Welcome) -> bool:
        """Map the pool. False when the seat cannot be had: it is left as it is, and the broker
        clears it when its lock is free."""
        try:
            self.map(welcome, self.nonce)
        except own(SeatTaken):
            self.link.close_connection(connection)
            return False
        except own(OSError) as error:
            raise BrokerUnavailable(hints.unmappable(self.address, error)) from None
        return True

    def reconnect(self, timeout: float, interruption: Interruption | None = None) -> bool:
        """Try once to take the seat up again. False: try later. Ends the session when the
        broker has another pool or has given the seat up."""
        deadline = time.monotonic() + timeout
        try:
            connection = reach(self.address, deadline, interruption)
            welcome = greet(connection, Role.WORKER, self.nonce, self.pool_id, self.seat, deadline, interruption)
        except own(ShmpoolError, OSError):
            return False
        if not welcome.resumed or welcome.pool_id != self.pool_id:
            connection.close()
            self.discard_seat()
            return True
        self.apply(welcome.settings)
        self._adopt_unknown()
        connection.send(*self.holds.messages())  # first: what else is told may name one of them
        self.link.attach(connection)
        self.holds.after_telling()
        self.is_wanted = 1 in [self.header[WANTED + tier.index] for tier in self.tiers]  # recalls that we missed
        return True

    def _warn_of_tickets(self) -> None:
        if self.asks_for_tickets:
            warnings.warn(
                "tickets of this pool are taken by compare-and-swap, for which this process has neither shmpool's"
                " compiled part nor GCC's libatomic (libatomic.so.1): each open costs a round trip to the broker;"
                ' the setting tickets = "locks" avoids it',
                RuntimeWarning,
                stacklevel=2,
            )
