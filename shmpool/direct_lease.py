"""A lease of a direct segment that serves one object (`seat.direct`). A payload that is ready is written
by ``pwrite``, which needs no map, so the view is made when it is first asked for. At publish the
broker becomes the custodian, and unlinks the segment when the last reader is done; or a steady producer
keeps it for its next object (`seat.segments`), whose lease is then like that of any slot.
"""

from __future__ import annotations

import os

from . import layouts
from .lease import EndedLease, Lease, is_parents, passing_on
from .live_lease import LiveLease, check_shorter, store_length
from .protocol.handle import Handle
from .protocol.ledger import ONE_GENERATION, SEAT_MASK, STATE_SHIFT
from .protocol.states import State
from .seat.direct import DirectSlot
from .seat.slot import ViewTaken
from .system import filling
from .system.here import HERE, OURS
from .system.outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import MemberDescriptorType
    from typing import Any, Final

_view: Final[MemberDescriptorType] = vars(Lease)["view"]


def _take(claim: list[None], taken: list[None]) -> bool:
    """Take what there is of a claim, in one step: an exception finds it in one of the two."""
    try:
        taken.extend(map(list.pop, (claim,)))
    except own(IndexError):
        pass
    return bool(taken)


def _claim(claim: list[None]) -> Generator[None]:
    taken: list[None] = []
    try:
        if not _take(claim, taken):
            raise ViewTaken
        yield
    finally:
        claim.extend(taken)


class _Claimed:
    """The block in the middle of `_claim`. An exception may come before it begins: then the generator's end gives back
    what was taken."""

    __slots__ = ("_steps",)

    def __init__(self, claim: list[None]) -> None:
        self._steps = _claim(claim)

    def __enter__(self) -> None:
        next(self._steps)

    def __exit__(self, *_: object) -> None:
        self._steps.close()


class DirectLease(LiveLease):
    """A lease of a direct segment. Its view is made when it is first asked for."""

    __slots__ = ()

    _slot: DirectSlot

    @property
    @passing_on
    def view(self) -> memoryview:  # type: ignore[override]
        """Writable, exactly `nbytes` long. Raises SharedMemoryFull where the kernel refuses to
        map what is reserved already: this process's address space is used up."""
        try:
            view: memoryview = _view.__get__(self)
            return view
        except own(AttributeError):
            pass
        with DirectLease._claimed(self):
            view = memoryview(self._slot.map())[: self.nbytes]
            _view.__set__(self, view)
        return view

    def _claimed(self) -> _Claimed:
        """Nobody publishes or releases it meanwhile, and so nobody else has its segment: `Pool.close`
        leaves it to this thread. Raises LeaseReleased where somebody does already."""
        return _Claimed(self._slot.claim)

    def shorten(self, nbytes: int) -> None:
        check_shorter(self, nbytes)
        with DirectLease._claimed(self):
            store_length(self, nbytes)
            try:
                whole = _view.__get__(self)
            except own(AttributeError):
                return  # it is made when it is asked for
            _view.__set__(self, whole[:nbytes])
            try:
                whole.release()
            except own(BufferError):
                pass

    def _write(self, source: memoryview) -> None:
        self._write_part(0, source)
        self._slot.close()  # a process may have more direct leases than descriptors

    def _write_placed(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        for offset, source in parts:
            self._write_part(offset, source)
        self._slot.close()

    def _write_part(self, offset: int, source: memoryview) -> None:
        raw = layouts.flat(source) if self._slot.window is None else None
        if raw is None:
            LiveLease._write_placed(self, [(offset, source)])
            return
        if not HERE[OURS]:
            is_parents()
        with DirectLease._claimed(self):
            written, fd = 0, self._slot.open()
            while True:
                if written == len(raw):
                    break
                written += os.pwrite(fd, raw[written:], offset + written)

    def _fill(self, fd: int, offset: int | None) -> int:
        """Without a map where the kernel copies from file to file."""
        if not HERE[OURS]:
            is_parents()
        slot = self._slot
        if slot.window is None:
            filled = filling.copy_range(slot.open(), self.nbytes, fd, offset)
            slot.close()
            if filled is not None:
                return filled
        return LiveLease._fill(self, fd, offset)

    def publish(self, *, ttl: float | None = None) -> Handle:
        return self.publish_many(1, ttl=ttl)[0]

    def release(self) -> None:
        try:
            if not LiveLease.release_unless_busy(self):  # its publish was interrupted: the slot is found (`recovery`)
                self.__class__ = EndedLease  # type: ignore[assignment]
        except own(ViewTaken):  # another thread has just ended it
            pass

    def _take_view(self, taken: list[None], *, is_collected: bool = False) -> bool:
        if not _take(self._slot.claim, taken):
            return False
        try:
            view = _view.__get__(self)
        except own(AttributeError):
            return True
        if not is_collected:
            try:
                view.release()
            except own(BufferError):  # numpy holds it; the reference count tells
                pass
        _view.__delete__(self)
        return True

    def _renew_view(self) -> None:
        self._slot.claim.append(None)  # the view is made again when it is asked for

    def _granted(self, *, is_kept: bool = False) -> int:
        """Custody passes with the publishing store, unless somebody keeps views, or the segment."""
        slot = self._slot
        if is_kept or slot.has_views or slot.stock.keeps(slot):
            return LiveLease._granted(self)
        slot.window = None
        return slot.base | State.PUBLISHED << STATE_SHIFT

    def _store_grant(self, granted: int) -> None:
        """The one store with which custody passes. The row is no more to be looked at behind it: whoever knows the
        handle may have closed the ticket already (a stream's ring names it before, `Pool.reclaim` finds it), and
        then it is somebody else's."""
        if granted & SEAT_MASK:
            LiveLease._store_grant(self, granted)
            return
        self._slot.is_passed_on = True
        self._slot.session.return_soon(self._slot, State.PUBLISHED)

    @staticmethod
    def _await_readers(slot: Any) -> None:
        slot.close()
        if slot.is_passed_on:
            return
        if slot.stock.keeps(slot):
            LiveLease._await_readers(slot)
            slot.stock.watch()
            return
        slot.window = None  # before another is the custodian: the memory would stay with the map
        slot.session.return_soon(slot, State.PUBLISHED)

    @staticmethod
    def _return(slot: Any) -> None:
        slot.close()
        if slot.stock.keeps(slot):
            slot.session.return_unpublished(slot)
            slot.stock.watch()
            return
        slot.window = None
        slot.base += ONE_GENERATION
        slot.session.return_soon(slot, State.RETURNED)
