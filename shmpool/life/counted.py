"""What CPython warns of at a fork: from 3.12 on of every other thread, and so of our helpers, which rest meanwhile
and hold nothing (`Helper.rest`). Where they are all that it has counted, there is nothing to warn of.

It looks at the filters behind the fork, in 3.13 behind all hooks, and throws away what is raised meanwhile: Ctrl-C too,
which comes during the fork more often than in its hooks. So no function of Python's is asked there: what ours is to say
is settled before the fork. It stays.
"""

from __future__ import annotations

import os
import sys
import warnings
from operator import methodcaller

from ..system.here import HELPERS, HERE
from ..system.outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

#: Whether this CPython counts threads.
COUNTS: Final = sys.version_info >= (3, 12)
_TASKS: Final = "/proc/self/task"


class Asked:
    """In a filter's place for a pattern. *match* is C's."""

    __slots__ = ("match",)
    match: Callable[[str], bool]


OF_A_FORK: Final = methodcaller("startswith", "This process (pid=")
OF_NOTHING: Final = methodcaller("startswith", "\0")
asked: Final = Asked()
asked.match = OF_NOTHING
_filter: Final[Any] = ("ignore", asked, DeprecationWarning, None, 0)


def before_fork() -> None:
    """Be asked first, and ignore it where our helpers are the only other threads."""
    try:
        threads = os.stat(_TASKS).st_nlink - 2
    except own(OSError):
        threads = 1 << 30  # no /proc: let it warn
    asked.match = OF_A_FORK if threads <= 1 + HERE[HELPERS] else OF_NOTHING
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    if filters and filters[0] is _filter:
        return
    filters[:] = [_filter, *(one for one in filters if one is not _filter)]
