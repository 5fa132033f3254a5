"""The group of commands, and what becomes of an error: one line on stderr.

Exit status: 2 for a wrong option or setting, 1 for anything else that shmpool raises, 130
after Ctrl-C. `shmpool run` returns its command's.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final, NoReturn

import click

from .. import __version__
from ..errors import ConfigError, ShmpoolError

_COMMANDS: Final = ("demo", "run", "stats", "leases", "top", "check", "doctor", "install-units")
_INTERRUPTED: Final = 130


class _Commands(click.Group):
    """Imports a command's module when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = import_module("." + name.replace("-", "_"), __package__).command
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Commands,
    short_help="Shared-memory buffers for the processes of one host.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="shmpool")
def app() -> None:
    """Shared-memory buffers for the processes of one host."""


def run() -> NoReturn:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names may be anything
    try:
        app.main(prog_name="shmpool", standalone_mode=False)
    except ShmpoolError as error:
        _fail(str(error), 2 if isinstance(error, ConfigError) else 1)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # whoever read it is gone: nothing to flush
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    sys.exit(0)


def _fail(text: str, status: int) -> NoReturn:
    click.echo(f"shmpool: {text}", err=True)
    sys.exit(status)
