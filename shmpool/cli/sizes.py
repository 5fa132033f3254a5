"""Quantities on the command line: ``256MiB``, seconds."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import click

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i)?b?", re.IGNORECASE)
_SMALLEST: Final = 2**20
_UNITS: Final = {"": 1, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def size(text: str) -> int:
    """A pool's memory in bytes, with or without a unit; a type for click's options."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is no size; write 256MiB or a number of bytes")
    nbytes = int(float(match[1]) * _UNITS[(match[2] or "").lower()])
    if nbytes < _SMALLEST:
        raise click.BadParameter(f"{text!r} is less than the smallest pool, 1 MiB")
    return nbytes


class Seconds(click.FloatRange):
    """A number of seconds between bounds, which ``nan`` is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises click's usage error."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds
