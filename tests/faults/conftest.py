"""The long setting of the fault tests: ``pytest tests/faults --soak-minutes 10``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-minutes", type=float, metavar="M",
        help="kill workers and brokers for so long, and run the other fault tests' long setting",
    )  # fmt: skip


@pytest.fixture
def soak_minutes(request: pytest.FixtureRequest) -> float | None:
    """None in CI's setting; the option is known only where this folder was named to pytest."""
    minutes: float | None = request.config.getoption("--soak-minutes", default=None)
    return minutes
