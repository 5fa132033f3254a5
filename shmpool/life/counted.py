"""What CPython warns of at a fork: from 3.12 on of every other thread, and so of our helpers, which rest meanwhile
and hold nothing (`Helper.rest`). Where they are all that it has counted, there is nothing to warn of.

It looks at the filters behind the fork, in 3.13 behind all hooks. So ours says what it thinks when it is asked, and
stays.
"""

from __future__ import annotations

import os
import sys
import warnings

from ..system.here import HELPERS, HERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

#: Whether this CPython counts threads.
COUNTS: Final = sys.version_info >= (3, 12)
_TASKS: Final = "/proc/self/task"


class _HelpersAlone:
    """In a filter's place for a pattern: whether a warning is of a fork beside our helpers alone."""

    def match(self, text: str) -> bool:
        if not (text.startswith("This process (pid=") and "multi-threaded" in text):
            return False
        try:
            threads = os.stat(_TASKS).st_nlink - 2
        except OSError:
            return False  # no /proc: let it warn
        return threads <= 1 + HERE[HELPERS]


_filter: Final[Any] = ("ignore", _HelpersAlone(), DeprecationWarning, None, 0)


def before_fork() -> None:
    """Be asked first."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    if filters and filters[0] is _filter:
        return
    filters[:] = [_filter, *(one for one in filters if one is not _filter)]
