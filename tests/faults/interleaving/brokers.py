"""Brokers: the real core and the real closing of tickets, over the instrumented memory.

The shell's part is done as the shell does it: actions are carried out in order, what they bring
about at once is handled before anything else, and a broker that takes a pool up settles the dead
before it serves anybody. Times are normalised so that waiting comes back to the same state: a
tick is always due, an expired one comes long after everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from shmpool.protocol.messages import FROM_CLIENT, Recall, decode, encode
from shmpool.protocol.names import direct_name
from shmpool.system.heirs import READERS
from shmpoold.core.actions import (
    Action,
    Close,
    CloseTicket,
    Cool,
    CreateDirect,
    ProbeReaders,
    ProbeSeat,
    RemoveDirect,
    Send,
    TakeTicket,
    Unwatch,
    Warm,
    WatchAdopted,
    WatchConnected,
)
from shmpoold.core.broker import Broker
from shmpoold.core.chores import STEPS_PER_TURN
from shmpoold.core.connections.endings import FIRST_LOOK
from shmpoold.core.events import (
    Connected,
    DirectCreated,
    Disconnected,
    Event,
    ProcessDied,
    ReadersGone,
    Received,
    Ticked,
    TicketClosed,
    Unseen,
    Warmed,
)
from shmpoold.core.lending import sweep
from shmpoold.core.lending.earmarks import FIRST_PAUSE
from shmpoold.core.objects.custody import FIRST
from shmpoold.shell.tickets import TicketCloser
from shmpoold.shell.watches import Watches

from .fingerprints import fingerprint
from .machines import Context
from .memory import Words
from .start import POOL_ID, Start, party_of, peer_of

SOON, LATE, NEVER = 1.0, 10_000.0, float("inf")


def name_of(row: int, generation: int) -> str:
    """A direct segment's name."""
    return direct_name(POOL_ID, row, generation)


class ByteLocks:
    """The broker's own open file of the tickets' locks."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def try_lock(self, offset: int) -> bool:
        return bool(self._context.ask("lock", offset))

    def unlock(self, offset: int) -> None:
        self._context.ask("unlock", (offset,))


class Loop:
    """As much of an event loop as `TicketCloser` asks for; the world says when a timer fires.
    *ticket* is the one that is being closed just now."""

    def __init__(self) -> None:
        self.ticket: CloseTicket | None = None
        self.timers: list[tuple[CloseTicket | None, Callable[[], None]]] = []

    def call_later(self, delay: float, fire: Callable[..., None], *args: Any) -> Timer:
        # The first argument says whom it is about; a second one is the next pause, which does not matter here.
        timer = Timer(self, (self.ticket, partial(fire, *args[:1])))
        self.timers.append(timer.entry)
        return timer

    def fire(self) -> None:
        self.ticket, fire = self.timers.pop(0)
        fire()


class Timer:
    """As much of `asyncio.TimerHandle`."""

    def __init__(self, loop: Loop, entry: tuple[CloseTicket | None, Callable[[], None]]) -> None:
        self._loop = loop
        self.entry = entry

    def cancel(self) -> None:
        self._loop.timers[:] = [entry for entry in self._loop.timers if entry is not self.entry]


class BrokerProcess:
    """One broker's life. *epoch* 1 begins with the conversation of `Start`, later ones adopt. One that
    *is_abroad* can watch no process."""

    def __init__(self, context: Context, start: Start, epoch: int, *, is_abroad: bool = False) -> None:
        self._context = context
        self._start = start
        self._epoch = epoch
        self._is_abroad = is_abroad
        self._known = set(range(1, start.clients + 1)) if epoch == 1 else set()
        self._events: deque[Event] = deque()
        context.seat = 0
        self._ledger = Words(context, start.layout.ledger, start.layout.searched, start.ledger)
        self._header = Words(context, start.layout.header, {}, start.header)
        self._loop = Loop()
        self._clearings = start.chores.clearings
        locks: Any = ByteLocks(context)
        ledger: Any = self._ledger
        with patch("asyncio.get_running_loop", lambda: self._loop):
            self._closer = TicketCloser(
                ledger, locks, lambda row: self._events.append(TicketClosed(row)),
                None if start.by == "locks" else self._ledger.swap,
            )  # fmt: skip
            self._watches = Watches(
                locks,
                lambda seat: self._events.append(ProcessDied(seat)),
                lambda seat: self._events.append(Unseen(seat)),
                lambda seat: not start.forks or context.ask("copied", seat),
            )

    def run(self) -> None:
        context = self._context
        if self._epoch == 1:
            context.memory = list(self._start.blank)
            self.core = self._make_core()
            self._start.converse(self.core)
            context.memory = None
        else:
            self.core = self._make_core()
            self._carry_out(self.core.adopt(0.0))
            if self._start.is_direct:
                named = self.core.inventory.direct_segments()
                context.ask("remove others", frozenset(name_of(*segment) for segment in named))
            self._drain(0.0)
            self._carry_out(self.core.finish_chores(0.0))
        while True:
            self._normalise()
            is_due = self.core.next_deadline() not in (None, NEVER)
            has_custody, has_timers = self.core.custody.next_deadline != NEVER, bool(self._loop.timers)
            with patch.object(sweep, "HURRY", -SOON):  # whenever time passes
                self._turn(context.ask("await", is_due, has_custody, has_timers, self._clearings > 0))

    def _make_core(self) -> Broker:
        core = self._start.make_core(self._ledger, self._header, self._epoch)  # type: ignore[arg-type]
        chores = self._start.chores
        core.sweep._is_under_way = not chores.sweeps
        if chores.cools:
            core.cooling.lifetime = 0.0
        if chores.retires:
            core.inventory.max_age = -SOON
        return core

    def _turn(self, what: tuple[Any, ...]) -> None:
        kind, now = what[0], SOON if what[0] != "expiry" else LATE
        if kind == "message":
            _, number, pid, frame = what
            if number not in self._known:
                self._known.add(number)
                self._events.append(Connected(number, peer_of(party_of(pid))))
            self._events.append(Received(number, decode(frame, FROM_CLIENT)))
        elif kind == "hangup":
            self._known.discard(what[1])
            self._events.append(Disconnected(what[1]))
        elif kind == "died":
            self._context.ask("unwatch", what[1])
            self._watches._on_end(what[1])
        elif kind == "retry":
            self._loop.fire()
        elif kind == "clear":
            self._clearings -= 1
            self.core.shared.queues.clear(0.0)
            self._carry_out(self.core.outbox.take())
        else:
            self._events.append(Ticked())
        self._drain(now if kind in ("tick", "expiry") else 0.0)

    def _drain(self, now: float) -> None:
        while self._events:
            self._carry_out(self.core.handle(self._events.popleft(), now))

    def _carry_out(self, actions: list[Action]) -> None:
        ask = self._context.ask
        for action in actions:
            if isinstance(action, Send):
                ask("send", action.connection, encode(action.message))
            elif isinstance(action, Close):
                ask("drop", action.connection)
            elif isinstance(action, TakeTicket):
                self._closer.take_ticket(action)
            elif isinstance(action, CloseTicket):
                self._loop.ticket = action
                self._closer.close_ticket(action)
            elif isinstance(action, WatchConnected) and self._is_abroad:
                self._events.append(Unseen(action.seat))
            elif isinstance(action, WatchConnected):
                ask("watch", action.seat, self.core.clients.get(action.connection).peer.pid)
            elif isinstance(action, WatchAdopted):
                if self._watches.probe(action.seat):
                    pass  # it is nobody's, and its end is the next event
                elif self._is_abroad or ask("is dead", action.peer.pid):
                    self._events.append(Unseen(action.seat))  # nobody's, or nobody whom we see
                else:
                    ask("watch", action.seat, action.peer.pid)
            elif isinstance(action, ProbeSeat):
                self._watches.probe(action.seat)
            elif isinstance(action, ProbeReaders):
                if not self._start.forks or not ask("held", READERS + action.seat):
                    self._events.append(ReadersGone(action.seat))
            elif isinstance(action, Unwatch):
                self._watches.unwatch(action.seat)
                ask("unwatch", action.seat)
            elif isinstance(action, Cool):
                if self._start.chores.cools and action.tier == 0:
                    ask("cool")
            elif isinstance(action, Warm):
                if self._start.chores.cools and action.tier == 0:
                    ask("warm")
                self._events.append(Warmed(action.tier, action.row, action.count))
            elif isinstance(action, CreateDirect):
                spare = "" if action.spare is None else name_of(action.spare.row, action.spare.generation)
                ask("make", name_of(action.row, action.generation), spare, action.nbytes)
                self._events.append(DirectCreated(action.row))
            elif isinstance(action, RemoveDirect):
                ask("remove", name_of(action.row, action.generation))

    def _normalise(self) -> None:
        core = self.core
        assert not core.chores, "one slot is no work for several turns"
        core.chores._left, core.chores._full_again, core.chores.now, core.chores._owed = STEPS_PER_TURN, 0.0, 0.0, 0
        core.custody._swept_at, core.custody._interval = 0.0, FIRST
        core.lending._next_retry = core.lending.next_warming = 0.0
        core.lending.recalls._next_round = core.lending.recalls._next_turn = 0.0
        for seat in core.seats.taken.values():
            seat.recalled_at = float("-inf")
        slots = core.inventory.maps[-1 if self._start.is_direct else 0]
        core.cooling.next_deadline = 0.0 if self._start.chores.cools and slots.ready else NEVER
        core.sweep._rested_at, core.sweep._interval, core.sweep._seen = float("-inf"), -SOON, (0, 0)
        core.endings._next_look, core.endings._pause = 0.0 if core.endings.read else NEVER, FIRST_LOOK
        earmarks = core.lending.earmarks
        earmarks._freed_at, earmarks._pause, earmarks._rests_until = NEVER, FIRST_PAUSE, 0.0
        earmarks._began = earmarks._best_at = 0.0
        for request in core.lending.line.all():
            request.turns, request.gathered = 0, 0
            request.spent = request.allowance = request.awaits_since = 0.0
        core.away._due = dict.fromkeys(sorted(core.away._due), (0.0, core.away.FIRST))
        core.away._heap = [(0.0, number) for number in core.away._due]
        for holding in core.inventory.granted.values():
            holding.made_at = 0.0
            if holding.orphaned_at is not None:
                holding.orphaned_at = 0.0
        spares = core.inventory.spares
        if spares._asked_at >= 0:
            spares._asked_at = spares._asked_before = 0.0
        spares._spares = [spare._replace(freed_at=0.0, made_at=0.0) for spare in spares._spares]
        spares.next_look = 0.0 if spares else None
        quarantined = sorted(core.inventory.quarantined)
        assert not quarantined, f"rows {quarantined} are quarantined, and nobody scribbled"
        timers = [(ticket, getattr(fire, "args", ())) for ticket, fire in self._loop.timers]
        self._context.marks = ("ready",) if slots.unused or spares else ()
        watched = tuple(sorted(self._watches._locked)), tuple(sorted(self._watches._retries))
        rest = self._clearings, tuple(sorted(self._known)), tuple(timers), watched
        self._context.cut((self._epoch, *rest, fingerprint(core)))


RECALL = encode(Recall())
