"""What happens again and again is logged once, then once a minute with how often it was.

A full host is tried many times a second, and a process without descriptors accepts in a loop:
neither may fill a disk, and neither may fall silent.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

#: Seconds between two lines of one kind.
SAID_EVERY: Final = 60.0


@dataclass(slots=True)
class _Kind:
    """The last that was left unsaid of a kind of line, and how many were."""

    timer: asyncio.TimerHandle
    args: tuple[Any, ...] = ()
    count: int = 0


class Repeats:
    """Warnings of a logger by their text before it is filled in. In the loop's thread."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._kinds: dict[str, _Kind] = {}

    def warning(self, text: str, *args: object, with_traceback: bool = False) -> None:
        """Say it, or count it if it was said within the last minute."""
        kind = self._kinds.get(text)
        if kind is None:
            self._kinds[text] = _Kind(self._loop.call_later(SAID_EVERY, self._tell, text))
            self._log.log(logging.ERROR if with_traceback else logging.WARNING, text, *args, exc_info=with_traceback)
        else:
            kind.args, kind.count = args, kind.count + 1

    def _tell(self, text: str) -> None:
        kind = self._kinds.pop(text)
        if kind.count:
            self._kinds[text] = _Kind(self._loop.call_later(SAID_EVERY, self._tell, text))
            self._log.warning(f"{text} (%d times within %.0f s)", *kind.args, kind.count, SAID_EVERY)

    def close(self) -> None:
        """Say what is left to be said."""
        for text, kind in list(self._kinds.items()):
            kind.timer.cancel()
            self._tell(text)
        for kind in self._kinds.values():
            kind.timer.cancel()
        self._kinds.clear()
