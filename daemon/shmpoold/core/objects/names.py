"""Names: what each stands for, whose turn it is to make it, and who waits in line for either.

One seat at a time has the turn to make what a name is to stand for; when it ends without, it passes to
whoever has waited longest to make it. When it is there, all who wait have it: a few at once, many in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Find, Purpose, Refusal, Turn

from ..chores import Chore, Chores, Lane
from ..outbox import Outbox

T = TypeVar("T")

#: Requests of one connection that may wait for names; turns that one seat may have.
MOST_WAITING = MOST_TURNS = 1024
#: How many are told at once that what they wait for is there, and what each of the others costs, in units.
TOLD_AT_ONCE, TELLING = 16, 8


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody who waits for a name."""

    connection: int
    seat: int
    request: int
    name: str
    purpose: int


@dataclass(frozen=True, slots=True)
class Maker:
    """Who has the turn."""

    seat: int
    number: int


class Names(Generic[T]):
    """All names of a pool. *found* hands over what has one: to a connection, for a seat and a number."""

    def __init__(self, outbox: Outbox, chores: Chores, found: Callable[[int, int, int, T], None]) -> None:
        self._outbox = outbox
        self._chores = chores
        self._found = found
        self._holders: dict[str, T] = {}
        #: By name, and the same by seat and number.
        self._makers: dict[str, Maker] = {}
        self._turns: dict[int, dict[int, str]] = {}
        #: By name, in the order in which they came; and the same by connection and request.
        self._lines: dict[str, dict[tuple[int, int], Waiter]] = {}
        self._waiting: dict[int, dict[int, Waiter]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._holders

    def __len__(self) -> int:
        return len(self._holders)

    def items(self) -> Iterator[tuple[str, T]]:
        """Those that stand for something, as they are now."""
        yield from self._holders.copy().items()

    def holder(self, name: str) -> T | None:
        """What has it."""
        return self._holders.get(name)

    # --- finding ---------------------------------------------------------------------------------------

    def find(self, connection: int, seat: int, message: Find) -> None:
        """Answer, or have it wait."""
        name, request = message.name, message.request
        holder, maker = self._holders.get(name), self._makers.get(name)
        waiter = Waiter(connection, seat, request, name, message.purpose)
        if message.purpose == Purpose.CLAIM:
            if holder is not None or (maker is not None and maker != Maker(seat, request)):
                what = "is being made" if holder is None else "is taken"
                self._refuse(waiter, Code.NAME_TAKEN, f"the name {name!r} {what}")
            else:
                self._let_make(waiter)
        elif holder is not None:
            self._found(connection, seat, request, holder)
        elif message.purpose == Purpose.MAKE and maker in (None, Maker(seat, request)):
            self._let_make(waiter)
        elif not message.queue:
            text = f"there is no shared publication {name!r}" + (": it is being made" if maker is not None else "")
            self._refuse(waiter, Code.NOT_FOUND, text)
        elif len(self._waiting.get(connection, ())) >= MOST_WAITING:
            self._refuse(waiter, Code.QUOTA, f"{MOST_WAITING} requests of this client wait for names")
        else:
            self._lines.setdefault(name, {})[connection, request] = waiter
            self._waiting.setdefault(connection, {})[request] = waiter

    def _refuse(self, waiter: Waiter, code: Code, text: str) -> None:
        self._outbox.send(waiter.connection, Refusal(waiter.request, code, text))

    def _let_make(self, waiter: Waiter) -> None:
        """Give it the turn, unless it has too many."""
        own = self._turns.setdefault(waiter.seat, {})
        before = own.get(waiter.request)
        if before not in (None, waiter.name):  # another name under this number: that one's turn is over
            self.give_up(waiter.seat, waiter.request)
            own = self._turns.setdefault(waiter.seat, {})
        if len(own) >= MOST_TURNS and waiter.request not in own:
            self._refuse(waiter, Code.QUOTA, f"this client makes {MOST_TURNS} shared publications just now")
            return
        own[waiter.request] = waiter.name
        self._makers[waiter.name] = Maker(waiter.seat, waiter.request)
        self._outbox.send(waiter.connection, Turn(waiter.request))

    def cancel(self, connection: int, request: int) -> bool:
        """Somebody waits no longer. True when it did."""
        waiter = self._leave(connection, request)
        if waiter is not None:
            self._refuse(waiter, Code.NOT_FOUND, f"there is no shared publication {waiter.name!r}")
        return waiter is not None

    def cancel_all(self, connection: int) -> None:
        """A connection is gone; its client asks again over its next one."""
        for request in list(self._waiting.get(connection, ())):
            self._leave(connection, request)

    def _leave(self, connection: int, request: int) -> Waiter | None:
        waiting = self._waiting.get(connection, {})
        waiter = waiting.pop(request, None)
        if waiter is None:
            return None
        if not waiting:
            del self._waiting[connection]
        line = self._lines[waiter.name]
        del line[connection, request]
        if not line:
            del self._lines[waiter.name]
        return waiter

    # --- giving ------------------------------------------------------------------------------------------

    def is_free_for(self, name: str, seat: int, turn: int) -> bool:
        """Whether a seat may give a name: nobody has it, or the turn, but itself."""
        return name not in self._holders and self._makers.get(name) in (None, Maker(seat, turn))

    def give(self, name: str, holder: T, now: float) -> bool:
        """It stands for this from now on; who waits for it has it. False when it is taken."""
        if name in self._holders:
            return False
        self._end_turn(name)
        self._holders[name] = holder
        telling = self._tell(name, holder)
        for _ in range(TOLD_AT_ONCE):
            if next(telling, None) is None:
                return True
        self._chores.begin(telling, now, Lane.SHARED)
        return True

    def _tell(self, name: str, holder: T) -> Chore:
        """Those who come meanwhile have it at once; when it stands for this no longer, the others wait on."""
        while name in self._lines and self._holders.get(name) is holder:
            waiter = next(iter(self._lines[name].values()))
            self._leave(waiter.connection, waiter.request)
            self._found(waiter.connection, waiter.seat, waiter.request, holder)
            yield TELLING

    def remove(self, name: str, holder: T) -> None:
        """It stands for this no longer."""
        if self._holders.get(name) is holder:
            del self._holders[name]
            self._pass_on(name)

    def give_up(self, seat: int, number: int | None = None) -> None:
        """A seat does not make what it had this turn for, or any turn."""
        turns = self._turns.get(seat, {})
        for name in list(turns.values()) if number is None else [turns[number]] if number in turns else []:
            self._end_turn(name)
            self._pass_on(name)

    def _end_turn(self, name: str) -> None:
        maker = self._makers.pop(name, None)
        if maker is not None:
            turns = self._turns[maker.seat]
            del turns[maker.number]
            if not turns:
                del self._turns[maker.seat]

    def _pass_on(self, name: str) -> None:
        """Nobody makes it: whoever waits longest to make it has the turn."""
        while name not in self._makers:
            makers = (one for one in self._lines.get(name, {}).values() if one.purpose == Purpose.MAKE)
            if (waiter := next(makers, None)) is None:
                return
            self._leave(waiter.connection, waiter.request)
            self._let_make(waiter)
