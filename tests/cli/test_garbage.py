"""Garbage on the command line: a line that says what is wrong, whatever the command."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from shmpool.cli.app import app
from shmpool.errors import ShmpoolError

NUMBERS = ("", "x", "nan", "inf", "-inf", "-1", "0", "1e9", "1 2")
SIZES = ("", "x", "-1", "0", "4KiB", "1ZiB", "12 parsecs", "nan")
PATHS = ("", "/", "/nowhere/broker.sock", "/dev/null", "a" * 300, "a\0b", "\udcff")
COMMANDS = ("stats", "leases", "check", "doctor", "top")
LINES = [
    ["nonsense"],
    *([command, "extra"] for command in (*COMMANDS, "install-units")),
    *([command, "--nonsense"] for command in (*COMMANDS, "install-units", "demo", "run")),
    *([command, "--socket", path] for command in ("stats", "leases") for path in PATHS),
    *(["stats", "--watch", f"--interval={number}"] for number in NUMBERS),
    *(["top", f"--interval={number}"] for number in NUMBERS),
    *(["check", f"--timeout={number}"] for number in NUMBERS),
    *(["doctor", f"--memory-limit={size}"] for size in SIZES),
    *(["demo", f"--memory-limit={size}"] for size in SIZES),
    *(["demo", option, number] for option in ("--readers", "--workers") for number in NUMBERS),
    ["demo", ""],
    ["run"],
    *(["run", "--set", text, "--", "true"] for text in ("", "=", "x", "x=1", "memory_limit=x", "socket=")),
    ["install-units", "--root", "/dev/null"],
    ["install-units", "--root", "/proc"],
]


@pytest.mark.parametrize(
    "line", LINES, ids=lambda line: " ".join(line)[:60].encode("ascii", "backslashreplace").decode()
)
def test_garbage_is_an_error_in_words(line: list[str]) -> None:
    done = CliRunner().invoke(app, line)
    assert isinstance(done.exception, SystemExit | ShmpoolError), done.exception
    assert done.exit_code != 0
    said = done.output + (str(done.exception) if isinstance(done.exception, ShmpoolError) else "")
    assert len(said) < 2000 and said.strip()
