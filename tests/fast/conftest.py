"""The compiled twin beside the plain client: tests that need both, and so an installation that has the one."""

from __future__ import annotations

import pytest
from twins import is_built


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    if not is_built():
        pytest.skip("the compiled part was not built (SHMPOOL_COMPILED=1 pip install …)")
