"""The configuration as text: the example file, and what is in force.

``python -m shmpoold.config_text`` prints the example; ``units/shmpoold.toml`` is its copy
(a test keeps it so).
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from shmpool.protocol.sizing import format_bytes, rows_of

from .config import Config

#: Keys whose values are sizes, and are written with a unit.
_SIZES = frozenset(
    {"memory_limit", "medium_object_threshold", "large_object_threshold", "very_large_object_threshold",
     "pooled_sizes", "chunk_sizes", "magazine_bytes"}
)  # fmt: skip
#: What stands in the example for a default that depends on the host, or is none.
_SHOWN = {"socket": "/run/shmpool/broker.sock", "group": "shmpool"}

_HEAD = """\
# shmpoold: the broker's configuration. Every key is shown with its default; an unknown
# key is an error. Sizes are bytes, or strings like "256MiB"; durations are seconds, or
# strings like "300s" and "5min". `shmpoold --check --config FILE` says what is in force.
"""


def example() -> str:
    """A TOML file with every key, its description and its default, commented out."""
    parts = [_HEAD]
    for key, field in Config.model_fields.items():
        default = _SHOWN.get(key, field.default)
        note = " (no default)" if field.default is None else ""
        words = textwrap.fill((field.description or "") + note, 88, initial_indent="# ", subsequent_indent="# ")
        parts.append(f"{words}\n#{key} = {_toml(key, default)}\n")
    return "\n".join(parts)


def in_force(config: Config) -> str:
    """The configuration as TOML, and in comments the sizes that follow from it."""
    values = {key: getattr(config, key) for key in Config.model_fields}
    lines = [f"{key} = {_toml(key, value)}" for key, value in values.items() if value is not None]
    tiers = config.tiers
    lines += [
        "",
        f"# {rows_of(tiers)} ledger rows; header and ledger take {format_bytes(config.overhead_bytes)} of the limit",
        *(f"# tier {tier.index}: {tier.label()}, {tier.capacity} slots" for tier in tiers),
    ]
    return "\n".join(lines) + "\n"


def _toml(key: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(key, item) for item in value)}]"
    if key in _SIZES and value % 1024 == 0 and "." not in (human := format_bytes(value)):
        return json.dumps(human)
    return json.dumps(value)


if __name__ == "__main__":
    print(example(), end="")
