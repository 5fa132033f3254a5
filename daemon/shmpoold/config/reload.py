"""What a running broker takes over of a configuration that was read again, and what has to wait."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError

from shmpool.errors import ConfigError

from .declaration import Config, Scope, scope_of


class Reload(NamedTuple):
    """*config* is what is in force from now on, *applied* the keys that have changed in it, *later*
    the keys whose new value waits, and for what."""

    config: Config
    applied: list[str]
    later: dict[str, Scope]


def reload(running: Config, read: Config) -> Reload:
    """Compare. Raises ConfigError where what may change does not fit what stays."""
    changed = [key for key in Config.model_fields if getattr(read, key) != getattr(running, key)]
    scopes = {key: scope_of(Config.model_fields[key]) for key in changed}
    applied = [key for key in changed if scopes[key] is Scope.RELOAD]
    later: dict[str, Scope] = {key: scope for key, scope in scopes.items() if scope is not Scope.RELOAD}
    values: dict[str, Any] = {key: getattr(read if key in applied else running, key) for key in Config.model_fields}
    try:
        return Reload(Config(**values), applied, later)
    except ValidationError as error:
        reasons = "; ".join(str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors())
        raise ConfigError(f"what a reload may change does not fit what stays until a restart: {reasons}") from None
