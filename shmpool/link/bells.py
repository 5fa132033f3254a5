"""Bells: rows that the broker is to look at, until a message takes them along.

Ringing at once wakes the broker just when a hand-off needs the cores: for direct segments,
whose every use needs the broker, that cost more than the copy. So what only gives memory back
rings *soon*: with the next message, or when the helper looks. So does what rings very often: who works in
a cycle while somebody waits has the same few rows come back every few microseconds.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import repeat

from ..protocol.messages import MAX_ROWS_PER_MESSAGE, Bell
from ..system.outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

#: The longest that a bell waits for a message, in seconds.
SOON: Final = 0.01
#: How many ring at once within `SOON`.
AT_ONCE: Final = 8
#: So many empty looks in a row, and the helper looks no more until it is woken.
QUIET_LOOKS: Final = 20


class Bells:
    """The bells of one session. Appending takes no lock: finalizers may."""

    __slots__ = ("_at_once", "_is_watched", "_quiet_looks", "_rows", "_until", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._rows: deque[int] = deque()
        self._wake = wake
        #: The helper looks every `SOON`.
        self._is_watched = False
        self._quiet_looks = QUIET_LOOKS
        #: How many rang at once, and until when they count.
        self._at_once, self._until = 0, 0.0

    def __bool__(self) -> bool:
        return bool(self._rows)

    def now(self, *rows: int) -> None:
        """Ring as soon as the helper can."""
        self._rows.extend(rows)
        self._wake()

    def soon(self, row: int) -> None:
        """Ring with the next message, `SOON` at the latest."""
        self._rows.append(row)
        self._quiet_looks = 0
        if not self._is_watched:
            self._is_watched = True  # one wake is enough, however long the helper waits for the interpreter
            self._wake()

    def are_few(self) -> bool:
        """Count one that is to ring at once: whether it may. Threads that count at a time may be one more each."""
        now = time.monotonic()
        if now >= self._until:
            self._at_once, self._until = 0, now + SOON
        self._at_once += 1
        return self._at_once <= AT_ONCE

    def pause(self) -> float | None:
        """For the helper, before it waits: when it has to look again, None when not before it
        is woken. Bells that come after this call wake it, or are found then."""
        self._quiet_looks += 1
        self._is_watched = self._quiet_looks < QUIET_LOOKS
        return SOON if self._is_watched or self._rows else None

    def take(self, rows: set[int]) -> list[Bell]:
        """The messages that ring them all. By any thread. They are in *rows* from the step on that takes them: the
        broker looks by itself at what a living client has given back, but seldom, so who has them when an exception
        comes rings them again."""
        if not self._rows:
            return []
        try:
            rows.update(map(deque.popleft, repeat(self._rows)))
        except own(IndexError):  # these are all
            pass
        ordered = sorted(rows)
        return [Bell(ordered[at : at + MAX_ROWS_PER_MESSAGE]) for at in range(0, len(rows), MAX_ROWS_PER_MESSAGE)]
