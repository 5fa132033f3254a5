"""The ``shmpoold`` command. Exit status: 0 well, 2 a wrong setting or a broker that runs
already, 1 when this host refuses what the broker needs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from shmpool.errors import ConfigError

from .config import Config, Origin, parse_assignment, read, texts
from .shell import cleanup, service


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", type=click.Path(dir_okay=False), help="Read this TOML file.")
@click.option("--socket", help="Serve this path.  [default: the user's runtime directory; root: /run/shmpool]")
@click.option("--check", is_flag=True, help="Check the configuration, print what is in force, and exit.")
@click.option("--cleanup", "clean", is_flag=True, help="Remove segments that nobody living owns, and exit.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a setting; may be repeated.")
@click.option("--settings", hidden=True, help="Overrides as a JSON object (from an embedding parent).")
@click.option("--parent-fd", type=int, hidden=True, help="A pidfd: stop, and remove the pool, when it ends.")
@click.option("--life-fd", type=int, hidden=True, help="A lifeline: stop likewise when its program ends (exec).")
@click.option("--ready-fd", type=int, hidden=True, help="Write one line of JSON here when serving, or why not.")
def main(
    path: str | None,
    socket: str | None,
    check: bool,
    clean: bool,
    assignments: tuple[str, ...],
    settings: str | None,
    parent_fd: int | None,
    life_fd: int | None,
    ready_fd: int | None,
) -> None:
    """The shmpool broker: owns shared memory and lends buffers of it to processes."""
    parent = service.Parent(parent_fd, life_fd, ready_fd)
    try:
        # A private broker is its parent's alone: what the environment sets is meant for the service.
        environment = {} if settings is not None else os.environ
        overrides = _overrides(socket, assignments, settings)
        reading = read(path, environment, overrides)
    except ConfigError as error:
        parent.tell({"error": "ConfigError", "message": str(error)})
        _fail(error, 2)
    config = reading.config
    if check:
        click.echo(texts.in_force(reading), nl=False)
    elif clean:
        for line in cleanup.clean_up(config.socket):
            click.echo(line)
    else:
        # A service that does not get what it is configured for is to say so, not to do with less.
        may_lower = settings is not None and reading.origins["memory_limit"] is Origin.DEFAULT
        _serve(config, parent, lambda: read(path, environment, overrides).config, may_lower=may_lower)


def _serve(config: Config, parent: service.Parent, read_again: Callable[[], Config], *, may_lower: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=config.log_level.upper(), format="shmpoold[%(process)d] %(levelname)s: %(message)s"
    )
    try:
        service.run(config, parent, read_again, may_lower=may_lower)
    except ConfigError as error:
        _fail(error, 2)
    except OSError as error:
        _fail(error, 1)


def _overrides(socket: str | None, assignments: tuple[str, ...], settings: str | None) -> dict[str, Any]:
    """What the command line says, over what the file says; the most explicit last."""
    overrides: dict[str, Any] = {}
    if settings is not None:
        try:
            overrides = dict(json.loads(settings))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--settings is no JSON object: {error}") from error
    overrides |= dict(parse_assignment(assignment) for assignment in assignments)
    if socket is not None:
        overrides["socket"] = os.path.abspath(socket)
    return overrides


def _fail(error: Exception, status: int) -> NoReturn:
    click.echo(f"shmpoold: {error}", err=True)
    sys.exit(status)
