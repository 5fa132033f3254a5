"""The broker's figures, typed: what `Pool.stats` and ``shmpool stats --json`` share, under the
names that `protocol.metrics` declares.

Asked over a connection of its own, as an operator: it takes no seat and maps nothing.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .errors import BrokerUnavailable, RemoteProtocolError
from .link.connection import ConnectionEnded
from .link.hello import dial, fault_error, greet
from .protocol.messages import Answer, Fault, Query, Role, Topic
from .system.outside import own

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TierStats:
    """One tier, in slots; *size* is in bytes, 0 for direct segments. *idle* are in clients'
    magazines, *warm* have their pages reserved, *free* could be granted at once."""

    size: int
    kind: str
    capacity: int
    warm: int
    free: int
    idle: int
    leased: int
    published: int
    #: The longest run that there is room for without scattering it, and runs that are scattered; of
    #: chunk tiers, 0 for others.
    largest_run: int
    scattered: int


@dataclass(frozen=True, slots=True)
class ClientStats:
    """One client, by its seat. As a writer: *leases* counts its leases and its publications that
    somebody has yet to open (*unread* of them), *bytes* all that it may write, what is idle in its
    magazines included, and what is unread. As a reader: *reads* counts the buffers that it has
    open or holds, which take *read_bytes*. *held_by_views* are released and wait for a view to die.
    *children* are the pids of its forks that read on what it had open, also after its own end. Not
    *connected*: it is away and keeps what it holds. Not *seen*: its process is in a namespace where
    the broker cannot watch it; its end shows when it has let go of its seat. Memory is in bytes."""

    seat: int
    pid: int
    uid: int
    command: str
    connected: bool
    seen: bool
    leases: int
    bytes: int
    unread: int
    unread_bytes: int
    reads: int
    read_bytes: int
    held_by_views: int
    children: list[int]


@dataclass(frozen=True, slots=True)
class QueueStats:
    """One queue. *items* is its depth, of *capacity*; *bytes* its own memory, of which its items take *used_bytes*.
    *members* are the pids that have it, *putting* and *getting* those that have the lock of one of its ends, or are
    about to take it. *waiting_putters* and *waiting_getters* sleep until there is room, or an item."""

    name: str
    row: int
    bytes: int
    items: int
    capacity: int
    maxsize: int
    used_bytes: int
    dropped: int
    joinable: bool
    overflow: str
    on_dead_consumer: str
    shut: bool
    members: list[int]
    waiting_putters: int
    waiting_getters: int
    putting: list[int]
    getting: list[int]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the pool was made, gauges of now. A get is a lease, a put a buffer
    given back; a hit is a lease without a broker round trip (direct counts as neither);
    *active_buffers* are leases and publications not yet given back. Memory is in bytes:
    *held* is never above *limit* and includes the ledger (*overhead*); *memory_efficiency* is
    bytes asked for / bytes held, of the active buffers. Latencies are of one lease in 64, with the
    setting ``detailed_metrics`` of each; those of a histogram by buckets that end at
    `protocol.figures.BUCKET_ENDS_NS`, of which the quantiles are made.
    *past_pool* counts the streams that went through memory of their own, since the pool had none, *tickets_asked*
    the tickets that the broker took for processes that cannot.
    *ladder* counts what served each request that a client's own magazines did not, since the broker
    started, by rung. *shared* are the shared publications, and of those with a name how often one was found
    (*hits*) or not (*misses*), and how many caches were given up (*evictions*).
    *deferred_releases* counts the releases that waited for a view to die, *held_by_views* those
    that wait now."""

    pool_id: str
    epoch: int
    total_gets: int
    total_puts: int
    pool_hits: int
    pool_misses: int
    active_buffers: int
    deferred_releases: int
    held_by_views: int
    lease_timeouts: int
    ladder: dict[str, int]
    past_pool: int
    tickets_asked: int
    operations: dict[str, int]
    strategies: dict[str, int]
    operations_by_strategy: dict[str, dict[str, int]]
    average_latency_ns: dict[str, int]
    p50_latency_ns: dict[str, int]
    p99_latency_ns: dict[str, int]
    latency_histogram: dict[str, dict[str, Any]]
    memory_efficiency: float
    memory: dict[str, Any]
    tiers: list[TierStats]
    clients: list[ClientStats]
    shared: dict[str, int]
    queues: list[QueueStats]
    leaks: dict[str, int]
    alerts: list[str]
    alert_states: list[dict[str, Any]]

    @classmethod
    def from_dict(cls, figures: dict[str, Any]) -> Stats:
        """From the broker's answer."""
        tiers = [_known(TierStats, tier) for tier in figures["tiers"]]
        clients = [_known(ClientStats, client) for client in figures["clients"]]
        queues = [_known(QueueStats, queue) for queue in figures["queues"]]
        return _known(cls, {**figures, "tiers": tiers, "clients": clients, "queues": queues})

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return asdict(self)


def query(address: str, *, timeout: float = 5.0) -> Stats:
    """Ask the broker at *address* for its figures. Raises BrokerUnavailable."""
    return Stats.from_dict(_ask(address, Topic.STATS, timeout))


def _known(cls: type[_T], figures: dict[str, Any]) -> _T:
    """What this version knows of: a newer broker may tell more."""
    return cls(**{field.name: figures[field.name] for field in fields(cls)})  # type: ignore[arg-type]


def query_leases(address: str, *, timeout: float = 5.0) -> dict[str, Any]:
    """Ask who holds what: under "leases" a dict for each process and state (`Use`), most memory
    first; under "total" how many there are, under "shown" how many are told. Ages are at least so."""
    return dict(_ask(address, Topic.LEASES, timeout))


def query_buffers(address: str, *, timeout: float = 5.0) -> dict[str, Any]:
    """Ask for each buffer that is somebody's: as `query_leases`, with a dict for each buffer, in
    the order of the ledger."""
    found = _ask(address, Topic.BUFFERS, timeout)
    tiers, seats = found["tiers"], found["seats"]
    nobody: list[Any] = [None, "", []]
    leases = []
    for row, tier, state, seat, nbytes, unread, readers, age, is_in_custody in found["leases"]:
        pid, command, _ = seats.get(str(seat), nobody)
        leases.append({
            "row": row,
            "state": state,
            "seat": seat,
            "pid": pid,
            "command": command,
            "tier": tiers[tier][0],
            "strategy": tiers[tier][1],
            "bytes": nbytes,
            "tickets": unread,
            "readers": [seats.get(str(reader), nobody)[0] for reader in readers],
            "children": sorted({pid for reader in readers for pid in seats.get(str(reader), nobody)[2]}),
            "age_seconds": age,
            "custodian": "broker" if is_in_custody else "client",
        })  # fmt: skip
    return {"total": found["total"], "shown": found["shown"], "leases": leases}


def query_leaks(address: str, *, timeout: float = 5.0) -> dict[str, Any]:
    """Ask what seems to be leaked: as `query_leases`, with a dict for each buffer, the oldest first."""
    return dict(_ask(address, Topic.LEAKS, timeout))


def query_names(address: str, *, timeout: float = 5.0) -> dict[str, Any]:
    """Ask for the shared publications that have a name: under "names" a dict for each, sorted."""
    found = dict(_ask(address, Topic.NAMES, timeout))
    found["names"].sort(key=lambda line: str(line["name"]))
    return found


def query_invariants(address: str, *, timeout: float = 5.0) -> str | None:
    """Have the broker check its own invariants: every slot in exactly one place, the account
    of memory exact. What does not hold, or None. Holds the broker for tens of milliseconds."""
    violation = _ask(address, Topic.INVARIANTS, timeout)["violation"]
    return None if violation is None else str(violation)


def _ask(address: str, topic: Topic, timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    connection = dial(address, deadline)
    greet(connection, Role.OPERATOR, secrets.randbits(64), 0, 0, deadline)
    try:
        connection.send(Query(1, topic))
        parts = b""
        while True:
            for message in connection.receive_one(deadline):
                if isinstance(message, Fault):
                    raise fault_error(message)
                if not isinstance(message, Answer):
                    raise RemoteProtocolError(f"the broker answered Query with {type(message).__name__}")
                parts += message.payload
                if not message.last:
                    continue
                return json.loads(parts)
    except own(ConnectionEnded) as error:
        raise BrokerUnavailable(f"the broker at {address} did not answer: {error}") from error
    finally:
        connection.close()
