"""Grants: what was taken for a request on its way to whoever asked.

Another user's pages go first, then what is cold is warmed, a slice at a time, and a long run gets its
followers in steps; a direct segment is made. Only then is it granted. Whatever goes wrong meanwhile:
what was taken and not granted is given up, and the request served otherwise, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from shmpool.protocol.codes import Code
from shmpool.protocol.messages import Grant, Refusal
from shmpool.protocol.sizing import TierKind

from ..actions import Warm
from ..chores import Chore, Chores, Lane
from ..connections.seats import Seat, Seats
from ..events import DirectCreated, DirectFailed, Warmed, WarmFailed
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..memory.slots import Extent
from ..memory.stock import BUILT_PER_STEP
from ..outbox import Outbox
from ..rows import Rows
from .requests import Request, WaitingLine


@dataclass(slots=True, eq=False)
class Warming:
    """Holdings on their way from cold to granted, a slice at a time."""

    request: Request
    holdings: list[Holding]
    slices: Iterator[Extent] = field(default_factory=lambda: iter(()))


class Lender(Protocol):
    """Whose requests they are."""

    def note_granted(self, seat: int, nbytes: int, buffers: int = 1) -> None:
        """Buffers of so many bytes each are a seat's now."""

    def note_served(self, request: Request, now: float) -> None:
        """A request has all that it gets."""

    def gave_up(self) -> None:
        """Something that was taken is nobody's again."""

    def serve_or_wait(self, request: Request, now: float) -> None:
        """What a request was to be granted cannot be: it goes on otherwise."""

    def on_host_full(self, request: Request, holdings: list[Holding], reason: str, now: float) -> None:
        """The host has no room for what was taken."""

    def watched(self, steps: Iterator[int]) -> Chore:
        """The steps of something that becomes free."""


class Grants:
    """What is under way to being granted."""

    def __init__(
        self,
        rows: Rows,
        seats: Seats,
        inventory: Inventory,
        line: WaitingLine,
        chores: Chores,
        outbox: Outbox,
        lender: Lender,
    ) -> None:
        self._rows = rows
        self._seats = seats
        self._inventory = inventory
        self._line = line
        self._chores = chores
        self._outbox = outbox
        self._lender = lender
        #: By the slice that is being warmed: (tier, first row).
        self.warming: dict[tuple[int, int], Warming] = {}
        #: Those that lose another user's pages first.
        self.scrubbing: set[Warming] = set()
        self.creating: dict[int, tuple[Request, Holding]] = {}
        #: Long runs whose followers are being written, by their heads.
        self.building: dict[int, Holding] = {}

    def __bool__(self) -> bool:
        return bool(self.warming or self.scrubbing or self.creating or self.building)

    def unfinished_warmings(self) -> set[Warming]:
        """All whose holdings do not have all of their pages yet."""
        return self.scrubbing.union(self.warming.values())

    def under_way(self) -> Iterator[tuple[int, int, int]]:
        """Seat, bytes and buffers of what is taken and not granted yet."""
        taken = [(one.request, holding) for one in {*self.warming.values()} for holding in one.holdings]
        for request, holding in (*taken, *self.creating.values()):
            if not request.is_gone:
                yield request.seat, holding.nbytes, 1
        for holding in self.building.values():
            yield holding.publisher, holding.nbytes, 1

    # --- granting ---------------------------------------------------------------------------------

    def grant_or_warm(self, request: Request, holdings: list[Holding], now: float) -> bool:
        """Grant what was taken, once all of it is warm and nothing of it another user's. False
        when nothing was."""
        if not holdings:
            return False
        with self._answering(request, holdings, now):
            uid = self._seats.taken[request.seat].peer.uid
            unclean = [one for one in holdings if self._inventory.scrubber.is_needed(one.extents, uid)]
            warming = Warming(request, holdings)
            if unclean:
                self.scrubbing.add(warming)
                self._chores.begin(self._scrub(warming, unclean), now, Lane.REQUESTS)
            else:
                self._warm_or_grant(warming, now)
        return True

    def _scrub(self, warming: Warming, unclean: list[Holding]) -> Chore:
        with self._answering(warming.request, warming.holdings, self._chores.now):
            try:
                for holding in unclean:
                    for cost in self._inventory.scrub(holding):
                        yield cost
                        if warming.request.is_gone:
                            self.abandon(warming.holdings, self._chores.now)
                            return
            finally:
                self.scrubbing.discard(warming)
            self._warm_or_grant(warming, self._chores.now)

    def _warm_or_grant(self, warming: Warming, now: float) -> None:
        warming.slices = self._inventory.to_warm(warming.holdings)
        self._warm_next(warming, now)

    def create_direct(self, request: Request) -> bool:
        """Begin to make a direct segment. False when there is no room for it."""
        holding = self._inventory.take_direct(request.wanted_bytes)
        if holding is not None:
            self.creating[holding.row] = (request, holding)
        return holding is not None

    def _grant(self, request: Request, holdings: list[Holding], now: float) -> None:
        """Grant what is ready: a long run once its followers are written."""
        if not self._inventory.are_ready(holdings):
            self._try_others(request, holdings, now)
            return
        if holdings[0].chunks > BUILT_PER_STEP:
            holdings[0].publisher = request.seat
            self.building[holdings[0].row] = holdings[0]
            self._chores.begin(self._build(request, holdings[0]), now, Lane.REQUESTS)
            return
        self.give(request.connection, request.number, self._seats.taken[request.seat], holdings, now)
        self._lender.note_served(request, now)

    def _build(self, request: Request, holding: Holding) -> Chore:
        with self._answering(request, [holding], self._chores.now):
            try:
                yield from self._inventory.build(holding)
            finally:
                del self.building[holding.row]
            if not request.is_gone:
                seat = self._seats.taken[request.seat]
                self._commit(request.connection, request.number, seat, [holding], self._chores.now)
                self._lender.note_served(request, self._chores.now)
                return
            self._inventory.give_head(holding, self._chores.now)
        yield from self._lender.watched(self._inventory.take_apart(holding, self._chores.now))

    def give(self, connection: int, number: int, seat: Seat, holdings: list[Holding], now: float) -> None:
        """Grant at once what is warm, clean and no long run."""
        try:
            for holding in holdings:
                if holding.extents != ((holding.row, 1),):
                    for _ in self._inventory.build(holding):
                        pass
            self._commit(connection, number, seat, holdings, now)
        except Exception:
            self.abandon(holdings, now)
            raise

    def _commit(self, connection: int, number: int, seat: Seat, holdings: list[Holding], now: float) -> None:
        first, rows = holdings[0], list[int]()
        try:
            if len(holdings) > 1 and first.chunks == 1:
                try:
                    self._inventory.grant_slots(holdings, seat, now)
                finally:
                    rows = [holding.row for holding in holdings if holding.owner is not None]
                    self._lender.note_granted(seat.number, first.nbytes, len(rows))
                return
            for holding in holdings:
                self._inventory.grant(holding, seat, now)
                self._lender.note_granted(seat.number, holding.nbytes)
                rows.append(holding.row)
        finally:
            if rows:  # what stands in the ledger is granted, whatever became of the others
                self._outbox.send(connection, Grant(number, rows))

    # --- warming ----------------------------------------------------------------------------------

    def _warm_next(self, warming: Warming, now: float) -> None:
        """Grant it when all of it is warm."""
        extent = next(warming.slices, None)
        if extent is None:
            self._grant(warming.request, warming.holdings, now)
            return
        row, count = extent
        tier = warming.holdings[0].tier
        self.warming[tier.index, row] = warming
        self._outbox.add(Warm(tier.index, row, count))

    def on_warmed(self, event: Warmed, now: float) -> None:
        """A slice has got its pages."""
        warming = self.warming.pop((event.tier, event.row))
        with self._answering(warming.request, warming.holdings, now):
            is_sound = self._inventory.warmed(self._inventory.tiers[event.tier], event.row, event.count, now)
            if warming.request.is_gone and is_sound:
                self.abandon(warming.holdings, now)
            elif not is_sound:
                self._try_others(warming.request, warming.holdings, now)
            else:
                self._warm_next(warming, now)

    def on_warm_failed(self, event: WarmFailed, now: float) -> None:
        """A slice could not have them."""
        warming = self.warming.pop((event.tier, event.row))
        with self._answering(warming.request, warming.holdings, now):
            self._lender.on_host_full(warming.request, warming.holdings, event.reason, now)

    def on_direct_created(self, event: DirectCreated, now: float) -> None:
        """A direct segment is there."""
        request, holding = self.creating.pop(event.row)
        with self._answering(request, [holding], now):
            if request.is_gone:
                self._inventory.remove_direct(holding)
                self.abandon([holding], now)
            else:
                self._grant(request, [holding], now)

    def on_direct_failed(self, event: DirectFailed, now: float) -> None:
        """It could not be made."""
        request, holding = self.creating.pop(event.row)
        with self._answering(request, [holding], now):
            if self._inventory.are_ready([holding]):
                self._rows.skip(event.row)  # a squatted name must not fail again and again
            self._lender.on_host_full(request, [holding], event.reason, now)

    def abandon(self, holdings: list[Holding], now: float) -> None:
        """Give up what was taken and not granted."""
        for holding in holdings:
            self._inventory.abandon(holding, now)
        self._lender.gave_up()

    def _try_others(self, request: Request, holdings: list[Holding], now: float) -> None:
        """Somebody has scribbled on what a request was to be granted: it gets something else."""
        for holding in holdings:
            if holding.tier.kind is TierKind.DIRECT:
                self._inventory.remove_direct(holding)
        self.abandon(holdings, now)
        self._lender.serve_or_wait(request, now)

    @contextmanager
    def _answering(self, request: Request, holdings: list[Holding], now: float) -> Iterator[None]:
        """Whatever goes wrong meanwhile: nothing stays under way for ever. What was taken and not
        granted is given up, and the request refused, unless it goes on otherwise."""
        try:
            yield
        except Exception:
            self.abandon(holdings, now)
            if not (request.is_gone or request.is_waiting) and self._line.knows(request):
                self._line.end(request)
                text = "the broker has failed with this request, its log says how; ask again"
                self._outbox.send(request.connection, Refusal(request.number, Code.EXHAUSTED, text))
            raise
