"""Every test that docs/reliability.md names is there: who renames one says what holds the promise."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parent
#: What names of files are below.
FOLDERS = TESTS, TESTS.parent, TESTS.parent / "daemon/shmpoold"
#: A file of tests, or a test, in one of its names' usual forms: "client/test_x.py::test_y", "test_y", "…::test_y".
NAMED = re.compile(r"(?P<file>[\w/]+/\w+\.py)(?:::(?P<test>\w+\*?))?|(?P<bare>\btest_\w+\b\*?)(?!\.py)")


def defined(path: Path) -> set[str]:
    return set(re.findall(r"^ *(?:async def|def|class) ([Tt]est\w+)", path.read_text(), re.MULTILINE))


def test_what_holds_each_promise_exists() -> None:
    everywhere = {name for path in TESTS.rglob("test_*.py") for name in defined(path)}
    missing = []
    for code in re.findall(r"`([^`\n]+)`", (TESTS.parent / "docs/reliability.md").read_text()):
        for found in NAMED.finditer(code):
            file, test, bare = found["file"], found["test"], found["bare"]
            if file and not any((folder / file).exists() for folder in FOLDERS):
                missing.append(file)
            elif test and not any(fnmatch(name, test) for name in defined(TESTS / file)):
                missing.append(f"{file}::{test}")
            elif bare and not any(fnmatch(name, bare) for name in everywhere):
                missing.append(bare)
    assert not missing
