"""How much of what is granted was granted since a moment: before that it was nobody's, if only for an instant.

Who waits for more than that and what is nobody's now is not held up by those who come between, but by
what has been out all along. Time is told in periods; of many the older ones are joined.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from shmpool.protocol.sizing import TierKind

from .holding import Holding

#: Bytes of whatever tier; the chunks of a chunk tier go by its index.
BYTES: Final = -1
#: Seconds of a period at least, unless it is asked for, and after how many those are joined that are shorter
#: than that part of their age.
PERIOD, PERIODS, FINENESS = 0.1, 512, 32


class Turnover:
    """What is granted, in bytes and in chunks of each tier, by the period in which it was."""

    def __init__(self) -> None:
        #: When each began; what was granted just then is the former's.
        self._starts = [float("-inf")]
        self._amounts: list[dict[int, int]] = [{}]
        #: When the next one begins, with what is granted later.
        self._due = float("inf")
        #: By kind, what is out of each period and those after it; made when it is asked for.
        self._sums: dict[int, list[int]] = {}

    def mark(self, now: float, *, exactly: bool = False) -> None:
        """Somebody will ask what was granted since now: a period begins, or soon if one has just now."""
        self._begin_if_due(now)
        begins = now if exactly else max(now, self._starts[-1] + PERIOD)
        if begins <= now:
            self._begin(now)
        else:
            self._due = begins

    def _begin_if_due(self, now: float) -> None:
        if now > self._due:
            self._begin(self._due)

    def _begin(self, at: float) -> None:
        self._due = float("inf")
        if at > self._starts[-1]:
            self._starts.append(at)
            self._amounts.append({})
            if len(self._starts) > PERIODS:
                self._join_older()
            self._sums.clear()

    def _join_older(self) -> None:
        """Neighbours that are short for their age become one period."""
        starts, amounts = [self._starts[0]], [self._amounts[0]]
        now = self._starts[-1]
        for start, more, end in zip(self._starts[1:], self._amounts[1:], [*self._starts[2:], now], strict=True):
            if end - starts[-1] <= (now - end) / FINENESS:
                for kind, amount in more.items():
                    amounts[-1][kind] = amounts[-1].get(kind, 0) + amount
            else:
                starts.append(start)
                amounts.append(more)
        self._starts, self._amounts = starts, amounts

    def since(self, moment: float, kind: int) -> int:
        """What is out of what was granted in periods that began then or later: bytes, or chunks of a tier by
        its index."""
        sums = self._sums.get(kind)
        if sums is None:
            sums = self._sums[kind] = [0]
            for amounts in reversed(self._amounts):
                sums.append(sums[-1] + amounts.get(kind, 0))
            sums.reverse()
        return sums[bisect_left(self._starts, moment)]

    def add(self, holding: Holding, times: int = 1) -> None:
        """It was granted; or so many like it, at one time."""
        self._begin_if_due(holding.granted_at)
        self._count(holding, times)

    def remove(self, holding: Holding) -> None:
        """It is nobody's any more."""
        self._count(holding, -1)

    def _count(self, holding: Holding, times: int) -> None:
        amounts = self._amounts[bisect_left(self._starts, holding.granted_at) - 1]
        amounts[BYTES] = amounts.get(BYTES, 0) + times * holding.nbytes
        if holding.tier.kind is TierKind.CHUNK:
            index = holding.tier.index
            amounts[index] = amounts.get(index, 0) + times * holding.chunks
        self._sums.clear()
