"""The server: turns what happens into events for the core, and obeys its actions.

Everything runs in the event loop's thread, and one event at a time: what an action brings
about at once (a failed watch, a made segment) waits until the actions before it are done.
No opinions here; an error in the core costs a connection, never the daemon.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from shmpool.protocol.codes import Code
from shmpool.protocol.header import PROPERTIES, TICKETS_BY_CAS
from shmpool.protocol.messages import Fault, Message
from shmpool.protocol.sizing import format_bytes
from shmpool.system import atomics, heirs
from shmpool.system.locks import ByteLocks

from ..core.actions import (
    Action,
    Close,
    CloseTicket,
    Cool,
    CreateDirect,
    Log,
    ProbeReaders,
    ProbeSeat,
    RemoveBell,
    RemoveDirect,
    Send,
    TakeTicket,
    Unwatch,
    Warm,
    WatchAdopted,
    WatchConnected,
)
from ..core.broker import Broker
from ..core.chores import AT_ONCE
from ..core.connections.clients import MOST_OPERATORS
from ..core.events import (
    Connected,
    Disconnected,
    Event,
    Peer,
    ProcessDied,
    ReadersGone,
    Received,
    Reconfigured,
    Started,
    StopAsked,
    Ticked,
    TicketClosed,
    Unseen,
)
from ..core.memory.pressure import Level
from ..core.settings import Settings
from .connection import CLOSE_GRACE, Connection
from .host import HostWatch
from .listener import Admission, Listener
from .pages import Pages
from .repeats import Repeats
from .segments import SegmentStore
from .tickets import TicketCloser
from .turns import Turns
from .watches import Watches

#: Connections besides those with seats: operators, and clients on their way.
SPARE_CONNECTIONS: Final = 2 * MOST_OPERATORS
#: The timer never fires more often than this (seconds), and not so soon after an error.
SHORTEST_TICK: Final = 0.001
TICK_AFTER_ERROR: Final = 1.0

log = logging.getLogger(__name__)


class Server:
    """A broker at work. Made and used inside a running event loop."""

    def __init__(self, core: Broker, store: SegmentStore, tickets: ByteLocks, seats: ByteLocks) -> None:
        self._loop = asyncio.get_running_loop()
        self.turns = Turns()
        self._core = core
        self._store = store
        by_cas = store.header[PROPERTIES] & TICKETS_BY_CAS
        swap = atomics.swap_of(store.ledger) if by_cas else None
        self._tickets = TicketCloser(store.ledger, tickets, lambda row: self.dispatch(TicketClosed(row)), swap)
        self._watches = Watches(
            seats,
            died=lambda seat: self.dispatch(ProcessDied(seat)),
            unseen=lambda seat: self.dispatch(Unseen(seat)),
            is_copied=lambda seat: heirs.is_copied(store.header_fd, seat),
        )
        core.seats.children_of = lambda seat: heirs.pids_of(store.header_fd, seat)
        core.reports.read_queue = store.head_of
        self._connections: dict[int, Connection] = {}
        self._last_number = 0
        self._opening: set[asyncio.Task[Any]] = set()
        self._listener: Listener | None = None
        self._events: deque[Event] = deque()
        self._is_dispatching = False
        self._is_stopped = False
        self._pages = Pages(store, core.inventory, self.dispatch)
        self._repeats = Repeats(log)
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._no_tick_before = 0.0
        self._one_gone = asyncio.Event()
        self._host = HostWatch(core.pressure, lambda: core.inventory.held, self.dispatch)
        #: Set when nothing has to be reserved any more, or it cannot be.
        self.prepared = asyncio.Event()
        #: Set when nothing is out any more, after `drain`.
        self.drained = asyncio.Event()
        self._obey: dict[type[Any], Callable[[Any], None]] = {
            Send: self._send,
            Close: self._close,
            Warm: self._pages.warm,
            Cool: self._pages.cool,
            CreateDirect: self._pages.create,
            RemoveDirect: self._pages.remove,
            RemoveBell: lambda action: store.remove_bell(action.row, action.generation),
            WatchConnected: self._watch_connected,
            WatchAdopted: lambda action: self._watches.adopt(action.seat, action.peer),
            ProbeSeat: self._probe,
            ProbeReaders: self._probe_readers,
            Unwatch: lambda action: self._watches.unwatch(action.seat),
            TakeTicket: self._tickets.take_ticket,
            CloseTicket: self._tickets.close_ticket,
            Log: lambda action: log.log(logging.WARNING if action.is_warning else logging.INFO, action.text),
        }

    # --- the service's side --------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over what an earlier broker left, and settle those who have died since.
        Before `serve`, if at all."""
        self._is_dispatching = True
        gc.disable()  # a hundred thousand objects that all stay: collections would only look at them
        try:
            self._carry_out(self._core.adopt(self._loop.time(), self._store.direct_bytes()))
        finally:
            gc.enable()
            self._is_dispatching = False
        if self._events:
            self.dispatch(self._events.popleft())
        while self._core.chores:  # what nobody reads is settled in a second round
            self._carry_out(self._core.finish_chores(self._loop.time()))

    def prepare(self) -> None:
        """Begin to reserve what has to be reserved before we serve; *prepared* tells of its end, and
        `preparation_failure` how it went."""
        self.dispatch(Started())

    @property
    def preparation_failure(self) -> str:
        """Why not all could be reserved; empty when it was."""
        return self._core.manager.failure

    def serve(self, sock: socket.socket, admission: Admission) -> None:
        """Accept connections from a listening, non-blocking socket, which is now ours."""
        self._listener = Listener(sock, admission, self._open, self._shortage)
        self._listener.start()
        self._host.start()
        self._arm()

    def reconfigure(self, settings: Settings, admission: Admission) -> None:
        """Take over what may change of a configuration that was read again."""
        self.dispatch(Reconfigured(settings))
        if self._listener is not None:
            self._listener.admit(admission)

    def drain(self) -> None:
        """Lend nothing new, and ask for what is idle; *drained* tells when all has come back."""
        self.dispatch(StopAsked())

    def status(self) -> str:
        """A line for whoever asks the service manager."""
        core = self._core
        held, limit = format_bytes(core.inventory.held), format_bytes(core.inventory.limit)
        text = f"{len(core.seats.taken)} clients; {len(core.inventory.granted)} buffers out; {held} of {limit} held"
        if core.lending.line:
            text += f"; {len(core.lending.line)} requests wait"
        if core.pressure.level is not Level.NORMAL:
            text += f"; memory pressure is {core.pressure.level.name.lower()}"
        return text

    async def until_alone(self, seconds: float, hurried: asyncio.Event) -> None:
        """Go on serving until nobody is connected, for so many seconds at the longest; less when
        it is *hurried*."""
        hurry = asyncio.ensure_future(hurried.wait())
        try:
            async with asyncio.timeout(seconds):
                while self._connections and not hurry.done():
                    self._one_gone.clear()
                    gone = asyncio.ensure_future(self._one_gone.wait())
                    await asyncio.wait((gone, hurry), return_when=asyncio.FIRST_COMPLETED)
                    gone.cancel()
        except TimeoutError:
            pass
        finally:
            hurry.cancel()

    async def stop(self) -> None:
        """Tell everybody, end all connections, and leave ledger and segments as they are.
        Takes a few seconds at most; the core is not used any more. May be called twice."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._pages.stop()
        self._host.stop()
        self._repeats.close()
        self._tickets.stop()
        self._watches.close()
        if self._opening:
            await asyncio.wait(self._opening)
        for connection in list(self._connections.values()):
            connection.fail(Code.STOPPING, "the broker is stopping")
        await self._until_all_are_gone()

    async def _until_all_are_gone(self) -> None:
        try:
            async with asyncio.timeout(2 * CLOSE_GRACE):
                while self._connections:
                    self._one_gone.clear()
                    await self._one_gone.wait()
        except TimeoutError:
            for connection in list(self._connections.values()):
                connection.abort()
            await asyncio.sleep(0)

    # --- events in, actions out ----------------------------------------------------------------

    def dispatch(self, event: Event) -> None:
        """Let the core handle an event; from within, once the present one is done."""
        if self._is_stopped:
            return
        if self._is_dispatching:
            self._events.append(event)
            return
        self._is_dispatching = True
        try:
            self._step(event)
            while self._events:
                self._step(self._events.popleft())
        finally:
            self._is_dispatching = False
        if self._core.manager.is_ready or self._core.manager.failure:
            self.prepared.set()
        if self._core.draining.is_done:
            self.drained.set()
        self._arm()

    def _step(self, event: Event) -> None:
        now = self._loop.time()
        try:
            actions = self._core.handle(event, now)
        except Exception:
            self._repeats.warning("the core failed on %r", event, with_traceback=True)
            self._no_tick_before = now + TICK_AFTER_ERROR
            self._carry_out(self._core.outbox.take())  # what was decided before it stands
            if isinstance(event, Connected | Received) and event.connection in self._connections:
                self._connections[event.connection].abort()
            return
        self._carry_out(actions)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            try:
                self._obey[type(action)](action)
            except Exception:  # the others must still be obeyed
                self._repeats.warning("could not carry out %r", action, with_traceback=True)

    def _arm(self) -> None:
        """Set the one timer to the core's next deadline."""
        deadline = None if self._is_stopped else self._core.next_deadline()
        rest = 0.0 if deadline == AT_ONCE else SHORTEST_TICK
        if deadline is not None:
            deadline = max(deadline, self._no_tick_before)
        if deadline == self._deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._deadline = deadline
        if deadline is not None:
            self._timer = self._loop.call_at(max(deadline, self._loop.time() + rest), self._tick)

    def _tick(self) -> None:
        self._timer = self._deadline = None
        self.dispatch(Ticked())

    # --- connections -------------------------------------------------------------------------------

    def _shortage(self) -> Fault | None:
        """Whoever has not said hello yet makes room for the next, the oldest first; operators are as
        many as the core has room for: neither shuts out a worker."""
        if len(self._connections) < self._core.seats.count + SPARE_CONNECTIONS:
            return None
        silent = next((other for other in self._connections.values() if not other.is_greeted), None)
        if silent is not None:
            silent.fail(Code.NO_SEAT, "others want to connect, and this one says nothing")
            return None
        return Fault(Code.NO_SEAT, f"{len(self._connections)} connections are open; raise max_clients")

    def _open(self, sock: socket.socket, peer: Peer, pidfd: int | None) -> None:
        """Give an accepted socket a connection and a number."""
        self._last_number += 1
        connection = Connection(self, self._last_number, peer, pidfd)
        self._connections[connection.number] = connection
        task = self._loop.create_task(self._serve_socket(connection, sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _serve_socket(self, connection: Connection, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            self._repeats.warning("connection %d could not be opened: %s", connection.number, error)
            sock.close()
            connection.connection_lost(error)

    def on_connected(self, connection: Connection) -> None:
        """An admitted peer is there."""
        if self._is_stopped:
            connection.fail(Code.STOPPING, "the broker is stopping")
        else:
            self.dispatch(Connected(connection.number, connection.peer))

    def on_message(self, connection: Connection, message: Message) -> None:
        """A peer has sent a sound message."""
        self.dispatch(Received(connection.number, message))

    def on_lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.pop(connection.number, None)
        self._one_gone.set()
        self.dispatch(Disconnected(connection.number))

    def _send(self, action: Send) -> None:
        connection = self._connections.get(action.connection)
        if connection is None:
            return
        try:
            connection.send(action.message)
        except ValueError:  # what we would send breaks the schema: a bug of ours
            log.exception("cannot send %r", action.message)
            connection.abort()

    def _close(self, action: Close) -> None:
        connection = self._connections.get(action.connection)
        if connection is not None:
            connection.close()

    # --- processes --------------------------------------------------------------------------------

    def _probe_readers(self, action: ProbeReaders) -> None:
        if not heirs.is_held(self._store.header_fd, heirs.READERS + action.seat):
            self.dispatch(ReadersGone(action.seat))

    def _probe(self, action: ProbeSeat) -> None:
        self._watches.probe(action.seat)

    def _watch_connected(self, action: WatchConnected) -> None:
        self._watches.watch(action.seat, self._connections[action.connection].take_pidfd())
