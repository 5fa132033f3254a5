"""Which magazine serves which size: the tables of one seat."""

from __future__ import annotations

from ..errors import InvalidSize
from ..protocol.sizing import PAGE_SHIFT, Tier, TierKind, chunk_run, pooled_tier
from .deferred import DeferredReleases
from .magazine import Magazine
from .records import Reader
from .segments import Segments
from .slot import Keeper


class Magazines(Keeper, Reader):
    """The magazines of one seat; a base of `Session`. Thread-safe."""

    deferred: DeferredReleases

    def apply(self, settings: list[list[int]]) -> None:
        """Take over settings, of a welcome or changed since."""
        super().apply(settings)
        if hasattr(self, "magazines"):
            self._choose_fast_path()

    @property
    def _pooled_limit(self) -> int:
        """Objects below this size are pooled."""
        sizing = self.sizing
        return min(sizing.large_object_threshold, sizing.pooled_sizes[-1] + 1) if sizing.is_pooling else 0

    def _choose_fast_path(self) -> None:
        """Leases below these sizes look for a magazine before anything else, larger ones for a shelf: none
        while direct segments are preferred."""
        self.pooled_below = 0 if self.prefers_direct else self._pooled_limit
        self.chunked_below = 0 if self.prefers_direct else self.sizing.very_large_object_threshold
        self.shelves = {} if self.prefers_direct else self.segments.shelves

    def _make_tables(self) -> None:
        """Size in pages -> magazine, so that choosing one costs a look-up. A size that is
        exactly a threshold is told apart by the caller."""
        sizing = self.sizing
        self._make_timed()
        #: The direct segments that are kept.
        self.segments = Segments(self, self.tiers[-1])
        self._choose_fast_path()
        self.magazines: dict[tuple[int, int], Magazine] = {}
        self.pooled: list[Magazine] = []
        for pages in range((self._pooled_limit - 1 >> PAGE_SHIFT) + 2):
            tier = pooled_tier(pages << PAGE_SHIFT, self.tiers) or self.tiers[len(sizing.pooled_sizes) - 1]
            self.pooled.append(self.magazine(tier, 1))
        # Filled on demand; the very-large threshold may be far up.
        self.chunked: dict[int, Magazine] = {}

    def magazine(self, tier: Tier, chunks: int) -> Magazine:
        """The magazine of a tier's slots or of its runs of a length."""
        key = tier.index, chunks
        return self.magazines.get(key) or self.magazines.setdefault(key, Magazine(self, tier, chunks))

    @property
    def all_magazines(self) -> list[Magazine]:
        """With the shelves of what is kept."""
        return [*self.magazines.copy().values(), *self.segments.in_use]

    def run_magazine(self, nbytes: int) -> Magazine:
        """The magazine of the runs that hold *nbytes* bytes with least waste."""
        choice = chunk_run(nbytes, self.tiers)
        if choice is None:
            largest = max((t.size * t.capacity for t in self.tiers if t.kind is TierKind.CHUNK), default=0)
            raise InvalidSize(
                f"{nbytes} bytes fit no chunk tier of this pool, the largest holds {largest}: lease them DIRECT"
            )
        return self.magazine(*choice)
