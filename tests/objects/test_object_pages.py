"""The how-to pages of objects: their code runs."""

from __future__ import annotations

import gc
import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "needs"), [("frames", ()), ("tables", ("pandas", "pyarrow")), ("tensors", ("torch",))]
)
def test_the_code_of_a_page_runs(page: str, needs: tuple[str, ...]) -> None:
    for library in needs:
        pytest.importorskip(library)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {"__name__": page}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile("\n".join(blocks), f"docs/{page}.md", "exec"), names)
    names.clear()
    gc.collect()
