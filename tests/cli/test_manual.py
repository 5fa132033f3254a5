"""Man pages, completion and help: what is installed is what the commands say, and nothing is cut."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_helpers import shmpool_command


@pytest.mark.long
def test_the_pages_and_completions_are_those_of_the_commands() -> None:
    pytest.importorskip("click_man")
    from manual import DOCS, made

    wanted = made()
    assert {path: path.read_text() for path in wanted} == wanted, "python tests/cli/manual.py writes them anew"
    assert set((DOCS / "man").iterdir()) <= set(wanted)
    assert not [path for path, text in wanted.items() if "..." in text.partition("SYNOPSIS")[0]]


def test_the_list_of_commands_cuts_nothing() -> None:
    done = shmpool_command("--help", COLUMNS="80")
    assert done.returncode == 0 and "..." not in done.stdout.partition("Commands:")[2]


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "shmpool", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("shmpool, version ")
