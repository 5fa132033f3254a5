"""Clients: the connections, from their hello to their end.

A worker's hello gives it a seat, or the one that it had before it lost its connection; an
operator's gives it leave to ask. A connection that is gone ends nothing: its seat waits for its
client until a pidfd or the seat's byte tells of its end (`seats.Away`), and `endings` settles it.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import HELLO_MAGIC, PROTOCOL_VERSION, Fault, Hello, Role
from shmpool.protocol.messages import Settings as SettingsMessage

from ..actions import Close, WatchConnected
from ..chores import Chore, Chores, Lane
from ..events import Connected, Disconnected, Peer, ProcessDied, Unseen
from ..lending.requests import WaitingLine
from ..looks import Looks
from ..outbox import Outbox
from .endings import Endings
from .seats import Away, Seat, Seats
from .terms import Terms

#: Connections of operators at one time: they must not shut out workers.
MOST_OPERATORS = 64
#: Telling one client, in units.
TELLING = 8


@dataclass(slots=True, eq=False)
class Client:
    """One connection; it has a role from its hello on, and as a worker a seat."""

    connection: int
    peer: Peer
    role: Role | None = None
    seat: Seat | None = None


class Clients:
    """Who is connected. Time passes for those who are not: see `away` and `endings`."""

    def __init__(
        self,
        terms: Terms,
        seats: Seats,
        away: Away,
        endings: Endings,
        line: WaitingLine,
        looks: Looks,
        chores: Chores,
        outbox: Outbox,
    ) -> None:
        self._terms = terms
        self._seats = seats
        self._away = away
        self._endings = endings
        self._line = line
        self._looks = looks
        self._chores = chores
        self._outbox = outbox
        self._clients: dict[int, Client] = {}
        #: The connections among them that only ask.
        self._operators: set[int] = set()
        #: The client of a connection, None when it was ended.
        self.get = self._clients.get

    def __contains__(self, connection: int) -> bool:
        return connection in self._clients

    def __len__(self) -> int:
        return len(self._clients)

    # --- coming ------------------------------------------------------------------------------------

    def on_connected(self, event: Connected, now: float) -> None:
        """Somebody is there, who has said nothing yet."""
        self._clients[event.connection] = Client(event.connection, event.peer)

    def greet(self, client: Client, hello: Hello, now: float) -> None:
        """Answer a hello: a worker sits down, or is told why not."""
        if client.role is not None:
            return self.fault(client, Code.BAD_MESSAGE, "Hello comes once")
        if hello.magic != HELLO_MAGIC or hello.version != PROTOCOL_VERSION:
            return self.fault(client, Code.WRONG_VERSION, _wrong_version(hello))
        client.role = Role(hello.role)
        if client.role is Role.OPERATOR:
            if len(self._operators) >= MOST_OPERATORS:
                text = f"{MOST_OPERATORS} operators are connected: shmpool stats and the like; try again later"
                return self.fault(client, Code.NO_SEAT, text)
            self._operators.add(client.connection)
            self._outbox.send(client.connection, self._terms.welcome(None, resumed=False))
            return None
        resumed = self._resume(client, hello, now)
        if not resumed:
            client.seat = self._seats.take(client.peer, hello.nonce, client.connection)
        if client.seat is None:
            return self.fault(client, Code.NO_SEAT, f"all {self._seats.count} seats are taken; raise max_clients")
        self._outbox.add(WatchConnected(client.seat.number, client.connection))
        self._outbox.send(client.connection, self._terms.welcome(client.seat, resumed=resumed))
        return None

    def _resume(self, client: Client, hello: Hello, now: float) -> bool:
        """Give a client that lost its connection its seat again. A newer connection of the
        same client replaces one whose end has not been seen yet."""
        seat = self._seats.taken.get(hello.seat)
        if seat is None or seat.is_ending or not self._terms.are_of(hello) or not seat.is_for(client.peer, hello.nonce):
            return False
        if seat.connection is not None:
            self._drop(seat.connection)
        self._away.come_back(seat)
        self._seats.resume(seat, client.peer, client.connection)
        client.seat = seat
        self._looks.soon(seat.rows, now)
        return True

    def tell_changes(self, now: float) -> None:
        """Tell the workers what of the settings that concern them is no longer as it was."""
        if changed := self._terms.take_changes():
            self._chores.begin(self._tell(SettingsMessage(changed)), now, Lane.MEMORY)

    def _tell(self, message: SettingsMessage) -> Chore:
        """Those who come meanwhile hear of it in their welcome."""
        for client in list(self._clients.values()):
            if client.seat is not None and self._clients.get(client.connection) is client:
                self._outbox.send(client.connection, message)
                yield TELLING

    # --- going -------------------------------------------------------------------------------------

    def on_disconnected(self, event: Disconnected, now: float) -> None:
        """The seat stays: its client may come back, or its pidfd or a probe tell of its end."""
        client = self._forget(event.connection)
        if client and client.seat and client.seat.connection == event.connection:
            client.seat.connection = None
            self._away.leave(client.seat, now)

    def on_process_died(self, event: ProcessDied, now: float) -> None:
        """The process of a seat has ended, or has let go of it."""
        seat = self._seats.taken.get(event.seat)
        if seat is not None:
            self.end(seat, now)

    def on_unseen(self, event: Unseen, now: float) -> None:
        """The process of a seat cannot be watched."""
        seat = self._seats.taken.get(event.seat)
        if seat is not None:
            seat.is_seen = False
            self._away.hide(seat, now)

    def end(self, seat: Seat, now: float) -> None:
        """Its client needs a seat no longer: it has said so, or is dead."""
        self._away.come_back(seat)
        if seat.connection is not None:
            self._drop(seat.connection)
            seat.connection = None
        self._endings.begin(seat, now)

    def fault(self, client: Client, code: Code, text: str) -> None:
        """Say what is wrong, and end the connection; a seat stays, as if it had been lost."""
        self._outbox.send(client.connection, Fault(code, text))
        if client.seat is not None:
            client.seat.connection = None
            self._away.leave(client.seat, 0.0)
        self._drop(client.connection)

    def _drop(self, connection: int) -> None:
        """End a connection that has nothing more to say to us."""
        self._forget(connection)
        self._outbox.add(Close(connection))

    def _forget(self, connection: int) -> Client | None:
        self._operators.discard(connection)
        self._line.cancel_all(connection)
        self._endings.forget(connection)
        return self._clients.pop(connection, None)


def _wrong_version(hello: Hello) -> str:
    if hello.magic != HELLO_MAGIC:
        return f"this broker speaks {HELLO_MAGIC} protocol {PROTOCOL_VERSION}, not {hello.magic} {hello.version}"
    both = f"this broker speaks protocol {PROTOCOL_VERSION}, this process protocol {hello.version}"
    if hello.version < PROTOCOL_VERSION:
        return f"{both}: restart the process with the broker's version of shmpool, it runs an older one"
    return f"{both}: restart the broker with the process's version of shmpool, it runs an older one"
