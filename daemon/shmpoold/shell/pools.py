"""Which pool a starting broker serves: a new one, or the one that an earlier broker left.

A pool is taken up again when it is whole and has the configured geometry. With another
geometry it is taken up only while living processes hold seats in it, and then as it is. A
damaged pool is removed, and said so.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import cast

from shmpool.protocol.header import EPOCH, SEAT_PID, SEAT_START, SEAT_STATE, seat_at
from shmpool.protocol.ledger import LINK, ROW_WORDS, birth_of, state_of
from shmpool.protocol.sizing import Sizing, Tier, TierKind, make_tiers
from shmpool.protocol.states import State
from shmpool.system.processes import is_same_process

from ..config import Config, to_settings
from ..core.broker import Broker
from ..core.settings import Settings
from .files import AlreadyRunning, LockFiles, RuntimeFiles
from .segments import (
    Access,
    DamagedPool,
    OtherVersion,
    PoolIsServed,
    SegmentStore,
    is_served,
    names_of,
    remove_names,
)

log = logging.getLogger(__name__)

#: States in which a row names a direct segment.
_HELD = (State.IDLE, State.LEASED, State.PUBLISHED)


@dataclass(slots=True)
class Pool:
    """A pool, the files of its byte locks and the core that decides over it. *is_adopted*: an
    earlier broker's, whose `Broker.adopt` is still to come."""

    store: SegmentStore
    locks: LockFiles
    core: Broker
    is_adopted: bool

    def close(self) -> None:
        """Leave it in place. May be called twice."""
        self.locks.close()
        self.store.close()

    def remove(self) -> None:
        """Remove it and all that it has, but for the files beside the socket."""
        self.locks.close()
        self.store.remove_all()


def open_pool(config: Config, files: RuntimeFiles, earlier: int | None) -> Pool:
    """The pool to serve; *earlier* is the id of one that may be taken up. Raises OSError
    when none can be made."""
    access = Access(config.group)
    adopted = None if earlier is None else _adopt(earlier, config, files, access)
    return adopted or new_pool(config, files, access)


def new_pool(config: Config, files: RuntimeFiles, access: Access) -> Pool:
    """A pool of its own id, made from the configuration. Raises OSError."""
    pool_id = secrets.randbits(64) or 1
    locks = files.make_lock_files(pool_id)
    try:
        settings = _settings(config, locks)
        tiers = make_tiers(settings.memory_limit, settings.sizing)
        store = SegmentStore.create(pool_id, tiers, settings.max_clients, access)
    except BaseException:
        locks.close()
        raise
    return Pool(store, locks, _make_core(store, settings, epoch=1), is_adopted=False)


def _settings(config: Config, locks: LockFiles) -> Settings:
    return to_settings(config, locks.tickets.file_id, locks.seats.file_id)


def discard(pool_id: int) -> None:
    """Remove what is left of a pool, as far as this user may, unless a living broker has it."""
    if is_served(pool_id):
        log.error("pool %016x is served by a living broker: it is left alone", pool_id)
        return
    try:
        remove_names(names_of(pool_id))
    except OSError as error:
        log.warning("cannot remove what is left of pool %016x: %s", pool_id, error)


def remove_orphaned_segments(store: SegmentStore) -> None:
    """Unlink direct segments that no row names: an earlier broker died between making
    one and granting it, or between freeing its row and removing it."""
    for row, generation in store.direct_segments():
        if not _is_named(store, row, generation):
            store.remove_direct(row, generation)


def _adopt(pool_id: int, config: Config, files: RuntimeFiles, access: Access) -> Pool | None:
    """An earlier pool that is to be taken up again; one that is not is removed."""
    store = _find(pool_id, access)
    if store is None:
        return None
    try:
        locks = files.open_lock_files(pool_id, store.tickets_file, store.seats_file)
    except BaseException:
        store.close()
        raise
    if locks is None:
        log.error("pool %016x has lost its lock files: removing it and starting a new one", pool_id)
        store.remove_all()
        return None
    if _is_wanted(store, config):
        return _adopted(store, locks, _settings(config, locks))
    locks.close()
    store.remove_all()
    return None


def _find(pool_id: int, access: Access) -> SegmentStore | None:
    """The segments of an earlier pool, if they are whole."""
    if not names_of(pool_id):
        return None
    try:
        return SegmentStore.adopt(pool_id, access)
    except DamagedPool as error:
        log.error("%s: removing it and starting a new one", error)
        discard(pool_id)
    except OtherVersion as error:
        log.error("%s. Starting a new one", error)
    except PoolIsServed as error:
        raise AlreadyRunning(f"{error}, which came to it by another path") from error
    return None


def _is_wanted(store: SegmentStore, config: Config) -> bool:
    """Whether a pool has the geometry that is configured, or somebody who lives in it."""
    if (store.tiers, store.seats) == (config.tiers, config.max_clients):
        return True
    if _has_living_seats(store):
        log.warning("pool %016x has living clients: it keeps its sizes, memory_limit at its making and max_clients;"
                    " the configured ones come with the next pool", store.pool_id)  # fmt: skip
        return True
    log.info("pool %016x has another geometry than is configured and no living client: starting a new one",
             store.pool_id)  # fmt: skip
    return False


def _adopted(store: SegmentStore, locks: LockFiles, settings: Settings) -> Pool:
    epoch = store.header[EPOCH] + 1
    as_it_is = dataclasses.replace(settings, sizing=_sizing_of(store.tiers, settings.sizing), max_clients=store.seats)
    return Pool(store, locks, _make_core(store, as_it_is, epoch), is_adopted=True)


def _make_core(store: SegmentStore, settings: Settings, epoch: int) -> Broker:
    ledger, header = (cast(MutableSequence[int], words) for words in (store.ledger, store.header))
    return Broker(ledger, header, settings, store.pool_id, epoch, os.getpid())


def _sizing_of(tiers: tuple[Tier, ...], configured: Sizing) -> Sizing:
    """The sizes that the tiers have, with the thresholds that are configured."""
    return dataclasses.replace(
        configured,
        pooled_sizes=tuple(tier.size for tier in tiers if tier.kind is TierKind.POOLED),
        chunk_sizes=tuple(tier.size for tier in tiers if tier.kind is TierKind.CHUNK),
    )


def _has_living_seats(store: SegmentStore) -> bool:
    header = store.header
    seats = (seat_at(seat) for seat in range(1, store.seats + 1))
    return any(
        is_same_process(header[at + SEAT_PID], header[at + SEAT_START]) or header[at + SEAT_PID] == 0
        for at in seats
        if header[at + SEAT_STATE]
    )


def _is_named(store: SegmentStore, row: int, generation: int) -> bool:
    tier, at = store.tiers[-1], row * ROW_WORDS
    return (
        tier.base <= row < tier.end
        and state_of(store.ledger[at]) in _HELD
        and birth_of(store.ledger[at + LINK]) == generation
    )
