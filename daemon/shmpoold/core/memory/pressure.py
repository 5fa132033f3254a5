"""Memory pressure: how short the host is of memory, in three levels.

Judged by what the shell reads of the host, a reading at a time. It rises at once and falls
slowly: only what is better than the threshold by a margin, and for a while, ends a level. What
follows from a level is the manager's to do.
"""

from __future__ import annotations

from collections import Counter
from enum import IntEnum
from typing import Final, NamedTuple

from shmpool.protocol.sizing import format_bytes

#: By how much a reading must be better than the threshold to end a level: times as much free
#: memory, a part of the stalls; and for how many seconds.
EASE_FREE: Final = 1.25
EASE_STALL: Final = 0.5
CALM: Final = 5.0
#: What is missing of the limit is told from this part of it on.
NOTABLE: Final = 0.05


class Level(IntEnum):
    """How short the host is of memory."""

    NORMAL = 0
    ELEVATED = 1
    """What is idle is given back."""
    CRITICAL = 2
    """The pool does not grow."""


class Room(NamedTuple):
    """One place that bounds the pool's memory, in bytes: /dev/shm, a cgroup, the host. *is_shm*:
    only shared memory counts there, ours is not in others' way, and a full one kills nobody;
    *bounds_pool* is false for the host's memory, which the limit is not held against."""

    name: str
    total: int
    free: int
    is_shm: bool = False
    bounds_pool: bool = True


class Thresholds(NamedTuple):
    """Where elevated and critical begin, as parts of one: less free memory than *free*, more of
    the time stalled than *stall*."""

    free: tuple[float, float] = (0.10, 0.04)
    stall: tuple[float, float] = (0.20, 0.60)


class Pressure:
    """The level of now, why, and how often each was reached."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self.level = Level.NORMAL
        #: For people: what is short. Empty while nothing is.
        self.why = ""
        self.changes: Counter[Level] = Counter()
        self._rooms: tuple[Room, ...] = ()
        self._calm_since: float | None = None

    def read(self, rooms: tuple[Room, ...], stalled: float | None, held: int, now: float) -> bool:
        """Judge a reading, while *held* bytes are the pool's. Whether the level has changed."""
        self._rooms = rooms
        target, why = self._judge(rooms, stalled, held)
        if target >= self.level:
            self._calm_since = None
            self.why = why
            return self._set(target)
        eased, eased_why = self._judge(rooms, stalled, held, EASE_FREE, EASE_STALL)
        if eased >= self.level:
            self._calm_since = None
            return False
        if self._calm_since is None:
            self._calm_since = now
        if now - self._calm_since < CALM:
            return False
        self._calm_since = None
        self.why = eased_why
        return self._set(eased)

    def _set(self, level: Level) -> bool:
        if level == self.level:
            return False
        self.level = level
        self.changes[level] += 1
        return True

    def _judge(
        self, rooms: tuple[Room, ...], stalled: float | None, held: int, more_free: float = 1.0, less_stall: float = 1.0
    ) -> tuple[Level, str]:
        """The level of the worst place, and what is short there."""
        worst, why = Level.NORMAL, ""
        for room in rooms:
            share = _free_share(room, held)
            level = _level(*(share < more_free * bound for bound in self.thresholds.free))
            if room.is_shm:
                level = min(level, Level.ELEVATED)  # who finds it full gets an error, and nobody is killed
            if level > worst:
                worst, why = level, f"{room.name} has {format_bytes(max(0, room.free))} free of "
                why += format_bytes(room.total)
        if stalled is not None:
            level = _level(*(bound < 1 and stalled > less_stall * bound for bound in self.thresholds.stall))
            if level > worst:
                worst, why = level, f"tasks waited for memory {stalled:.0%} of the last 10 s"
        return worst, why

    def shortfall(self, limit: int, held: int) -> str:
        """A sentence when a place that the limit was held against no longer has room for all of it."""
        for room in self._rooms:
            if room.bounds_pool and limit - held - max(0, room.free) > NOTABLE * limit:
                return (
                    f"memory_limit is {format_bytes(limit)} and {format_bytes(held)} are held, but {room.name} has only"
                    f" {format_bytes(max(0, room.free))} left: make room there, or lower memory_limit"
                )
        return ""


def _level(is_elevated: bool, is_critical: bool) -> Level:
    """By which thresholds a reading is beyond."""
    return Level.CRITICAL if is_critical else Level.ELEVATED if is_elevated else Level.NORMAL


def _free_share(room: Room, held: int) -> float:
    """The free part of a place; of /dev/shm that of what is not ours."""
    total = room.total - held if room.is_shm else room.total
    return room.free / total if total > 0 else 1.0
