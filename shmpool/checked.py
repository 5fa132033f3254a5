"""Checksums, where the broker's configuration asks for them (``checksums = true``).

A CRC-32 of the payload is stored at publish in the place of the last ticket's cell, so that
a publication has at most 12 readers, and verified at open; of a shared publication in the place of
its name's last bytes, and verified at the first open in a process (`shared`). It costs a pass over the
bytes on each side. Pools without checksums do not come here: a pool with them has other classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final
from zlib import crc32

from .buffer import Buffer
from .direct_lease import DirectLease
from .errors import ChecksumError
from .lease import Lease
from .live_lease import LiveLease
from .pool import BasePool
from .protocol.handle import Handle
from .protocol.ledger import CHECKSUM, MAX_TICKETS, SUMMED_NAME_BYTES
from .protocol.sizing import Strategy

if TYPE_CHECKING:
    from .protocol.sizing import StrategyLike

MOST_READERS: Final = MAX_TICKETS - 1


class CheckedLease(LiveLease):
    """A lease whose payload is summed at publish."""

    __slots__ = ()

    def publish(self, *, ttl: float | None = None) -> Handle:
        return self.publish_many(1, ttl=ttl)[0]

    def publish_many(self, n: int, *, ttl: float | None = None) -> list[Handle]:
        _check_readers(n)
        return LiveLease.publish_many(self, n, ttl=ttl)

    def sum_payload(self) -> None:
        _store_checksum(self)

    def _store_publication(self, tickets: int, *, is_kept: bool = False) -> list[Handle]:
        _store_checksum(self)
        return LiveLease._store_publication(self, tickets, is_kept=is_kept)


class CheckedDirectLease(DirectLease):
    """A lease of a direct segment whose payload is summed at publish."""

    __slots__ = ()

    def publish_many(self, n: int, *, ttl: float | None = None) -> list[Handle]:
        _check_readers(n)
        return DirectLease.publish_many(self, n, ttl=ttl)

    def sum_payload(self) -> None:
        self._slot.map()  # it may have been written without a map
        _store_checksum(self)

    def _store_publication(self, tickets: int, *, is_kept: bool = False) -> list[Handle]:
        self.sum_payload()
        return DirectLease._store_publication(self, tickets, is_kept=is_kept)


class CheckedPool(BasePool):
    """A pool whose buffers are verified when they are opened."""

    most_name_bytes: ClassVar[int] = SUMMED_NAME_BYTES

    def lease(self, nbytes: int, *, strategy: StrategyLike = Strategy.ADAPTIVE, timeout: float | None = None) -> Lease:
        lease = super().lease(nbytes, strategy=strategy, timeout=timeout)
        lease.__class__ = CheckedDirectLease if isinstance(lease, DirectLease) else CheckedLease
        return lease

    def open(self, handle: Handle | bytes | bytearray | memoryview, *, writable: bool = False) -> Buffer:
        """Like `Pool.open`. Raises `ChecksumError`, and the ticket is used up, when the bytes
        are not those that were published."""
        if writable:
            return self._open_writable(handle)
        buffer = super().open(handle)
        record = buffer._record
        stored, actual = record.session.words[record.word + CHECKSUM], crc32(buffer.view)
        if stored != actual:
            buffer.release()
            raise ChecksumError.of(buffer.nbytes, record.row, actual, stored)
        return buffer


def _store_checksum(lease: CheckedLease | CheckedDirectLease) -> None:
    slot = lease._slot
    assert slot.window is not None
    slot.session.words[slot.word + CHECKSUM] = crc32(memoryview(slot.window)[: lease.nbytes])


def _check_readers(n: int) -> None:
    if type(n) is not int or not 1 <= n <= MOST_READERS:
        raise ValueError(f"with checksums a publication has 1 to {MOST_READERS} readers, not {n!r}")
