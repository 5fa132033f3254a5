"""Caches: shared publications that are kept until somebody needs their memory, and that nobody holds just now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from .holds import Publication


class Caches:
    """Those that nobody holds, whoever was held longest ago first. *drop(publication, now)* is called to
    give one up."""

    def __init__(self, drop: Callable[[Publication, float], object]) -> None:
        self._drop = drop
        #: All by row, and the same by tier.
        self._idle: OrderedDict[int, Publication] = OrderedDict()
        self._by_tier: dict[int, OrderedDict[int, Publication]] = {}
        #: Bytes of these.
        self.nbytes = 0
        #: How many were given up, since the broker began.
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._idle)

    def add(self, publication: Publication) -> None:
        """Nobody holds it any more."""
        if publication.row not in self._idle:
            self._idle[publication.row] = publication
            self._by_tier.setdefault(publication.holding.tier.index, OrderedDict())[publication.row] = publication
            self.nbytes += publication.holding.nbytes

    def remove(self, publication: Publication) -> None:
        """Somebody holds it, or it is no cache any more; nothing happens when it is not here."""
        if self._idle.pop(publication.row, None) is not None:
            del self._by_tier[publication.holding.tier.index][publication.row]
            self.nbytes -= publication.holding.nbytes

    def give_up(self, tier: int | None, now: float) -> int:
        """Give up the one that was held longest ago, of a tier or any. Returns its bytes, 0 when there is none."""
        idle = self._idle if tier is None else self._by_tier.get(tier)
        if not idle:
            return 0
        publication = next(iter(idle.values()))
        nbytes = publication.holding.nbytes
        self.remove(publication)
        self.evictions += 1
        self._drop(publication, now)
        return nbytes
