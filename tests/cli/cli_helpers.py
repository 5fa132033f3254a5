"""What the commands' tests share: running scripts and commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import preloaded
from patience import PATIENCE as PATIENCE
from patience import eventually as eventually

import shmpool
import shmpoold
from shmpool.protocol.names import PREFIX

ROOTS = [str(Path(package.__path__[0]).parent) for package in (shmpool, shmpoold)]
#: The environment of a process that finds the packages and, unless told, no broker.
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([*ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])]),
}


def command(*args: str) -> list[str]:
    """The command line of ``shmpool ARGS``."""
    return [sys.executable, "-m", "shmpool.cli", *args]


def shmpool_command(*args: str, timeout: float = PATIENCE, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``shmpool ARGS`` to its end."""
    return preloaded.run(command(*args), env={**ENV, **env}, timeout=timeout)


def script(text: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script to its end, with all warnings on."""
    line = [sys.executable, "-X", "dev", "-c", text, *args]
    return subprocess.run(line, env={**ENV, **env}, capture_output=True, text=True, timeout=PATIENCE)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def segments() -> set[str]:
    """The names of all pools' segments of this run."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(PREFIX)}


def segments_of(pid: int) -> set[str]:
    """The names of the segments that a process maps."""
    maps = Path(f"/proc/{pid}/maps").read_text().split()
    return {Path(word).name for word in maps if word.startswith(f"/dev/shm/{PREFIX}")}
