"""The broker's decisions: `Broker.handle(event, now)` returns the actions to take.

Here it is only seen whose an event, a message or a moment is. Who is connected is `connections`'
business; from a request to its answer, and to what comes back, `lending`'s; the memory itself
`memory`'s; publications without a publisher are `objects`', the restart scan is `recovery`'s, and
what is told about all of it `reports`'. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableSequence
from typing import Any, Protocol

from shmpool.protocol.codes import Code
from shmpool.protocol.header import BROKER_PID, EPOCH, MAGIC, PROPERTIES, SEATS, TICKETS_BY_CAS, read_tiers
from shmpool.protocol.ledger import state_of
from shmpool.protocol.messages import (
    Account,
    Bell,
    Cancel,
    Direct,
    Drop,
    Find,
    Goodbye,
    Hello,
    Hold,
    Holds,
    LetGo,
    Query,
    Refill,
    Return,
    Setting,
    Share,
    Take,
    Taken,
)
from shmpool.protocol.sizing import make_tiers, rows_of
from shmpool.protocol.states import State

from .actions import Action, CloseTicket, TakeTicket
from .chores import NEVER, Chores
from .connections.clients import Clients
from .connections.endings import Endings
from .connections.seats import Away, Seat, Seats
from .connections.terms import Terms
from .events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Disconnected,
    Event,
    MemoryRead,
    ProcessDied,
    ReadersGone,
    Received,
    Reconfigured,
    Started,
    StopAsked,
    Ticked,
    TicketClosed,
    Unseen,
    Warmed,
    WarmFailed,
)
from .header import format_header
from .lending.draining import Draining
from .lending.lending import Lending
from .lending.quotas import Limits
from .lending.returns import Returns
from .lending.sweep import Sweep
from .memory.cooling import Cooling
from .memory.inventory import Inventory
from .memory.manager import Manager
from .memory.pressure import Pressure
from .memory.scrubber import Scrubber
from .objects.custody import Custody
from .objects.queues import Queues
from .objects.shared import Shared
from .outbox import Outbox
from .owners import Owner
from .recovery import adoption
from .reports import Reports
from .reports.questions import Questions
from .rows import Rows
from .settings import Settings


class Part(Protocol):
    """A part of the broker that has something to do when time goes by."""

    @property
    def next_deadline(self) -> float:
        """When `tick` is due, `NEVER` for not before another event. Asked after every event."""

    def tick(self, now: float) -> None:
        """Do what is due, if anything is."""


class Broker:
    """The pure core. *ledger* and *header* are the words of the two segments: zeros for a
    new pool, else an earlier broker's, and then `adopt` must come before any event."""

    def __init__(
        self,
        ledger: MutableSequence[int],
        header: MutableSequence[int],
        settings: Settings,
        pool_id: int,
        epoch: int,
        broker_pid: int,
    ) -> None:
        is_new = header[0] != MAGIC
        if is_new:
            tiers = make_tiers(settings.memory_limit, settings.sizing)
            format_header(header, pool_id, tiers, settings.max_clients, settings)
        header[EPOCH], header[BROKER_PID] = epoch, broker_pid
        self.outbox = Outbox()
        self.settings = settings
        self.pool_id = pool_id
        self._has_swapped_tickets = bool(header[PROPERTIES] & TICKETS_BY_CAS)
        self.epoch = epoch
        self.tiers = read_tiers(header)
        self.rows = Rows(ledger, rows_of(self.tiers))
        self.seats = Seats(header, header[SEATS])
        self.inventory = Inventory(
            self.rows,
            self.tiers,
            settings.memory_limit,
            self.seats.count,
            self.outbox,
            Scrubber(settings.scrub),
        )
        self.chores = Chores()
        self.lending = Lending(self.rows, header, self.seats, self.inventory, self.chores, self.outbox)
        self.lending.large.most = settings.max_concurrent_large_ops
        self.lending.ladder.has_fallback = settings.fallback
        self.draining = Draining(self.lending, self.inventory, self.seats, header, self.outbox)
        self.shared = Shared(
            self.rows,
            self.inventory,
            self.seats,
            self.chores,
            self.outbox,
            free=lambda holding, now: self.returns.free(holding, now),
            queues=Queues(self.rows, self.chores, self.outbox),
        )
        self.lending.evictions.give_up = self.shared.give_up
        self.lending.evictions.nbytes = self.lending.earmarks.cached = lambda: self.shared.caches.nbytes
        self.custody = Custody(
            self.rows,
            self.inventory,
            settings.handle_ttl,
            self.outbox,
            free=lambda holding, now: self.returns.free(holding, now),
            is_hurried=lambda: bool(self.lending.line),
            shared=self.shared,
        )
        self.returns = Returns(self.rows, self.inventory, self.custody, self.lending, self.chores)
        self.sweep = Sweep(
            self.rows,
            self.inventory,
            (self.custody, self.shared),
            self.returns.looks,
            self.chores,
            is_hurried=lambda: bool(self.lending.line),
        )
        self.cooling = Cooling(self.inventory, self.chores, settings.buffer_lifetime)
        self.pressure = Pressure(settings.thresholds)
        self.manager = Manager(
            self.inventory, self.lending, self.cooling, self.pressure, self.seats, self.chores, self.outbox, settings
        )
        self.terms = Terms(
            settings,
            pool_id=pool_id,
            epoch=epoch,
            seats=self.seats.count,
            properties=header[PROPERTIES],
            tiers=self.tiers,
            limit=self.inventory.limit,
            more=lambda: {Setting.PREFERS_DIRECT: int(self.manager.prefers_direct)},
        )
        self.away = Away(self.outbox)
        self.endings = Endings(
            self.rows, self.inventory, self.seats, self.custody, self.returns, self.lending, self.chores, self.outbox
        )
        self.endings.gives_back = settings.give_back
        self.clients = Clients(
            self.terms,
            self.seats,
            self.away,
            self.endings,
            self.lending.line,
            self.returns.looks,
            self.chores,
            self.outbox,
        )
        self.reports = Reports(
            self.rows,
            self.inventory,
            self.manager,
            self.shared,
            self.seats,
            self.lending,
            self.chores,
            self.outbox,
            settings.leak_age,
            settings.alerts,
            pool_id,
            epoch,
        )
        self.lending.refusals.who_keeps_most = self.reports.who_keeps_most
        self.lending.quotas.usage.ledger, self.lending.quotas.limits = self.reports.ledger, Limits.of(settings)
        self.questions = Questions(self)
        #: What has something to do when time goes by, in the order in which it is done.
        self._parts: tuple[Part, ...] = (
            self.away, self.endings, self.returns.looks, self.chores, self.reports, self.custody, self.shared,
            self.sweep, self.lending,
            self.inventory, self.cooling, self.manager, self.draining,
        )  # fmt: skip
        self._on_event: dict[type[Any], Callable[[Any, float], object]] = {
            Connected: self.clients.on_connected,
            Received: self._on_received,
            Disconnected: self.clients.on_disconnected,
            ProcessDied: self.clients.on_process_died,
            Unseen: self.clients.on_unseen,
            ReadersGone: lambda event, now: self.endings.on_readers_gone(event.seat, now),
            Started: self.manager.on_started,
            MemoryRead: self._on_memory_read,
            Warmed: self._on_warmed,
            WarmFailed: self._on_warm_failed,
            DirectCreated: self.lending.grants.on_direct_created,
            DirectFailed: self.lending.grants.on_direct_failed,
            Reconfigured: self._on_reconfigured,
            TicketClosed: lambda event, now: self.custody.look(event.row, now),
            StopAsked: self._on_stop_asked,
            Ticked: self._on_ticked,
        }
        #: What a worker may say; each tells what is wrong with a message, if anything is.
        self._on_message: dict[type[Any], Callable[[int, Seat, Any, float], str | None]] = {
            Refill: self.lending.refill,
            Direct: self._on_direct,
            Cancel: self._on_cancel,
            Return: lambda connection, seat, message, now: self.returns.on_return(seat, message.rows, now),
            Bell: lambda connection, seat, message, now: self.returns.on_bell(message.rows, now),
            Take: self._on_take,
            Account: lambda connection, seat, message, now: self.reports.leaks.on_account(seat, message, now),
            Share: self.shared.share,
            Hold: self.shared.on_hold,
            LetGo: lambda connection, seat, message, now: self.shared.let_go(seat, message.numbers, now),
            Holds: self.shared.on_holds,
            Find: self.shared.find,
            Drop: self.shared.on_drop,
            Goodbye: lambda connection, seat, message, now: self.clients.end(seat, now),
        }
        if is_new:
            self.inventory.open_direct_rows()

    def owners(self) -> Iterator[Owner]:
        """All that what is granted can belong to."""
        yield from self.seats.taken.values()
        yield self.custody
        yield self.shared

    # --- what the shell calls ------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Decide what an event means. The actions are to be carried out in order."""
        self._on_event[type(event)](event, now)
        if self.lending.is_due:
            self.cooling.note_idle(now)
            self.lending.serve_line(now)
        self.lending.raise_flags(now)
        return self.outbox.take()

    def adopt(self, now: float, segments: Mapping[tuple[int, int], int] | None = None) -> list[Action]:
        """Take over what an earlier broker left: rebuild everything from the rows, and from what the
        direct *segments* hold, in bytes by row and birth."""
        adoption.adopt(self, now, segments or {})
        return self.outbox.take()

    def finish_chores(self, now: float) -> list[Action]:
        """Do at once what would take several turns: while nobody is served yet."""
        while self.chores:
            now = max(now, self.chores.next_turn or now)
            self.chores.work(now)
        return self.outbox.take()

    def next_deadline(self) -> float | None:
        """When `Ticked` is due: the shell's only timer. None: not before another event.
        Asked after every event, so what there is nothing of costs next to nothing."""
        due = min([part.next_deadline for part in self._parts])
        return None if due == NEVER else due

    # --- messages ------------------------------------------------------------------------------

    def _on_received(self, event: Received, now: float) -> None:
        client = self.clients.get(event.connection)
        if client is None:
            return  # it was ended, and this was still on its way
        message = event.message
        if type(message) is Hello:
            self.clients.greet(client, message, now)
        elif client.role is None:
            self.clients.fault(client, Code.BAD_MESSAGE, f"Hello must come first, not {type(message).__name__}")
        elif type(message) is Query:
            self.questions.ask(client.connection, message, now)
        elif client.seat is None:
            self.clients.fault(client, Code.BAD_MESSAGE, f"an operator may only ask, not send {type(message).__name__}")
        elif wrong := self._on_message[type(message)](client.connection, client.seat, message, now):
            self.clients.fault(client, Code.BAD_MESSAGE, wrong)

    def _on_direct(self, connection: int, seat: Seat, message: Direct, now: float) -> str | None:
        self.custody.look_at_oldest(now)
        return self.lending.direct(connection, seat, message, now)

    def _on_cancel(self, connection: int, seat: Seat, message: Cancel, now: float) -> str | None:
        if not self.shared.names.cancel(connection, message.request):
            self.lending.cancel(connection, message.request, now)
        return None

    def _on_take(self, connection: int, seat: Seat, message: Take, now: float) -> str | None:
        row, cell, pending = message.row, message.cell, message.word
        if not self._has_swapped_tickets or state_of(pending) != State.PUBLISHED or row >= self.rows.count:
            return f"there is no ticket {cell} of row {row} to take"
        if message.closes:
            self.outbox.add(CloseTicket(row, cell, pending))
        else:
            self.outbox.add(TakeTicket(row, cell, pending, seat.number))
            self.outbox.send(connection, Taken(message.request))
        return None

    # --- memory --------------------------------------------------------------------------------

    def _on_warmed(self, event: Warmed, now: float) -> None:
        if not self.manager.on_warmed(event, now):
            self.lending.grants.on_warmed(event, now)

    def _on_warm_failed(self, event: WarmFailed, now: float) -> None:
        if not self.manager.on_warm_failed(event, now):
            self.lending.grants.on_warm_failed(event, now)

    def _on_memory_read(self, event: MemoryRead, now: float) -> None:
        if self.manager.on_memory_read(event, now):
            self.clients.tell_changes(now)

    # --- settings and time ---------------------------------------------------------------------

    def _on_reconfigured(self, event: Reconfigured, now: float) -> None:
        """Take over what may change, and tell the clients what concerns them."""
        self.settings = settings = self.settings.reloaded(event.settings)
        self.terms.settings = settings
        self.custody.ttl, self.cooling.lifetime = settings.handle_ttl, settings.buffer_lifetime
        self.reports.leaks.age, self.reports.alerts.bounds = settings.leak_age, settings.alerts
        self.endings.gives_back = settings.give_back
        self.lending.bound_large(settings.max_concurrent_large_ops)
        self.lending.ladder.has_fallback = settings.fallback
        self.lending.quotas.limits = Limits.of(settings)
        self.manager.configure(settings)
        self.cooling.note_idle(now)  # what is idle may have been so for longer than it is to be now
        self.clients.tell_changes(now)

    def _on_stop_asked(self, event: StopAsked, now: float) -> None:
        """From now on who asks for memory is refused."""
        self._on_message[Refill] = self._on_message[Direct] = self.draining.refuse
        self.draining.begin(now)

    def _on_ticked(self, event: Ticked, now: float) -> None:
        for part in self._parts:
            part.tick(now)
