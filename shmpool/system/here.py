"""Words that a fork wipes: whether this process is the one that made what it is looking at.

In a forked child CPython clears the other threads' objects, finalizers and all, before it runs
any hook. These words lie on a page that the kernel gives a child as zeros (MADV_WIPEONFORK), so
they say so from the child's first instruction on, at the price of a load.
"""

from __future__ import annotations

import mmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: Linux 4.14, older than what the broker needs.
_MADV_WIPEONFORK: Final = 18

_page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_page.madvise(_MADV_WIPEONFORK)

#: `HERE[OURS]`: the objects of this process are its own; 0 in a child until its hook has run.
#: `HERE[UNSHARED]`: no child, and no fork that is under way, may have inherited a view of a reader; its
#: releases need not look at guards. `HERE[COPIED]`: the same of a writer's: no child has yet to copy one.
#: `HERE[NOTED]`: the guards know of each fork that is over (`seat.guards.note_forks`); so 0 in a child, too.
#: `HERE[FORKING]`: the thread whose fork is under way, or 0; nothing that was open, or leased, is used again.
#: `HERE[FORKS]`: how many forks have begun.
#: `HERE[GUARDED]`: each seat has a guard that stands ready for the next fork, or there is none.
#: `HERE[WORKING]`: how many helpers are not at rest; one that never is counts until it ends.
#: `HERE[HELPERS]`: how many helpers there are, each a thread of the kernel's.
#: `HERE[IMPORTING]`: a thread has come to the door of late imports since a fork found nobody there.
HERE: Final = memoryview(_page).cast("Q")
OURS: Final = 0
UNSHARED: Final = 1
COPIED: Final = 2
NOTED: Final = 3
FORKING: Final = 4
GUARDED: Final = 5
WORKING: Final = 6
FORKS: Final = 7
HELPERS: Final = 8
IMPORTING: Final = 9
HERE[OURS] = HERE[UNSHARED] = HERE[COPIED] = HERE[NOTED] = HERE[GUARDED] = 1
