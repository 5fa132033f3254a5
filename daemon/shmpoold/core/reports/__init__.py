"""What operators ask for, and what a refusal has to tell: the figures, and who holds what.

Reads rows, tiers and seats as they are, without stopping anybody, and a large ledger in
slices: the figures of one report may be a few leases apart. A report is a chore that
returns what is to be said.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

from shmpool.protocol.census import Census
from shmpool.protocol.messages import Topic

from ..chores import AT_ONCE, NEVER, Chores, Lane
from ..connections.seats import Seats
from ..lending.lending import Lending
from ..lending.requests import Rung
from ..memory.inventory import Inventory
from ..memory.manager import Manager
from ..objects.shared import Shared
from ..outbox import Outbox
from ..rows import Rows
from . import holders, metrics, queues
from .alerts import Alerts, look, now_wrong
from .census import Ledger
from .keeper import Keeper
from .leaks import OVER_WITHIN, Leaks

Report = Generator[int, None, Any]

#: Seconds from one look at the ages to the next: while there is something new, at the longest;
#: and how many times as long as a look takes, so that looks are a small part of the time.
SOON: Final = 1.0
LONGEST: Final = 32.0
REST: Final = 500
#: Seconds from one look at the alerts' figures to the next, at least; more while nothing is leased anew.
JUDGED_EVERY: Final = 10.0
#: As much for the censuses that are taken while somebody waits.
CENSUS_REST: Final = 20
#: Seconds of a unit of chores.
UNIT: Final = 2e-6


class Reports:
    """The reports of one pool, and the looks that they need."""

    def __init__(
        self,
        rows: Rows,
        inventory: Inventory,
        manager: Manager,
        shared: Shared,
        seats: Seats,
        lending: Lending,
        chores: Chores,
        outbox: Outbox,
        leak_age: float,
        alerts: Mapping[str, float | bool],
        pool_id: int,
        epoch: int,
    ) -> None:
        self._rows = rows
        self._inventory = inventory
        self._manager = manager
        self._shared = shared
        self._seats = seats
        self._line, self._ladder = lending.line, lending.ladder
        self._chores = chores
        self._pool = {"pool_id": f"{pool_id:016x}", "epoch": epoch}
        #: What a queue's memory says, which the shell can read; set by it.
        self.read_queue: queues.Read = lambda holding, nbytes: b""
        self.ledger = Ledger(rows, inventory, shared, lambda: chores.now)
        self._keeper = Keeper(self.ledger, inventory, seats)
        self.leaks = Leaks(rows, self.ledger, inventory, seats.taken, outbox, leak_age)
        self.alerts = Alerts(outbox, alerts)
        self._steady = metrics.Steady()
        self._interval = SOON
        #: None: soon after the first grant.
        self._next_look: float | None = None
        self._next_census = 0.0
        self._next_leaks = 0.0
        #: How much had come back at the last look for leaks, and when it is seen that they are over, at the soonest.
        self._seen_over, self._leaks_may_be_over = 0, 0.0
        #: `NEVER` while nothing is granted and no alert is to be seen.
        self._next_judging = NEVER
        self._judged_every = JUDGED_EVERY
        self._is_looking = self._is_counting = self._is_seeking = self._is_judging = False

    # --- time --------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float:
        """When `tick` is due; not while nobody has anything. While somebody waits it is called
        often enough."""
        if not self._inventory.granted:
            if self.leaks:
                return AT_ONCE
            return NEVER if self.alerts.is_quiet or self._is_judging else self._next_judging
        first = next(iter(self._inventory.granted.values())).granted_at
        if self._next_look is None:
            self._next_look, self._next_leaks = first + SOON, first + self.leaks.age
        if self._next_judging == NEVER:
            self._next_judging = first + JUDGED_EVERY
        judging = NEVER if self._is_judging else self._next_judging
        looking = NEVER if self._is_looking else self._next_look
        return min(looking, NEVER if self._is_seeking else self._next_seeking, judging)

    @property
    def _next_seeking(self) -> float:
        """The next look for leaks: soon where there are some, and something has come back since the last."""
        if self.leaks and self._inventory.over != self._seen_over:
            return min(self._next_leaks, self._leaks_may_be_over)
        return self._next_leaks

    def tick(self, now: float) -> None:
        """Look at the ages, at the alerts' figures, and at who keeps what while somebody waits, if it is
        time."""
        if self._line:
            self.alerts.judge("waiting", now - min(request.since for request in self._line.heads()), now)
        if not self._inventory.granted and self.alerts.is_quiet:
            self._next_judging = NEVER
        if not self._is_judging and self._next_judging <= now:
            self._is_judging = True
            self._chores.begin(self._judge(), now, Lane.QUESTIONS)
        if not self._inventory.granted:
            self.ledger.ages.forget_all()
            if self.leaks:
                self.leaks.forget_all()
                self.alerts.judge("leaks", 0, now)
            self._interval, self._next_look = SOON, None
            return
        if self._line and not self._is_counting and self._next_census <= now:
            self._is_counting = True
            self._chores.begin(self._count(), now, Lane.QUESTIONS)
        if self.next_deadline > now:
            return
        if not self._is_seeking and self._next_seeking <= now:
            self._is_seeking = True
            self._chores.begin(self._seek(), now, Lane.QUESTIONS)
        if not self._is_looking and self._next_look is not None and self._next_look <= now:
            self._is_looking = True
            self._chores.begin(self._look(), now, Lane.QUESTIONS)

    def _look(self) -> Iterator[int]:
        cost = 0
        try:
            for units in self.ledger.look():
                cost += units
                yield units
        finally:
            ages = self.ledger.ages
            self._interval = SOON if ages.has_changed else min(2 * self._interval, LONGEST)
            ages.has_changed = self._is_looking = False
            self._next_look = self._chores.now + max(self._interval, REST * UNIT * cost)

    def _seek(self) -> Iterator[int]:
        cost = 0
        try:
            for units in self.leaks.look(lambda: self._chores.now):
                cost += units
                yield units
        finally:
            self._is_seeking = False
            now = self._chores.now
            self.alerts.judge("leaks", self.leaks.count, now)
            self._next_leaks = now + max(self.leaks.interval, REST * UNIT * cost)
            self._seen_over, self._leaks_may_be_over = self._inventory.over, now + max(OVER_WITHIN, REST * UNIT * cost)

    def _count(self) -> Iterator[int]:
        cost = 0
        try:
            steps = self._take_census()
            while True:
                units = next(steps)
                cost += units
                yield units
        except StopIteration:
            pass
        finally:
            self._is_counting = False
            self._next_census = self._chores.now + max(SOON, CENSUS_REST * UNIT * cost)

    def _judge(self) -> Iterator[int]:
        cost = 0
        steps = self._figures_of_alerts()
        try:
            while True:
                units = next(steps)
                cost += units
                yield units
        except StopIteration:
            pass
        finally:
            self._is_judging = False
            is_still = self.alerts.is_still and self.alerts.is_quiet
            self._judged_every = min(2 * self._judged_every, LONGEST) if is_still else JUDGED_EVERY
            self._next_judging = self._chores.now + max(self._judged_every, REST * UNIT * cost)

    def _figures_of_alerts(self) -> Iterator[int]:
        _, processes = yield from self._take_census()
        totals = yield from metrics.totals(self._rows, self._seats)
        level = self._manager.level
        now = self._chores.now
        self.alerts.judge_fallbacks(self._ladder.served[Rung.FALLBACK], now)
        spare = self._shared.caches.nbytes
        look(self.alerts, self._inventory, self._seats, totals, self.leaks.count, level, processes, spare, now)
        if not self._line:
            self.alerts.judge("waiting", 0.0, now)

    # --- who keeps most -------------------------------------------------------------------------------

    def who_keeps_most(self, now: float) -> str:
        """For a refusal: a sentence, empty when nobody keeps anything."""
        return self._keeper.text(now)

    def _take_census(self) -> Generator[int, None, tuple[Census, list[holders.Process]]]:
        census = yield from self.ledger.take_census()
        processes = yield from holders.by_process(census, self._seats)
        self._keeper.note(processes, self._chores.now)
        return census, processes

    # --- reports --------------------------------------------------------------------------------------

    def make(self, topic: Topic) -> Report:
        """The report on a topic."""
        if topic is Topic.STATS:
            return self._stats()
        if topic is Topic.LEAKS:
            return self._leaks()
        if topic is Topic.NAMES:
            return holders.names(self._shared, self._seats)
        seats, clock = self._seats, lambda: self._chores.now
        if topic is Topic.LEASES:
            return holders.lines(self.ledger, self._inventory.tiers, seats, clock)
        return holders.each(self.ledger, self._inventory, self._shared, seats, clock)

    def _leaks(self) -> Report:
        """What a look finds now; what a client was only asked about now has no site yet."""
        yield from self.leaks.look(lambda: self._chores.now)
        shown = []
        for line in self.leaks.lines(lambda: self._chores.now):
            if isinstance(line, int):
                yield line
            else:
                shown.append(line)
        return {"total": len(shown), "shown": len(shown), "leases": shown}

    def _stats(self) -> Report:
        """All figures, under the names of `shmpool.Stats`."""
        census, processes = yield from self._take_census()
        figures = yield from metrics.count(self._rows, self._seats, census, self._steady)
        yield metrics.FIGURES
        wrong = yield from now_wrong(self._inventory, self._seats, self._line, processes)
        told = yield from queues.lines(self._shared, self._seats, self.read_queue, lambda: self._chores.now)
        tiers = [metrics.tier(self._inventory, tier, census) for tier in self._inventory.tiers]
        return {
            **self._pool,
            **figures,
            "ladder": {rung.value: count for rung, count in self._ladder.served.items()},
            "memory": {**metrics.memory(self._inventory, census), **self._manager.figures()},
            "tiers": tiers,
            "shared": self._shared.summary(),
            "queues": told,
            "leaks": self.leaks.counts(),
            "alerts": [*wrong, *self._manager.alerts(), *self.alerts.raised()],
            "alert_states": self.alerts.lines(self._chores.now),
        }
