"""The compiled twin beside the plain client: tests that need both, and so an installation that has the one."""

from __future__ import annotations

import pytest
from twins import why_plain


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    reason = why_plain()
    assert "cannot be used" not in reason, "it is to be built anew: pip install -e ."
    if reason:
        pytest.skip(reason)
