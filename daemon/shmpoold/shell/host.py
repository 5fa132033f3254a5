"""What this host can give: the configured limit held against it when a pool is made, and read
again as long as we serve.

Only the new pool's own start is refused: one that is taken up has clients, who would rather have
a broker that runs short than none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from shmpool.errors import ConfigError
from shmpool.protocol.names import IS_APART, SHM_DIR
from shmpool.protocol.sizing import MIB, format_bytes
from shmpool.system import memory
from shmpool.system.memory import Place, fitting_limit, limiting_places, memory_groups, tightest_place

from ..config import Config
from ..core.events import MemoryRead
from ..core.memory.pressure import Level, Pressure, Room
from .repeats import Repeats

#: Seconds from one reading to the next: while memory is short or the pool changes, and at rest.
SOON: Final = 1.0
AT_REST: Final = 8.0

log = logging.getLogger(__name__)


def fit(config: Config, *, may_lower: bool) -> Config:
    """The configuration for a new pool. More than /dev/shm (less what others hold there) and the
    cgroup can give is refused with a ConfigError, or lowered with a warning where nobody asked for
    so much (*may_lower*)."""
    limit, place = config.memory_limit, tightest_place(limiting_places(memory_groups()))
    if place is None or place.free >= limit:
        return config
    fitting, fix = fitting_limit(limit, place), place.fix(limit)
    refusal = (
        f"memory_limit is {format_bytes(limit)}, more than this host can give: {place}. Lower memory_limit to"
        f" {format_bytes(fitting)} or less, or make room: {fix}"
    )
    if fitting < MIB:
        raise ConfigError(
            f"memory_limit is {format_bytes(limit)}, but there is no room for a pool: {place}. Make some: {fix}"
        )
    if not may_lower:
        raise ConfigError(refusal)
    try:
        lowered = Config(**{**{key: getattr(config, key) for key in Config.model_fields}, "memory_limit": fitting})
    except ValidationError:  # its tables alone, or its largest slot
        raise ConfigError(refusal) from None
    log.warning(
        "memory_limit is lowered from the usual %s to %s: %s. To have more: %s",
        format_bytes(limit), format_bytes(fitting), place, fix,
    )  # fmt: skip
    return lowered


def require_place(config: Config) -> None:
    """For who checks a configuration: raises ConfigError when this host could not hold its pool though it
    held nothing else. What is free now is not looked at: the pool that runs may have it."""
    try:
        places = limiting_places(memory_groups())
    except OSError as error:
        raise ConfigError(f"this host has no {SHM_DIR}: {error.strerror}") from error
    empty = [place._replace(free=place.total) for place in places]
    place = tightest_place(empty)
    if place is not None and place.total < config.memory_limit:
        most = place.total // MIB * MIB
        raise ConfigError(
            f"memory_limit is {format_bytes(config.memory_limit)}, more than this host can give: {place.name} has"
            f" {format_bytes(place.total)} in all. Lower memory_limit to {format_bytes(most)} or less,"
            f" or make room: {place.fix(config.memory_limit)}"
        )


class HostWatch:
    """Reads how much memory there is left, now and then, and tells the core by *dispatch*. *held*
    says how much the pool holds: while that does not change and memory is not short, less often."""

    def __init__(self, pressure: Pressure, held: Callable[[], int], dispatch: Callable[[MemoryRead], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._groups = memory_groups()
        self._pressure = pressure
        self._held = held
        self._dispatch = dispatch
        self._repeats = Repeats(log)
        self._last_held = -1
        self._period = SOON
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Read, now and from now on."""
        self._read()

    def stop(self) -> None:
        """Read no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._repeats.close()

    def _read(self) -> None:
        held = self._held()
        try:
            reading = read_memory(self._groups)
        except OSError as error:
            self._repeats.warning("cannot read how much memory there is: %s", error)
        else:
            self._dispatch(reading)
        is_quiet = held == self._last_held and self._pressure.level is Level.NORMAL
        self._period = min(2 * self._period, AT_REST) if is_quiet else SOON
        self._last_held = held
        self._timer = self._loop.call_later(self._period, self._read)


def read_memory(groups: list[memory.MemoryGroup]) -> MemoryRead:
    """How it is now. What neighbours leave of the whole host, and make it wait, is nothing to a pool that is set apart
    from theirs. Raises OSError."""
    rooms = [_room(place, bounds_pool=True) for place in limiting_places(groups)]
    if IS_APART:
        return MemoryRead(tuple(rooms), None)
    if (whole := memory.host()) is not None:
        rooms.append(_room(whole, bounds_pool=False))
    stall = memory.pressure(groups)
    return MemoryRead(tuple(rooms), None if stall is None else stall.some / 100)


def _room(place: Place, *, bounds_pool: bool) -> Room:
    return Room(place.name, place.total, place.free, is_shm=place.is_shm, bounds_pool=bounds_pool)
