"""Pools that note which line of code leased and opened what (``SHMPOOL_TRACE=1``), for
``shmpool leases --leaks``. Without it pools are of another class, and note nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .buffer import Buffer
from .lease import Lease
from .pool import BasePool
from .protocol.handle import Handle
from .protocol.ledger import GENERATION_FIELD
from .protocol.sizing import Strategy
from .seat.sites import note

if TYPE_CHECKING:
    from .protocol.sizing import StrategyLike

_ADAPTIVE: Final = Strategy.ADAPTIVE


class TracedPool(BasePool):
    """A pool that notes its callers."""

    def lease(self, nbytes: int, *, strategy: StrategyLike = _ADAPTIVE, timeout: float | None = None) -> Lease:
        lease = super().lease(nbytes, strategy=strategy, timeout=timeout)
        slot = lease._slot
        note(slot.session.sites.leased, slot.row, slot.base)
        return lease

    def open(self, handle: Handle | bytes | bytearray | memoryview, *, writable: bool = False) -> Buffer:
        buffer = super().open(handle, writable=writable)
        record = buffer._record
        note(record.session.sites.opened, record.row, buffer._granted & GENERATION_FIELD)
        return buffer
