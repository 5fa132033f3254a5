"""The figures of a pool whose broker does not answer, read from its memory: the ledger is the truth, and
the census needs no broker.

Found as clients find it, by the files beside the socket. Reads and changes nothing; what is read may be
changing, so the figures may be a few leases apart. What only a broker knows is left out: ages, alerts,
pressure, spares, the ladder, shared publications, queues, how chunks lie.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from .errors import BrokerUnavailable
from .protocol.census import Census, held_rows, read, slices, snapshot
from .protocol.figures import HELD_BY_VIEWS, USED_COUNTERS
from .protocol.header import (
    EPOCH,
    ROWS,
    SEAT_PID,
    SEAT_UID,
    SEATS,
    counters_at,
    header_bytes,
    header_fault,
    ledger_bytes,
    read_tiers,
    seat_at,
)
from .protocol.ledger import ROW_BYTES, STATE_SHIFT
from .protocol.metrics import KEYS, SHARED
from .protocol.names import SHM_DIR, header_name, ledger_name, pool_prefix, tickets_path
from .protocol.sizing import Tier, TierKind
from .protocol.states import State
from .protocol.totals import counted, kept_by
from .stats import Stats
from .system import heirs
from .system.locks import pool_id_in
from .system.outside import own, real_path
from .system.processes import command

#: Rows that nobody has, side by side.
_NOBODYS = re.compile(b"[%c%c]+" % (State.COLD, State.FREE))


class _Unreadable(Exception):
    """It is no pool of this version."""


def read_stats(address: str, why: BrokerUnavailable) -> Stats:
    """The figures of the pool at *address*. Raises *why* where there is none, or none that this process may
    read."""
    try:
        pool_id = _pool_id(address)
        with (
            closing(_map(header_name(pool_id))) as header,
            closing(_map(ledger_name(pool_id))) as ledger,
            open(f"{SHM_DIR}/{header_name(pool_id)}", "rb") as file,
        ):
            return Stats.from_dict(_figures(pool_id, header, ledger, partial(heirs.pids_of, file.fileno())))
    except own(OSError, _Unreadable):
        raise why from None


def _pool_id(address: str) -> int:
    fd = os.open(tickets_path(real_path(address)), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb"):
        return pool_id_in(fd)


def _map(name: str) -> mmap.mmap:
    fd = os.open(f"{SHM_DIR}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _figures(
    pool_id: int, header: mmap.mmap, ledger: mmap.mmap, children_of: Callable[[int], list[int]]
) -> dict[str, Any]:
    # Copies: a view of a map that is closed would be in its way.
    facts = memoryview(header[: len(header) // 8 * 8]).cast("Q")
    if fault := header_fault(facts):
        raise _Unreadable(fault)
    rows, seats, tiers = facts[ROWS], facts[SEATS], read_tiers(facts)
    if len(ledger) < ledger_bytes(rows, seats):
        raise _Unreadable("the ledger is too short")
    words = memoryview(ledger[: len(ledger) // 8 * 8]).cast("Q")
    census, states = _census(words, tiers)
    blocks = [list(words[counters_at(rows, seat) :][:USED_COUNTERS]) for seat in range(seats + 1)]
    taken = [seat for seat in range(1, seats + 1) if facts[seat_at(seat) + SEAT_PID]]
    totals = [sum(column) for column in zip(*blocks, strict=True)]
    names = [name for name in os.listdir(SHM_DIR) if name.startswith(pool_prefix(pool_id))]
    held = sum(os.stat(f"{SHM_DIR}/{name}").st_blocks * 512 for name in names)
    overhead = header_bytes(seats) + ledger_bytes(rows, seats)
    told = [_tier(tier, census, states[tier.index]) for tier in tiers]
    free = sum(tier["free"] * tier["size"] for tier in told)
    by_state = {state.name.lower(): census.nbytes[state] for state in (State.IDLE, State.LEASED, State.PUBLISHED)}
    memory = {
        # The tiers are made for it: each has as many slots as fit.
        "limit": max(tier.capacity * tier.size for tier in tiers),
        "held": held,
        "overhead": overhead,
        "payload": census.payload,
        "by_state": {"free": free, **by_state},
        "pressure": "normal",
        "pressure_changes": dict.fromkeys(KEYS["level"], 0),
        "retired": 0,
    }
    return {
        "pool_id": f"{pool_id:016x}",
        "epoch": facts[EPOCH],
        **counted(totals, census),
        "ladder": dict.fromkeys(KEYS["rung"], 0),
        "memory": memory,
        "shared": {figure.name: 0 for figure in SHARED},
        "queues": [],
        "tiers": told,
        "clients": [_client(facts, seat, blocks[seat], census, children_of) for seat in taken],
        "leaks": dict.fromkeys(KEYS["leak"], 0),
        "alerts": ["the broker does not answer: these figures were read from the pool's memory"],
        "alert_states": [],
    }


def _census(words: memoryview[int], tiers: tuple[Tier, ...]) -> tuple[Census, dict[int, bytes]]:
    """And by tier the state of each row."""
    census, states = Census(), dict.fromkeys(range(len(tiers)), b"")
    for tier, first, end in slices(tiers):
        raw = snapshot(words, first, end)
        states[tier.index] += raw[STATE_SHIFT // 8 :: ROW_BYTES]
        census.add(read(words, raw, tier, first, held_rows(raw)), first)
    return census, states


def _tier(tier: Tier, census: Census, states: bytes) -> dict[str, Any]:
    idle, leased, published = (census.slots[tier.index, s] for s in (State.IDLE, State.LEASED, State.PUBLISHED))
    free = states.count(State.FREE) if tier.size else 0  # which direct rows are spares only the broker knows
    return {
        "size": tier.size,
        "kind": tier.kind.name.lower(),
        "capacity": tier.capacity,
        "warm": idle + leased + published + free,
        "free": free,
        "idle": idle,
        "leased": leased,
        "published": published,
        "largest_run": max(map(len, _NOBODYS.findall(states)), default=0) if tier.kind is TierKind.CHUNK else 0,
        "scattered": 0,  # only the broker counts them
    }


def _client(
    facts: memoryview[int], seat: int, block: list[int], census: Census, children_of: Callable[[int], list[int]]
) -> dict[str, Any]:
    kept = kept_by(seat, census, block[HELD_BY_VIEWS])
    pid = facts[seat_at(seat) + SEAT_PID]
    return {
        "seat": seat,
        "pid": pid,
        "uid": facts[seat_at(seat) + SEAT_UID],
        "command": command(pid),
        "connected": False,
        "seen": True,
        **kept,
        "children": children_of(seat) if kept["reads"] else [],
    }
