"""Quantities as people write them, and the types of settings that are made of them.

Sizes are bytes, or strings like ``"256 MiB"``; durations are seconds, or strings like ``"5min"``.
A `Unit` in a setting's annotation says how its values and bounds are shown.
"""

from __future__ import annotations

import grp
import json
import pwd
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from shmpool.protocol.sizing import PAGE, format_bytes
from shmpool.system import memory

_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*")
_BYTES: Final = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS: Final = {"": 1, "ms": 0.001, "s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


class Unit(Enum):
    """What the numbers of a setting count. A share is a part of one, written in percent."""

    BYTES = "bytes"
    SECONDS = "seconds"
    SHARE = "share"

    def show(self, value: float) -> str:
        """A quantity for people, which reads back as the same: ``256 KiB``, ``5 min``."""
        if self is Unit.BYTES:
            human = format_bytes(value)
            return human if "." not in human else f"{value} B"
        if self is Unit.SHARE:
            return f"{100 * value:g} %"
        for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
            if value and value % length == 0:
                return f"{value / length:.0f} {name}"
        return f"{value:g} s" if value >= 1 or not value else f"{value * 1000:g} ms"


def in_toml(value: Any, unit: Unit | None) -> str:
    """A setting's value as TOML, with its unit where that is shorter to read."""
    if isinstance(value, tuple):
        return f"[{', '.join(in_toml(item, unit) for item in value)}]"
    if unit is not None and type(value) in (int, float):
        return json.dumps(unit.show(value))
    if isinstance(value, dict):  # sizes or names, and what they get
        names = (key if isinstance(key, str) else json.dumps(Unit.BYTES.show(key)) for key in value)
        items = (f"{name} = {in_toml(item, unit)}" for name, item in zip(names, value.values(), strict=True))
        return f"{{{', '.join(items)}}}"
    return json.dumps(value)


def _in_units(units: Mapping[str, float], known: str, example: str) -> Callable[[Any], Any]:
    """A parser for numbers with a unit (the *known*, for people); what is no string is passed on as it is."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2].lower() not in units:
            raise ValueError(f"write a number with {known}, like {example}")
        number = float(match[1]) * units[match[2].lower()]
        return int(number) if number == int(number) else number

    return parse


def _number_of(kind: str, find: Callable[[str], int]) -> Callable[[Any], Any]:
    """A parser that takes a user's or group's name for its number."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return int(value) if value.isdecimal() else find(value)
        except (KeyError, ValueError):  # a name with a zero byte is none
            raise ValueError(f"this host has no {kind} of that name") from None

    return parse


#: The parser of sizes, for settings that take something else besides.
parse_size: Final = _in_units(_BYTES, "one of the units B, KiB, MiB, GiB, TiB", '"256 MiB"')
_parse_share: Final = _in_units({"%": 0.01}, "the unit %", '"50 %"')


def parse_limit(value: Any) -> Any:
    """A size, or a share of what this host has for pools: whole pages of it."""
    if not (isinstance(value, str) and value.rstrip().endswith("%")):
        return parse_size(value)
    share = _parse_share(value)
    if not 0 < share <= 1:
        raise ValueError("a share is above 0 % and at most 100 %")
    try:
        return int(memory.most_memory() * share) // PAGE * PAGE
    except OSError as error:
        raise ValueError(f"what it is a share of is unknown ({error.strerror}): write a number of bytes") from None


Limit = Annotated[int, BeforeValidator(parse_limit), Field(strict=True), Unit.BYTES]
Share = Annotated[float, BeforeValidator(_parse_share), Field(strict=True, allow_inf_nan=False, ge=0, le=1), Unit.SHARE]
Size = Annotated[int, BeforeValidator(parse_size), Field(strict=True), Unit.BYTES]
Seconds = Annotated[
    float,
    BeforeValidator(_in_units(_SECONDS, "one of the units ms, s, min, h, d", '"300s" or "5min"')),
    Field(strict=True, allow_inf_nan=False),
    Unit.SECONDS,
]
Uid = Annotated[
    int,
    BeforeValidator(_number_of("user", lambda name: pwd.getpwnam(name).pw_uid)),
    Field(strict=True, ge=0, lt=2**32 - 1),
]
Gid = Annotated[
    int,
    BeforeValidator(_number_of("group", lambda name: grp.getgrnam(name).gr_gid)),
    Field(strict=True, ge=0, lt=2**32 - 1),
]
