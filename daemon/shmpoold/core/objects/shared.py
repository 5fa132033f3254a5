"""Shared publications: who holds each, until when it is kept, and how it is found.

They are in the broker's custody from the first, and have no tickets: a client that opens one sends one
word, and another when its last view is gone. A **hold** goes by its seat and the number of the request
that asked for it. One that nobody holds is freed, unless it is kept: until it is dropped, or, as a
cache, until the ladder needs its memory.

Holds are no part of the ledger. After a restart each client tells its own again, and nothing is freed
until every seat that was taken then has told, or has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from shmpool.protocol.codes import Code
from shmpool.protocol.ledger import (
    BROKER,
    CACHED,
    KEPT,
    chunks_of,
    generation_of,
    nbytes_of,
    tickets_of,
)
from shmpool.protocol.messages import Drop, Dropped, Find, Held, Hold, Holds, Purpose, Refusal, Share
from shmpool.protocol.sizing import TierKind

from ..chores import NEVER
from ..connections.seats import Seat, Seats
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..outbox import Outbox
from ..owners import Owner
from ..rows import Rows
from .names import Names

#: Who may drop what is another user's.
ROOT = 0


@dataclass(slots=True, eq=False)
class Publication:
    """One of them. *name* is empty where it has none, or has lost it."""

    holding: Holding
    name: str
    #: Its maker's.
    uid: int
    #: KEPT, CACHED, or neither.
    keep: int
    #: Its maker has told of it; else it may just not have come to that.
    is_announced: bool = False
    #: (seat, number) of every hold.
    holders: set[tuple[int, int]] = field(default_factory=set)

    @property
    def row(self) -> int:
        """Its head."""
        return self.holding.row


@dataclass(slots=True)
class Figures:
    """What is counted, since the broker began."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class Shared(Owner):
    """Owns the shared publications."""

    def __init__(
        self,
        rows: Rows,
        inventory: Inventory,
        seats: Seats,
        outbox: Outbox,
        free: Callable[[Holding, float], int],
    ) -> None:
        super().__init__()
        self._rows = rows
        self._inventory = inventory
        self._seats = seats
        self._outbox = outbox
        self._free = free
        #: By row.
        self.publications: dict[int, Publication] = {}
        #: By seat and number.
        self._holds: dict[int, dict[int, Publication]] = {}
        self.names: Names[Publication] = Names(outbox, self._hold_for)
        #: Caches that nobody holds, whoever was held longest ago first.
        self.idle: dict[int, Publication] = {}
        #: When each with a ttl is dropped.
        self._ends: list[tuple[float, int, Publication]] = []
        self._numbers = count()
        #: By publisher that has not ended, its rows here.
        self._published: dict[int, set[int]] = {}
        #: Seats of an earlier broker's clients that have not told what they hold; and what has been told
        #: in messages that were not the last.
        self.untold: set[int] = set()
        self._told: dict[int, list[list[int]]] = {}
        self.figures = Figures()

    # --- publications ---------------------------------------------------------------------------------

    def accept(self, holding: Holding, now: float) -> Publication:
        """A row that says that it is a shared publication."""
        known = self.publications.get(holding.row)
        if known is not None and known.holding is holding:
            return known
        _, uid, _ = self._rows.shared_facts(holding.row)
        keep = tickets_of(self._rows.extent(holding.row)) & (KEPT | CACHED)
        publication = self.publications[holding.row] = Publication(holding, "", uid, keep)
        self._inventory.hold(holding, self)
        if holding.publisher:
            self._published.setdefault(holding.publisher, set()).add(holding.row)
        return publication

    def adopt(self, holding: Holding, now: float) -> None:
        """One that an earlier broker has left: its name counts, and its ttl from now on."""
        self._announce(self.accept(holding, now), now)

    def lose(self, holding: Holding) -> None:
        """It is being freed."""
        super().lose(holding)
        publication = self.publications.pop(holding.row)
        self.idle.pop(holding.row, None)
        self.names.remove(publication.name, publication)
        self._forget_publisher(holding)
        for seat, number in publication.holders:
            self._holds[seat].pop(number, None)

    def share(self, connection: int, seat: Seat, message: Share, now: float) -> str | None:
        """A client has made one. Told once more, after a connection was lost, it changes nothing."""
        holding = self._inventory.granted.get(message.row)
        if holding is None or holding.publisher != seat.number or not self._rows.is_shared(message.row):
            return f"row {message.row} is no shared publication of this client"
        publication = self.accept(holding, now)
        name, _, _ = self._rows.shared_facts(message.row)
        if not publication.is_announced:
            if name and not self.names.is_free_for(name, seat.number, message.turn):
                text = f"the name {name!r} is taken"
                self._outbox.send(connection, Refusal(message.request, Code.NAME_TAKEN, text))
                self._drop(publication, now)
                return None
            publication.uid = seat.peer.uid  # by the kernel's word, not by the client's
            self._rows.note_maker(message.row, seat.peer.uid)
            self._announce(publication, now, message.ttl_ms / 1000)
        self._hold(publication, seat.number, message.request)
        self._tell(connection, publication, message.request)
        return None

    def _announce(self, publication: Publication, now: float, ttl: float = 0.0) -> None:
        """From here on it can be found. One whose name another has already has none."""
        publication.is_announced = True
        name, _, seconds = self._rows.shared_facts(publication.row)
        publication.name = name  # first: who waits for it is told
        if not name or not self.names.give(name, publication):
            publication.name = ""
            publication.keep &= CACHED  # nobody could drop it any more
        if ttl := ttl or float(seconds):
            heappush(self._ends, (now + ttl, next(self._numbers), publication))
        self._rest(publication)

    def take_over(self, holding: Holding, now: float) -> None:
        """Its publisher's seat ends: its number may soon be another's."""
        publication = self.accept(holding, now)
        self._forget_publisher(holding)
        holding.publisher = BROKER
        if holding.tier.kind is TierKind.DIRECT:
            self._rows.disown(holding.row)
        if not publication.is_announced:
            self._announce(publication, now)
        self.look(publication, now)

    def _forget_publisher(self, holding: Holding) -> None:
        rows = self._published.get(holding.publisher)
        if rows is not None:
            rows.discard(holding.row)
            if not rows:
                del self._published[holding.publisher]

    def published_by(self, seat: int) -> list[int]:
        """The rows here whose publisher has this seat."""
        return list(self._published.get(seat, ()))

    def look(self, publication: Publication, now: float) -> int:
        """Free it if nobody holds it, nothing keeps it and nobody may yet tell that he holds it. One that
        somebody has scribbled on stays. Returns what it cost, in units."""
        holding = publication.holding
        if publication.holders or publication.keep or self.untold or holding.owner is not self:
            return 1
        if not publication.is_announced and holding.publisher:
            return 1
        return self._free(holding, now) if self._rows.is_shared(holding.row) else 1

    # --- holds ----------------------------------------------------------------------------------------

    def on_hold(self, connection: int, seat: Seat, message: Hold, now: float) -> None:
        """A client opens one for the first time."""
        publication = self.publications.get(message.row)
        if publication is None or generation_of(self._rows.grant(message.row)) != message.generation:
            text = "the shared publication is gone: nobody held it any more, or it was dropped"
            self._outbox.send(connection, Refusal(message.request, Code.NOT_FOUND, text))
            return
        self._hold(publication, seat.number, message.request)
        self._tell(connection, publication, message.request)

    def _hold_for(self, connection: int, seat: int, number: int, publication: Publication) -> None:
        """Somebody has found it."""
        self.figures.hits += 1
        self._hold(publication, seat, number)
        self._tell(connection, publication, number)

    def _hold(self, publication: Publication, seat: int, number: int) -> None:
        holds = self._holds.setdefault(seat, {})
        before = holds.get(number)
        if before is not None and before is not publication:
            before.holders.discard((seat, number))
        holds[number] = publication
        publication.holders.add((seat, number))
        self.idle.pop(publication.row, None)

    def _tell(self, connection: int, publication: Publication, number: int) -> None:
        row = publication.row
        nbytes, name = nbytes_of(self._rows.extent(row)), publication.name
        self._outbox.send(connection, Held(number, row, self._rows.grant(row), nbytes, name))

    def let_go(self, seat: Seat, numbers: Iterable[int], now: float) -> None:
        """A client's last views are gone, or it does not make what it had the turn for."""
        for number in numbers:
            self._let_go(seat.number, number, now)
            self.names.give_up(seat.number, number)

    def _let_go(self, seat: int, number: int, now: float) -> int:
        holds = self._holds.get(seat, {})
        publication = holds.pop(number, None)
        if not holds:
            self._holds.pop(seat, None)
        if publication is None:
            return 1
        publication.holders.discard((seat, number))
        self._rest(publication)
        return self.look(publication, now)

    def _rest(self, publication: Publication) -> None:
        if publication.keep == CACHED and not publication.holders:
            self.idle[publication.row] = publication

    def on_holds(self, seat: Seat, message: Holds, now: float) -> None:
        """A client that had lost its connection tells all that it holds."""
        told = self._told.setdefault(seat.number, [])
        told += message.holds
        if not message.last:
            return
        del self._told[seat.number]
        numbers = set()
        for number, row, generation in told:
            publication = self.publications.get(row)
            if publication is not None and generation_of(self._rows.grant(row)) == generation:
                self._hold(publication, seat.number, number)
                numbers.add(number)
        for number in set(self._holds.get(seat.number, ())) - numbers:
            self._let_go(seat.number, number, now)
        self._has_told(seat.number, now)

    def _has_told(self, seat: int, now: float) -> None:
        if seat in self.untold:
            self.untold.discard(seat)
            self.look_at_all(now)

    def look_at_all(self, now: float) -> None:
        """Free what nobody holds, once everybody has told."""
        if not self.untold:
            for publication in list(self.publications.values()):
                self.look(publication, now)

    def may_hold(self, seat: int) -> bool:
        """Whether a seat holds any, or may."""
        return seat in self.untold or bool(self._holds.get(seat))

    def forget(self, seat: int, now: float) -> int:
        """A seat has ended, and nobody reads any more what it had open. Returns what it cost."""
        cost = 1
        for number in list(self._holds.get(seat, ())):
            cost += self._let_go(seat, number, now)
        self._told.pop(seat, None)
        self._has_told(seat, now)
        return cost

    # --- names -----------------------------------------------------------------------------------------

    def find(self, connection: int, seat: Seat, message: Find, now: float) -> None:
        """Somebody wants what has a name, or to make it."""
        if message.name not in self.names and message.purpose != Purpose.CLAIM:
            self.figures.misses += 1
        self.names.find(connection, seat.number, message)

    def on_drop(self, connection: int, seat: Seat, message: Drop, now: float) -> None:
        """Somebody wants a name to be free: its maker's user may, and root."""
        request, name = message
        publication = self.names.holder(name)
        if publication is None:
            text = f"there is no shared publication {name!r}"
            self._outbox.send(connection, Refusal(request, Code.NOT_FOUND, text))
        elif seat.peer.uid not in (publication.uid, ROOT):
            text = f"{name!r} is of uid {publication.uid}, who alone may drop it, and root"
            self._outbox.send(connection, Refusal(request, Code.FORBIDDEN, text))
        else:
            self._drop(publication, now)
            self._outbox.send(connection, Dropped(request))

    def _drop(self, publication: Publication, now: float) -> int:
        """Who holds it keeps it."""
        self._rows.unname(publication.row)
        self.names.remove(publication.name, publication)
        publication.name, publication.keep, publication.is_announced = "", 0, True
        self.idle.pop(publication.row, None)
        return self.look(publication, now)

    # --- as a cache --------------------------------------------------------------------------------------

    def give_up(self, nbytes: int, now: float, tier: int | None) -> int:
        """Give up caches that nobody holds, of one tier or any, least recently held first, until so many
        bytes are nobody's; none, if all of them and what is idle are less. Returns how many bytes."""
        if not self.idle or self.untold:
            return 0
        idle = [one for one in self.idle.values() if tier is None or one.holding.tier.index == tier]
        if tier is None and sum(one.holding.nbytes for one in idle) + self._inventory.idle < nbytes:
            return 0
        freed = 0
        while freed < nbytes and idle:
            publication = idle.pop(0)
            freed += publication.holding.nbytes
            self.figures.evictions += 1
            self._drop(publication, now)
        return freed

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        return self._ends[0][0] if self._ends else NEVER

    def tick(self, now: float) -> None:
        """Drop those whose ttl is over."""
        while self._ends and self._ends[0][0] <= now:
            _, _, publication = heappop(self._ends)
            if self.publications.get(publication.row) is publication:
                self._drop(publication, now)

    def holders_of(self, row: int) -> tuple[int, ...] | None:
        """The seats that hold a shared publication; None for a row that is none."""
        publication = self.publications.get(row)
        return None if publication is None else tuple(sorted({seat for seat, _ in publication.holders}))

    # --- figures -----------------------------------------------------------------------------------------

    def summary(self) -> dict[str, int]:
        """For the stats."""
        cached = [one.holding.nbytes for one in self.publications.values() if one.keep == CACHED]
        return {
            "publications": len(self.publications),
            "bytes": self.nbytes,
            "names": len(self.names),
            "holds": sum(map(len, self._holds.values())),
            "cached": len(cached),
            "cached_bytes": sum(cached),
            "idle_bytes": sum(one.holding.nbytes for one in self.idle.values()),
            "hits": self.figures.hits,
            "misses": self.figures.misses,
            "evictions": self.figures.evictions,
        }

    def publisher_of(self, row: int) -> int:
        """The seat in the extent word of a direct segment, while that has not ended."""
        seat = chunks_of(self._rows.extent(row))
        return seat if seat in self._seats.taken else BROKER
