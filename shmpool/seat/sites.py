"""Which lines of code leased and opened what: noted where SHMPOOL_TRACE is set, told to a broker
that takes it for leaked."""

from __future__ import annotations

import sys
from types import CodeType

from ..protocol.ledger import GENERATION_FIELD, ROW_WORDS
from ..protocol.messages import MAX_SITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

_PACKAGE: Final = __name__.partition(".")[0]


class Sites:
    """Those of one session, by row: the last that leased it, and that opened it. Thread-safe."""

    def __init__(self) -> None:
        #: The generation in its place, the code, the line.
        self.leased: dict[int, tuple[int, CodeType, int]] = {}
        self.opened: dict[int, tuple[int, CodeType, int]] = {}

    def text(self, row: int, words: Sequence[int], *, is_reader: bool) -> str:
        """``app.py:31 in work``; empty when the row is of another generation by now."""
        site = (self.opened if is_reader else self.leased).get(row)
        if site is None or site[0] != words[row * ROW_WORDS] & GENERATION_FIELD:
            return ""
        _, code, line = site
        return f"{code.co_filename}:{line} in {code.co_qualname}"[-MAX_SITE:]


def note(table: dict[int, tuple[int, CodeType, int]], row: int, base: int) -> None:
    """Note the first caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    table[row] = base, frame.f_code, frame.f_lineno
