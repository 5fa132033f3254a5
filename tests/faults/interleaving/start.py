"""How every scenario begins: a pool of one slot, its clients connected, the slot granted.

The beginning is a conversation with the real core that nothing interrupts. It is held once for
the memory that all parties start from, and again by each broker that is made from scratch.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Any

from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import EXTENT, QUEUE, ROW_WORDS, SHARED, extent_word, grant_word, queue_word
from shmpool.protocol.messages import HELLO_MAGIC, PROTOCOL_VERSION, Grant, Hello, Refill, Role, Welcome, encode
from shmpool.protocol.sizing import MIB, PAGE, Sizing, Tier, TierKind, rows_of
from shmpool.protocol.states import State
from shmpoold.core.actions import Action, Send, Warm, WatchConnected
from shmpoold.core.broker import Broker
from shmpoold.core.events import Connected, Event, Peer, Received, Warmed
from shmpoold.core.header import format_header
from shmpoold.core.settings import Settings

from .memory import Layout

POOL_ID = 0xC0FFEE
#: One slot, for which no chunk can stand in; the chunk tier is there because a pool has one.
TIERS = (
    Tier(0, TierKind.POOLED, 2 * PAGE, 1, 1),
    Tier(1, TierKind.CHUNK, PAGE, 2, 1),
    Tier(2, TierKind.DIRECT, 0, 3, 1),
)
SIZING = Sizing(PAGE // 2, 2 * PAGE + 1, MIB, pooled_sizes=(2 * PAGE,), chunk_sizes=(PAGE,))
NBYTES = 8
#: Of a direct segment that serves no longer object.
LONG_NBYTES = PAGE + 8
#: The number of the first inode is 1.
INODES = 5
FIRST_REQUEST = 1
#: Rows that nobody uses: one says that it is a queue's memory, the other that it is nobody's; and what lies in the one,
#: and in the other when that was a queue.
_QUEUE_ROW, _GONE_ROW, _QUEUE_GENERATION = 2, 3, 7
LIVING_QUEUE, GONE_QUEUE = (queue_word(row, _QUEUE_GENERATION) for row in (_QUEUE_ROW, _GONE_ROW))


@dataclass(frozen=True)
class Chores:
    """What the broker does beside its clients, and would only add to the states of other scenarios. It *sweeps* what
    living clients own; *cools* what is idle, and what comes back at once when it *retires* slots; *clearings* times
    it clears what lies in queues that are gone. *loses_bells*: it hears of nothing that was given back."""

    sweeps: bool = False
    loses_bells: bool = False
    cools: bool = False
    retires: bool = False
    clearings: int = 0


NO_CHORES = Chores()


def nonce_of(index: int) -> int:
    return 1000 + index


def peer_of(index: int) -> Peer:
    """The process of a party; its pid is told from every seat."""
    return Peer(pid=100 + index, uid=1, gid=1, start_time=1, command="")


def party_of(pid: int) -> int:
    return pid - 100


def hello(index: int) -> Hello:
    return Hello(HELLO_MAGIC, PROTOCOL_VERSION, Role.WORKER, nonce_of(index), 0, 0)


class NoReports:
    """Nobody asks for any, and ages are not shown: what only reads changes nothing."""

    def next_deadline(self) -> None:
        return None

    def tick(self, now: float) -> None:
        pass


class Start:
    """The pool before the first step. *clients* parties are connected, with connections
    and seats 1 to *clients*; the first of them has the slot in its magazine. Where somebody
    *forks*, each has a page that holds its readers' byte. *is_direct*: the row is of direct segments, and nothing
    is granted yet."""

    def __init__(
        self,
        clients: int,
        seats: int,
        tickets: int,
        *,
        gives_back: bool = False,
        forks: bool = False,
        by: str = "locks",
        is_direct: bool = False,
        chores: Chores = NO_CHORES,
    ) -> None:
        self.clients = clients
        self.forks = forks
        self.by = by
        self.is_direct = is_direct
        self.chores = chores
        tier = TIERS[-1 if is_direct else 0]
        inodes = INODES if is_direct else 1
        self.layout = Layout(tickets, seats, tier.base, tier.index, inodes, are_queued=chores.clearings > 0)
        self.settings = Settings(
            memory_limit=MIB,
            sizing=SIZING,
            max_clients=seats,
            fallback=False,
            give_back=gives_back,
            tickets_by_cas=by != "locks",
        )
        self.ledger = [0] * (ledger_bytes(rows_of(TIERS), seats) // 8)
        self.header = [0] * (header_bytes(seats) // 8)
        format_header(self.header, POOL_ID, TIERS, seats, self.settings)
        ledger, header = list(self.ledger), list(self.header)
        self.welcomes: dict[int, bytes] = {}
        self.grant = b""
        self.watches: frozenset[tuple[int, int]] = frozenset()
        self.converse(self.make_core(ledger, header))
        if chores.clearings:
            self.ledger[_QUEUE_ROW * ROW_WORDS] = grant_word(_QUEUE_GENERATION, State.PUBLISHED, 0)
            self.ledger[_QUEUE_ROW * ROW_WORDS + EXTENT] = extent_word(PAGE, SHARED | QUEUE, 1)
        #: Counters never say that it is time for a sample.
        self.ledger[rows_of(TIERS) * 16 :] = [1] * (len(self.ledger) - rows_of(TIERS) * 16)
        self.blank = self.layout.snapshot(self.ledger, self.header)
        self.memory = self.layout.snapshot(ledger, header)

    def make_core(self, ledger: MutableSequence[int], header: MutableSequence[int], epoch: int = 1) -> Broker:
        core = Broker(ledger, header, self.settings, POOL_ID, epoch, broker_pid=7)
        if self.is_direct and epoch == 1:
            core.inventory.open_direct_rows()
        core.reports = NoReports()  # type: ignore[assignment]
        core.lending.refusals.who_keeps_most = lambda now: ""
        return core

    def converse(self, core: Broker) -> None:
        """Bring a new core to where all scenarios begin."""
        for index in range(self.clients):
            core.handle(Connected(index + 1, peer_of(index)), 0.0)
            for action in core.handle(Received(index + 1, hello(index)), 0.0):
                if isinstance(action, Send) and isinstance(action.message, Welcome):
                    self.welcomes[index] = encode(action.message)
                elif isinstance(action, WatchConnected):
                    self.watches |= {(action.seat, peer_of(index).pid)}
        if self.is_direct:
            return
        events: list[Event] = [Received(1, Refill(FIRST_REQUEST, 0, 1, 1, True))]
        while events:
            for action in core.handle(events.pop(), 0.0):
                events += self._answer(action)
        assert self.grant, "the beginning ends with the slot granted"

    def _answer(self, action: Action) -> list[Any]:
        if isinstance(action, Warm):
            return [Warmed(action.tier, action.row, action.count)]
        if isinstance(action, Send) and isinstance(action.message, Grant):
            self.grant = encode(action.message)
        return []
