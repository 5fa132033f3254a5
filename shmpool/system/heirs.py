"""Evidence that somebody who inherited a view still has it.

A byte lock belongs to an open file, and a mapped page, out of reach for reading and writing,
keeps that file open until the last process that inherited it unmaps it, executes another program
or dies, whatever it does with its descriptors. The file is the pool's header segment, whose other
bytes nobody locks: a map of a file on overlayfs does not keep the lock. What is locked says who:

- byte `READERS` + seat: the seat itself, and its children, for as long as they read what was open
  there. The broker looks at it once the seat has ended.
- bytes of `guard_at` (seat, fork, pid): the children of one fork, or of a few in a row. With pid 0 all of them, which
  the parent looks at; with a pid one of them, for whoever asks who it is.
- byte `copies_at` (seat, fork): a child of that fork that has yet to copy what its parent was
  writing; it lets go of it in its first moments. Until then the parent's slots are not used again.
"""

from __future__ import annotations

import mmap

from ..protocol.frozen import NamedTuple
from ..protocol.names import SHM_DIR, header_name
from . import libc
from .locks import any_locked, share_byte
from .segments import open_segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

READERS: Final = 1 << 61
_COPIES: Final = READERS | 1 << 60
_GUARDS: Final = 1 << 62
_FORK_BITS: Final = 22
#: What Linux has at most (PID_MAX_LIMIT).
_PID_BITS: Final = 22


class Page(mmap.mmap):
    """A page that holds an open file: with its last reference the map goes, and with the last map
    in any process the lock."""


def hold(fd: int, offset: int) -> Page:
    """Lock a byte for reading in an open file and map it. The descriptor may be closed then, if
    nothing else is locked through it. Raises OSError."""
    share_byte(fd, offset)
    page = Page(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
    libc.map_over(libc.address_of(page), mmap.PAGESIZE, 0, fd, 0)
    return page


#: The compiled part's `hold_anew`, for the path of a segment: None where it does not succeed. In a forked child each
#: function of Python is pages that the kernel copies.
compiled: Callable[[type[Page], bytes, int], Page | None] | None = None
#: The pool that this was called for last, and where its header is.
_path: Final[list[Any]] = [None, b""]


def hold_anew(pool_id: int, offset: int) -> Page:
    """The same in an open file of its own. Raises OSError."""
    if compiled is not None:
        if _path[0] != pool_id:
            _path[:] = pool_id, f"{SHM_DIR}/{header_name(pool_id)}".encode()
        if (page := compiled(Page, _path[1], offset)) is not None:
            return page
    return hold(open_segment(header_name(pool_id), writable=False), offset)


def hold_fork(pool_id: int, seat: int, fork: int) -> tuple[Page, Page]:
    """What the children of a fork inherit of a seat: the page that they drop when they have copied, and the one
    that they drop when they read no more. Raises OSError."""
    return hold_anew(pool_id, copies_at(seat, fork)), hold_anew(pool_id, guard_at(seat, fork))


def copies_at(seat: int, fork: int) -> int:
    """The byte of a child that has yet to copy."""
    return _COPIES | seat << _FORK_BITS | fork & (1 << _FORK_BITS) - 1


def is_copied(fd: int, seat: int) -> bool:
    """Whether no child of a seat has yet to copy anything."""
    return any_locked(fd, copies_at(seat, 0), 1 << _FORK_BITS) < 0


def guard_at(seat: int, fork: int, pid: int = 0) -> int:
    """The byte of a fork's children, or of one of them."""
    return _GUARDS | (seat << _FORK_BITS | fork & (1 << _FORK_BITS) - 1) << _PID_BITS | pid


def is_held(fd: int, offset: int) -> bool:
    """Whether another open file holds a byte. *fd* is one of the header segment."""
    return any_locked(fd, offset, 1) >= 0


class Evidence(NamedTuple):
    """What an inherited window keeps, and is kept by: it goes with the last one."""

    pool_id: int
    seat: int
    fork: int
    readers: Page | None
    guard: Page | None
    name: Page | None

    @classmethod
    def of(
        cls, pool_id: int, seat: int, fork: int, readers: Page | None, guard: Page | None, name: Page | None = None
    ) -> Evidence:
        """Made in a forked child, by no more code than this."""
        return tuple.__new__(cls, (pool_id, seat, fork, readers, guard, name))

    def under(self, pid: int) -> Evidence:
        """The same in another process, which says its pid. Raises OSError."""
        name = hold_anew(self.pool_id, guard_at(self.seat, self.fork, pid))
        return Evidence.of(self.pool_id, self.seat, self.fork, self.readers, self.guard, name)


def pids_of(fd: int, seat: int) -> list[int]:
    """The processes that inherited something from a seat and keep it, as they see themselves."""
    pids: set[int] = set()
    ranges = [(guard_at(seat, 0), guard_at(seat + 1, 0))]
    while ranges:
        start, end = ranges.pop()
        if start < end and (held := any_locked(fd, start, end - start)) >= 0:
            pids.add(held & (1 << _PID_BITS) - 1)
            ranges += [(start, held), (held + 1, end)]
    return sorted(pids - {0})
