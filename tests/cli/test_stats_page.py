"""docs/stats.md names the fields that the commands print, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cli_helpers import shmpool_command

import shmpool

PAGE = (Path(__file__).parents[2] / "docs" / "stats.md").read_text()


def documented() -> list[set[str]]:
    """The fields of each table, in order."""
    tables = re.findall(r"\| field \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE)
    return [
        {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])} for table in tables
    ]


def printed(*words: str) -> Any:
    return json.loads(shmpool_command(*words).stdout)


def test_the_page_and_the_fields_agree(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(100):
        stats = printed("stats", "--json", "--socket", broker.address)
        leases = printed("leases", "--json", "--socket", broker.address)
        buffers = printed("leases", "--json", "--each", "--socket", broker.address)
    fields = [stats, stats["tiers"][0], stats["clients"][0], leases["leases"][0], buffers["leases"][0]]
    assert documented() == [set(found) for found in fields]
    for name in (*stats["memory"], *stats["memory"]["by_state"], *stats["operations"], *stats["strategies"]):
        assert f"`{name}`" in PAGE
    assert set(leases) == set(buffers) == {"total", "shown", "leases"}
