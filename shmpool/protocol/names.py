"""Names of a pool's segments in /dev/shm, all derived from the pool id."""

from __future__ import annotations

import re
from typing import Final

PREFIX: Final = "shmpool-"
_ANY: Final = re.compile(PREFIX + r"([0-9a-f]{16})-.+", re.ASCII)
_DIRECT: Final = re.compile(PREFIX + r"([0-9a-f]{16})-direct-([0-9]+)-([0-9]+)", re.ASCII)


def pool_prefix(pool_id: int) -> str:
    """What every segment name of this pool starts with."""
    return f"{PREFIX}{pool_id:016x}-"


def header_name(pool_id: int) -> str:
    """The segment that only the broker writes; clients map it read-only."""
    return pool_prefix(pool_id) + "header"


def ledger_name(pool_id: int) -> str:
    """The segment of the rows, and behind them the clients' counters."""
    return pool_prefix(pool_id) + "ledger"


def tier_name(pool_id: int, tier: int) -> str:
    """The segment of one tier's slots."""
    return f"{pool_prefix(pool_id)}tier{tier}"


def direct_name(pool_id: int, row: int, generation: int) -> str:
    """A direct segment; row and generation make a name that is never used twice."""
    return f"{pool_prefix(pool_id)}direct-{row}-{generation}"


def parse_direct_name(name: str) -> tuple[int, int, int] | None:
    """(pool id, row, generation) of a direct segment's name, or None."""
    match = _DIRECT.fullmatch(name)
    return None if match is None else (int(match[1], 16), int(match[2]), int(match[3]))


def parse_pool_id(name: str) -> int | None:
    """The pool id in any of a pool's segment names, or None for a foreign name."""
    match = _ANY.fullmatch(name)
    return None if match is None else int(match[1], 16)
