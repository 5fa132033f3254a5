"""The interpreter that Plasma's processes run in: a virtual environment of its own, made on
first use and kept in the user's cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .peers.base import Absent

#: The last pyarrow with Plasma, and the numpy that it was built for.
REQUIREMENTS = ("pyarrow==11.0.0", "numpy<2")
#: The last Python it has wheels for.
NEWEST_PYTHON = (3, 11)


def folder() -> Path:
    """Where the environment is, or will be."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "shmpool-benchmarks" / "plasma"


def interpreter() -> str:
    """Its Python; makes it if it is not there. Raises `Absent`."""
    python = folder() / "bin" / "python"
    finished = folder() / "finished"
    if not finished.exists():
        shutil.rmtree(folder(), ignore_errors=True)
        _run(_base_python(), "-m", "venv", str(folder()))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS)
        finished.touch()
    return str(python)


def _base_python() -> str:
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return sys.executable
    name = "python{}.{}".format(*NEWEST_PYTHON)
    if (found := shutil.which(name)) is None:
        raise Absent(f"{REQUIREMENTS[0]} has no wheels for this Python, and there is no {name}")
    return found


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise Absent(f"its environment could not be made: {errors[-1]}")
