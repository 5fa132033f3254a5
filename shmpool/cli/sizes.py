"""Sizes on the command line: ``256MiB``."""

from __future__ import annotations

import re
from typing import Final

import click

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i)?b?", re.IGNORECASE)
_UNITS: Final = {"": 1, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def size(text: str) -> int:
    """A number of bytes, with or without a unit; a type for click's options."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no size; write 256MiB or a number of bytes")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
