"""What may be set: one typed declaration with default, bounds, unit, scope and help.

Values are in base units, bytes and seconds. The rules over several keys are in `rules`.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.fields import FieldInfo

from shmpool.addresses import SYSTEM_SOCKET, own_socket
from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import MAX_NBYTES, MAX_ROWS, MAX_SEATS
from shmpool.protocol.sizing import (
    KIB,
    MIB,
    PAGE,
    Sizing,
    Strategy,
    Tier,
    chunk_sizes_for,
    make_tiers,
    rows_of,
)

from ..core.lending.lending import GRANTED_PER_REQUEST
from ..core.memory.pressure import Thresholds
from ..core.reports.rules import NAMES
from . import rules
from .endpoints import parse_address
from .units import Gid, Limit, Seconds, Share, Size, Uid, Unit

_DAY: Final = 86400
_DEFAULT: Final = Sizing()


#: Sizes, or "auto" for what follows from the thresholds.
ChunkSizes = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[tuple[Size, ...], Tag("sizes")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "sizes"),
]


#: A share for all pooled sizes, or one for each slot size.
Preallocate = Annotated[
    Annotated[Share, Tag("share")] | Annotated[dict[Size, Share], Tag("by slot size")],
    Discriminator(lambda value: "by slot size" if isinstance(value, dict) else "share"),
]
_NO_PRESSURE: Final = Thresholds()


def _checked_address(text: str) -> str:
    parse_address(text)
    return text


def _checked_alerts(bounds: dict[str, Any]) -> dict[str, float | bool]:
    for name, bound in bounds.items():
        if name not in NAMES:
            raise ValueError(f"there is no alert {name!r}: they are {', '.join(NAMES)}")
        if bound is True or not isinstance(bound, int | float) or not 0 <= bound < float("inf"):
            raise ValueError(
                f"{name} = {bound} is no bound: write a number, or false for an alert that is never raised"
            )
    return bounds


#: By an alert's name its bound, or False.
Bounds = Annotated[dict[str, Any], AfterValidator(_checked_alerts)]
#: As `endpoints` reads it.
MetricsAddress = Annotated[str, AfterValidator(_checked_address)]


class Scope(Enum):
    """Whose a setting is, and so when a new value takes effect."""

    #: Fixed for as long as anybody living has the pool: it shapes what lies in its memory.
    POOL = "the next pool"
    #: Read when a broker starts.
    START = "a restart"
    #: A running broker takes it over on SIGHUP.
    RELOAD = "a reload"


def scope_of(field: FieldInfo) -> Scope:
    """When a new value of a setting takes effect."""
    return next(item for item in field.metadata if isinstance(item, Scope))


def unit_of(field: FieldInfo) -> Unit | None:
    """What the numbers of a setting count; None for what is no quantity."""
    return next((item for item in field.metadata if isinstance(item, Unit)), None)


def default_socket() -> str:
    """Where a broker listens that is told nothing: root's is the system's, others' where their
    clients look."""
    return SYSTEM_SOCKET if os.geteuid() == 0 else own_socket()


class Config(BaseModel):
    """All settings, checked and in base units: bytes and seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    socket: Annotated[str, Scope.START] = Field(
        default_factory=default_socket,
        description="Path of the socket, at most 107 bytes. The lock files lie beside it.",
    )
    memory_limit: Annotated[Limit, Scope.POOL] = Field(
        default=256 * MIB,
        ge=MIB,
        lt=MAX_NBYTES + 1,
        description='The most memory the pool may hold, its tables counted; "50 %" is a share of what /dev/shm and the'
        " cgroup give.",
    )
    enabled: Annotated[bool, Scope.POOL] = Field(
        default=True,
        description="Whether objects are pooled. false: every lease is a direct segment, for all clients.",
    )
    medium_object_threshold: Annotated[Size, Scope.POOL] = Field(
        default=_DEFAULT.medium_object_threshold,
        ge=1,
        lt=MAX_NBYTES + 1,
        description="Objects from this size on are medium.",
    )
    large_object_threshold: Annotated[Size, Scope.POOL] = Field(
        default=_DEFAULT.large_object_threshold,
        ge=1,
        lt=MAX_NBYTES + 1,
        description="Objects from this size on are large, and chunked.",
    )
    very_large_object_threshold: Annotated[Size, Scope.POOL] = Field(
        default=_DEFAULT.very_large_object_threshold,
        ge=1,
        lt=MAX_NBYTES + 1,
        description="Objects from this size on are very large, and get a segment of their own.",
    )
    large_object_strategy: Annotated[Literal["chunked", "direct"], Scope.POOL] = Field(
        default="chunked",
        description='Where large objects go: "chunked", or "direct" for a segment of their own.',
    )
    pooled_sizes: Annotated[tuple[Size, ...], Unit.BYTES, Scope.POOL] = Field(
        default=_DEFAULT.pooled_sizes,
        description="Slot sizes for small and medium objects, rising, multiples of 4 KiB.",
    )
    min_buffer_size: Annotated[Size, Scope.POOL] = Field(
        default=PAGE,
        ge=PAGE,
        lt=MAX_NBYTES + 1,
        description="The smallest slot that is made: of pooled_sizes, those below are left out.",
    )
    max_buffer_size: Annotated[Size, Scope.POOL] = Field(
        default=MAX_NBYTES + 1,
        ge=PAGE,
        le=MAX_NBYTES + 1,
        description="The largest slot that is made: of pooled_sizes, those above are left out.",
    )
    default_buffer_size: Annotated[Size, Scope.RELOAD] = Field(
        default=64 * KIB,
        ge=1,
        lt=MAX_NBYTES + 1,
        description="What a stream of unknown size leases first.",
    )
    chunk_sizes: Annotated[ChunkSizes, Unit.BYTES, Scope.POOL] = Field(
        default=_DEFAULT.chunk_sizes,
        description='Chunk sizes for large objects, rising, multiples of 4 KiB; "auto": chosen by the thresholds.',
    )
    max_clients: Annotated[int, Scope.POOL] = Field(
        default=1024,
        strict=True,
        ge=1,
        le=MAX_SEATS,
        description="The most connections with a seat at a time.",
    )
    lease_timeout: Annotated[Seconds, Scope.RELOAD] = Field(
        default=30.0,
        ge=0,
        le=30 * _DAY,
        description="How long a lease waits for memory when it names no timeout.",
    )
    handle_ttl: Annotated[Seconds, Scope.RELOAD] = Field(
        default=300.0,
        gt=0,
        le=365 * _DAY,
        description="Unread handles of a publisher that is gone are closed after this.",
    )
    give_back: Annotated[bool, Scope.RELOAD] = Field(
        default=False,
        description="What a reader had open when it died opens again by the same handle, for tasks that are retried.",
    )
    magazine_bytes: Annotated[Size, Scope.RELOAD] = Field(
        default=MIB,
        ge=PAGE,
        lt=MAX_NBYTES + 1,
        description="A client holds ready at most so much of each slot size.",
    )
    magazine_first_batch: Annotated[int, Scope.RELOAD] = Field(
        default=8,
        strict=True,
        ge=1,
        le=GRANTED_PER_REQUEST,
        description="How many slots of a size a client asks for first (64 KiB at most); then for twice as many.",
    )
    magazine_max_batch: Annotated[int, Scope.RELOAD] = Field(
        default=64,
        strict=True,
        ge=1,
        le=GRANTED_PER_REQUEST,
        description="How many it asks for at a time at most, within magazine_bytes.",
    )
    magazine_idle: Annotated[Seconds, Scope.RELOAD] = Field(
        default=1.0,
        gt=0,
        le=_DAY,
        description="What a client held ready and did not use for so long goes back.",
    )
    buffer_lifetime: Annotated[Seconds, Scope.RELOAD] = Field(
        default=60.0,
        gt=0,
        le=365 * _DAY,
        description="Memory that nobody used for so long is given back to the host.",
    )
    max_concurrent_large_ops: Annotated[int, Scope.RELOAD] = Field(
        default=0,
        strict=True,
        ge=0,
        le=MAX_ROWS,
        description="The most chunked and direct buffers out at a time, until their last reader is done; more wait."
        " 0: any number.",
    )
    fallback: Annotated[bool, Scope.RELOAD] = Field(
        default=True,
        description="Whether what slots and chunks cannot serve gets a segment of its own, under the limit.",
    )
    client_quota_bytes: Annotated[Size, Scope.RELOAD] = Field(
        default=0,
        ge=0,
        lt=MAX_NBYTES + 1,
        description="The most memory one client may have leased, unread and open to read at a time. 0: any amount.",
    )
    client_quota_buffers: Annotated[int, Scope.RELOAD] = Field(
        default=0,
        strict=True,
        ge=0,
        le=MAX_ROWS,
        description="The most buffers one client may have leased, unread and open to read at a time. 0: any number.",
    )
    uid_quota_bytes: Annotated[Size, Scope.RELOAD] = Field(
        default=0,
        ge=0,
        lt=MAX_NBYTES + 1,
        description="The most memory one user may have leased, unread and open to read at a time. 0: any amount.",
    )
    uid_quota_buffers: Annotated[int, Scope.RELOAD] = Field(
        default=0,
        strict=True,
        ge=0,
        le=MAX_ROWS,
        description="The most buffers one user may have leased, unread and open to read at a time. 0: any number.",
    )
    max_buffer_age: Annotated[Seconds | None, Unit.SECONDS, Scope.RELOAD] = Field(
        default=None,
        gt=0,
        le=365 * _DAY,
        description="A slot whose pages are older gets new ones when it comes back.",
    )
    allocation_strategy: Annotated[Literal["on_demand", "preallocate", "hybrid"], Scope.START] = Field(
        default="on_demand",
        description='When slots are reserved: "on_demand"; "preallocate", a part before the broker is ready; "hybrid",'
        " a part in the background. That part stays reserved.",
    )
    preallocate: Annotated[Preallocate | None, Unit.SHARE, Scope.START] = Field(
        default=None,
        description='That part: a share of memory_limit for all pooled sizes, or one by slot size: {"64KiB" = "10%"}.'
        " Without it 50 % (preallocate) or 10 % (hybrid).",
    )
    pressure_free: Annotated[tuple[Share, Share], Unit.SHARE, Scope.RELOAD] = Field(
        default=_NO_PRESSURE.free,
        description="Memory pressure is elevated, then critical, when less of the host or cgroup is free.",
    )
    pressure_stall: Annotated[tuple[Share, Share], Unit.SHARE, Scope.RELOAD] = Field(
        default=_NO_PRESSURE.stall,
        description="The same, when tasks wait for memory (PSI) for more of the time.",
    )
    on_critical_pressure: Annotated[Literal["wait", "direct", "refuse"], Scope.RELOAD] = Field(
        default="wait",
        description="A lease for which the pool would have to grow then: waits, is direct, or is refused.",
    )
    scrub: Annotated[bool, Scope.START] = Field(
        default=False,
        description="A slot that moves between users gets new, zeroed pages first.",
    )
    checksums: Annotated[bool, Scope.POOL] = Field(
        default=False,
        description="Clients sum what they publish and verify what they open (12 readers at most).",
    )
    tickets: Annotated[Literal["auto", "cas", "locks"], Scope.POOL] = Field(
        default="auto",
        description='How tickets are taken: "cas", by compare-and-swap, which is faster; "locks", under byte locks;'
        ' "auto": by "cas" where the broker has shmpool\'s compiled part.',
    )
    detailed_metrics: Annotated[bool, Scope.RELOAD] = Field(
        default=False,
        description="Clients time every lease, not one in 64. Costs each under 5 % of its way.",
    )
    leak_age: Annotated[Seconds, Scope.RELOAD] = Field(
        default=300.0,
        gt=0,
        le=365 * _DAY,
        description="What is leased, unread, or kept by a view after its end for so long is told as a leak.",
    )
    alerts: Annotated[Bounds, Scope.RELOAD] = Field(
        default={},
        description="Where alerts are raised, by their names, instead of where docs/alerts.md says; false: never.",
    )
    on_stop: Annotated[Literal["remove", "keep"], Scope.RELOAD] = Field(
        default="remove",
        description='What an orderly stop does with the pool: "remove", or "keep" for the next broker.',
    )
    allow_uids: Annotated[tuple[Uid, ...], Scope.RELOAD] = Field(
        default=(),
        description="Users (names or numbers) who may connect besides the broker's own and root. Needs group.",
    )
    allow_gids: Annotated[tuple[Gid, ...], Scope.RELOAD] = Field(
        default=(),
        description="Groups (names or numbers) who may connect. With neither list: the members of group.",
    )
    group: Annotated[Gid | None, Scope.START] = Field(
        default=None,
        description="Group (name or number) that owns socket and segments: 0660 and not 0600.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Scope.RELOAD] = Field(
        default="info",
        description="The least important lines that are logged to stderr.",
    )
    log_format: Annotated[Literal["text", "json"], Scope.START] = Field(
        default="text",
        description='What log lines look like: "text" (with the journal\'s priorities under systemd), or "json", an'
        " object a line.",
    )
    metrics_address: Annotated[MetricsAddress | None, Scope.START] = Field(
        default=None,
        description="Where Prometheus metrics are served over HTTP, at /metrics: the path of a socket, or a loopback"
        " address. Needs prometheus-client.",
    )
    drain_timeout: Annotated[Seconds, Scope.RELOAD] = Field(
        default=5.0,
        ge=0,
        le=_DAY,
        description="How long an orderly stop that removes the pool waits for what is leased, unread or open; meanwhile"
        " nothing new is leased.",
    )

    @model_validator(mode="after")
    def _check(self) -> Config:
        rules.check(self)
        return self

    @property
    def kept_sizes(self) -> tuple[int, ...]:
        """The pooled sizes from min_buffer_size to max_buffer_size."""
        return tuple(size for size in self.pooled_sizes if self.min_buffer_size <= size <= self.max_buffer_size)

    @property
    def sizing(self) -> Sizing:
        """Thresholds, slot sizes, strategies. Raises ConfigError when they do not fit together."""
        return Sizing(
            medium_object_threshold=self.medium_object_threshold,
            large_object_threshold=self.large_object_threshold,
            very_large_object_threshold=self.very_large_object_threshold,
            pooled_sizes=self.kept_sizes,
            chunk_sizes=(
                chunk_sizes_for(self.large_object_threshold, self.very_large_object_threshold)
                if self.chunk_sizes == "auto"
                else self.chunk_sizes
            ),
            large_object_strategy=Strategy(self.large_object_strategy),
            is_pooling=self.enabled,
        )

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers of a pool made with this configuration."""
        return make_tiers(self.memory_limit, self.sizing)

    @property
    def overhead_bytes(self) -> int:
        """What header and ledger take of the limit, in bytes."""
        return header_bytes(self.max_clients) + ledger_bytes(rows_of(self.tiers), self.max_clients)
