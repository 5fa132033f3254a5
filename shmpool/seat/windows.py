"""Windows: the maps through which this process sees slots, runs and direct segments.

A window is whole even where a lease is scattered: its extents are mapped side by side.
A reader's window is PROT_READ over a read-only descriptor. Every view that a user gets
hangs on its window, so the window's reference count tells whether any view is left.

A window is never closed: it goes when its last reference does, and takes its map along.
"""

from __future__ import annotations

import mmap
import os
import sys
from _weakref import ref
from sys import getrefcount

from ..protocol.frozen import NamedTuple
from ..system import libc
from ..system.descriptors import open_owned
from ..system.heirs import Evidence
from ..system.limits import refused
from ..system.outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

READ: Final = mmap.PROT_READ
WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE


class Piece(NamedTuple):
    """A range of a segment: descriptor, offset and length in bytes."""

    fd: int
    offset: int
    length: int


class Window(mmap.mmap):
    """One map; *address* is where it lies, *evidence* the pages that tell the parent and the broker
    that a child still reads through it (`life.forks`): they go when it goes."""

    __slots__ = ("address", "evidence", "is_sparse", "is_writable", "owner")
    address: int
    evidence: Evidence | None
    is_sparse: bool
    is_writable: bool
    owner: Windows


#: The windows of all sessions, also of ended ones of which only a view is left. Sets of weak
#: references, since a `WeakSet` has callbacks in Python.
_all_alive: set[ref[Window]] = set()
#: Where a writer's view is copied by hand, it is so many bytes at a time.
_COPIED_AT_ONCE: Final = 1 << 20


def keep_readable() -> list[Window]:
    """After a fork, in the child: take every window away but those through which somebody reads,
    which are returned. Through which somebody writes shows a copy of its own, what the ledger is
    seen through is zeros. Our own records and slots have let go of theirs before, so whoever else refers to
    a window looks through it; the map itself does not tell (closing it would raise): numpy's
    ``ndarray(shape, dtype, view)`` refers to the memory's owner, and exports nothing."""
    kept = []
    for reference in list(_all_alive):
        window = reference()
        if window is None or window.closed:
            continue
        if window.is_sparse:
            libc.cover(window.address, len(window))
            continue
        if getrefcount(window) == _OURS_ALONE:
            window.close()
        elif window.is_writable:
            _copy(window)
        else:
            kept.append(window)
    return kept


def _references_of_one() -> int:
    """What ``getrefcount(window)`` says of a local variable that nobody else has."""
    window = mmap.mmap(-1, mmap.PAGESIZE)
    return getrefcount(window)


_OURS_ALONE: Final = _references_of_one()


def _copy(window: Window) -> None:
    """Put a private copy in the place of a map. The kernel reads what is copied: what a thread that is no
    more here had a map of may be another length by now, and to read past its end ourselves is SIGBUS."""
    length = len(window)
    try:
        fd = open_owned(os.memfd_create, "shmpool-copy")
    except own(OSError):  # no descriptor now, or no such call here
        _copy_by_hand(window)
    else:
        os.ftruncate(fd, length)
        with memoryview(window) as whole:
            try:
                at = 0
                while True:
                    if at == length:
                        break
                    at += os.pwrite(fd, whole[at:], at)
            except own(OSError):
                pass  # what is not there is zeros
        libc.map_over(window.address, length, WRITE, fd, 0, private=True)
    _all_alive.discard(ref(window))


def _copy_by_hand(window: Window) -> None:
    with memoryview(window) as whole:
        for at in range(0, len(whole), _COPIED_AT_ONCE):
            content = bytes(whole[at : at + _COPIED_AT_ONCE])
            libc.cover(window.address + at, len(content))
            whole[at : at + len(content)] = content


class Windows:
    """Makes the windows of one session."""

    def make(self, pieces: Iterable[Piece], protection: int, *, populate: bool = True) -> Window:
        """A window over the pieces side by side, its page tables filled in.

        Raises SharedMemoryFull when the kernel has no room for a map, OSError when it refuses it
        or the pages are not there (a peer has truncated the segment): an error here instead of
        SIGBUS later.
        """
        pieces = list(pieces)
        length = pieces[0].length if len(pieces) == 1 else sum(piece.length for piece in pieces)
        try:
            return self._make(pieces, length, protection, populate)
        except own(OSError) as error:
            raise refused(error, f"cannot map {length} bytes of shared memory") from error

    def _make(self, pieces: list[Piece], length: int, protection: int, populate: bool) -> Window:
        window = Window(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
        at = window.address = libc.address_of(window)
        window.owner, window.evidence = self, None
        window.is_sparse, window.is_writable = False, protection == WRITE
        _all_alive.add(ref(window, _all_alive.discard))
        for piece in pieces:
            libc.map_over(at, piece.length, protection, piece.fd, piece.offset)
            at += piece.length
        if populate:
            libc.populate(window)
        return window

    def make_sparse(self, fd: int, length: int, protection: int) -> Window:
        """A window over a segment that is used here and there (ledger, header); the broker
        has reserved it whole."""
        window = self.make([Piece(fd, 0, length)], protection, populate=False)
        window.is_sparse = True
        return window


class _Holder:
    __slots__ = ("window",)


def _references_at_rest() -> int:
    """What ``getrefcount(record.window)`` says when no view is left; it depends on how
    the interpreter gets at the attribute, so it is measured."""
    holder = _Holder()
    holder.window = mmap.mmap(-1, mmap.PAGESIZE)  # type: ignore[attr-defined]
    at_rest = sys.getrefcount(holder.window)  # type: ignore[attr-defined]
    view = memoryview(holder.window)[:1]  # type: ignore[attr-defined]
    assert sys.getrefcount(holder.window) == at_rest + 1  # type: ignore[attr-defined]
    del view
    return at_rest


#: ``sys.getrefcount(record.window)`` of a window without views.
AT_REST: Final = _references_at_rest()
