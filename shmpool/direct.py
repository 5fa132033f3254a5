"""Direct segments: very large objects get a segment of their own, used once.

The broker names and registers it and counts it towards the cap; its pages are reserved here,
when it is leased, by the process that writes it and is charged for them. A host without room
answers with ENOSPC, never with SIGBUS, and a lease waits for room until its deadline. What
cannot be reserved is nobody's: no lease fails later. A payload that is ready is written by
``pwrite``, which needs no map. At publish the broker becomes the custodian and unlinks the
segment when the last reader is done.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from . import layouts
from .errors import SharedMemoryFull
from .lease import EndedLease, Lease, LiveLease, is_parents
from .protocol.handle import Handle
from .protocol.ledger import ONE_GENERATION, STATE_SHIFT, generation_of
from .protocol.names import direct_name
from .protocol.sizing import format_bytes
from .protocol.states import State
from .seat.magazine import Slot
from .seat.windows import (
    WRITE,
    Piece,
    Window,
)
from .system import memory
from .system.descriptors import Descriptor
from .system.here import HERE, OURS
from .system.segments import open_segment

if TYPE_CHECKING:
    from types import MemberDescriptorType

    from .seat.session import Session

_view = cast("MemberDescriptorType", vars(Lease)["view"])


#: Seconds between two tries to reserve pages on a full host.
_RETRY_SECONDS: Final = 0.02


class DirectSlot(Slot):
    """The record of a direct segment that this client writes; *fd* is open until it is mapped,
    written or published. *claim* has one item until somebody publishes or releases: the view may not
    exist yet."""

    __slots__ = ("claim", "fd")

    claim: list[None]

    fd: Descriptor | None

    def open(self) -> Descriptor:
        """The descriptor of the segment that was granted. Raises StaleHandle, ConfigError."""
        fd: Descriptor | None = getattr(self, "fd", None)
        if fd is None:
            name = direct_name(self.session.pool_id, self.row, generation_of(self.base))
            fd = self.fd = open_segment(name, writable=True)
        return fd

    def map(self, protection: int = WRITE) -> Window:
        """The window over it, made once. Raises SharedMemoryFull when the kernel has no map."""
        if self.window is None:
            self.window = self.session.windows.make([Piece(self.open(), 0, self.size)], protection)
            self.close()
        return self.window

    @property
    def first_chunks(self) -> int:
        """In the place of the chunks: the publisher's seat. Custody passes at publish, and a
        broker that starts anew must still know whose publication it is."""
        return self.session.seat

    def close(self) -> None:
        """Close its descriptor, if it is open."""
        self.fd = None


class DirectLease(LiveLease):
    """A lease of a direct segment. Its view is made when it is first asked for."""

    __slots__ = ()

    _slot: DirectSlot

    @property
    def view(self) -> memoryview:  # type: ignore[override]
        """Writable, exactly `nbytes` long. Raises SharedMemoryFull where the kernel refuses to
        map what is reserved already: this process's address space is used up."""
        try:
            return cast(memoryview, _view.__get__(self))
        except AttributeError:
            pass
        view = memoryview(self._slot.map())[: self.nbytes]
        _view.__set__(self, view)
        return view

    def _shorten_view(self, nbytes: int) -> None:
        if self._slot.window is not None:  # else it is made when it is asked for
            whole = self.view
            _view.__set__(self, whole[:nbytes])
            with suppress(BufferError):
                whole.release()

    def _write(self, source: memoryview) -> None:
        self._write_part(0, source)
        self._slot.close()  # a process may have more direct leases than descriptors

    def _write_placed(self, parts: Iterable[tuple[int, memoryview]]) -> None:
        super()._write_placed(parts)
        self._slot.close()

    def _write_part(self, offset: int, source: memoryview) -> None:
        raw = layouts.flat(source) if self._slot.window is None else None
        if raw is None:
            super()._write_part(offset, source)
            return
        if not HERE[OURS]:
            is_parents()
        written, fd = 0, self._slot.open()
        while written < len(raw):
            written += os.pwrite(fd, raw[written:], offset + written)

    def publish(self) -> Handle:
        return self.publish_many(1)[0]

    def release(self) -> None:
        if not self.release_unless_busy():  # its publish was interrupted: the slot is found (`recovery`)
            self.__class__ = EndedLease  # type: ignore[assignment]

    def _drop_view(self, *, is_collected: bool = False) -> bool:
        try:
            self._slot.claim.pop()
        except IndexError:
            return False
        try:
            view = _view.__get__(self)
        except AttributeError:
            return True
        if not is_collected:
            with suppress(BufferError):  # numpy holds it; the reference count tells
                view.release()
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
        slot.window = None  # before another is the custodian: the memory would stay with the map
        slot.session.pass_on(slot, State.PUBLISHED)

    def _give_back(self) -> None:
        slot = self._slot
        slot.close()
        slot.window = None
        slot.base += ONE_GENERATION
        slot.session.pass_on(slot, State.RETURNED)


def obtain(session: Session, nbytes: int, timeout: float | None) -> DirectSlot:
    """A direct segment with its pages reserved, open. Raises LeaseTimeout, or SharedMemoryFull
    when the host or this process's cgroup had no room within *timeout* seconds (None: the
    configured ones, 0: one try); nothing is leased then."""
    seconds = session.lease_timeout if timeout is None else timeout
    deadline = time.monotonic() + seconds
    while True:
        slot = session.obtain_direct(nbytes, timeout)
        assert isinstance(slot, DirectSlot)
        try:
            slot.open()
            _reserve(slot)
        except BaseException as error:
            slot.close()
            session.give_back([slot])
            left = deadline - time.monotonic()
            if not isinstance(error, SharedMemoryFull) or left <= 0 or _is_never(session, nbytes):
                raise
        else:
            slot.claim = [None]
            return slot
        # The broker looks at /dev/shm before it grants; whoever was faster, or our own cgroup, may
        # have room again.
        time.sleep(min(_RETRY_SECONDS, left))
        timeout = max(0.001, deadline - time.monotonic())


def _reserve(slot: DirectSlot) -> None:
    """Reserve the pages that it has not. Raises SharedMemoryFull when there are none."""
    missing = slot.size - 512 * os.fstat(slot.open()).st_blocks
    if missing <= 0:  # it was a spare
        return
    try:
        memory.require(missing, slot.session.memory_groups)
        os.posix_fallocate(slot.open(), 0, slot.size)  # Python tries it again after a signal
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        text = error.strerror if error.strerror != os.strerror(errno.ENOSPC) else f"{memory.SHM_DIR} is full"
        raise SharedMemoryFull(f"a direct segment of {format_bytes(slot.size)}: {text}") from None


def _is_never(session: Session, nbytes: int) -> bool:
    """Whether a cgroup will not hold so much even when all else in it has gone."""
    limits = [group.limit() for group in session.memory_groups]
    return any(limit is not None and limit < nbytes for limit in limits)
