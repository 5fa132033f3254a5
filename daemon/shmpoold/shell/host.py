"""The configured limit against what this host can give, when a pool is made.

Only the new pool's own start is refused: one that is taken up has clients, who would rather have
a broker that runs short than none.
"""

from __future__ import annotations

import logging

from pydantic import ValidationError

from shmpool.errors import ConfigError
from shmpool.protocol.sizing import MIB, format_bytes
from shmpool.system.memory import fitting_limit, limiting_places, memory_groups, tightest_place

from ..config import Config

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
