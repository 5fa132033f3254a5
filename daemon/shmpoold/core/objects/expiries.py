"""Expiries: when the ttl of each shared publication is over that has one."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from ..chores import NEVER
from .holds import Publication

#: Moments that may be left of what has gone before its ttl was over.
MOST_LEFT = 1024


class Expiries:
    """Those of one pool, by the moment. One that goes before leaves nothing behind but its moment, and
    of these there are never more than of the others and `MOST_LEFT`."""

    def __init__(self) -> None:
        self._at: dict[float, dict[int, Publication]] = {}
        self._moments: list[float] = []

    def add(self, publication: Publication, moment: float) -> None:
        """It ends then."""
        publication.ends_at = moment
        if moment not in self._at:
            self._at[moment] = {}
            heappush(self._moments, moment)
        self._at[moment][publication.row] = publication

    def remove(self, publication: Publication) -> None:
        """It has gone; nothing happens where it has no ttl."""
        moment, publication.ends_at = publication.ends_at, None
        if moment is None:
            return
        del self._at[moment][publication.row]
        if not self._at[moment]:
            del self._at[moment]
            if len(self._moments) > 2 * len(self._at) + MOST_LEFT:
                self._moments = list(self._at)
                heapify(self._moments)

    @property
    def first(self) -> float:
        """When the next one ends."""
        while self._moments and self._moments[0] not in self._at:
            heappop(self._moments)
        return self._moments[0] if self._moments else NEVER

    def over(self, now: float, most: int) -> Iterator[Publication]:
        """Take out those whose time is over, so many at most."""
        for _ in range(most):
            moment = self.first
            if moment > now:
                return
            publication = next(iter(self._at[moment].values()))
            self.remove(publication)
            yield publication
