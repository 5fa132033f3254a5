"""Shared publications: until when each is kept, and how it is found.

They are in the broker's custody from the first, and have no tickets: a client that opens one sends one
word, and another when its last view is gone (`holds`). One that nobody holds is freed, unless it is kept:
until it is dropped, or, as a cache, until the ladder needs its memory (`caches`).

After a restart each client tells its own holds again, and nothing is freed until every seat that was
taken then has told, or has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
from shmpool.protocol.messages import Drop, Dropped, Find, Held, Hold, Purpose, Refusal, Share
from shmpool.protocol.messages import Holds as HoldsMessage
from shmpool.protocol.sizing import TierKind

from ..chores import Chore, Chores, Lane
from ..connections.seats import Seat, Seats
from ..looks import Looks
from ..memory.holding import Holding
from ..memory.inventory import Inventory
from ..outbox import Outbox
from ..owners import Owner
from ..rows import Rows
from .caches import Caches
from .expiries import Expiries
from .holds import MOST_HOLDS, Holds, Publication
from .names import Names
from .queues import Queues

#: Who may drop what is another user's.
ROOT = 0
#: Those whose ttl is over that are dropped in one turn.
DROPPED_PER_TURN = 64


@dataclass(slots=True)
class Figures:
    """What is counted: finds since the broker began, and the caches and queues that there are."""

    hits: int = 0
    misses: int = 0
    cached: int = 0
    cached_bytes: int = 0
    queues: int = 0


class Shared(Owner):
    """Owns the shared publications."""

    def __init__(
        self,
        rows: Rows,
        inventory: Inventory,
        seats: Seats,
        chores: Chores,
        outbox: Outbox,
        free: Callable[[Holding, float], int],
        queues: Queues,
    ) -> None:
        super().__init__()
        self.queues = queues
        self._rows = rows
        self._inventory = inventory
        self._seats = seats
        self._chores = chores
        self._outbox = outbox
        self._free = free
        #: By row.
        self.publications: dict[int, Publication] = {}
        self._holds = Holds()
        self.names: Names[Publication] = Names(outbox, chores, self._find_for)
        self.caches = Caches(self._drop)
        self._expiries = Expiries()
        #: Those that may be nobody's now.
        self.looks = Looks(chores, self._look_at)
        #: By publisher that has not ended, its rows here.
        self._published: dict[int, set[int]] = {}
        #: Seats of an earlier broker's clients that have not told what they hold.
        self.untold: set[int] = set()
        self.figures = Figures()

    # --- publications ---------------------------------------------------------------------------------

    def accept(self, holding: Holding, now: float) -> Publication:
        """A row that says that it is a shared publication."""
        known = self.publications.get(holding.row)
        if known is not None and known.holding is holding:
            return known
        _, uid, _ = self._rows.shared_facts(holding.row)
        queue = self._rows.generation(holding.row) if self._rows.is_queue(holding.row) else None
        publication = self.publications[holding.row] = Publication(holding, "", uid, 0, queue)
        self.figures.queues += queue is not None
        self._keep(publication, tickets_of(self._rows.extent(holding.row)) & (KEPT | CACHED))
        self._inventory.hold(holding, self)
        if holding.publisher:
            self._published.setdefault(holding.publisher, set()).add(holding.row)
        return publication

    def _keep(self, publication: Publication, keep: int) -> None:
        """What keeps it without anybody who holds it."""
        more = (keep == CACHED) - (publication.keep == CACHED)
        self.figures.cached += more
        self.figures.cached_bytes += more * publication.holding.nbytes
        publication.keep = keep

    def adopt(self, holding: Holding, now: float) -> None:
        """One that an earlier broker has left: its name counts, and its ttl from now on."""
        self._announce(self.accept(holding, now), now)

    def lose(self, holding: Holding) -> None:
        """It is being freed."""
        super().lose(holding)
        publication = self.publications.pop(holding.row)
        self._keep(publication, 0)
        self.figures.queues -= publication.queue is not None
        self.caches.remove(publication)
        self._expiries.remove(publication)
        self.names.remove(publication.name, publication)
        self._forget_publisher(holding)
        self._holds.end(publication)

    def share(self, connection: int, seat: Seat, message: Share, now: float) -> str | None:
        """A client has made one. Told once more, after a connection was lost, it changes nothing; nor does it
        when the client has let go of it meanwhile, or an earlier broker had it from the client."""
        holding = self._inventory.granted.get(message.row)
        if not self._is_of(holding, seat, message):
            text = f"row {message.row} is no shared publication of this client any more"
            self._outbox.send(connection, Refusal(message.request, Code.NOT_FOUND, text))
            return None
        assert holding is not None
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
        if not self._hold_for(connection, seat.number, message.request, publication):
            self._drop(publication, now)
        return None

    def _is_of(self, holding: Holding | None, seat: Seat, message: Share) -> bool:
        """Whether a client may tell of it: it has published it, or has told that it holds it by this very number."""
        if holding is None or not self._rows.is_shared(message.row):
            return False
        known = self.publications.get(message.row)
        is_held = known is not None and known.holding is holding and (seat.number, message.request) in known.holders
        return is_held or holding.publisher == seat.number

    def _announce(self, publication: Publication, now: float, ttl: float = 0.0) -> None:
        """From here on it can be found. One whose name another has already has none."""
        publication.is_announced = True
        name, _, seconds = self._rows.shared_facts(publication.row)
        publication.name = name  # first: who waits for it is told
        if not name or not self.names.give(name, publication, now):
            publication.name = ""
            self._keep(publication, publication.keep & CACHED)  # nobody could drop it any more
        if ttl := ttl or float(seconds):
            self._expiries.add(publication, now + ttl)
        self._rest(publication)

    def take_over(self, holding: Holding, now: float) -> int:
        """Its publisher's seat ends: its number may soon be another's. Returns what it cost, in units."""
        publication = self.accept(holding, now)
        self._forget_publisher(holding)
        holding.publisher = BROKER
        if holding.tier.kind is TierKind.DIRECT:
            self._rows.disown(holding.row)
        if not publication.is_announced:
            self._announce(publication, now)
        return self.look(publication, now)

    def _forget_publisher(self, holding: Holding) -> None:
        rows = self._published.get(holding.publisher)
        if rows is not None:
            rows.discard(holding.row)
            if not rows:
                del self._published[holding.publisher]

    def published_by(self, seat: int) -> list[int]:
        """The rows here whose publisher has this seat."""
        return list(self._published.get(seat, ()))

    def publisher_of(self, row: int) -> int:
        """The seat in the extent word of a direct segment, while that has not ended."""
        seat = chunks_of(self._rows.extent(row))
        return seat if seat in self._seats.taken else BROKER

    def look(self, publication: Publication, now: float) -> int:
        """Free it if nobody holds it, nothing keeps it and nobody may yet tell that he holds it. One that
        somebody has scribbled on stays. Returns what it cost, in units."""
        holding = publication.holding
        if publication.holders or publication.keep or self.untold or holding.owner is not self:
            return 1
        if not publication.is_announced and holding.publisher:
            return 1
        if not self._rows.is_shared(holding.row):
            return 1
        cost = self._free(holding, now)
        if publication.queue is not None:
            self.queues.on_gone(holding.row, publication.queue, now)
        return cost

    def _look_at(self, row: int, now: float) -> int:
        publication = self.publications.get(row)
        return 1 if publication is None else self.look(publication, now)

    # --- holds ----------------------------------------------------------------------------------------

    def on_hold(self, connection: int, seat: Seat, message: Hold, now: float) -> None:
        """A client opens one for the first time."""
        publication = self.publications.get(message.row)
        if publication is None or generation_of(self._rows.grant(message.row)) != message.generation:
            text = "the shared publication is gone: nobody held it any more, or it was dropped"
            self._outbox.send(connection, Refusal(message.request, Code.NOT_FOUND, text))
            return
        self._hold_for(connection, seat.number, message.request, publication)

    def _hold_for(self, connection: int, seat: int, number: int, publication: Publication) -> bool:
        """Hold it for somebody and say so; False when that has too many holds."""
        if not self._holds.take(publication, seat, number):
            text = f"this client holds {MOST_HOLDS} shared publications; it has to let go of some"
            self._outbox.send(connection, Refusal(number, Code.QUOTA, text))
            return False
        self.caches.remove(publication)
        row = publication.row
        nbytes, name = nbytes_of(self._rows.extent(row)), publication.name
        self._outbox.send(connection, Held(number, row, self._rows.grant(row), nbytes, name))
        return True

    def _find_for(self, connection: int, seat: int, number: int, publication: Publication) -> None:
        """Somebody has found it."""
        self.figures.hits += 1
        self._hold_for(connection, seat, number, publication)

    def let_go(self, seat: Seat, numbers: Iterable[int], now: float) -> None:
        """A client's last views are gone, or it does not make what it had the turn for."""
        rows = []
        for number in numbers:
            publication = self._holds.leave(seat.number, number)
            self.names.give_up(seat.number, number)
            if publication is not None:
                self._rest(publication)
                rows.append(publication.row)
        self.looks.begin(rows, now)

    def _let_go_of(self, seat: int, numbers: Iterable[int]) -> Chore:
        """The same, for many."""
        for number in numbers:
            publication = self._holds.leave(seat, number)
            if publication is None:
                yield 1
                continue
            self._rest(publication)
            yield 1 + self.look(publication, self._chores.now)

    def _rest(self, publication: Publication) -> None:
        if publication.keep == CACHED and not publication.holders:
            self.caches.add(publication)

    def on_holds(self, connection: int, seat: Seat, message: HoldsMessage, now: float) -> str | None:
        """A client that had lost its connection tells all that it holds. Returns what is wrong with it."""
        untold = self._holds.begin_telling(connection, seat.number)
        for number, row, generation in message.holds:
            publication = self.publications.get(row)
            if publication is not None and generation_of(self._rows.grant(row)) == generation:
                if not self._holds.take(publication, seat.number, number):
                    return f"more than {MOST_HOLDS} holds"
                self.caches.remove(publication)
                untold.discard(number)
        if message.last:
            self._holds.end_telling(connection)
            if untold:
                self._chores.begin(self._let_go_of(seat.number, untold), now, Lane.SHARED)
            self._has_told(seat.number, now)
        return None

    def stop_telling(self, connection: int) -> None:
        """A connection is gone; its client tells all of it again over the next one."""
        self._holds.end_telling(connection)

    def _has_told(self, seat: int, now: float) -> None:
        if seat in self.untold:
            self.untold.discard(seat)
            self.look_at_all(now)

    def look_at_all(self, now: float) -> None:
        """Free what nobody holds, once everybody has told."""
        if not self.untold:
            self.looks.soon(self.publications, now)

    def may_hold(self, seat: int) -> bool:
        """Whether a seat holds any, or may."""
        return seat in self.untold or bool(self._holds.of(seat))

    def forget(self, seat: int) -> Chore:
        """A seat has ended, and nobody reads any more what it had open."""
        yield from self._let_go_of(seat, list(self._holds.of(seat)))
        self._has_told(seat, self._chores.now)

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
        self.caches.remove(publication)
        self._keep(publication, 0)
        publication.name, publication.is_announced = "", True
        return self.look(publication, now)

    def give_up(self, tier: int | None, now: float) -> int:
        """Give up a cache that nobody holds, of a tier or any. Returns its bytes, 0 when there is none."""
        return 0 if self.untold else self.caches.give_up(tier, now)

    # --- time --------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float:
        """When `tick` is due."""
        return min(self._expiries.first, self.looks.next_deadline)

    def tick(self, now: float) -> None:
        """Drop those whose ttl is over, some in each turn."""
        self.looks.tick(now)
        for publication in self._expiries.over(now, DROPPED_PER_TURN):
            self._drop(publication, now)

    # --- figures -----------------------------------------------------------------------------------------

    def holders_of(self, row: int) -> tuple[int, ...] | None:
        """The seats that hold a shared publication; None for a row that is none."""
        publication = self.publications.get(row)
        return None if publication is None else tuple(sorted({seat for seat, _ in publication.holders}))

    def maker_of(self, row: int) -> int:
        """The seat for which a shared publication counts, while that has not ended; the broker's for a cache
        that nobody holds, which is given up for whoever needs it."""
        publication = self.publications.get(row)
        if publication is None or (publication.keep == CACHED and not publication.holders):
            return BROKER
        return publication.holding.publisher

    @property
    def holds(self) -> int:
        """How many there are."""
        return len(self._holds)

    def summary(self) -> dict[str, int]:
        """For the stats."""
        figures = self.figures
        return {
            "publications": len(self.publications),
            "queues": figures.queues,
            "bytes": self.nbytes,
            "names": len(self.names),
            "holds": len(self._holds),
            "cached": figures.cached,
            "cached_bytes": figures.cached_bytes,
            "idle_bytes": self.caches.nbytes,
            "hits": figures.hits,
            "misses": figures.misses,
            "evictions": self.caches.evictions,
        }
