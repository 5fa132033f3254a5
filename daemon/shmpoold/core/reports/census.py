"""The census as the broker takes it: the ledger walked in slices, a chore, with ages."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from shmpool.protocol.census import Census, Kept, held_rows, read, slices, snapshot
from shmpool.protocol.ledger import ROW_BYTES
from shmpool.protocol.sizing import Tier, TierKind

from ..memory.inventory import Inventory
from ..objects.shared import Shared
from ..rows import Rows
from .ages import Ages, SliceAges

#: Rows of a slice that cost a unit where nobody has anything, and where somebody has; and what
#: each row that is somebody's costs; and how many that have changed cost one more.
EMPTY_ROWS, OTHER_ROWS, HELD_ROW, CHANGED_ROWS = 128, 48, 2, 4
#: Such rows that are read in one step.
ROWS_PER_STEP = 32
#: Of a shared publication, those who hold it that cost one more.
HOLDERS_PER_UNIT = 8


class Found(NamedTuple):
    """Some buffers of one slice; by row, from *first* on, since when each is leased or published,
    and since when its tickets are as they are."""

    kept: list[Kept]
    first: int
    since: Sequence[float]
    changed: Sequence[float]


class Ledger:
    """The rows, read again and again, and what was noted of their ages."""

    def __init__(self, rows: Rows, inventory: Inventory, shared: Shared, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._inventory = inventory
        self._shared = shared
        self._clock = clock
        self.ages = Ages()

    def look(self) -> Iterator[int]:
        """A chore: note what has changed."""
        for _, _, raw, held, ages in self._walk():
            yield _cost(raw, held, ages)

    def take_census(self) -> Generator[int, None, Census]:
        """A chore: who keeps what."""
        census = Census()
        for found in self.find():
            if isinstance(found, int):
                yield found
                continue
            census.add(*found)
            for one in found.kept:
                if one.is_shared:
                    yield self._count_holders(census, one)
        return census

    def _known(self, kept: Kept) -> Kept:
        """With what the ledger does not say: who has made what is shared (what the ladder would give up is
        nobody's), and how long a direct segment is beyond its object."""
        holding = self._inventory.granted.get(kept.row) if kept.tier.kind is TierKind.DIRECT else None
        nbytes = kept.nbytes if holding is None else max(kept.nbytes, holding.direct_bytes)
        return kept._replace(seat=self._shared.maker_of(kept.row) if kept.is_shared else kept.seat, nbytes=nbytes)

    def _count_holders(self, census: Census, kept: Kept) -> int:
        holders = self._shared.holders_of(kept.row) or ()
        census.hold(kept, (seat for seat in holders if seat != self._shared.maker_of(kept.row)))
        return 1 + len(holders) // HOLDERS_PER_UNIT

    def find(self, limit: float | None = None) -> Iterator[int | Found]:
        """Everything that is somebody's, or what says the same since *limit*; the numbers between are
        costs."""
        # What a row says that is not granted is a scribble.
        granted = self._inventory.granted
        for tier, first, raw, held, ages in self._walk():
            yield _cost(raw, held, ages)
            if limit is not None and ages is not None:
                held = [at for at in held if ages.since[at] <= limit]
            for at in range(0, len(held), ROWS_PER_STEP):
                kept = read(self._rows.words, raw, tier, first, held[at : at + ROWS_PER_STEP], granted)
                if tier.kind is TierKind.DIRECT or self._shared.publications:
                    kept = [
                        self._known(one) if one.is_shared or one.tier.kind is TierKind.DIRECT else one for one in kept
                    ]
                if ages is not None:
                    yield Found(kept, first, ages.since, ages.changed)
                yield len(kept) * HELD_ROW

    def _walk(self) -> Iterator[tuple[Tier, int, bytes, list[int], SliceAges | None]]:
        """All slices; of one where nothing is granted no byte is read."""
        for tier, first, end in slices(self._inventory.tiers):
            if not self._inventory.has_any(first, end):
                self.ages.forget(first)
                yield tier, first, b"", [], None
                continue
            raw = snapshot(self._rows.words, first, end)
            held, ages = held_rows(raw), None
            if held:
                ages = self.ages.look(first, raw, self._clock())
            else:
                self.ages.forget(first)
            yield tier, first, raw, held, ages

    def sample(self, rows: Sequence[int]) -> Census:
        """A census of some rows that are granted, at once."""
        census = Census()
        for row in rows:
            raw = snapshot(self._rows.words, row, row + 1)
            found = read(self._rows.words, raw, self._inventory.granted[row].tier, row, held_rows(raw))
            kept = [self._known(one) if one.is_shared or one.tier.kind is TierKind.DIRECT else one for one in found]
            census.add(kept)
            for one in kept:
                if one.is_shared:
                    self._count_holders(census, one)
        return census

    @property
    def holds(self) -> int:
        """How many holds a census counts."""
        return self._shared.holds


def _cost(raw: bytes, held: list[int], ages: SliceAges | None) -> int:
    changed = 0 if ages is None else ages.differing // CHANGED_ROWS
    return 1 + len(raw) // ROW_BYTES // (OTHER_ROWS if held else EMPTY_ROWS) + changed
