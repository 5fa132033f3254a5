"""What seems to be leaked: a lease or a ticket that is too old, a buffer that only views keep.

A look takes what the ages say is older than the bound. Whether a buffer is only kept by views its
client knows, and, where it was started with SHMPOOL_TRACE, which line of code leased or opened it:
it is asked once for each, and need not answer. Each is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from shmpool.protocol.census import Kept
from shmpool.protocol.figures import HELD_BY_VIEWS
from shmpool.protocol.header import counters_at
from shmpool.protocol.ledger import BROKER
from shmpool.protocol.messages import MAX_INQUIRED, Account, Inquire
from shmpool.protocol.metrics import KEYS
from shmpool.protocol.sizing import Tier, format_bytes
from shmpool.protocol.states import State

from ..actions import Log
from ..connections.seats import Seat
from ..memory.inventory import Inventory
from ..outbox import Outbox
from ..rows import Rows
from .census import Found, Ledger

#: So many are looked after at most; so many are told in the log from one look to the next.
MOST_LEAKS: Final = 10_000
MOST_TOLD: Final = 20
#: Seconds within which it is seen that one came back, unless there is much to look at.
OVER_WITHIN: Final = 2.0
#: Seconds after which what a client was asked is told without its answer.
PATIENCE: Final = 1.0
#: A line of a report, in units.
LINE: Final = 4

_LEASED, _UNREAD, _VIEW, _QUARANTINED = KEYS["leak"]
_TEXTS: Final = {
    _LEASED: "has leased {what} for {age}",
    _UNREAD: "has published {what} {age} ago, and nobody has opened it",
    _VIEW: "keeps {what} by a view, {age} after it was opened or leased",
}


class Key(NamedTuple):
    """Which buffer, kept by whom, and as whom: who leased it, or who has opened it."""

    row: int
    seat: int
    is_reader: bool


@dataclass(slots=True)
class Suspect:
    """A buffer that is kept for too long. *kind* is empty while only its client can tell whether
    that is a leak: reading for long is none, keeping a view of what was released is."""

    kind: str
    tier: Tier
    nbytes: int
    since: float
    asked_at: float | None = None
    site: str = ""
    is_told: bool = False


class Leaks:
    """Those of one pool."""

    def __init__(
        self, rows: Rows, ledger: Ledger, inventory: Inventory, seats: Mapping[int, Seat], outbox: Outbox, age: float
    ) -> None:
        self._rows = rows
        self._ledger = ledger
        self._inventory = inventory
        self._seats = seats
        self._outbox = outbox
        #: Seconds.
        self.age = age
        self._suspects: dict[Key, Suspect] = {}
        #: By the row of what is unread, who has published it, as the last look that found it saw it.
        self._publishers: dict[int, int] = {}
        self._told_rows: set[int] = set()
        self._told = 0

    def __bool__(self) -> bool:
        """Whether anything is suspected."""
        return bool(self._suspects)

    @property
    def interval(self) -> float:
        """Seconds from one look to the next, at least."""
        return min(30.0, self.age / 4)

    def forget_all(self) -> None:
        """Nobody has anything."""
        self._suspects.clear()
        self._publishers.clear()

    # --- looking -----------------------------------------------------------------------------------

    def look(self, clock: Callable[[], float]) -> Iterator[int]:
        """A chore: find what is too old, and ask and tell of it."""
        self._told, limit = 0, clock() - self.age
        seen: set[Key] = set()
        asked: dict[tuple[int, bool], list[int]] = {}
        for found in self._ledger.find(limit):
            if isinstance(found, int):
                yield found
                continue
            for kept in found.kept:
                for key, kind, since in self._suspicions(kept, found, limit):
                    known = self._suspects.get(key)
                    if known is None or known.since != since:
                        if len(seen) >= MOST_LEAKS:
                            continue
                        self._suspects[key] = self._suspect(key, kind, kept, since)
                        asked.setdefault(key[1:], []).append(key.row)
                    seen.add(key)
        for key in self._suspects.keys() - seen:
            del self._suspects[key]
            if self._publishers.get(key.row) == key.seat:
                del self._publishers[key.row]
        yield 1 + len(self._suspects) // 16
        for (number, is_reader), rows in asked.items():
            yield self._ask(number, is_reader, rows, clock())
        yield from self._tell_all(clock)

    def _suspect(self, key: Key, kind: str, kept: Kept, since: float) -> Suspect:
        """A new one, which may be known from when its publisher was there: told then, with the line of code."""
        suspect = Suspect(kind, kept.tier, kept.nbytes, since)
        former = self._suspects.get(Key(key.row, self._publishers.get(key.row, BROKER), False))
        if key.seat == BROKER and former is not None and (former.kind, former.since) == (kind, since):
            suspect.site, suspect.is_told = former.site, former.is_told
        if kind == _UNREAD:
            self._publishers[key.row] = key.seat
        return suspect

    def _suspicions(self, kept: Kept, found: Found, limit: float) -> Iterator[tuple[Key, str, float]]:
        at = kept.row - found.first
        since, changed = found.since[at], found.changed[at]
        if kept.state is State.LEASED:
            yield Key(kept.row, kept.seat, False), _LEASED, since
        elif kept.unread:
            yield Key(kept.row, kept.seat, False), _UNREAD, since
        elif not kept.is_shared and self._has_views(kept.seat):  # all of it was read: does its writer keep a view?
            yield Key(kept.row, kept.seat, False), "", since
        if changed <= limit:
            for reader in set(kept.readers):
                if self._has_views(reader):
                    yield Key(kept.row, reader, True), "", changed

    def _has_views(self, seat: int) -> bool:
        return seat in self._seats and self._rows.words[counters_at(self._rows.count, seat) + HELD_BY_VIEWS] > 0

    def _ask(self, number: int, is_reader: bool, rows: list[int], now: float) -> int:
        seat = self._seats.get(number)
        if seat is None or seat.connection is None:
            return 1
        for at in range(0, len(rows), MAX_INQUIRED):
            self._outbox.send(seat.connection, Inquire(rows[at : at + MAX_INQUIRED], is_reader))
        for row in rows:
            self._suspects[Key(row, number, is_reader)].asked_at = now
        return 1 + len(rows) // 8

    def on_account(self, seat: Seat, message: Account, now: float) -> None:
        """A client says what it knows of what it keeps."""
        for row, is_view, site in message.buffers:
            suspect = self._suspects.get(Key(row, seat.number, message.is_reader))
            if suspect is not None and suspect.asked_at is not None:
                suspect.asked_at, suspect.site = None, site
                if is_view:
                    suspect.kind = _VIEW
                self._tell(Key(row, seat.number, message.is_reader), suspect, now)

    # --- telling -----------------------------------------------------------------------------------

    def _tell_all(self, clock: Callable[[], float]) -> Iterator[int]:
        left = 0
        for key, suspect in list(self._suspects.items()):
            if not self._tell(key, suspect, clock()):
                left += 1
            yield 1
        if left:
            self._outbox.add(Log(f"{left} more leaks: see shmpool leases --leaks", is_warning=True))
        quarantined = self._inventory.quarantined - self._told_rows
        self._told_rows |= quarantined
        for row in islice(sorted(quarantined), MOST_TOLD):
            tier = self._tier_of(row)
            self._outbox.add(
                Log(f"row {row} ({tier.label()}) is quarantined: a client wrote what makes no sense", True)
            )
            yield 1

    def _tell(self, key: Key, suspect: Suspect, now: float) -> bool:
        """Tell of one, once; False where too many were told just now."""
        is_due = suspect.asked_at is None or now >= suspect.asked_at + PATIENCE
        if suspect.is_told or not suspect.kind or not is_due:
            return True
        suspect.is_told = True
        if self._told >= MOST_TOLD:
            return False
        self._told += 1
        peer = self._seats[key.seat].peer if key.seat in self._seats else None
        who = f"pid {peer.pid} ({peer.command})" if peer else "a publisher that has gone"
        what = f"{format_bytes(suspect.nbytes)} (row {key.row}, {suspect.tier.label()})"
        text = _TEXTS[suspect.kind].format(what=what, age=f"{now - suspect.since:,.3g} s")
        by = "opened" if key.is_reader else "leased"
        self._outbox.add(
            Log(f"leak: {who} {text}{f'; {by} at {suspect.site}' if suspect.site else ''}", is_warning=True)
        )
        return True

    def _tier_of(self, row: int) -> Tier:
        return next(tier for tier in self._inventory.tiers if tier.base <= row < tier.end)

    # --- reports -----------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many there are, as the last look saw it; what is quarantined aside."""
        return sum(bool(suspect.kind) for suspect in self._suspects.values())

    def counts(self) -> dict[str, int]:
        """How many of each kind, as the last look saw it."""
        counts = dict.fromkeys(KEYS["leak"], 0)
        for suspect in self._suspects.values():
            if suspect.kind:
                counts[suspect.kind] += 1
        counts[_QUARANTINED] = len(self._inventory.quarantined)
        return counts

    def lines(self, clock: Callable[[], float]) -> Iterator[int | dict[str, Any]]:
        """A line for each, the oldest first, then the rows that are quarantined; numbers are costs."""
        for key, suspect in sorted(self._suspects.items(), key=lambda item: item[1].since):
            if not suspect.kind:
                continue
            peer = self._seats[key.seat].peer if key.seat in self._seats else None
            yield {
                "kind": suspect.kind,
                "row": key.row,
                "pid": peer.pid if peer else None,
                "uid": peer.uid if peer else None,
                "command": peer.command if peer else "",
                "tier": suspect.tier.label(),
                "bytes": suspect.nbytes,
                "age_seconds": round(max(0.0, clock() - suspect.since), 3),
                "site": suspect.site,
            }
            yield LINE
        for row in islice(sorted(self._inventory.quarantined), MOST_LEAKS):
            tier = self._tier_of(row)
            yield {
                "kind": _QUARANTINED, "row": row, "pid": None, "uid": None, "command": "", "tier": tier.label(),
                "bytes": tier.size, "age_seconds": None, "site": "",
            }  # fmt: skip
            yield LINE
