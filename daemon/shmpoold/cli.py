"""The ``shmpoold`` command. Exit status: 0 well, 2 a wrong setting or a broker that runs
already (systemd does not try these again), 1 when this host refuses what the broker needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from shmpool import __version__
from shmpool.errors import ConfigError

from .config import Config, Origin, parse_assignment, read, texts
from .shell import cleanup, host, logs, service


@click.command(short_help="The shmpool broker.", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", type=click.Path(dir_okay=False), help="Read this TOML file.")
@click.option("--socket", help="Serve this path.  [default: the user's runtime directory; root: /run/shmpool]")
@click.option(
    "--check",
    is_flag=True,
    help="Check the configuration and whether this host can hold it, print what is in force, and exit.",
)
@click.option("--cleanup", "clean", is_flag=True, help="Remove segments that nobody living owns, and exit.")
@click.option("--dry-run", is_flag=True, help="With --cleanup: say what would be removed, and remove nothing.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="What log lines look like.  [default: text]")
@click.version_option(__version__, prog_name="shmpoold")
@click.option("--settings", hidden=True, help="Overrides as a JSON object (from an embedding parent).")
@click.option("--parent-fd", type=int, hidden=True, help="A pidfd: stop, and remove the pool, when it ends.")
@click.option("--life-fd", type=int, hidden=True, help="A lifeline: stop likewise when its program ends (exec).")
@click.option("--ready-fd", type=int, hidden=True, help="Write one line of JSON here when serving, or why not.")
def main(
    path: str | None,
    socket: str | None,
    check: bool,
    clean: bool,
    dry_run: bool,
    assignments: tuple[str, ...],
    log_format: str | None,
    settings: str | None,
    parent_fd: int | None,
    life_fd: int | None,
    ready_fd: int | None,
) -> None:
    """The shmpool broker: owns shared memory and lends buffers of it to processes.

    Exit status: 0 after an orderly stop, 2 for a wrong option or setting or when a broker serves that socket
    already, 1 when this host refuses what the broker needs. SIGTERM and SIGINT stop it, SIGHUP has it read its
    configuration again.
    """
    if dry_run and not clean:
        raise click.UsageError("--dry-run goes with --cleanup")
    parent = service.Parent(parent_fd, life_fd, ready_fd)
    try:
        # A private broker is its parent's alone: what the environment sets is meant for the service.
        environment = {} if settings is not None else os.environ
        overrides = _overrides(socket, log_format, assignments, settings)
        reading = read(path, environment, overrides)
    except ConfigError as error:
        parent.tell({"error": "ConfigError", "message": str(error)})
        _fail(error, 2, says_so=ready_fd is None)
    config = reading.config
    if check:
        click.echo(texts.in_force(reading), nl=False)
        try:
            host.require_place(config)
        except ConfigError as error:
            _fail(error, 2, says_so=True)
    elif clean:
        for line in cleanup.clean_up(config.socket, dry_run=dry_run):
            click.echo(line)
    else:
        # A service that does not get what it is configured for is to say so, not to do with less.
        may_lower = settings is not None and reading.origins["memory_limit"] is Origin.DEFAULT
        _serve(config, parent, lambda: read(path, environment, overrides).config, may_lower=may_lower)


def _serve(config: Config, parent: service.Parent, read_again: Callable[[], Config], *, may_lower: bool) -> None:
    has_listener = parent.ready_fd is not None
    logs.configure(config.log_level, config.log_format)
    try:
        service.run(config, parent, read_again, may_lower=may_lower)
    except (ConfigError, OSError) as error:
        _fail(error, 2 if isinstance(error, ConfigError) else 1, says_so=not has_listener)


def _overrides(
    socket: str | None, log_format: str | None, assignments: tuple[str, ...], settings: str | None
) -> dict[str, Any]:
    """What the command line says, over what the file says; the most explicit last."""
    overrides: dict[str, Any] = {}
    if settings is not None:
        try:
            overrides = dict(json.loads(settings))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--settings is no JSON object: {error}") from error
    overrides |= dict(parse_assignment(assignment) for assignment in assignments)
    if log_format is not None:
        overrides["log_format"] = log_format
    if socket is not None:
        overrides["socket"] = os.path.abspath(socket) if socket else ""
    return overrides


def _fail(error: Exception, status: int, *, says_so: bool) -> NoReturn:
    """A parent that listens has been told, and says it itself."""
    if says_so:
        click.echo(f"shmpoold: {error}", err=True)
    sys.exit(status)
