"""Whether something grows: a least-squares slope with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

#: Samples close in time say the same: their means by so many stretches are fitted instead.
BLOCKS = 12


class Trend(NamedTuple):
    """Units a second: the slope, and two standard errors of it."""

    slope: float
    uncertainty: float

    @property
    def at_least(self) -> float:
        """What it grows by surely."""
        return self.slope - self.uncertainty


def trend_of(moments: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of values noted at these moments (seconds), at least `BLOCKS` of them."""
    xs, ys = _means(moments), _means(values)
    x_mean, y_mean = fmean(xs), fmean(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    slope = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    left = sum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Trend(slope, 2 * math.sqrt(left / (len(xs) - 2) / spread))


def _means(values: Sequence[float]) -> list[float]:
    if len(values) < BLOCKS:
        raise ValueError(f"a trend needs {BLOCKS} samples, there are {len(values)}")
    edges = [round(len(values) * block / BLOCKS) for block in range(BLOCKS + 1)]
    return [fmean(values[start:end]) for start, end in pairwise(edges)]
