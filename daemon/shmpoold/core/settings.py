"""What the core needs of the configuration, already checked and in base units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from shmpool.protocol.sizing import KIB, MIB, Sizing, TierKind

from .memory.pressure import Thresholds


class Allocation(Enum):
    """When the memory of slots is reserved."""

    ON_DEMAND = "on_demand"
    """When somebody asks for them."""
    PREALLOCATE = "preallocate"
    """The floors before the broker serves anybody, the rest on demand."""
    HYBRID = "hybrid"
    """The floors in the background, the rest on demand."""


class Floor(NamedTuple):
    """How many slots of a tier are kept warm, whether somebody needs them or not."""

    kind: TierKind
    size: int
    slots: int


class UnderPressure(Enum):
    """What becomes of leases that would make the pool grow while the host's memory is critical."""

    WAIT = "wait"
    DIRECT = "direct"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes in bytes, times in seconds."""

    memory_limit: int = 256 * MIB
    sizing: Sizing = field(default_factory=Sizing)
    #: What a stream of unknown size leases first.
    default_buffer_size: int = 64 * KIB
    max_clients: int = 1024
    #: How long a client's lease waits when it names no timeout.
    lease_timeout: float = 30.0
    #: Unread publications of a publisher that has gone are closed after this.
    handle_ttl: float = 300.0
    #: Tickets that a dead reader had open are open again.
    give_back: bool = False
    #: A client's magazine of one tier grows to so many bytes at most.
    magazine_bytes: int = MIB
    #: It asks for so many slots first, then for twice as many each time, up to the other.
    magazine_first_batch: int = 8
    magazine_max_batch: int = 64
    #: What a magazine did not use for so long goes back, half of it each time.
    magazine_idle: float = 1.0
    #: A warm slot that nobody used for so long is cooled.
    buffer_lifetime: float = 60.0
    #: How many runs and direct segments may be out at a time, 0 for any number.
    max_concurrent_large_ops: int = 0
    #: What slots and runs cannot serve gets a direct segment.
    fallback: bool = True
    #: How much one client and one user may have at a time, 0 for any amount.
    client_quota_bytes: int = 0
    client_quota_buffers: int = 0
    uid_quota_bytes: int = 0
    uid_quota_buffers: int = 0
    #: Pages older than that are replaced once nobody uses them; None: never.
    max_buffer_age: float | None = None
    allocation: Allocation = Allocation.ON_DEMAND
    floors: tuple[Floor, ...] = ()
    thresholds: Thresholds = field(default_factory=Thresholds)
    under_pressure: UnderPressure = UnderPressure.WAIT
    #: A slot that moves between uids gets new, zeroed pages first.
    scrub: bool = False
    #: Clients sum what they publish and verify what they open.
    checksums: bool = False
    #: Tickets are taken by compare-and-swap, not under byte locks.
    tickets_by_cas: bool = False
    #: Clients time every lease.
    detailed_metrics: bool = False
    #: What is leased, or unread, or looked through after its end, for so long is said to be leaked.
    leak_age: float = 300.0
    #: By an alert's name, another bound than its rule's; False: it is never raised.
    alerts: Mapping[str, float | bool] = field(default_factory=dict)
    #: Device and inode of the files with the tickets' and the seats' byte locks.
    tickets_file: tuple[int, int] = (0, 0)
    seats_file: tuple[int, int] = (0, 0)

    def reloaded(self, new: Settings) -> Settings:
        """These, with what a running broker may take over of *new*."""
        return replace(
            self,
            default_buffer_size=new.default_buffer_size,
            lease_timeout=new.lease_timeout,
            handle_ttl=new.handle_ttl,
            give_back=new.give_back,
            magazine_bytes=new.magazine_bytes,
            magazine_first_batch=new.magazine_first_batch,
            magazine_max_batch=new.magazine_max_batch,
            magazine_idle=new.magazine_idle,
            buffer_lifetime=new.buffer_lifetime,
            max_concurrent_large_ops=new.max_concurrent_large_ops,
            fallback=new.fallback,
            detailed_metrics=new.detailed_metrics,
            leak_age=new.leak_age,
            alerts=new.alerts,
            client_quota_bytes=new.client_quota_bytes,
            client_quota_buffers=new.client_quota_buffers,
            uid_quota_bytes=new.uid_quota_bytes,
            uid_quota_buffers=new.uid_quota_buffers,
            max_buffer_age=new.max_buffer_age,
            thresholds=new.thresholds,
            under_pressure=new.under_pressure,
        )
