"""What is said of a setting that cannot be: its key, the value as it was written, what it may be, in
the words and units of whoever writes configurations.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from shmpool.protocol.sizing import KIB

from .declaration import Config, unit_of
from .units import Unit, in_toml

_BOUNDS: Final = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_OUT_OF_BOUNDS: Final = {
    "greater_than_equal": "too small",
    "greater_than": "too small",
    "less_than_equal": "too large",
    "less_than": "too large",
}
#: What is to be written, by the beginning of pydantic's name of the mistake.
_WANTED: Final = {
    "string": "write a string",
    "bool": "write true or false",
    "int": "write a whole number",
    "float": "write a number",
    "finite": "write a number",
    "dict": "write a table, like {name = value}",
}
#: The same for quantities.
_QUANTITIES: Final = {
    Unit.BYTES: 'write a number of bytes, or a string like "256 MiB"',
    Unit.SECONDS: 'write a number of seconds, or a string like "300s" or "5min"',
    Unit.SHARE: 'write a share like "50 %"',
}
#: Characters of a value that are shown.
_SHOWN: Final = 60


def told(error: ValidationError, values: Mapping[str, Any], place: Callable[[str], str]) -> str:
    """All that is wrong, each once. *values* are as they were written, *place* says where a key's stands."""
    faults = [dict(fault) for fault in error.errors()]
    return "; ".join(dict.fromkeys(place(_key_of(fault)) + _explain(fault, values) for fault in faults))


def _key_of(fault: Mapping[str, Any]) -> str:
    return str(fault["loc"][0]) if fault["loc"] else ""


def _explain(fault: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    key = _key_of(fault)
    if not key:  # a rule over several keys, which names them itself
        return _words_of(fault)
    field = Config.model_fields.get(key)
    if field is None:
        near = difflib.get_close_matches(key, Config.model_fields, 1)
        return f"{_cropped(key)} is no setting" + (f"; did you mean {near[0]}?" if near else "")
    value, unit = values.get(key, fault["input"]), unit_of(field)
    shown = _shown(value, unit)
    if fault["type"] in _OUT_OF_BOUNDS:
        bounds = _bounds_of(field) or _bound_of(fault, field)
        hint = f": {_QUANTITIES[unit]}" if unit is Unit.SHARE and isinstance(value, int | float) else ""
        return f"{key} = {shown} is {_OUT_OF_BOUNDS[fault['type']]}{bounds}{hint}"
    return f"{key} = {shown}: {_wanted(fault, field)}{_bounds_of(field)}"


def _shown(value: Any, unit: Unit | None) -> str:
    """A value as it was written; many bytes in a larger unit."""
    if isinstance(value, bool):
        return str(value).lower()
    if unit is Unit.BYTES and type(value) is int and KIB <= value < 2**63:
        return unit.show(value)
    return _cropped(repr(value) if isinstance(value, str | int | float | list | tuple | dict) else str(value))


def _cropped(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _wanted(fault: Mapping[str, Any], field: FieldInfo) -> str:
    """What to write instead."""
    kind, unit = str(fault["type"]), unit_of(field)
    if kind.startswith(("tuple", "missing")):  # one of a pair is missing
        return f"write a list, like {in_toml(field.default, unit)}" if field.default else "write a list, like [1000]"
    if kind == "literal_error":
        choices = str(fault["ctx"]["expected"])
        return f"write {choices}" + ("" if " or " in choices else " or a list")
    if kind.startswith(("int", "float", "finite")) and unit is not None:
        return _QUANTITIES[unit]
    return next((wanted for name, wanted in _WANTED.items() if kind.startswith(name)), _words_of(fault))


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
