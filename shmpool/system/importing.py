"""The door of imports that come late: in a call, when it first needs them.

A module that one thread is just importing is half a module in the child of a fork by another, and the lock of its
import is held there by nobody who lives. So whoever imports in a call holds the `door`, and so does a fork: it waits
for what is being imported, and what would be imported meanwhile waits for the fork. A thread that forks in the middle
of its own import goes on, as its child does.
"""

from __future__ import annotations

import os
from _thread import RLock

#: Held around each import statement that stands in a function.
door = RLock()
#: That a fork holds it: an exception may come where it waits for that.
_forking: list[None] = []


def _before() -> None:
    door.acquire()
    _forking.append(None)


def _after() -> None:
    """In the child, too: its only thread is the one that forked."""
    if _forking:
        _forking.pop()
        door.release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
