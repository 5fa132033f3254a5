"""A soak as long as one likes: ``pytest tests/faults --soak-minutes 10``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-minutes", type=float, metavar="M",
        help="kill workers and brokers for so long",
    )  # fmt: skip


@pytest.fixture
def soak_minutes(request: pytest.FixtureRequest) -> float | None:
    """None in the suite's settings; the option is known only where this folder was named to pytest."""
    minutes: float | None = request.config.getoption("--soak-minutes", default=None)
    return minutes
