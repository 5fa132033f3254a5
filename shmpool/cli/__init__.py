"""The ``shmpool`` command: one module for each subcommand.

Importing this package loads nothing: the demo's processes, which are spawned, import it
again, and should not pay for click and rich.
"""

from __future__ import annotations


def main() -> None:
    """The command's entry point; ends by SystemExit."""
    from .app import run

    run()
