"""Where settings come from: a TOML file, the environment, the command line, each overriding the
one before.

Every mistake becomes a ConfigError (`mistakes`) that says where it stands, too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from shmpool.errors import ConfigError

from . import mistakes
from .declaration import Config

#: A setting in the environment: this and its key in capitals.
PREFIX: Final = "SHMPOOLD_"


class Origin(Enum):
    """Where a value comes from; a later one overrides an earlier one."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


class Reading(NamedTuple):
    """A configuration, and where each of its values came from."""

    config: Config
    origins: dict[str, Origin]


def read(path: str | None, environment: Mapping[str, str], overrides: Mapping[str, Any]) -> Reading:
    """The configuration of a TOML file (None: of no file), with what *environment* sets and then
    *overrides* on top. Of the environment only names that begin with SHMPOOLD_ count; an empty
    mapping is right for a private broker, which is its parent's alone.

    Raises ConfigError, and nothing else, for anything that is wrong with any of them.
    """
    sources = (
        (Origin.FILE, _from_file(path) if path is not None else {}),
        (Origin.ENVIRONMENT, _from_environment(environment)),
        (Origin.COMMAND_LINE, dict(overrides)),
    )
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Config.model_fields, Origin.DEFAULT)
    for origin, found in sources:
        values |= found
        origins |= dict.fromkeys(found, origin)
    try:
        return Reading(Config(**values), origins)
    except ValidationError as error:
        raise ConfigError(mistakes.told(error, values, lambda key: _place(key, path, origins))) from None


def load(path: str | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a file with *overrides* on top, whatever the environment says."""
    return read(path, {}, overrides).config


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """KEY=VALUE of the command line."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes KEY=VALUE, not {assignment!r}")
    return key.strip(), _parse_value(text)


def _parse_value(text: str) -> Any:
    """A value as TOML, or else a plain string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(PREFIX).lower(): _parse_value(text)
        for name, text in environment.items()
        if name.startswith(PREFIX)
    }


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: it is no TOML file, which is text in UTF-8"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: it is no TOML: {error}") from error


def _place(key: str, path: str | None, origins: Mapping[str, Origin]) -> str:
    """Where a wrong value stands, for the message; nothing for the command line, which is in sight. An
    empty *key*: a rule over several."""
    origin = origins.get(key)
    if origin is Origin.ENVIRONMENT:
        return f"{PREFIX}{key.upper()}: "
    return f"{path}: " if path and (origin is Origin.FILE or not key) else ""
