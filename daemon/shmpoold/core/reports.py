"""What operators ask for: the figures of the stats, and who holds what.

Reads the ledger as it is, without stopping anybody, and a large one in slices: the figures
of one report may be a few leases apart. A report is a chore that returns what is to be said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from shmpool.protocol.figures import (
    CATEGORIES,
    DEFERRED,
    LEASES,
    MISSES,
    SAMPLED_NS,
    SAMPLES,
    STRATEGIES,
    TIMEOUTS,
    USED_COUNTERS,
)
from shmpool.protocol.header import counters_at
from shmpool.protocol.ledger import nbytes_of, state_of
from shmpool.protocol.messages import U64, Topic
from shmpool.protocol.sizing import STRATEGY_OF_KIND, Tier
from shmpool.protocol.states import State

from . import invariants
from .inventory import Holding
from .rows import Rows

if TYPE_CHECKING:
    from .broker import Broker

MOST_LEASES = 5000
#: What the figures besides the census cost, and a line of the leases, in units.
STATS, LEASE = 64, 2

Report = Generator[int, None, Any]


def make(broker: Broker, topic: Topic) -> Report:
    """The report on a topic."""
    if topic is Topic.STATS:
        return stats(broker)
    if topic is Topic.LEASES:
        return leases(broker)
    return invariants.report(broker)


def fold_counters(rows: Rows, seat: int) -> None:
    """Add a seat's counters to the broker's own block and clear them for the next."""
    source, target = counters_at(rows.count, seat), counters_at(rows.count, 0)
    for word in range(USED_COUNTERS):
        rows.words[target + word] = (rows.words[target + word] + rows.words[source + word]) & U64
        rows.words[source + word] = 0


def stats(broker: Broker) -> Report:
    """All figures, under the names of `shmpool.Stats`."""
    yield STATS
    totals = yield from _total_counters(broker)
    by_strategy = {
        strategy: sum(totals[LEASES + 4 * index : LEASES + 4 * index + 4]) for index, strategy in enumerate(STRATEGIES)
    }
    gets = sum(by_strategy.values())
    misses = totals[MISSES]
    census = yield from _take_census(broker)
    active = sum(census.active_by_seat.values())
    return {
        "pool_id": f"{broker.pool_id:016x}",
        "epoch": broker.epoch,
        "total_gets": gets,
        "total_puts": max(0, gets - active),
        "pool_hits": max(0, by_strategy["pooled"] + by_strategy["chunked"] - misses),
        "pool_misses": misses,
        "active_buffers": active,
        "deferred_releases": totals[DEFERRED],
        "lease_timeouts": totals[TIMEOUTS],
        "operations": {
            name: sum(totals[LEASES + index + 4 * s] for s in range(3)) for index, name in enumerate(CATEGORIES)
        },
        "strategies": by_strategy,
        "average_latency_ns": {
            name: totals[SAMPLED_NS + index] // totals[SAMPLES + index] if totals[SAMPLES + index] else 0
            for index, name in enumerate(CATEGORIES)
        },
        "memory_efficiency": census.payload / census.active_bytes if census.active_bytes else 1.0,
        "memory": {
            "limit": broker.inventory.limit,
            "held": broker.inventory.held,
            "overhead": broker.inventory.overhead,
            "payload": census.payload,
            "by_state": {
                "free": broker.inventory.spares.nbytes
                + sum(slots.ready * slots.tier.size for slots in broker.inventory.maps),
                **{state.name.lower(): census.bytes[state] for state in (State.IDLE, State.LEASED, State.PUBLISHED)},
            },
        },
        "tiers": [_tier(broker, tier, census) for tier in broker.tiers],
        "clients": [_client(broker, number, census) for number in sorted(broker.seats.taken)],
        "alerts": _alerts(broker),
    }  # fmt: skip


def leases(broker: Broker) -> Report:
    """What is granted, oldest first; at most `MOST_LEASES`, so that a report stays a report."""
    lines = []
    # Granted in this order: a holding that ends leaves it, and comes back at its end.
    for holding in list(islice(broker.inventory.granted.values(), MOST_LEASES)):
        if broker.inventory.granted.get(holding.row) is holding:
            lines.append(_lease(broker, holding))
            yield LEASE
    return lines


def _lease(broker: Broker, holding: Holding) -> dict[str, Any]:
    seat, state = broker.seats.taken.get(holding.seat), _state(broker, holding)
    return {
        "row": holding.row,
        "seat": holding.seat,
        "pid": seat.peer.pid if seat else None,
        "command": seat.peer.command if seat else "",
        "tier": holding.tier.label(),
        "strategy": STRATEGY_OF_KIND[holding.tier.kind].value,
        "state": state.name.lower(),
        "custodian": "broker" if holding.in_custody else "client",
        "bytes": holding.nbytes,
        "tickets_open": len(broker.rows.open_cells(holding.row)) if state is State.PUBLISHED else 0,
        "age_seconds": round(broker.chores.now - holding.granted_at, 3),
    }


def _state(broker: Broker, holding: Holding) -> State:
    """The state of a granted row as people see it: a publication whose tickets are all done
    is IDLE, its custodian has only not looked yet; what makes no sense is LEASED."""
    state = state_of(broker.rows.grant(holding.row))
    if state == State.PUBLISHED:
        return State.PUBLISHED if broker.rows.open_cells(holding.row) else State.IDLE
    return State.IDLE if state in (State.IDLE, State.RETURNED) else State.LEASED


@dataclass(slots=True)
class _Census:
    """All that is granted, each holding looked at once. A buffer is *active* while it is leased, or
    published with a ticket open: not yet given back."""

    slots: Counter[tuple[int, State]] = field(default_factory=Counter)
    bytes: Counter[State] = field(default_factory=Counter)
    active_by_seat: Counter[int] = field(default_factory=Counter)
    active_bytes: int = 0
    payload: int = 0

    def count(self, broker: Broker, holding: Holding) -> None:
        """Add one holding."""
        state, nbytes = _state(broker, holding), holding.nbytes
        self.slots[holding.tier.index, state] += sum(count for _, count in holding.spans)
        self.bytes[state] += nbytes
        if state is not State.IDLE:
            self.active_by_seat[holding.seat] += 1
            self.active_bytes += nbytes
            # What a lease was asked for stands in the ledger only from its publish on.
            asked = nbytes_of(broker.rows.extent(holding.row)) if state is State.PUBLISHED else nbytes
            self.payload += min(asked, nbytes)


def _take_census(broker: Broker) -> Generator[int, None, _Census]:
    census = _Census()
    granted = broker.inventory.granted
    for holding in list(granted.values()):
        if granted.get(holding.row) is holding:
            census.count(broker, holding)
            yield 1
    return census


def _tier(broker: Broker, tier: Tier, census: _Census) -> dict[str, Any]:
    slots = broker.inventory.maps[tier.index]
    idle, leased, published = (census.slots[tier.index, s] for s in (State.IDLE, State.LEASED, State.PUBLISHED))
    return {
        "size": tier.size,
        "kind": tier.kind.name.lower(),
        "capacity": tier.capacity,
        "warm": slots.warm if tier.size else idle + leased + published + len(broker.inventory.spares),
        "free": slots.ready,
        "idle": idle,
        "leased": leased,
        "published": published,
    }


def _client(broker: Broker, number: int, census: _Census) -> dict[str, Any]:
    seat = broker.seats.taken[number]
    return {
        "seat": number,
        "pid": seat.peer.pid,
        "uid": seat.peer.uid,
        "command": seat.peer.command,
        "connected": seat.connection is not None,
        "leases": census.active_by_seat[number],
        "bytes": seat.nbytes,
    }


def _total_counters(broker: Broker) -> Generator[int, None, list[int]]:
    totals = [0] * USED_COUNTERS
    for seat in (0, *broker.seats.taken):
        at = counters_at(broker.rows.count, seat)
        totals = [total + word for total, word in zip(totals, broker.rows.words[at : at + USED_COUNTERS], strict=True)]
        yield 1
    return totals


def _alerts(broker: Broker) -> list[str]:
    alerts = []
    waiting = broker.lending.line.all()
    if waiting:
        alerts.append(f"{len(waiting)} requests wait for memory")
    away = [seat for seat in broker.seats.taken.values() if seat.connection is None and seat.rows]
    alerts += [f"pid {seat.peer.pid} (seat {seat.number}) is away and keeps {len(seat.rows)} slots" for seat in away]
    if broker.inventory.quarantined:
        alerts.append(f"{len(broker.inventory.quarantined)} rows are quarantined")
    return alerts
