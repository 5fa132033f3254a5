"""Users' code passes strict type checkers: a file of it (`typing/user_code.py`), and what the
README shows. The checkers are in the `dev` extra."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shmpool.settings import Settings
from shmpoold.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parent
PYRIGHT = {
    "typeCheckingMode": "strict",
    "enableTypeIgnoreComments": False,  # those are mypy's
    "reportUnnecessaryTypeIgnoreComment": True,
    "reportUnusedImport": False,
}
#: What the README's examples take as given.
GIVEN = """
from __future__ import annotations
from typing import Any
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A user's project."""
    shutil.copy(HERE / "typing" / "user_code.py", tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    for number, block in enumerate(blocks):
        # The examples leave out what does not help to understand them: the types of their own functions.
        typed = re.sub(r"^def (\w+)\((.*)\):", _annotated, block, flags=re.MULTILINE)
        (tmp_path / f"readme_{number}.py").write_text(GIVEN + typed)
    return tmp_path


def _annotated(found: re.Match[str]) -> str:
    arguments = ", ".join(f"{name.strip()}: Any" for name in found[2].split(",") if name)
    return f"def {found[1]}({arguments}) -> Any:"


@pytest.mark.long
def test_mypy_passes_users_code(users: Path, pytestconfig: pytest.Config) -> None:
    if not importlib.util.find_spec("mypy"):
        pytest.skip("mypy is not installed")
    # Kept from run to run: numpy is the most of it.
    cache = pytestconfig.cache.mkdir("mypy_of_users") if pytestconfig.cache else users / "cache"
    (users / "mypy.ini").write_text(f"[mypy]\nstrict = true\nmypy_path = {ROOT}\nfollow_imports = silent\n")
    files = sorted(map(str, users.glob("*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(cache), *files],
        cwd=users, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_pyright_passes_users_code(users: Path) -> None:
    if not importlib.util.find_spec("pyright") or not shutil.which("node"):
        pytest.skip("pyright or node is not installed")
    settings = {**PYRIGHT, "extraPaths": [str(ROOT)], "pythonVersion": "3.11"}
    (users / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(users)],
        cwd=users, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_for_type_checkers_are_those_of_the_broker() -> None:
    assert set(Settings.__annotations__) == set(Config.model_fields)
