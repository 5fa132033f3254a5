"""This checkout as its users have it: the built wheel installed into a fresh folder, byte-compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def installed() -> Iterator[dict[str, str]]:
    """Builds and installs it: the environment in which a Python imports it from there."""
    # Compiled files are to lie beside their sources, and to be looked for there.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    with tempfile.TemporaryDirectory(prefix="shmpool-installed-") as target:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--no-deps", "--compile", "--target", target, str(ROOT)]
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        if run.returncode != 0:
            raise click.ClickException(f"pip cannot build and install {ROOT}: {run.stderr.strip()}")
        if not list(Path(target, "shmpool", "__pycache__").glob("pool.*.pyc")):
            raise click.ClickException(f"pip did not byte-compile what it installed to {target}")
        yield {**environment, "PYTHONPATH": target}
