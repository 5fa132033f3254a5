"""Where settings come from: a TOML file, the environment, the command line, each overriding the
one before; and what is said of a value that cannot be.

Every mistake becomes a ConfigError that names key, value and bound, and the place where it stands.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple, NoReturn

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from shmpool.errors import ConfigError

from .declaration import Config, unit_of

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
        _refuse(error, path, values, origins)


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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error


def _refuse(
    error: ValidationError, path: str | None, values: Mapping[str, Any], origins: Mapping[str, Origin]
) -> NoReturn:
    faults = [_place(dict(fault), path, origins) + _explain(dict(fault), values) for fault in error.errors()]
    raise ConfigError("; ".join(dict.fromkeys(faults))) from None


def _place(fault: Mapping[str, Any], path: str | None, origins: Mapping[str, Origin]) -> str:
    """Where a wrong value stands, for the message; nothing for the command line, which is in sight."""
    key = str(fault["loc"][0]) if fault["loc"] else ""
    origin = origins.get(key)
    if origin is Origin.ENVIRONMENT:
        return f"{PREFIX}{key.upper()}: "
    return f"{path}: " if path and (origin is Origin.FILE or not key) else ""


def _explain(fault: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    if not fault["loc"]:  # a rule over several keys, which names them itself
        return _words_of(fault)
    key, field = str(fault["loc"][0]), Config.model_fields.get(str(fault["loc"][0]))
    if field is None:
        near = difflib.get_close_matches(key, Config.model_fields, 1)
        return f"{key} is no setting" + (f"; did you mean {near[0]}?" if near else "")
    value = values.get(key, fault["input"])  # as it was written
    if fault["type"] in _OUT_OF_BOUNDS:
        return f"{key} = {value!r} is {_OUT_OF_BOUNDS[fault['type']]}{_bounds_of(field) or _bound_of(fault, field)}"
    return f"{key} = {value!r}: {_words_of(fault)}{_bounds_of(field)}"


_BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_OUT_OF_BOUNDS: Final = {
    "greater_than_equal": "too small",
    "greater_than": "too small",
    "less_than_equal": "too large",
    "less_than": "too large",
}


def _words_of(fault: Mapping[str, Any]) -> str:
    message = str(fault["msg"]).removeprefix("Value error, ")
    return message if not fault["loc"] else message[:1].lower() + message[1:]


def _bounds_of(field: FieldInfo) -> str:
    """The bounds that a setting is declared with, in its unit."""
    unit, words = unit_of(field), []
    for name, word in _BOUNDS.items():
        for rule in field.metadata:
            if (bound := getattr(rule, name, None)) is not None:
                words.append(f"{word} {bound if unit is None else unit.show(bound)}")
    return f" ({', '.join(words)})" if words else ""


def _bound_of(fault: Mapping[str, Any], field: FieldInfo) -> str:
    """The bound that a part of a setting is beyond: the bounds of parts are not the setting's."""
    unit = unit_of(field)
    words = [f"{_BOUNDS[name]} {bound if unit is None else unit.show(bound)}" for name, bound in fault["ctx"].items()]
    return f" ({', '.join(words)})"
