"""``pytest tests/faults/interleaving --interleaving-whole``: everybody at once, for minutes."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--interleaving-whole", action="store_true", help="explore everybody at once as well")
    parser.addoption(
        "--max-states", type=int, default=3_000_000, metavar="N", help="where the whole exploration stops (3,000,000)"
    )
