"""The terms of a pool: what clients are told of it when they come, and of its settings when they change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shmpool.protocol.messages import PROTOCOL_VERSION, Hello, Setting, Welcome
from shmpool.protocol.sizing import Strategy, Tier

from ..settings import Settings
from .seats import Seat


class Terms:
    """What is true of the pool, and what of *settings* concerns its clients; *more* gives what
    other parts have to add to that, and is asked whenever somebody is told."""

    def __init__(
        self,
        settings: Settings,
        *,
        pool_id: int,
        epoch: int,
        seats: int,
        properties: int,
        tiers: Iterable[Tier],
        limit: int,
        more: Callable[[], dict[Setting, int]] = dict,
    ) -> None:
        self.settings = settings
        self._pool_id = pool_id
        self._epoch = epoch
        self._seats = seats
        self._properties = properties
        self._tiers = [tier.to_wire() for tier in tiers]
        self._limit = limit
        self._more = more
        #: What those who were there heard last.
        self._told = self._to_tell()

    def are_of(self, hello: Hello) -> bool:
        """Whether a client knows this pool, and no other."""
        return hello.pool_id == self._pool_id

    def welcome(self, seat: Seat | None, *, resumed: bool) -> Welcome:
        """The answer to a hello."""
        return Welcome(
            version=PROTOCOL_VERSION,
            pool_id=self._pool_id,
            epoch=self._epoch,
            seat=seat.number if seat else 0,
            resumed=resumed,
            tiers=self._tiers,
            seats=self._seats,
            properties=self._properties,
            tickets_file=list(self.settings.tickets_file),
            seats_file=list(self.settings.seats_file),
            settings=[[int(number), value] for number, value in self._to_tell().items()],
        )

    def take_changes(self) -> list[list[int]]:
        """What is no longer as clients were told: numbers of `Setting` and their values."""
        before, self._told = self._told, self._to_tell()
        return [[int(number), value] for number, value in self._told.items() if value != before[number]]

    def _to_tell(self) -> dict[Setting, int]:
        settings, sizing = self.settings, self.settings.sizing
        return {
            Setting.MEMORY_LIMIT: self._limit,
            Setting.LEASE_TIMEOUT_MS: round(settings.lease_timeout * 1000),
            Setting.MAGAZINE_BYTES: settings.magazine_bytes,
            Setting.MAGAZINE_FIRST_BATCH: settings.magazine_first_batch,
            Setting.MAGAZINE_MAX_BATCH: settings.magazine_max_batch,
            Setting.MAGAZINE_IDLE_MS: round(settings.magazine_idle * 1000),
            Setting.MEDIUM_OBJECT_THRESHOLD: sizing.medium_object_threshold,
            Setting.LARGE_OBJECT_THRESHOLD: sizing.large_object_threshold,
            Setting.VERY_LARGE_OBJECT_THRESHOLD: sizing.very_large_object_threshold,
            Setting.IS_POOLING: int(sizing.is_pooling),
            Setting.IS_CHUNKING: int(sizing.large_object_strategy is Strategy.CHUNKED),
            Setting.DEFAULT_BUFFER_SIZE: settings.default_buffer_size,
            Setting.DETAILED_METRICS: int(settings.detailed_metrics),
            **self._more(),
        }
