"""The settings of a private broker as keywords, for type checkers: the configuration file's keys.

What they mean and what is in bounds the broker says (``shmpoold --check`` prints all of them).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

#: Bytes, or text such as "256MiB".
Size = int | str
#: Seconds, or text such as "5min".
Duration = float | str


class Settings(TypedDict, total=False):
    """The keywords of `Broker`."""

    socket: str | os.PathLike[str]
    memory_limit: Size
    enabled: bool
    medium_object_threshold: Size
    large_object_threshold: Size
    very_large_object_threshold: Size
    large_object_strategy: Literal["chunked", "direct"]
    pooled_sizes: Sequence[Size]
    min_buffer_size: Size
    max_buffer_size: Size
    default_buffer_size: Size
    chunk_sizes: Sequence[Size] | Literal["auto"]
    max_clients: int
    lease_timeout: Duration
    handle_ttl: Duration
    give_back: bool
    magazine_bytes: Size
    magazine_first_batch: int
    magazine_max_batch: int
    magazine_idle: Duration
    buffer_lifetime: Duration
    max_concurrent_large_ops: int
    fallback: bool
    client_quota_bytes: Size
    client_quota_buffers: int
    uid_quota_bytes: Size
    uid_quota_buffers: int
    max_buffer_age: Duration
    allocation_strategy: Literal["on_demand", "preallocate", "hybrid"]
    preallocate: str | float | Mapping[str, str | float]
    pressure_free: Sequence[str | float]
    pressure_stall: Sequence[str | float]
    on_critical_pressure: Literal["wait", "direct", "refuse"]
    scrub: bool
    checksums: bool
    tickets: Literal["auto", "cas", "locks"]
    detailed_metrics: bool
    leak_age: Duration
    alerts: Mapping[str, float | bool]
    on_stop: Literal["remove", "keep"]
    allow_uids: Sequence[int | str]
    allow_gids: Sequence[int | str]
    group: int | str | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["text", "json"]
    metrics_address: str
    drain_timeout: Duration
