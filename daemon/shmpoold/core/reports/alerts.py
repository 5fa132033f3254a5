"""What an operator should look at: the rules' states over time, and a sentence for each thing that is
the matter now.

The figures are taken every few seconds, in a chore that rests the longer the more there is to look at;
what comes and goes between two looks (somebody waits, a lease times out) is noted when it happens. An
alert that was cleared stays visible for a while: whoever looks after the night sees that there was one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shmpool.protocol.census import Use
from shmpool.protocol.figures import CATEGORIES, LATENCIES, LATENCY_WORDS, LEASES, MISSES, STRATEGIES, TIMEOUTS

from ..actions import Log
from ..connections.seats import Seats
from ..lending.requests import WaitingLine
from ..memory.inventory import Inventory
from ..outbox import Outbox
from .holders import Process
from .rules import LINGERS, RULES, Rule, Severity, said

#: A seat that is looked at, in units, is a part of one; so many are one.
SEATS_PER_UNIT: Final = 16
#: Shares and latencies of fewer leases than these tell nothing.
FEW_LEASES: Final = 100
FEW_TIMED: Final = 16
#: What a look adds to the latency that is usual; and one at which leases take unusually long: what
#: stays so for half an hour is usual then.
LEARNED, LEARNED_SLOWLY = 0.05, 0.005


@dataclass(slots=True)
class State:
    """Where one rule is: its figure, since when it has been at its bound, since when it is raised, and
    when it was cleared."""

    value: float = 0.0
    about: str = ""
    at_bound_since: float | None = None
    raised_at: float | None = None
    cleared_at: float | None = None
    #: What the figure was at most while it was raised.
    worst: float = 0.0

    @property
    def is_raised(self) -> bool:
        """Now."""
        return self.raised_at is not None and self.cleared_at is None


class Alerts:
    """The states of all rules. *bounds* by a rule's name: another bound, or False for never."""

    def __init__(self, outbox: Outbox, bounds: Mapping[str, float | bool]) -> None:
        self._outbox = outbox
        self._states = {rule.name: State() for rule in RULES}
        self.bounds = bounds
        self._counted: list[int] | None = None
        #: Nothing was counted between the last two looks.
        self.is_still = False
        self._fallbacks = 0
        #: By category, nanoseconds that leases usually take.
        self._usual: dict[str, float] = {}

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is raised, on its way to be, or still visible."""
        return all(state.at_bound_since is None and state.raised_at is None for state in self._states.values())

    def judge(self, name: str, value: float, now: float, about: str = "") -> None:
        """A figure as it is now; *about*: what it belongs to, in words."""
        rule, state = _RULES[name], self._states[name]
        bound, calm = self._bounds(rule)
        state.value = value
        if state.is_raised:
            state.worst, state.about = max(state.worst, value), about or state.about
            if value < calm:
                state.cleared_at, state.at_bound_since = now, None
                self._outbox.add(Log(f"alert {name} is over: {said(rule, value)}"))
            return
        if value < bound:
            state.at_bound_since = None
            return
        if state.at_bound_since is None:
            state.at_bound_since = now
        if now >= state.at_bound_since + rule.after:
            state.raised_at, state.cleared_at, state.worst, state.about = now, None, value, about
            text = f"alert {name}: {rule.figure}: {said(rule, value)}"
            self._outbox.add(Log(f"{text} ({about}); {rule.advice}" if about else f"{text}; {rule.advice}", True))

    def forget_old(self, now: float) -> None:
        """What was cleared long ago is history."""
        for state in self._states.values():
            if state.cleared_at is not None and now >= state.cleared_at + LINGERS:
                state.raised_at = state.cleared_at = None

    def judge_fallbacks(self, count: int, now: float) -> None:
        """*count*: since the broker started."""
        more, self._fallbacks = count - self._fallbacks, count
        self.judge("fallback", more, now)

    def judge_counters(self, totals: list[int], now: float) -> None:
        """By what was counted since the last look."""
        before, self._counted = self._counted, totals
        self.is_still = totals == before
        if before is None:
            return
        more = [new - old for new, old in zip(totals, before, strict=True)]
        slots = sum(more[LEASES : LEASES + 2 * len(CATEGORIES)])  # pooled and chunked ones
        assert STRATEGIES[:2] == ("pooled", "chunked")
        self.judge("misses", more[MISSES] / slots if slots >= FEW_LEASES else 0.0, now)
        self.judge("timeouts", more[TIMEOUTS], now)
        worst, category = 0.0, ""
        for index, name in enumerate(CATEGORIES):
            total, *counts = more[LATENCIES + LATENCY_WORDS * index :][:LATENCY_WORDS]
            if (timed := sum(counts)) < FEW_TIMED:
                continue
            mean = total / timed
            usual = max(1.0, self._usual.get(name, mean))
            factor = mean / usual
            if factor > worst:
                worst, category = factor, name
            learned = LEARNED if factor < _RULES["latency"].calm else LEARNED_SLOWLY
            self._usual[name] = usual + learned * (mean - usual)
        self.judge("latency", worst, now, f"{category.replace('_', ' ')} objects" if category else "")

    def raised(self) -> Iterable[str]:
        """A sentence for each that is raised now and told nowhere else."""
        for rule in RULES:
            state = self._states[rule.name]
            if state.is_raised and rule.name in _SENTENCES:
                about = f" ({state.about})" if state.about else ""
                yield f"{rule.figure} is {said(rule, state.value)}{about}"

    def lines(self, now: float) -> list[dict[str, Any]]:
        """What is raised, and what was a while ago, the worst first."""
        shown = []
        for rule in sorted(RULES, key=lambda rule: -rule.severity):
            state = self._states[rule.name]
            if state.raised_at is None:
                continue
            shown.append({
                "name": rule.name,
                "severity": rule.severity.name.lower(),
                "figure": rule.figure,
                "value": state.value,
                "worst": state.worst,
                "text": f"{rule.figure}: {said(rule, state.value if state.is_raised else state.worst)}",
                "about": state.about,
                "advice": rule.advice,
                "raised_seconds": now - state.raised_at,
                "cleared_seconds": None if state.cleared_at is None else now - state.cleared_at,
            })  # fmt: skip
        return shown

    def _bounds(self, rule: Rule) -> tuple[float, float]:
        bound = self.bounds.get(rule.name, rule.bound)
        if bound is False:
            return float("inf"), float("inf")
        return float(bound), rule.calm * (float(bound) / rule.bound)


_RULES: Final = {rule.name: rule for rule in RULES}
#: The others have a sentence of their own that says more, or are over when they are seen.
_SENTENCES: Final = frozenset({"misses", "latency", "full", "reader"})


def look(
    found: Alerts,
    inventory: Inventory,
    seats: Seats,
    totals: list[int],
    leaks: int,
    level: int,
    processes: list[Process],
    spare: int,
    now: float,
) -> None:
    """Judge every figure that is of now. *totals*: the counters; *leaks*: buffers; *level*: of
    pressure; *processes*: who keeps what, the most first; *spare*: bytes of caches that nobody holds."""
    found.judge_counters(totals, now)
    found.judge("leaks", leaks, now)
    found.judge("pressure", level, now)
    found.judge("pressure_critical", level, now)
    found.judge("quarantine", len(inventory.quarantined), now)
    used = [one for one in processes if one.use not in (Use.IDLE, Use.HELD)]  # what is held is somebody's already
    room = inventory.limit - inventory.overhead
    # What several have open is there once.
    nbytes = min(sum(one.tally.nbytes for one in used) - spare, inventory.held - inventory.overhead)
    found.judge("full", nbytes / room, now)
    reader = next((one for one in used if one.use is Use.OPEN), None)
    share = reader.tally.nbytes / room if reader else 0.0
    found.judge("reader", share, now, reader.keeps_most() if reader else "")
    away = [seat for seat in seats.taken.values() if seat.connection is None and seat.rows]
    found.judge("away", len(away), now, f"pid {away[0].peer.pid}" if away else "")
    found.forget_old(now)


def now_wrong(
    inventory: Inventory, seats: Seats, line: WaitingLine, processes: list[Process]
) -> Generator[int, None, list[str]]:
    """A chore: what is the matter now. *processes*: who keeps what, the most first."""
    found = []
    if line:
        found.append(f"{len(line)} requests wait for memory")
        found += [process.keeps_most() for process in processes[:1]]
    for index, seat in enumerate(list(seats.taken.values())):
        if seat.connection is None and seat.rows:
            found.append(f"pid {seat.peer.pid} (seat {seat.number}) is away and keeps {len(seat.rows)} slots")
        yield index % SEATS_PER_UNIT == 0
    if inventory.quarantined:
        found.append(f"{len(inventory.quarantined)} rows are quarantined")
    return found


__all__ = ["Alerts", "Severity", "look", "now_wrong"]
