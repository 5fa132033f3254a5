"""Direct segments: very large objects get a segment of their own, used once.

The broker names and registers it and counts it towards the cap; its pages are reserved
here, by the process that writes it: ``pwrite`` for a payload that is ready, which costs
0.4 of faulting fresh pages in, else ``posix_fallocate`` before the view is made. A host
without room answers with ENOSPC, never with SIGBUS. At publish the broker becomes the
custodian and unlinks the segment when the last reader is done.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, cast

from . import layouts
from .errors import SharedMemoryFull
from .lease import Lease, LiveLease
from .magazine import Slot
from .protocol.handle import Handle
from .protocol.ledger import ONE_GENERATION, STATE_SHIFT, generation_of
from .protocol.names import direct_name
from .protocol.sizing import format_bytes
from .protocol.states import State
from .system.segments import open_segment
from .windows import WRITE, Piece

if TYPE_CHECKING:
    from types import MemberDescriptorType

_view = cast("MemberDescriptorType", vars(Lease)["view"])


class DirectSlot(Slot):
    """The record of a direct segment that this client writes; *fd* is open until publish.
    *claim* has one item until somebody publishes or releases: the view may not exist yet."""

    __slots__ = ("claim", "fd", "is_reserved")

    claim: list[None]

    fd: int
    is_reserved: bool

    @property
    def first_chunks(self) -> int:
        """In the place of the chunks: the publisher's seat. Custody passes at publish, and a
        broker that starts anew must still know whose publication it is."""
        return self.session.seat

    def close(self) -> None:
        """Close its descriptor, if it is open."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()  # of a lease whose seat has ended


class DirectLease(LiveLease):
    """A lease of a direct segment. Its view is made when it is first asked for."""

    __slots__ = ()

    _slot: DirectSlot

    @property
    def view(self) -> memoryview:  # type: ignore[override]
        """Writable, exactly `nbytes` long; reserves the pages. Raises SharedMemoryFull."""
        try:
            return cast(memoryview, _view.__get__(self))
        except AttributeError:
            self._reserve()
            slot = self._slot
            if slot.window is None:
                slot.window = slot.session.windows.make([Piece(slot.fd, 0, slot.size)], WRITE)
            view = memoryview(slot.window)[: self.nbytes]
            _view.__set__(self, view)
            return view

    def _write(self, source: memoryview) -> None:
        self._write_part(0, source)
        self._slot.is_reserved = self.nbytes > 0

    def _write_part(self, offset: int, source: memoryview) -> None:
        raw = layouts.flat(source) if self._slot.window is None else None
        if raw is None:
            super()._write_part(offset, source)
            return
        written = 0
        try:
            while written < len(raw):
                written += os.pwrite(self._slot.fd, raw[written:], offset + written)
        except OSError as error:
            raise _no_room(error, self.nbytes) from error

    def _reserve(self) -> None:
        slot = self._slot
        if not slot.is_reserved:
            reserve(slot.fd, slot.size)
            slot.is_reserved = True

    def publish(self) -> Handle:
        return self.publish_many(1)[0]

    def publish_many(self, n: int) -> list[Handle]:
        self._reserve()
        return super().publish_many(n)

    def _drop_view(self) -> bool:
        try:
            self._slot.claim.pop()
        except IndexError:
            return False
        try:
            view = _view.__get__(self)
        except AttributeError:
            return True
        try:
            view.release()
        except BufferError:
            pass  # numpy holds it; the reference count tells
        _view.__delete__(self)
        return True

    def _renew_view(self) -> None:
        self._slot.claim.append(None)  # the view is made again when it is asked for

    def _granted(self) -> int:
        """Custody passes with the publishing store, unless the writer keeps views."""
        slot = self._slot
        if slot.has_views:
            return super()._granted()
        slot.window = None
        return slot.base | State.PUBLISHED << STATE_SHIFT

    def _await_readers(self) -> None:
        slot = self._slot
        slot.close()
        slot.session.pass_on(slot, State.PUBLISHED)

    def _give_back(self) -> None:
        slot = self._slot
        slot.close()
        slot.window = None
        slot.base += ONE_GENERATION
        slot.session.pass_on(slot, State.RETURNED)


def open_direct(slot: DirectSlot) -> None:
    """Open the segment that was granted."""
    name = direct_name(slot.session.pool_id, slot.row, generation_of(slot.base))
    try:
        slot.fd = open_segment(name, writable=True)
    except BaseException:
        slot.session.give_back([slot])
        raise
    slot.is_reserved = False
    slot.claim = [None]


def reserve(fd: int, nbytes: int) -> None:
    """Reserve pages. Raises SharedMemoryFull when the host has none."""
    while True:
        try:
            os.posix_fallocate(fd, 0, nbytes)
            return
        except InterruptedError:
            continue
        except OSError as error:
            raise _no_room(error, nbytes) from error


def _no_room(error: OSError, nbytes: int) -> Exception:
    if error.errno != errno.ENOSPC:
        return error
    free = os.statvfs("/dev/shm")
    return SharedMemoryFull(
        f"/dev/shm has no room for a direct segment of {format_bytes(nbytes)}:"
        f" {format_bytes(free.f_bavail * free.f_frsize)} of {format_bytes(free.f_blocks * free.f_frsize)} are free"
    )
