"""What `shmpool doctor` finds: a line of its report."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """One line of the report; *fix* says what to do, if there is something to do, or that could be."""

    level: Level
    subject: str
    text: str
    fix: str = ""
