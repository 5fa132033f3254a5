"""Processes that run the compiled twin, or the plain client, whatever this one runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import preloaded

PURE = {"plain": "1", "compiled": "", "asking": "1"}


def why_plain() -> str:
    """Why a process that does not ask for the plain client has no twin; empty where it has it."""
    return run("compiled", "from shmpool import _fast; print(_fast.WHY_PLAIN)")


def run(kind: str, code: str, *arguments: str) -> str:
    """What a Python process of a kind prints that runs *code*."""
    done = preloaded.run([sys.executable, "-c", code, *arguments], env=environment(kind), timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def start(kind: str, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """The same, without waiting for it."""
    return preloaded.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(kind), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip


def environment(kind: str) -> dict[str, str]:
    return {**os.environ, "SHMPOOL_PURE": PURE[kind], "PYTHONPATH": str(Path(__file__).parent)}
