"""Wire codes: why the broker refuses. What each means: `meanings`."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Why the broker refused a request or ends a connection."""

    BAD_FRAME = 1
    BAD_MESSAGE = 2
    WRONG_VERSION = 3
    FORBIDDEN = 4
    NO_SEAT = 5
    STOPPING = 6
    EXHAUSTED = 7
    TOO_LARGE = 8
    SHM_FULL = 9
    QUOTA = 10
    SLOW_READER = 11
    CANCELLED = 12
    NOT_FOUND = 13
    NAME_TAKEN = 14
