"""Which pool a starting broker serves: a new one, or the one that an earlier broker left.

A pool is taken up again when it is whole and as it would be made now. Some settings are the
pool's (sizes, max_clients, checksums, how tickets are taken): with others it is taken up only while living processes
hold seats in it, and then as it is. A damaged pool is removed, and said so.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from collections.abc import Iterator, MutableSequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

from shmpool.errors import ConfigError
from shmpool.protocol.header import (
    CHECKSUMS,
    EPOCH,
    PROPERTIES,
    SEAT_STATE,
    TICKETS_BY_CAS,
    header_bytes,
    ledger_bytes,
    seat_at,
)
from shmpool.protocol.ledger import LINK, ROW_WORDS, SEAT_LOCKS, birth_of, state_of
from shmpool.protocol.sizing import Sizing, Tier, TierKind, format_bytes, make_tiers, rows_of
from shmpool.protocol.states import State
from shmpool.system import atomics
from shmpool.system.locks import ByteLocks

from ..config import Config, to_settings
from ..core.broker import Broker
from ..core.settings import Settings
from . import host
from .files import AlreadyRunning, LockFiles, RuntimeFiles
from .leftovers import is_served, names_of, remove_names
from .segments import (
    Access,
    DamagedPool,
    OtherVersion,
    PoolIsServed,
    SegmentStore,
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


def open_pool(config: Config, files: RuntimeFiles, earlier: int | None, *, may_lower: bool) -> Pool:
    """The pool to serve; *earlier* is the id of one that may be taken up. *may_lower*: nobody asked
    for a memory_limit. Raises OSError when none can be made, ConfigError when the host has no room
    for a new one."""
    access = Access(config.group)
    adopted = None if earlier is None else _adopt(earlier, config, files, access)
    return adopted or new_pool(host.fit(config, may_lower=may_lower), files, access)


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
    settings = to_settings(config, locks.tickets.file_id, locks.seats.file_id)
    return dataclasses.replace(settings, tickets_by_cas=_takes_by_cas(config))


def _takes_by_cas(config: Config) -> bool:
    """How tickets of a new pool are taken. Raises ConfigError for a way that this broker does not have."""
    if config.tickets == "auto":
        return atomics.compiled is not None
    if config.tickets == "cas" and not atomics.is_there():
        raise ConfigError(
            "tickets = \"cas\" needs shmpool's compiled part, or GCC's libatomic (libatomic.so.1), which are not here;"
            ' "locks" needs neither'
        )
    return config.tickets == "cas"


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
    with ExitStack() as stack:
        stack.callback(store.close)
        locks = files.open_lock_files(pool_id, store.tickets_file, store.seats_file)
        if locks is None:
            log.error("pool %016x has lost its lock files: removing it and starting a new one", pool_id)
            store.remove_all()
            return None
        stack.callback(locks.close)
        if store.header[PROPERTIES] & TICKETS_BY_CAS and not atomics.is_there():
            log.error("tickets of pool %016x are taken by compare-and-swap, for which this broker has neither shmpool's"
                      " compiled part nor libatomic: it is left alone. Starting a new one", pool_id)  # fmt: skip
            return None
        if not _is_wanted(store, locks, config):
            store.remove_all()
            return None
        pool = _adopted(store, locks, _settings(config, locks))
        stack.pop_all()
    return pool


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


def _is_wanted(store: SegmentStore, locks: LockFiles, config: Config) -> bool:
    """Whether a pool is as it would be made now, or somebody lives in it."""
    kept = ", ".join(_kept_settings(store, config))
    if not kept:
        return True
    if _has_living_seats(store, locks.seats):
        log.warning("pool %016x has living clients and keeps what it was made with: %s; the configured values come"
                    " with the next pool", store.pool_id, kept)  # fmt: skip
        return True
    log.info("pool %016x was made with other settings (%s) and has no living client: starting a new one",
             store.pool_id, kept)  # fmt: skip
    return False


def _kept_settings(store: SegmentStore, config: Config) -> Iterator[str]:
    """The settings that are the pool's and that it has otherwise than configured, with its
    values. All others are the broker's, and change with it."""
    sizing = _sizing_of(store.tiers, config.sizing)
    has_checksums = bool(store.header[PROPERTIES] & CHECKSUMS)
    if has_checksums != config.checksums:
        yield f"checksums = {str(has_checksums).lower()}"
    by_cas = bool(store.header[PROPERTIES] & TICKETS_BY_CAS)
    if config.tickets != "auto" and by_cas != (config.tickets == "cas"):
        yield f'tickets = "{"cas" if by_cas else "locks"}"'
    if store.seats != config.max_clients:
        yield f"max_clients = {store.seats}"
    for name in ("pooled_sizes", "chunk_sizes"):
        if getattr(sizing, name) != getattr(config, name):
            yield f"{name} = [{', '.join(map(format_bytes, getattr(sizing, name)))}]"
    if sizing == config.sizing and store.tiers != config.tiers:
        yield "as many slots as memory_limit allowed at its making"


def _adopted(store: SegmentStore, locks: LockFiles, settings: Settings) -> Pool:
    epoch = store.header[EPOCH] + 1
    as_it_is = dataclasses.replace(
        settings,
        memory_limit=_possible_limit(store, settings.memory_limit),
        sizing=_sizing_of(store.tiers, settings.sizing),
        max_clients=store.seats,
        checksums=bool(store.header[PROPERTIES] & CHECKSUMS),
        tickets_by_cas=bool(store.header[PROPERTIES] & TICKETS_BY_CAS),
    )
    return Pool(store, locks, _make_core(store, as_it_is, epoch), is_adopted=True)


def _possible_limit(store: SegmentStore, limit: int) -> int:
    """The limit, raised to what a pool that was made for another one needs: its tables and one
    of its largest slots."""
    least = ledger_bytes(rows_of(store.tiers), store.seats) + header_bytes(store.seats)
    least += max(tier.size for tier in store.tiers)
    if limit >= least:
        return limit
    log.warning(
        "memory_limit = %s is less than the tables of pool %016x and one of its largest slots: its limit is %s as long"
        " as its clients live", format_bytes(limit), store.pool_id, format_bytes(least),
    )  # fmt: skip
    return least


def _make_core(store: SegmentStore, settings: Settings, epoch: int) -> Broker:
    ledger, header = (cast(MutableSequence[int], words) for words in (store.ledger, store.header))
    return Broker(ledger, header, settings, store.pool_id, epoch, os.getpid())


def _sizing_of(tiers: tuple[Tier, ...], configured: Sizing) -> Sizing:
    """The sizes that the tiers have, with the thresholds that are configured."""
    return configured.but(
        pooled_sizes=tuple(tier.size for tier in tiers if tier.kind is TierKind.POOLED),
        chunk_sizes=tuple(tier.size for tier in tiers if tier.kind is TierKind.CHUNK),
    )


def _has_living_seats(store: SegmentStore, seats: ByteLocks) -> bool:
    """Whether anybody holds the byte of a seat that was given out."""
    for seat in range(1, store.seats + 1):
        if store.header[seat_at(seat) + SEAT_STATE]:
            if not seats.try_lock(SEAT_LOCKS + seat):
                return True
            seats.unlock(SEAT_LOCKS + seat)
    return False


def _is_named(store: SegmentStore, row: int, generation: int) -> bool:
    tier, at = store.tiers[-1], row * ROW_WORDS
    return (
        tier.base <= row < tier.end
        and state_of(store.ledger[at]) in _HELD
        and birth_of(store.ledger[at + LINK]) == generation
    )
