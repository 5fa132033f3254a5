"""One declaration of the figures: what the commands print, what `Stats` has and what docs/stats.md
says are its names, and no others."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import shmpool_command

import shmpool
from shmpool.protocol import metrics
from shmpool.stats import ClientStats, QueueStats, Stats, TierStats

PAGE = (Path(__file__).parents[2] / "docs" / "stats.md").read_text()


def documented() -> list[set[str]]:
    """The fields of each table, in order."""
    tables = re.findall(r"\| field \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE)
    return [
        {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])} for table in tables
    ]


def printed(*words: str) -> Any:
    return json.loads(shmpool_command(*words).stdout)


@pytest.mark.broker(leak_age="0.1s")
def test_the_page_and_the_fields_agree(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(100):
        stats = printed("stats", "--json", "--socket", broker.address)
        leases = printed("leases", "--json", "--socket", broker.address)
        buffers = printed("leases", "--json", "--each", "--socket", broker.address)
        while not (leaks := printed("leases", "--json", "--leaks", "--socket", broker.address))["leases"]:
            pass
        with pool.share(1, "one"):
            names = printed("leases", "--json", "--names", "--socket", broker.address)
        with contextlib.closing(pool.queue("one")):
            queues = printed("leases", "--json", "--queues", "--socket", broker.address)["queues"]
    told = [stats, stats["memory"], stats["shared"], queues[0], stats["tiers"][0], stats["clients"][0]]
    told += [{figure.name for figure in metrics.ALERTS}, leases["leases"][0], buffers["leases"][0], names["names"][0]]
    told.append(leaks["leases"][0])
    assert documented() == [set(found) for found in told]
    assert set(leases) == set(buffers) == set(leaks) == {"total", "shown", "leases"}


def test_the_tables_are_made_from_the_declaration() -> None:
    tables = (metrics.STATS, metrics.MEMORY, metrics.SHARED, metrics.QUEUES, metrics.TIERS, metrics.CLIENTS)
    assert all(metrics.table(figures) in PAGE for figures in (*tables, metrics.ALERTS))
    for names in metrics.KEYS.values():
        assert all(f"`{name}`" in PAGE for name in names)


def test_what_is_told_is_what_is_declared_in_its_order(broker: shmpool.Broker, pool: shmpool.Pool) -> None:
    with pool.lease(100), contextlib.closing(pool.queue()):
        stats = printed("stats", "--json", "--socket", broker.address)
    for figures, cls, found in (
        (metrics.STATS, Stats, stats),
        (metrics.MEMORY, None, stats["memory"]),
        (metrics.SHARED, None, stats["shared"]),
        (metrics.QUEUES, QueueStats, stats["queues"][0]),
        (metrics.TIERS, TierStats, stats["tiers"][0]),
        (metrics.CLIENTS, ClientStats, stats["clients"][0]),
    ):
        names = [figure.name for figure in figures]
        assert list(found) == names
        assert cls is None or [field.name for field in fields(cls)] == names
        for figure in figures:
            assert_has_keys(found[figure.name], figure.by)


def assert_has_keys(value: Any, by: tuple[str, ...]) -> None:
    """A figure by something is told for each of what that can be."""
    if by:
        assert tuple(value) == metrics.KEYS[by[0]]
        for inner in value.values():
            assert_has_keys(inner, by[1:])
