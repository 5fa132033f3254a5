"""The examples in the pages run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAYS = {
    "executors": ["[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]", "(499, 500) 19.0"],
    "asyncio": ["b'hello'\n4999950000\n"],
}


@pytest.mark.parametrize(("page", "number"), [(page, at) for page, said in SAYS.items() for at in range(len(said))])
def test_an_example_of_a_page_runs(page: str, number: int, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(SAYS[page])
    script = tmp_path / "example.py"
    script.write_text(blocks[number])
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert SAYS[page][number] in done.stdout
