"""What operators ask for: the figures of the stats, and who holds what.

Reads the ledger as it is, without stopping anybody: the figures of one report may be a
few leases apart.
"""

from __future__ import annotations

import json
from collections import Counter
from heapq import nsmallest
from typing import TYPE_CHECKING, Any

from shmpool.protocol.figures import (
    CATEGORIES,
    COUNTER_WORDS,
    DEFERRED,
    LEASES,
    MISSES,
    SAMPLED_NS,
    SAMPLES,
    STRATEGIES,
    TIMEOUTS,
)
from shmpool.protocol.header import counters_at
from shmpool.protocol.ledger import nbytes_of, state_of
from shmpool.protocol.messages import MAX_BLOB, U64, Answer, Query, Topic
from shmpool.protocol.sizing import STRATEGY_OF_KIND, Tier
from shmpool.protocol.states import State

from . import invariants
from .actions import Action, Send
from .inventory import Holding
from .rows import Rows

if TYPE_CHECKING:
    from .broker import Broker

MOST_LEASES = 5000


def answer(broker: Broker, connection: int, query: Query, now: float) -> list[Action]:
    """The answer to a Query, cut into parts that each fit a frame."""
    report = _report(broker, Topic(query.topic), now)
    payload = json.dumps(report, separators=(",", ":")).encode()
    parts = [payload[at : at + MAX_BLOB] for at in range(0, len(payload), MAX_BLOB)]
    return [Send(connection, Answer(query.request, index == len(parts) - 1, part)) for index, part in enumerate(parts)]


def _report(broker: Broker, topic: Topic, now: float) -> Any:
    if topic is Topic.STATS:
        return stats(broker)
    if topic is Topic.LEASES:
        return leases(broker, now)
    return {"violation": invariants.violation(broker)}


def fold_counters(rows: Rows, seat: int) -> None:
    """Add a seat's counters to the broker's own block and clear them for the next."""
    source, target = counters_at(rows.count, seat), counters_at(rows.count, 0)
    for word in range(COUNTER_WORDS):
        rows.words[target + word] = (rows.words[target + word] + rows.words[source + word]) & U64
        rows.words[source + word] = 0


def stats(broker: Broker) -> dict[str, Any]:
    """All figures, under the names of `shmpool.Stats`."""
    totals = _total_counters(broker)
    by_strategy = {
        strategy: sum(totals[LEASES + 4 * index : LEASES + 4 * index + 4]) for index, strategy in enumerate(STRATEGIES)
    }
    gets = sum(by_strategy.values())
    misses = totals[MISSES]
    active, payload, held_by_active = _active(broker)
    held = broker.inventory.held
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
        "memory_efficiency": payload / held_by_active if held_by_active else 1.0,
        "memory": {
            "limit": broker.inventory.limit,
            "held": held,
            "overhead": broker.inventory.overhead,
            "payload": payload,
            "by_state": _memory_by_state(broker),
        },
        "tiers": [_tier(broker, tier) for tier in broker.tiers],
        "clients": [_client(broker, number) for number in sorted(broker.seats.taken)],
        "alerts": _alerts(broker),
    }  # fmt: skip


def leases(broker: Broker, now: float) -> list[dict[str, Any]]:
    """What is granted, oldest first; at most `MOST_LEASES`, so that a report stays a report."""
    holdings = nsmallest(MOST_LEASES, broker.inventory.granted.values(), key=lambda holding: holding.granted_at)
    return [
        {
            "row": holding.row,
            "seat": holding.seat,
            "pid": seat.peer.pid if (seat := broker.seats.taken.get(holding.seat)) else None,
            "command": seat.peer.command if seat else "",
            "tier": holding.tier.label(),
            "strategy": STRATEGY_OF_KIND[holding.tier.kind].value,
            "state": _state(broker, holding).name.lower(),
            "custodian": "broker" if holding.in_custody else "client",
            "bytes": holding.nbytes,
            "tickets_open": _open_tickets(broker, holding),
            "age_seconds": round(now - holding.granted_at, 3),
        }
        for holding in holdings
    ]


def _state(broker: Broker, holding: Holding) -> State:
    """The state of a granted row as people see it: a publication whose tickets are all done
    is IDLE, its custodian has only not looked yet; what makes no sense is LEASED."""
    state = state_of(broker.rows.grant(holding.row))
    if state == State.PUBLISHED:
        return State.PUBLISHED if broker.rows.open_cells(holding.row) else State.IDLE
    return State.IDLE if state in (State.IDLE, State.RETURNED) else State.LEASED


def _open_tickets(broker: Broker, holding: Holding) -> int:
    return len(broker.rows.open_cells(holding.row)) if _state(broker, holding) is State.PUBLISHED else 0


def _is_active(broker: Broker, holding: Holding) -> bool:
    """A lease, or a publication with an open ticket: not yet given back."""
    return _state(broker, holding) is not State.IDLE


def _active(broker: Broker) -> tuple[int, int, int]:
    """(buffers not given back, payload bytes, bytes that they hold)."""
    count = payload = held = 0
    for holding in broker.inventory.granted.values():
        if _is_active(broker, holding):
            count += 1
            held += holding.nbytes
            published = _state(broker, holding) is State.PUBLISHED
            # What a lease was asked for stands in the ledger only from its publish on.
            payload += min(nbytes_of(broker.rows.extent(holding.row)), holding.nbytes) if published else holding.nbytes
    return count, payload, held


def _memory_by_state(broker: Broker) -> dict[str, int]:
    sums = Counter({"free": sum(slots.ready * slots.tier.size for slots in broker.inventory.maps)})
    for holding in broker.inventory.granted.values():
        sums[_state(broker, holding).name.lower()] += holding.nbytes
    return {name: sums[name] for name in ("free", "idle", "leased", "published")}


def _tier(broker: Broker, tier: Tier) -> dict[str, Any]:
    slots = broker.inventory.maps[tier.index]
    states: Counter[State] = Counter()
    for holding in broker.inventory.granted.values():
        if holding.tier is tier:
            states[_state(broker, holding)] += sum(count for _, count in holding.spans)
    return {
        "size": tier.size,
        "kind": tier.kind.name.lower(),
        "capacity": tier.capacity,
        "warm": slots.warm if tier.size else sum(states.values()),
        "free": slots.ready,
        "idle": states[State.IDLE],
        "leased": states[State.LEASED],
        "published": states[State.PUBLISHED],
    }


def _client(broker: Broker, number: int) -> dict[str, Any]:
    seat = broker.seats.taken[number]
    holdings = [broker.inventory.granted[row] for row in seat.rows]
    return {
        "seat": number,
        "pid": seat.peer.pid,
        "uid": seat.peer.uid,
        "command": seat.peer.command,
        "connected": seat.connection is not None,
        "leases": sum(_is_active(broker, holding) for holding in holdings),
        "bytes": sum(holding.nbytes for holding in holdings),
    }


def _total_counters(broker: Broker) -> list[int]:
    rows = broker.rows
    blocks = [counters_at(rows.count, seat) for seat in (0, *broker.seats.taken)]
    return [sum(rows.words[block + word] for block in blocks) for word in range(COUNTER_WORDS)]


def _alerts(broker: Broker) -> list[str]:
    alerts = []
    waiting = broker.line.all()
    if waiting:
        alerts.append(f"{len(waiting)} requests wait for memory")
    away = [seat for seat in broker.seats.taken.values() if seat.connection is None and seat.rows]
    alerts += [f"pid {seat.peer.pid} (seat {seat.number}) is away and keeps {len(seat.rows)} slots" for seat in away]
    if broker.inventory.quarantined:
        alerts.append(f"{len(broker.inventory.quarantined)} rows are quarantined")
    return alerts
