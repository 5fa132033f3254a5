"""A world around the real core: memory, clock, shell, processes and clients are simulated.

The clients follow the ledger's protocol store by store. What they write and send, what the
shell answers and when a death is seen can each be delayed and reordered: nothing reaches
the broker before somebody lets it (`World.run` lets everything).

Beside the broker's own bookkeeping the world keeps a shadow of who uses what, and checks it
at every action: no slot goes to two parties, none is reused, cooled or removed while a ticket
of it is open, and the memory that is reserved never exceeds the limit. Not covered: threads,
real locks (an open is atomic here), what a client's mappings do.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest.mock import patch

from shmpool.protocol import sizing
from shmpool.protocol.header import WANTED, header_bytes, ledger_bytes
from shmpool.protocol.ledger import (
    EXTENT,
    FIRST_CELL,
    GENERATION_FIELD,
    LINK,
    ROW_WORDS,
    birth_of,
    chunks_of,
    chunks_of_link,
    extent_word,
    generation_of,
    grant_word,
    nbytes_of,
    next_row_of,
    seat_of,
    state_of,
)
from shmpool.protocol.messages import (
    HELLO_MAGIC,
    MAX_ROWS_PER_MESSAGE,
    PROTOCOL_VERSION,
    Account,
    Answer,
    Bell,
    Cancel,
    Direct,
    Fault,
    Goodbye,
    Grant,
    Hello,
    Inquire,
    Message,
    Recall,
    Refill,
    Refusal,
    Return,
    Role,
    Welcome,
    encode,
)
from shmpool.protocol.messages import Settings as SettingsMessage
from shmpool.protocol.sizing import KIB, Sizing, Tier, TierKind, make_tiers, rows_of
from shmpool.protocol.states import CellState, State
from shmpoold.core.actions import (
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
    Unwatch,
    Warm,
    WatchAdopted,
    WatchConnected,
)
from shmpoold.core.broker import Broker
from shmpoold.core.events import (
    Connected,
    DirectCreated,
    DirectFailed,
    Disconnected,
    Event,
    Peer,
    ProcessDied,
    ReadersGone,
    Received,
    Ticked,
    TicketClosed,
    Unseen,
    Warmed,
    WarmFailed,
)
from shmpoold.core.recovery import invariants
from shmpoold.core.settings import Settings

POOL_ID = 0xC0FFEE
NO_ROOM = "no room on this host"

#: Small enough that every event can be checked, large enough for every kind of lease.
SMALL_SIZING = Sizing(16 * KIB, 32 * KIB, 64 * KIB, pooled_sizes=(4 * KIB, 16 * KIB), chunk_sizes=(8 * KIB,))
SMALL, MEDIUM, CHUNKS, DIRECT = 0, 1, 2, 3


def small_settings(**changes: Any) -> Settings:
    """80 + 20 pooled slots, 40 chunks, under a limit of 320 KiB."""
    return Settings(**{"memory_limit": 320 * KIB, "sizing": SMALL_SIZING, "max_clients": 12} | changes)


# --- words ----------------------------------------------------------------------------------


def make_words(count: int, *, as_list: bool = False) -> MutableSequence[int]:
    return [0] * count if as_list else memoryview(bytearray(8 * count)).cast("Q")  # type: ignore[return-value]


class Crash(BaseException):
    """The broker was killed between two stores: nothing of it goes on, error handling neither."""


@dataclass(slots=True)
class Fuse:
    """How many stores are left to a broker that is about to be killed."""

    left: int

    def burn(self) -> None:
        if self.left == 0:
            raise Crash
        self.left -= 1


class CrashingWords:
    """Words with a fuse: the store after the last allowed one does not happen."""

    def __init__(self, words: MutableSequence[int], fuse: Fuse) -> None:
        self.words, self._fuse = words, fuse

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._fuse.burn()
        self.words[at] = value


# --- what the world knows -------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Process:
    pid: int
    start_time: int
    is_alive: bool = True
    uid: int = 1000


@dataclass(slots=True, eq=False)
class Link:
    """A connection: *outbox* is on its way to the broker, *inbox* to the client."""

    number: int
    client: Client
    outbox: deque[Event] = field(default_factory=deque)
    inbox: deque[Message] = field(default_factory=deque)
    #: The client's end is open; the broker's is.
    is_open: bool = True
    is_served: bool = True


@dataclass(slots=True, eq=False)
class Slot:
    """What a client is custodian of."""

    row: int
    tier: Tier
    extents: tuple[tuple[int, int], ...]
    generation: int
    tickets: int = 0

    @property
    def rows(self) -> list[int]:
        return [row for first, count in self.extents for row in range(first, first + count)]


@dataclass(slots=True, eq=False)
class Publication:
    """The shadow of one publication: which tickets nobody has opened, and who has which."""

    token: int
    rows: list[int]
    name: tuple[int, int] | None
    pending: set[int]
    taken: dict[int, Client] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return not self.pending and not self.taken


class Ticket(NamedTuple):
    """What a handle says, and the publication it is of."""

    row: int
    cell: int
    granted: int
    nbytes: int
    publication: Publication


class World:
    """One pool, one broker at a time, and everybody around it."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        as_lists: bool = False,
        check_every: int = 1,
        direct_rows: int = 16,
    ) -> None:
        self.settings = settings or small_settings()
        self.direct_rows = direct_rows
        with patch.object(sizing, "DIRECT_ROWS", direct_rows):
            self.tiers = make_tiers(self.settings.memory_limit, self.settings.sizing)
        self._tier_of_row = [self.tiers[0]] + [tier for tier in self.tiers for _ in range(tier.capacity)]
        seats = self.settings.max_clients
        self.overhead = ledger_bytes(rows_of(self.tiers), seats) + header_bytes(seats)
        self.ledger = make_words(ledger_bytes(rows_of(self.tiers), seats) // 8, as_list=as_lists)
        self.header = make_words(header_bytes(seats) // 8, as_list=as_lists)
        self.now = 1000.0
        self.epoch = 0
        self.check_every = check_every
        self.events = 0
        self.most_actions = 0
        self.recent: deque[Any] = deque(maxlen=40)
        #: What the broker wanted, kept for a test to see.
        self.actions: list[Action] = []
        self.keep_actions = False
        # The host.
        self.warm: set[int] = set()
        self.direct: dict[tuple[int, int], int] = {}
        self.host_room: int | None = None
        self.fail_on: Callable[[Action], bool] = lambda action: False
        # What is on its way.
        self.shell: deque[Warm | CreateDirect | CloseTicket] = deque()
        #: Deaths that were not seen yet, and the ends of connections that the broker ended.
        self.news: deque[ProcessDied | ReadersGone | Disconnected] = deque()
        #: Seats whose readers' byte is held by children.
        self.read_by_children: set[int] = set()
        self.links: dict[int, Link] = {}
        self.watches: dict[int, Process] = {}
        self.clients: list[Client] = []
        self._numbers = itertools.count(1)
        self._pids = itertools.count(100)
        self._tokens = itertools.count(1)
        # The shadow.
        self.owners: dict[int, int] = {}
        self.publications: dict[int, Publication] = {}
        self.content: dict[int, int] = {}
        self.broker = self._make_broker()

    # --- the broker's life ------------------------------------------------------------------------

    def _make_broker(self, fuse: Fuse | None = None) -> Broker:
        self.epoch += 1
        with patch.object(sizing, "DIRECT_ROWS", self.direct_rows):
            return Broker(*self._words(fuse), settings=self.settings, pool_id=POOL_ID, epoch=self.epoch, broker_pid=1)

    def _words(self, fuse: Fuse | None) -> Any:
        if fuse is None:
            return self.ledger, self.header
        return CrashingWords(self.ledger, fuse), CrashingWords(self.header, fuse)

    def kill_broker(self, *, finish_shell: bool = False) -> None:
        """The broker is gone: connections end, what the shell had not begun never happens."""
        if finish_shell:
            for action in self.shell:
                self._carry_out(action)
        self.shell.clear()
        self.news.clear()
        self.watches.clear()
        for link in self.links.values():
            link.is_served = False
        self.links.clear()

    def restart(self, *, finish_shell: bool = False, crash_after: int | None = None) -> None:
        """Kill the broker and start another on what it left; with *crash_after* that one is
        killed after so many stores, and raises Crash."""
        self.kill_broker(finish_shell=finish_shell)
        fuse = None if crash_after is None else Fuse(crash_after)
        self.broker = self._make_broker(fuse)
        self._obey_all(self.broker.adopt(self.now, self.direct))
        self._remove_orphans()
        if fuse is not None:
            self._disarm()
        self.run_news()
        self.check()

    def _remove_orphans(self) -> None:
        """As the service does before it serves."""
        held = (State.IDLE, State.LEASED, State.PUBLISHED)
        for row, generation in list(self.direct):
            if state_of(self.grant(row)) not in held or birth_of(self.link_of(row)) != generation:
                self._remove_direct(row, generation)

    def _disarm(self) -> None:
        self.broker.rows.words = self.ledger
        self.broker.lending.header = self.broker.seats._header = self.header

    def crash_during(self, event: Event, stores: int) -> bool:
        """Let the broker handle an event and die after so many stores: what it had decided
        is lost. False when the event was handled with fewer stores, and nothing happened."""
        fuse = Fuse(stores)
        self.broker.rows.words, header = self._words(fuse)
        self.broker.lending.header = self.broker.seats._header = header
        try:
            actions = self.broker.handle(event, self.now)
        except Crash:
            self._disarm()
            return True
        self._disarm()
        self._obey_all(actions)
        self.check()
        return False

    def dispatch(self, event: Event) -> list[Action]:
        """Let the broker handle one event, and carry out what it wants."""
        self.events += 1
        self.recent.append(event)
        actions = self.broker.handle(event, self.now)
        self.most_actions = max(self.most_actions, len(actions))
        self._obey_all(actions)
        if self.check_every and self.events % self.check_every == 0:
            self.check()
        return actions

    def check(self) -> None:
        invariants.check(self.broker)
        most = self.settings.max_concurrent_large_ops
        assert not most or self.broker.inventory.large <= most, (
            f"{self.broker.inventory.large} of {most} large operations"
        )
        reserved, held = self.overhead + self._reserved(), self.broker.inventory.held
        assert reserved <= held <= self.broker.inventory.limit, f"{reserved} bytes are reserved, {held} held"

    # --- time -------------------------------------------------------------------------------------

    def tick(self) -> float | None:
        """Go to the broker's next deadline, if it has one, and tell it."""
        deadline = self.broker.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.dispatch(Ticked())
        return deadline

    def pass_time(self, seconds: float) -> int:
        """Let time go by, with every tick that the broker asks for; returns how many. A
        broker that asks for the same moment again and again fails here."""
        end, ticks = self.now + seconds, 0
        while (deadline := self.broker.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.dispatch(Ticked())
            self.run()
            ticks += 1
            assert ticks < 100_000, "the broker spins"
        self.now = max(self.now, end)
        return ticks

    # --- letting things happen --------------------------------------------------------------------

    def run(self) -> None:
        """Let everything that is on its way arrive, until nothing is."""
        for _ in range(10_000):
            if not (self.deliver() or self.answer() or self.run_news() or self._read_all()):
                return
        raise AssertionError(f"it never comes to rest; last events: {list(self.recent)[-6:]}")

    def deliver(self, link: Link | None = None) -> bool:
        """The broker gets the next thing from one connection, the first that has any."""
        if link is None:
            link = next((link for link in self.links.values() if link.outbox), None)
        if link is None or not link.outbox:
            return False
        event = link.outbox.popleft()
        if isinstance(event, Disconnected):
            self.links.pop(link.number, None)
        self.dispatch(event)
        return True

    def answer(self, index: int = 0) -> bool:
        """The shell carries out one thing that it was asked for."""
        if not self.shell:
            return False
        self.shell.rotate(-index)
        action = self.shell.popleft()
        self.shell.rotate(index)
        self.dispatch(self._carry_out(action))
        return True

    def run_news(self) -> bool:
        """The broker hears of everybody who has died, and of the connections it has ended."""
        is_any = bool(self.news)
        while self.news:
            self.dispatch(self.news.popleft())
        return is_any

    def _read_all(self) -> bool:
        read = [client.read() for client in self.clients if client.process.is_alive]
        return any(read)

    # --- the shell --------------------------------------------------------------------------------

    def _obey_all(self, actions: list[Action]) -> None:
        if self.keep_actions:
            self.actions += actions
        for action in actions:
            self.recent.append(action)
            if isinstance(action, Warm | CreateDirect | CloseTicket):
                self.shell.append(action)
            else:
                OBEY[type(action)](self, action)

    def _send(self, action: Send) -> None:
        encode(action.message)  # checks what we send as a peer would
        link = self.links.get(action.connection)
        if isinstance(action.message, Grant):
            assert link is not None, f"{action} goes to a connection that is gone"
            for row in action.message.rows:
                self._note_grant(row, link.client)
        if link is not None and link.is_open:
            link.inbox.append(action.message)

    def _close(self, action: Close) -> None:
        link = self.links.pop(action.connection, None)
        if link is not None:
            link.is_served = False
            link.outbox.clear()
            self.news.append(Disconnected(action.connection))

    def _cool(self, action: Cool) -> None:
        for row in range(action.row, action.row + action.count):
            self._assert_unused(row, "cooled")
            self.warm.discard(row)

    def _remove(self, action: RemoveDirect) -> None:
        if generation_of(self.grant(action.row)) == action.generation:  # else a spare's, the row may have another
            self._assert_unused(action.row, "removed")
        self._remove_direct(action.row, action.generation)

    def _remove_direct(self, row: int, generation: int) -> None:
        users = [p for p in self.publications.values() if p.name == (row, generation) and not p.is_over]
        assert not users, f"direct segment {row}, {generation} is removed while its tickets are open"
        self.direct.pop((row, generation), None)

    def _watch_connected(self, action: WatchConnected) -> None:
        self._watch(action.seat, self.links[action.connection].client.process)

    def _watch_adopted(self, action: WatchAdopted) -> None:
        """The seat's byte first, then its process: whoever still has it is seen by pid and start
        time, or not at all."""
        holders = [client.process for client in self.clients if client.seat == action.seat and client.process.is_alive]
        known = (action.peer.pid, action.peer.start_time)
        found = next((process for process in holders if (process.pid, process.start_time) == known), None)
        if found is not None:
            self.watches[action.seat] = found
        else:
            self.news.append(Unseen(action.seat) if holders else ProcessDied(action.seat))

    def _watch(self, seat: int, process: Process) -> None:
        self.watches[seat] = process
        if not process.is_alive:
            self.news.append(ProcessDied(seat))

    def _probe(self, action: ProbeSeat) -> None:
        if not any(client.seat == action.seat for client in self.clients if client.process.is_alive):
            self.news.append(ProcessDied(action.seat))

    def _probe_readers(self, action: ProbeReaders) -> None:
        if action.seat not in self.read_by_children:
            self.news.append(ReadersGone(action.seat))

    def _unwatch(self, action: Unwatch) -> None:
        self.watches.pop(action.seat, None)
        self.news = deque(event for event in self.news if event != ProcessDied(action.seat))

    def _carry_out(self, action: Warm | CreateDirect | CloseTicket) -> Event:
        if isinstance(action, Warm):
            size = self.tiers[action.tier].size * action.count
            if self.fail_on(action) or not self._has_room(size):
                return WarmFailed(action.tier, action.row, action.count, NO_ROOM)
            self.warm.update(range(action.row, action.row + action.count))
            return Warmed(action.tier, action.row, action.count)
        if isinstance(action, CreateDirect):
            spared = 0
            if action.spare is not None:
                spared = self.direct.pop((action.spare.row, action.spare.generation))
                assert spared == action.spare.nbytes, f"{action}: the spare has {spared} bytes"
                assert spared <= action.nbytes, f"{action}: whoever maps the spare would die of what is cut off"
                assert action.row == action.spare.row, f"{action}: its row is another's"
            if self.fail_on(action) or not self._has_room(action.nbytes):
                return DirectFailed(action.row, NO_ROOM)
            assert (action.row, action.generation) not in self.direct, f"{action}: the name is taken"
            self.direct[action.row, action.generation] = action.nbytes
            return DirectCreated(action.row)
        at = action.row * ROW_WORDS + FIRST_CELL + action.cell
        if self.ledger[at] == action.granted:
            self.ledger[at] = grant_word(generation_of(action.granted), CellState.DONE, 0)
            self._find_publication(action.row, action.granted).pending.discard(action.cell)
        return TicketClosed(action.row)

    def _has_room(self, nbytes: int) -> bool:
        return self.host_room is None or self._reserved() + nbytes <= self.host_room

    def _reserved(self) -> int:
        tiers = self._tier_of_row
        return sum([tiers[row].size for row in self.warm]) + sum(self.direct.values())

    # --- the shadow -------------------------------------------------------------------------------

    def _note_grant(self, row: int, client: Client) -> None:
        word = self.grant(row)
        assert state_of(word) == State.IDLE, f"row {row} was granted, its word is {word:#x}"
        tier = self.tier_of(row)
        for member in (at for first, count in self.extents_of(row) for at in range(first, first + count)):
            self._assert_unused(member, "granted")
            assert tier.kind is TierKind.DIRECT or member in self.warm, f"row {member} was granted cold"
            if client.process.is_alive and not client.is_over:
                self.owners[member] = seat_of(word)
        if tier.kind is TierKind.DIRECT:
            assert (row, birth_of(self.link_of(row))) in self.direct, f"row {row} was granted without its segment"

    def _assert_unused(self, row: int, what: str) -> None:
        assert row not in self.owners, f"row {row} is {what} while seat {self.owners[row]} has it"
        publication = self.publications.get(row)
        assert publication is None or publication.is_over, f"row {row} is {what} while tickets are open: {publication}"

    def _find_publication(self, row: int, granted: int) -> Publication:
        publication = self.publications[row]
        assert publication.token == self.content[row], f"row {row} has other content than was published"
        return publication

    # --- reading the ledger -----------------------------------------------------------------------

    def tier_of(self, row: int) -> Tier:
        return self._tier_of_row[row]

    def grant(self, row: int) -> int:
        return self.ledger[row * ROW_WORDS]

    def state(self, row: int) -> State:
        return State(state_of(self.grant(row)))

    def generation(self, row: int) -> int:
        return generation_of(self.grant(row))

    def link_of(self, row: int) -> int:
        return self.ledger[row * ROW_WORDS + LINK]

    def cell(self, row: int, cell: int = 0) -> int:
        return self.ledger[row * ROW_WORDS + FIRST_CELL + cell]

    def store(self, row: int, word: int) -> None:
        """One store into a grant word, by whoever has its token (or has none)."""
        self.ledger[row * ROW_WORDS] = word

    def extents_of(self, head: int) -> tuple[tuple[int, int], ...]:
        extents = [(head, chunks_of(self.ledger[head * ROW_WORDS + EXTENT]))]
        following = next_row_of(self.link_of(head))
        while following:
            extents.append((following, chunks_of_link(self.link_of(following))))
            following = next_row_of(self.link_of(following))
        return tuple(extents)

    def is_wanted(self, tier: int) -> bool:
        return self.header[WANTED + tier] == 1

    def states(self, tier: int) -> dict[State, int]:
        """How many rows of a tier say what."""
        counts = dict.fromkeys(State, 0)
        for row in range(self.tiers[tier].base, self.tiers[tier].end):
            counts[self.state(row)] += 1
        return counts

    # --- making clients ---------------------------------------------------------------------------

    def client(self, *, process: Process | None = None, is_connected: bool = True) -> Client:
        client = Client(self, process or Process(next(self._pids), next(self._tokens)))
        self.clients.append(client)
        if is_connected:
            client.connect()
            self.run()
        return client

    # --- the end ----------------------------------------------------------------------------------

    def wind_down(self) -> None:
        """Everybody goes; then all must have come back."""
        self.host_room, self.fail_on = None, lambda action: False
        self.run()
        for client in self.clients:
            if client.process.is_alive and not client.is_over:
                client.reconnect()
                self.run()
                client.goodbye()
                self.run()
        self.pass_time(self.settings.handle_ttl + 10)
        for _ in range(100):  # a sweep of one publication a turn takes its time
            if self.broker.custody.rows:
                self.pass_time(10)
        self.run()
        self.assert_all_is_back()

    def assert_all_is_back(self, *, quarantined: int = 0) -> None:
        broker = self.broker
        self.check()
        assert not broker.lending.quotas.held
        assert not broker.lending.line and not broker.lending.grants
        assert not self.owners
        assert all(publication.is_over for publication in self.publications.values())
        assert broker.inventory.granted == {}
        assert broker.seats.taken == {}
        assert len(broker.inventory.quarantined) == quarantined
        for slots in broker.inventory.maps:
            states = self.states(slots.tier.index)
            assert slots.unused == slots.tier.capacity - sum(
                slots.tier.base <= row < slots.tier.end for row in broker.inventory.quarantined
            )
            if not quarantined:
                assert states[State.COLD] + states[State.FREE] == slots.tier.capacity, states
        assert self.direct == {}


OBEY: dict[type[Any], Callable[[World, Any], None]] = {
    Send: World._send,
    Close: World._close,
    Cool: World._cool,
    RemoveBell: lambda world, action: None,
    RemoveDirect: World._remove,
    WatchConnected: World._watch_connected,
    WatchAdopted: World._watch_adopted,
    ProbeSeat: World._probe,
    ProbeReaders: World._probe_readers,
    Unwatch: World._unwatch,
    Log: lambda world, action: None,
}


@contextmanager
def turns_of(world: World, done: Callable[[list[Action]], int]) -> Iterator[list[int]]:
    """How much each turn from now on has done, as *done* counts it after the turn."""
    dispatch, counts = world.dispatch, list[int]()

    def counted(event: object) -> list[Action]:
        actions = dispatch(event)  # type: ignore[arg-type]
        counts.append(done(actions))
        return actions

    world.dispatch = counted  # type: ignore[method-assign]
    yield counts
    world.dispatch = dispatch  # type: ignore[method-assign]


# --- a client -----------------------------------------------------------------------------------


class Client:
    """One seat's owner. What it stores it stores at once; what it sends waits in its link.
    It holds the byte lock of *seat*, unless that is 0, for as long as its process lives."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.nonce = process.pid << 20 | process.start_time
        self.link: Link | None = None
        self.seat = 0
        self.welcomes: list[Welcome] = []
        self.refusals: list[Refusal] = []
        self.faults: list[Fault] = []
        self.answers: list[Answer] = []
        self.recalls = 0
        self.answers_recalls = True
        #: What was asked of leaks, and the rows that only views keep.
        self.answers_inquiries = True
        self.inquired: list[Inquire] = []
        self.views: set[int] = set()
        self.requests: dict[int, Message] = {}
        self.owned: dict[int, Slot] = {}
        self.ready: list[Slot] = []
        self.leased: list[Slot] = []
        self.published: list[Slot] = []
        self.buffers: list[Ticket] = []
        self.is_over = False
        self._last_number = 0

    # --- the connection ---------------------------------------------------------------------------

    @property
    def is_welcome(self) -> bool:
        """Connected, and greeted on this connection."""
        return self.link is not None and self.seat != 0 and self._is_greeted

    def connect(self, role: Role = Role.WORKER) -> None:
        """Open a connection; take up the seat, if there was one."""
        self.dial()
        self.send(Hello(HELLO_MAGIC, PROTOCOL_VERSION, role, self.nonce, POOL_ID if self.seat else 0, self.seat))

    def dial(self) -> Link:
        """Open a connection and say nothing."""
        world, number = self.world, next(self.world._numbers)
        self._is_greeted = False
        self.link = world.links[number] = Link(number, self)
        peer = Peer(self.process.pid, self.process.uid, 1000, self.process.start_time, f"worker {self.process.pid}")
        self.link.outbox.append(Connected(number, peer))
        return self.link

    def send(self, message: Message) -> None:
        link = self.link
        if link is not None and link.is_open:
            encode(message)
            link.outbox.append(Received(link.number, message))

    def disconnect(self) -> None:
        """Close the socket: what was not read is discarded, what was sent still arrives."""
        link, self.link = self.link, None
        if link is not None and link.is_open:
            link.is_open = False
            link.inbox.clear()
            link.outbox.append(Disconnected(link.number))

    def reconnect(self) -> None:
        if self.link is None or not self.link.is_served:
            self.disconnect()
            self.connect()

    def read(self) -> bool:
        """Handle everything that has arrived."""
        link = self.link
        if link is None:
            return False
        is_any = bool(link.inbox)
        while link.inbox:
            message = link.inbox.popleft()
            if isinstance(message, Welcome) and message.seat and not link.is_served:
                break  # the seat may be another's by now: it counts once its lock is held and the header still names us
            self._handle(message)
        if not link.is_served:
            self.disconnect()
        return is_any

    def _handle(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Grant):
            slots = [slot for row in message.rows if (slot := self.adopt_row(row))]
            self.ready += slots
            self.requests.pop(message.request, None)
        elif isinstance(message, Refusal):
            self.refusals.append(message)
            self.requests.pop(message.request, None)
        elif isinstance(message, Recall):
            self.recalls += 1
            if self.answers_recalls:
                self.reap()
                self.give_back(*self.ready)
        elif isinstance(message, Inquire):
            self.inquired.append(message)
            if self.answers_inquiries:
                told = [[row, row in self.views, f"work.py:{row} in work"] for row in message.rows]
                self.send(Account(told, message.is_reader))
        elif isinstance(message, Fault):
            self.faults.append(message)
        elif isinstance(message, Answer):
            self.answers.append(message)
        else:
            assert isinstance(message, SettingsMessage)

    def _on_welcome(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)
        self._is_greeted = True
        if not self.seat:
            self.seat = welcome.seat
            return
        assert welcome.resumed, f"a living client has lost its seat {self.seat}"
        assert welcome.seat == self.seat
        idle = grant_word(0, State.IDLE, self.seat)
        words = self.world.ledger[: self.world.tiers[-1].end * ROW_WORDS : ROW_WORDS]
        for row in [row for row, word in enumerate(words) if word & ~GENERATION_FIELD == idle]:
            slot = self.adopt_row(row)
            if slot is not None:
                self.ready.append(slot)
        for message in self.requests.values():
            self.send(message)

    # --- asking -----------------------------------------------------------------------------------

    def refill(self, tier: int = SMALL, chunks: int = 1, count: int = 1, *, queue: bool = True) -> int:
        return self._ask(Refill(self._next_number(), tier, chunks, count, queue))

    def ask_direct(self, nbytes: int, *, queue: bool = True) -> int:
        return self._ask(Direct(self._next_number(), nbytes, queue))

    def cancel(self, number: int) -> None:
        self.send(Cancel(number))

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _ask(self, message: Refill | Direct) -> int:
        self.requests[message.request] = message
        self.send(message)
        return message.request

    def get(self, tier: int = SMALL, chunks: int = 1, count: int = 1) -> list[Slot]:
        """Ask, let everything happen, and take out of the magazine what came."""
        before = len(self.ready)
        self.refill(tier, chunks, count)
        self.world.run()
        return self.ready[before:]

    def get_direct(self, nbytes: int) -> Slot:
        self.ask_direct(nbytes)
        self.world.run()
        return self.ready[-1]

    def adopt_row(self, row: int) -> Slot | None:
        """The record of a row that says (IDLE, this seat) and is not known yet."""
        word = self.world.grant(row)
        if row in self.owned or (state_of(word), seat_of(word)) != (State.IDLE, self.seat):
            return None
        if row not in self.world.owners:  # granted by a broker that died before it said so
            self.world._note_grant(row, self)
        slot = Slot(row, self.world.tier_of(row), self.world.extents_of(row), generation_of(word))
        self.owned[row] = slot
        return slot

    # --- writing ----------------------------------------------------------------------------------

    def lease(self, slot: Slot, nbytes: int | None = None) -> Slot:
        """Out of the magazine, to be written; and it is. All of it is asked for, or *nbytes*."""
        world = self.world
        self.ready.remove(slot)
        self.leased.append(slot)
        world.store(slot.row, grant_word(slot.generation, State.LEASED, self.seat))
        if slot.tier.kind is not TierKind.DIRECT or nbytes is not None:
            asked = slot.tier.size * len(slot.rows) if nbytes is None else nbytes
            world.ledger[slot.row * ROW_WORDS + EXTENT] = extent_word(asked, 1, slot.extents[0][1])
        token = next(world._tokens)
        for row in slot.rows:
            assert world.owners.get(row) == self.seat, f"row {row} is leased by seat {self.seat}, not its owner"
            publication = world.publications.get(row)
            assert publication is None or publication.is_over, f"row {row} is leased under {publication}"
            assert slot.tier.kind is TierKind.DIRECT or row in world.warm, f"row {row} is written cold: SIGBUS"
            world.content[row] = token
        return slot

    def publish(self, slot: Slot, tickets: int = 1, nbytes: int | None = None, *, keep: bool = False) -> list[Ticket]:
        """Extent word, cells, grant word, in this order; a direct segment becomes the broker's, unless
        its producer is to *keep* it."""
        world, is_direct = self.world, slot.tier.kind is TierKind.DIRECT
        if slot in self.ready:
            self.lease(slot)
        self.leased.remove(slot)
        at = slot.row * ROW_WORDS
        if nbytes is None:
            nbytes = nbytes_of(world.ledger[at + EXTENT]) if is_direct else slot.tier.size * len(slot.rows)
        is_passed_on = is_direct and not keep
        granted = grant_word(slot.generation, State.PUBLISHED, 0 if is_passed_on else self.seat)
        shape = self.seat if is_direct else slot.extents[0][1]
        world.ledger[at + EXTENT] = extent_word(nbytes, tickets, shape)
        for cell in range(tickets):
            world.ledger[at + FIRST_CELL + cell] = granted
        world.store(slot.row, granted)
        slot.tickets = tickets
        name = (slot.row, birth_of(world.link_of(slot.row))) if is_direct else None
        publication = Publication(world.content[slot.row], slot.rows, name, set(range(tickets)))
        for row in slot.rows:
            world.publications[row] = publication
        if is_passed_on:
            self._disown(slot)
            self.send(Bell([slot.row]))
        else:
            self.published.append(slot)
        return [Ticket(slot.row, cell, granted, nbytes, publication) for cell in range(tickets)]

    def put_back(self, slot: Slot) -> None:
        """Release a lease unpublished: into the magazine; a direct segment goes to the broker."""
        self.leased.remove(slot)
        if slot.tier.kind is TierKind.DIRECT:
            self.ready.append(slot)
            self.give_back(slot)
            return
        slot.generation += 1
        self.world.store(slot.row, grant_word(slot.generation, State.IDLE, self.seat))
        self.ready.append(slot)

    def reap(self) -> None:
        """Publications whose tickets are all done are ready again, whatever their words say."""
        for slot in list(self.published):
            done = grant_word(slot.generation, CellState.DONE, 0)
            if all(self.world.cell(slot.row, cell) == done for cell in range(slot.tickets)):
                self.published.remove(slot)
                slot.generation += 1
                self.ready.append(slot)

    def give_back(self, *slots: Slot, tell: bool = True) -> None:
        """Return ready slots: generation + 1, RETURNED, and then the message."""
        for slot in slots:
            self.ready.remove(slot)
            slot.generation = self.world.generation(slot.row) + 1
            self._disown(slot)
            self.world.store(slot.row, grant_word(slot.generation, State.RETURNED, 0))
        if tell:
            self._send_rows(Return, [slot.row for slot in slots])

    def _send_rows(self, kind: type[Return] | type[Bell], rows: list[int]) -> None:
        for at in range(0, len(rows), MAX_ROWS_PER_MESSAGE):
            self.send(kind(rows[at : at + MAX_ROWS_PER_MESSAGE]))

    def _disown(self, slot: Slot) -> None:
        self.owned.pop(slot.row)
        for row in slot.rows:
            self.world.owners.pop(row, None)

    def _disown_all(self) -> None:
        """Also what was granted and is still on its way."""
        owners = self.world.owners
        for row in [row for row, seat in owners.items() if seat == self.seat]:
            del owners[row]
        self.seat = 0  # the number may soon be another's

    # --- reading ----------------------------------------------------------------------------------

    def why_not(self, ticket: Ticket) -> str | None:
        """Why a ticket cannot be taken: its row, then its cell."""
        word = self.world.grant(ticket.row)
        if word not in (ticket.granted, ticket.granted & ~0xFFFF):
            return "stale"
        return None if self.world.cell(ticket.row, ticket.cell) == ticket.granted else "used"

    def open(self, ticket: Ticket) -> bool:
        """Take a ticket. False when it is stale or used."""
        if self.why_not(ticket):
            return False
        self._check_content(ticket)
        self._set_cell(ticket, CellState.TAKEN, self.seat)
        ticket.publication.pending.remove(ticket.cell)
        ticket.publication.taken[ticket.cell] = self
        self.buffers.append(ticket)
        return True

    def release(self, ticket: Ticket, *, ring: bool = True) -> None:
        """Store DONE, then look whether the broker has to be told."""
        self._check_content(ticket)
        self.buffers.remove(ticket)
        del ticket.publication.taken[ticket.cell]
        self._set_cell(ticket, CellState.DONE, 0)
        if ring:
            self._ring(ticket)

    def discard(self, ticket: Ticket) -> bool:
        if self.why_not(ticket):
            return False
        ticket.publication.pending.remove(ticket.cell)
        self._set_cell(ticket, CellState.DONE, 0)
        self._ring(ticket)
        return True

    def _ring(self, ticket: Ticket) -> None:
        tier = self.world.tier_of(ticket.row)
        is_mine_to_tell = self.world.grant(ticket.row) != ticket.granted or tier.kind is TierKind.DIRECT
        if is_mine_to_tell or self.world.is_wanted(tier.index):
            self.send(Bell([ticket.row]))

    def _set_cell(self, ticket: Ticket, state: CellState, seat: int) -> None:
        at = ticket.row * ROW_WORDS + FIRST_CELL + ticket.cell
        self.world.ledger[at] = grant_word(generation_of(ticket.granted), state, seat)

    def _check_content(self, ticket: Ticket) -> None:
        publication = ticket.publication
        if publication.name is not None:
            assert publication.name in self.world.direct, f"direct segment {publication.name} is gone under {ticket}"
        for row in publication.rows:
            assert self.world.content[row] == publication.token, f"somebody else's bytes in row {row}"
            assert publication.name or row in self.world.warm, f"row {row} is read cold: SIGBUS"

    # --- the end ----------------------------------------------------------------------------------

    def goodbye(self) -> None:
        """As Pool.close does: everything is released, returned or handed over first."""
        for ticket in list(self.buffers):
            self.release(ticket)
        for slot in list(self.leased):
            self.put_back(slot)
        self.reap()
        self.give_back(*self.ready)
        handed = []
        for slot in self.published:
            self._disown(slot)
            self.world.store(slot.row, grant_word(slot.generation, State.PUBLISHED, 0))
            handed.append(slot.row)
        self.published.clear()
        self._send_rows(Bell, handed)
        self.send(Goodbye())
        self.is_over = True
        self._disown_all()

    def die(self, *, is_seen: bool = True) -> None:
        """Killed at this point. Its socket is closed by the kernel, unless a child holds it."""
        world = self.world
        self.process.is_alive = False
        for other in world.clients:
            if other.process is self.process:
                other._forget()
        if is_seen:
            world.news += [ProcessDied(seat) for seat, process in world.watches.items() if process is self.process]

    def _forget(self) -> None:
        self.is_over = True
        for ticket in self.buffers:
            del ticket.publication.taken[ticket.cell]
        self._disown_all()
        self.owned, self.buffers, self.ready, self.leased, self.published = {}, [], [], [], []
        self.disconnect()
