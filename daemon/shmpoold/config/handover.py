"""What the core is handed of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shmpool.protocol.sizing import Tier, TierKind

from ..core.memory.pressure import Thresholds
from ..core.settings import Allocation, Floor, Settings, UnderPressure

if TYPE_CHECKING:
    from .declaration import Config

#: What is reserved in advance of memory_limit, where nothing else is said.
_PREALLOCATED: Final = {Allocation.PREALLOCATE: 0.5, Allocation.HYBRID: 0.1}


def floors(config: Config) -> tuple[Floor, ...]:
    """The slots that are preallocated, and kept. A size that pooled and chunk tiers have is the
    pooled one's."""
    allocation = Allocation(config.allocation_strategy)
    if allocation is Allocation.ON_DEMAND:
        return ()
    shares = config.preallocate if config.preallocate is not None else _PREALLOCATED[allocation]
    tiers = config.tiers
    if not isinstance(shares, dict):
        pooled = [tier for tier in tiers if tier.kind is TierKind.POOLED]
        return tuple(_floor(config, tier, shares / len(pooled)) for tier in pooled)
    by_size = {tier.size: tier for tier in reversed(tiers)}
    return tuple(_floor(config, by_size[size], share) for size, share in shares.items())


def _floor(config: Config, tier: Tier, share: float) -> Floor:
    slots = int(config.memory_limit * share) // tier.size
    return Floor(tier.kind, tier.size, min(tier.capacity, max(slots, int(share > 0))))


def to_settings(config: Config, tickets_file: tuple[int, int], seats_file: tuple[int, int]) -> Settings:
    """What the core needs of it, with device and inode of the files of the byte locks."""
    return Settings(
        memory_limit=config.memory_limit,
        sizing=config.sizing,
        default_buffer_size=config.default_buffer_size,
        max_clients=config.max_clients,
        lease_timeout=config.lease_timeout,
        handle_ttl=config.handle_ttl,
        give_back=config.give_back,
        magazine_bytes=config.magazine_bytes,
        magazine_first_batch=min(config.magazine_first_batch, config.magazine_max_batch),
        magazine_max_batch=config.magazine_max_batch,
        magazine_idle=config.magazine_idle,
        buffer_lifetime=config.buffer_lifetime,
        max_concurrent_large_ops=config.max_concurrent_large_ops,
        fallback=config.fallback,
        client_quota_bytes=config.client_quota_bytes,
        client_quota_buffers=config.client_quota_buffers,
        uid_quota_bytes=config.uid_quota_bytes,
        uid_quota_buffers=config.uid_quota_buffers,
        max_buffer_age=config.max_buffer_age,
        allocation=Allocation(config.allocation_strategy),
        floors=floors(config),
        thresholds=Thresholds(config.pressure_free, config.pressure_stall),
        under_pressure=UnderPressure(config.on_critical_pressure),
        scrub=config.scrub,
        checksums=config.checksums,
        detailed_metrics=config.detailed_metrics,
        leak_age=config.leak_age,
        alerts=config.alerts,
        tickets_file=tickets_file,
        seats_file=seats_file,
    )
