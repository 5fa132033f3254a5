"""Man pages and shell completion, made from the commands themselves: ``python tests/cli/manual.py`` writes
them, a test keeps them so. Pages by click-man, completion by click."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from click_man.core import write_man_pages

from shmpool import __version__
from shmpool.cli.app import app as shmpool
from shmpoold.cli import main as shmpoold

DOCS = Path(__file__).parents[2] / "docs"
# It imports its commands when they are needed; click-man asks for all.
shmpool.commands = {name: shmpool.get_command(click.Context(shmpool), name) for name in shmpool.list_commands(None)}
COMMANDS = {"shmpool": shmpool, "shmpoold": shmpoold}
#: By shell, the file of a command's completion as that shell looks for it.
COMPLETION = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def made() -> dict[Path, str]:
    """Each file with what it has to be."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for command, described in COMMANDS.items():
            write_man_pages(command, described, target_dir=folder, version=__version__, date=f"shmpool {__version__}")
        for page in Path(folder).iterdir():
            found[DOCS / "man" / page.name] = page.read_text()
    for command in COMMANDS:
        for shell, name in COMPLETION.items():
            env = {**os.environ, f"_{command.upper()}_COMPLETE": f"{shell}_source"}
            line = [str(Path(sys.executable).with_name(command))]
            text = subprocess.run(line, check=True, capture_output=True, text=True, env=env).stdout
            found[DOCS / "completion" / shell / name.format(command)] = text.strip() + "\n"
    return found


if __name__ == "__main__":
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
