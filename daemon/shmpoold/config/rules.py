"""The rules that hold between settings: each names the keys, their values, and which to change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shmpool.addresses import MAX_PATH
from shmpool.protocol.sizing import MIB, PAGE, format_bytes

from .handover import floors
from .units import Unit

if TYPE_CHECKING:
    from .declaration import Config


def check(config: Config) -> None:
    """Raises ValueError for settings that contradict one another, and ConfigError for sizes that do."""
    _check_access(config)
    _check_sizes(config)
    _check_room(config)
    _check_allocation(config)
    _check_pressure(config)
    _check_magazines(config)
    _check_quotas(config)


def _check_access(config: Config) -> None:
    path = os.fsencode(config.socket)
    if not path or b"\0" in path or config.socket.startswith("@"):
        raise ValueError(f"socket must be the path of a file, not {config.socket!r}")
    if len(path) > MAX_PATH:
        raise ValueError(f"socket is {len(path)} bytes long, a socket's path has at most {MAX_PATH}: {config.socket!r}")
    if (config.allow_uids or config.allow_gids) and config.group is None:
        raise ValueError("allow_uids and allow_gids need group: without one nobody else can reach the segments")


def _check_magazines(config: Config) -> None:
    default = type(config).model_fields["magazine_first_batch"].default  # which gives way
    if config.magazine_first_batch > max(config.magazine_max_batch, default):
        raise ValueError(
            f"magazine_first_batch is {config.magazine_first_batch}, more than magazine_max_batch,"
            f" {config.magazine_max_batch}: raise that, or lower it"
        )


def _check_quotas(config: Config) -> None:
    smallest = min(config.sizing.pooled_sizes, default=PAGE)
    for key in ("client_quota_bytes", "uid_quota_bytes"):
        quota: int = getattr(config, key)
        if 0 < quota < smallest:
            raise ValueError(
                f"{key} is {format_bytes(quota)}, less than the smallest slot, {format_bytes(smallest)}: nobody could"
                " lease anything. Raise it, or leave it out"
            )
    for kind, show in (("bytes", format_bytes), ("buffers", str)):
        own, shared = getattr(config, f"client_quota_{kind}"), getattr(config, f"uid_quota_{kind}")
        if 0 < shared < own:
            raise ValueError(
                f"client_quota_{kind} is {show(own)}, more than uid_quota_{kind}, {show(shared)}, which all clients of"
                " a user share: lower it, or raise that"
            )


def _check_pressure(config: Config) -> None:
    if config.pressure_free[0] < config.pressure_free[1]:
        key, (elevated, critical), wrong = "pressure_free", config.pressure_free, "above"
    elif config.pressure_stall[0] > config.pressure_stall[1]:
        key, (elevated, critical), wrong = "pressure_stall", config.pressure_stall, "below"
    else:
        return
    raise ValueError(
        f"{key} is {Unit.SHARE.show(elevated)} for elevated and {Unit.SHARE.show(critical)} for critical: the"
        f" second must not be {wrong} the first"
    )


def _check_sizes(config: Config) -> None:
    if config.pooled_sizes and not config.kept_sizes:
        raise ValueError(
            f"of pooled_sizes none lies from min_buffer_size, {format_bytes(config.min_buffer_size)}, to"
            f" max_buffer_size, {format_bytes(config.max_buffer_size)}: widen them, or name a size between them"
        )
    largest = max(config.kept_sizes, default=0)
    fitting = next((size for size in config.kept_sizes if size >= config.very_large_object_threshold), largest)
    if fitting < largest:
        raise ValueError(
            f"pooled_sizes has {format_bytes(largest)}, but objects from very_large_object_threshold,"
            f" {format_bytes(config.very_large_object_threshold)}, on are never pooled: lower max_buffer_size to"
            f" {format_bytes(fitting)}, or raise the threshold"
        )


def _check_room(config: Config) -> None:
    overhead, largest = config.overhead_bytes, max(*config.sizing.pooled_sizes, *config.sizing.chunk_sizes)
    if overhead + largest > config.memory_limit:
        raise ValueError(
            f"memory_limit is {format_bytes(config.memory_limit)}; the pool's tables take {format_bytes(overhead)} of"
            f" it and the largest slot {format_bytes(largest)}: raise it to at least"
            f" {-(-(overhead + largest) // MIB)} MiB, or lower max_clients"
        )


def _check_allocation(config: Config) -> None:
    if config.allocation_strategy == "on_demand":
        if config.preallocate is not None:
            raise ValueError(
                'preallocate is set, but allocation_strategy is "on_demand", which reserves nothing in advance: set'
                ' that to "preallocate" or "hybrid", or leave preallocate out'
            )
        return
    if not config.enabled:
        raise ValueError(
            f'allocation_strategy is "{config.allocation_strategy}", but enabled is false: nothing is pooled then.'
            ' Set it to "on_demand"'
        )
    if isinstance(config.preallocate, dict):
        sizes = sorted({tier.size for tier in config.tiers if tier.size})
        for size in config.preallocate:
            if size not in sizes:
                raise ValueError(
                    f"preallocate names {format_bytes(size)}, which is no slot size: they are"
                    f" {', '.join(map(format_bytes, sizes))}"
                )
    nbytes, most = (
        sum(floor.size * floor.slots for floor in floors(config)),
        config.memory_limit - config.overhead_bytes,
    )
    if nbytes > most:
        share = Unit.SHARE.show(100 * most // config.memory_limit / 100)
        raise ValueError(
            f"preallocate is {format_bytes(nbytes)}; memory_limit, {format_bytes(config.memory_limit)}, leaves"
            f" {format_bytes(most)} ({share}) besides the pool's tables: lower it, or raise the limit"
        )
