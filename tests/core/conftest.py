"""Fixtures and options of the core's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import World

#: Of the random simulation in the default setting.
EVENTS = 3_000


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("core", "the broker core's random simulation (only with tests/core on the command line)")
    group.addoption("--events", type=int, default=EVENTS, help="events of the random simulation")
    group.addoption("--seed", type=int, default=None, help="replay this seed instead of a new one")


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Worlds that are checked when the test ends."""
    worlds: list[World] = []

    def make(*args: Any, **options: Any) -> World:
        worlds.append(World(*args, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.check()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
