"""The configuration as text: the example file, the documentation's table, and what is in force.

``python -m shmpoold.config.texts`` prints the example, ``… table`` the table. ``units/shmpoold.toml``
and docs/configuration.md are their copies (a test keeps them so).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from shmpool.protocol.sizing import format_bytes, rows_of

from .declaration import Config, scope_of, unit_of
from .handover import floors
from .reading import Reading
from .units import Unit, in_toml

#: What stands in the example for a default that depends on the host, or is none.
_SHOWN = {
    "socket": "/run/shmpool/broker.sock",
    "group": "shmpool",
    "metrics_address": "/run/shmpool/metrics.sock",
    "alerts": {"misses": 0.5, "away": False},
    "preallocate": 0.1,
    "max_buffer_age": 3600.0,
}

_HEAD = """\
# shmpoold: the broker's configuration. Every key is shown with its default; an unknown
# key is an error. Sizes are bytes, or strings like "256 MiB"; durations are seconds, or
# strings like "300s" and "5min". `shmpoold --check --config FILE` says what is in force.
"""


def example() -> str:
    """A TOML file with every key, its description and its default, commented out."""
    parts = [_HEAD]
    for key, field in Config.model_fields.items():
        note = " (no default)" if field.default is None else ""
        words = textwrap.fill((field.description or "") + note, 88, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{words}\n#{key} = {_default_of(key, field)}\n")
    return "\n".join(parts)


def table() -> str:
    """All settings as a Markdown table: key, default, bounds, when a new value takes effect, help."""
    lines = ["| key | default | may be | takes effect with | what it does |", "|---|---|---|---|---|"]
    for key, field in Config.model_fields.items():
        default = "none" if field.default is None else f"`{_default_of(key, field)}`"
        may_be = ", ".join(_may_be(field)) or "any"
        lines.append(f"| `{key}` | {default} | {may_be} | {scope_of(field).value} | {field.description} |")
    return "\n".join(lines) + "\n"


def in_force(reading: Reading) -> str:
    """The configuration as TOML, where each value came from, and the tiers that follow from it."""
    config = reading.config
    rows = [
        (
            f"{key} = {in_toml(getattr(config, key), unit_of(field))}",
            reading.origins[key].value + _for_people(getattr(config, key), unit_of(field)),
        )
        for key, field in Config.model_fields.items()
        if getattr(config, key) is not None
    ]
    width = max(len(line) for line, _ in rows if len(line) < 64)
    lines = [f"{line:{width}}  # {origin}" for line, origin in rows]
    tiers = config.tiers
    overhead = format_bytes(config.overhead_bytes)
    lines += ["", f"# {rows_of(tiers)} ledger rows; header and ledger take {overhead} of the limit", "#"]
    kept_warm = {(floor.kind, floor.size): floor.slots for floor in floors(config)}
    lines += [f"# {'tier':>4}  {'slots of':15}  {'most slots':>10}" + f"  {'kept warm':>10}" * bool(kept_warm)]
    for tier in tiers:
        kept = f"  {kept_warm.get((tier.kind, tier.size), 0):10}" if kept_warm else ""
        lines.append(f"# {tier.index:4}  {tier.label():15}  {tier.capacity:10}{kept}")
    return "\n".join(lines) + "\n"


def _for_people(value: Any, unit: Unit | None) -> str:
    """A size that is no round number, like a share of the host: what it is about."""
    if unit is not Unit.BYTES or not isinstance(value, int):
        return ""
    human = format_bytes(value)
    return f", {human}" if "." in human else ""


def _default_of(key: str, field: FieldInfo) -> str:
    return in_toml(_SHOWN.get(key, field.default), unit_of(field))


def _may_be(field: FieldInfo) -> Iterator[str]:
    """What values a setting takes, in its unit."""
    unit = unit_of(field)
    for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
        for rule in field.metadata:
            if (bound := getattr(rule, name, None)) is not None:
                yield f"{word} {bound if unit is None else unit.show(bound)}"
    yield from (f"`{in_toml(choice, None)}`" for choice in _choices(field.annotation))


def _choices(annotation: Any) -> Iterator[Any]:
    """The values that a setting's type names one by one."""
    if annotation is bool:
        yield from (False, True)
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        else:
            yield from (choice for choice in _choices(argument) if isinstance(choice, str))


if __name__ == "__main__":
    print(table() if sys.argv[1:] == ["table"] else example(), end="")
