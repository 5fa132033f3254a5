"""What may be set: one typed declaration with default, bounds, unit, scope and help.

Values are in base units, bytes and seconds. A rule over several keys names them and says which
to change.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.fields import FieldInfo

from shmpool.addresses import MAX_PATH, SYSTEM_SOCKET, own_socket
from shmpool.protocol.header import header_bytes, ledger_bytes
from shmpool.protocol.ledger import MAX_NBYTES, MAX_ROWS, MAX_SEATS
from shmpool.protocol.sizing import (
    KIB,
    MIB,
    PAGE,
    Sizing,
    Strategy,
    Tier,
    TierKind,
    chunk_sizes_for,
    format_bytes,
    make_tiers,
    rows_of,
)

from ..core.memory.pressure import Thresholds
from ..core.settings import Allocation, Floor, Settings, UnderPressure
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
#: Of memory_limit, where nothing else is said.
_PREALLOCATED: Final = {Allocation.PREALLOCATE: 0.5, Allocation.HYBRID: 0.1}
_NO_PRESSURE: Final = Thresholds()


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
    magazine_bytes: Annotated[Size, Scope.RELOAD] = Field(
        default=MIB,
        ge=PAGE,
        lt=MAX_NBYTES + 1,
        description="A client holds ready at most so much of each slot size.",
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

    @model_validator(mode="after")
    def _check(self) -> Config:
        path = os.fsencode(self.socket)
        if not path or b"\0" in path or self.socket.startswith("@"):
            raise ValueError(f"socket must be the path of a file, not {self.socket!r}")
        if len(path) > MAX_PATH:
            raise ValueError(
                f"socket is {len(path)} bytes long, a socket's path has at most {MAX_PATH}: {self.socket!r}"
            )
        if (self.allow_uids or self.allow_gids) and self.group is None:
            raise ValueError("allow_uids and allow_gids need group: without one nobody else can reach the segments")
        self._check_sizes()
        self._check_room()
        self._check_allocation()
        self._check_pressure()
        return self

    def _check_pressure(self) -> None:
        if self.pressure_free[0] < self.pressure_free[1]:
            key, (elevated, critical), wrong = "pressure_free", self.pressure_free, "above"
        elif self.pressure_stall[0] > self.pressure_stall[1]:
            key, (elevated, critical), wrong = "pressure_stall", self.pressure_stall, "below"
        else:
            return
        raise ValueError(
            f"{key} is {Unit.SHARE.show(elevated)} for elevated and {Unit.SHARE.show(critical)} for critical: the"
            f" second must not be {wrong} the first"
        )

    def _check_sizes(self) -> None:
        if self.pooled_sizes and not self._kept_sizes:
            raise ValueError(
                f"of pooled_sizes none lies from min_buffer_size, {format_bytes(self.min_buffer_size)}, to"
                f" max_buffer_size, {format_bytes(self.max_buffer_size)}: widen them, or name a size between them"
            )
        largest = max(self._kept_sizes, default=0)
        fitting = next((size for size in self._kept_sizes if size >= self.very_large_object_threshold), largest)
        if fitting < largest:
            raise ValueError(
                f"pooled_sizes has {format_bytes(largest)}, but objects from very_large_object_threshold,"
                f" {format_bytes(self.very_large_object_threshold)}, on are never pooled: lower max_buffer_size to"
                f" {format_bytes(fitting)}, or raise the threshold"
            )

    def _check_room(self) -> None:
        overhead, largest = self.overhead_bytes, max(*self.sizing.pooled_sizes, *self.sizing.chunk_sizes)
        if overhead + largest > self.memory_limit:
            raise ValueError(
                f"memory_limit is {format_bytes(self.memory_limit)}; the pool's tables take {format_bytes(overhead)} of"
                f" it and the largest slot {format_bytes(largest)}: raise it to at least"
                f" {-(-(overhead + largest) // MIB)} MiB, or lower max_clients"
            )

    def _check_allocation(self) -> None:
        if self.allocation_strategy == "on_demand":
            if self.preallocate is not None:
                raise ValueError(
                    'preallocate is set, but allocation_strategy is "on_demand", which reserves nothing in advance: set'
                    ' that to "preallocate" or "hybrid", or leave preallocate out'
                )
            return
        if not self.enabled:
            raise ValueError(
                f'allocation_strategy is "{self.allocation_strategy}", but enabled is false: nothing is pooled then.'
                ' Set it to "on_demand"'
            )
        if isinstance(self.preallocate, dict):
            sizes = sorted({tier.size for tier in self.tiers if tier.size})
            for size in self.preallocate:
                if size not in sizes:
                    raise ValueError(
                        f"preallocate names {format_bytes(size)}, which is no slot size: they are"
                        f" {', '.join(map(format_bytes, sizes))}"
                    )
        nbytes, most = sum(floor.size * floor.slots for floor in self.floors), self.memory_limit - self.overhead_bytes
        if nbytes > most:
            share = Unit.SHARE.show(100 * most // self.memory_limit / 100)
            raise ValueError(
                f"preallocate is {format_bytes(nbytes)}; memory_limit, {format_bytes(self.memory_limit)}, leaves"
                f" {format_bytes(most)} ({share}) besides the pool's tables: lower it, or raise the limit"
            )

    @property
    def floors(self) -> tuple[Floor, ...]:
        """The slots that are preallocated, and kept. A size that pooled and chunk tiers have is the
        pooled one's."""
        allocation = Allocation(self.allocation_strategy)
        if allocation is Allocation.ON_DEMAND:
            return ()
        shares = self.preallocate if self.preallocate is not None else _PREALLOCATED[allocation]
        tiers = self.tiers
        if not isinstance(shares, dict):
            pooled = [tier for tier in tiers if tier.kind is TierKind.POOLED]
            return tuple(self._floor(tier, shares / len(pooled)) for tier in pooled)
        by_size = {tier.size: tier for tier in reversed(tiers)}
        return tuple(self._floor(by_size[size], share) for size, share in shares.items())

    def _floor(self, tier: Tier, share: float) -> Floor:
        slots = int(self.memory_limit * share) // tier.size
        return Floor(tier.kind, tier.size, min(tier.capacity, max(slots, int(share > 0))))

    @property
    def _kept_sizes(self) -> tuple[int, ...]:
        return tuple(size for size in self.pooled_sizes if self.min_buffer_size <= size <= self.max_buffer_size)

    @property
    def sizing(self) -> Sizing:
        """Thresholds, slot sizes, strategies. Raises ConfigError when they do not fit together."""
        return Sizing(
            medium_object_threshold=self.medium_object_threshold,
            large_object_threshold=self.large_object_threshold,
            very_large_object_threshold=self.very_large_object_threshold,
            pooled_sizes=self._kept_sizes,
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


def to_settings(config: Config, tickets_file: tuple[int, int], seats_file: tuple[int, int]) -> Settings:
    """What the core needs of it, with device and inode of the files of the byte locks."""
    return Settings(
        memory_limit=config.memory_limit,
        sizing=config.sizing,
        default_buffer_size=config.default_buffer_size,
        max_clients=config.max_clients,
        lease_timeout=config.lease_timeout,
        handle_ttl=config.handle_ttl,
        magazine_bytes=config.magazine_bytes,
        magazine_idle=config.magazine_idle,
        buffer_lifetime=config.buffer_lifetime,
        max_concurrent_large_ops=config.max_concurrent_large_ops,
        client_quota_bytes=config.client_quota_bytes,
        client_quota_buffers=config.client_quota_buffers,
        uid_quota_bytes=config.uid_quota_bytes,
        uid_quota_buffers=config.uid_quota_buffers,
        max_buffer_age=config.max_buffer_age,
        allocation=Allocation(config.allocation_strategy),
        floors=config.floors,
        thresholds=Thresholds(config.pressure_free, config.pressure_stall),
        under_pressure=UnderPressure(config.on_critical_pressure),
        scrub=config.scrub,
        checksums=config.checksums,
        detailed_metrics=config.detailed_metrics,
        leak_age=config.leak_age,
        tickets_file=tickets_file,
        seats_file=seats_file,
    )
