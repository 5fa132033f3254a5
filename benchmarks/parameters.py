"""The types of the command line's values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from .units import parse_size


class Sizes(click.ParamType):
    """Sizes separated by commas, as bytes."""

    name = "SIZE,…"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            return tuple(parse_size(word) for word in value.split(","))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Names(click.ParamType):
    """Some of the known names, separated by commas."""

    name = "NAME,…"

    def __init__(self, known: Iterable[str]) -> None:
        self._known = tuple(known)

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value.split(","))
        for name in names:
            if name not in self._known:
                self.fail(f"{name!r} is none of {', '.join(self._known)}", param, ctx)
        return names


class Counts(click.ParamType):
    """Numbers separated by commas, each at least 1; rising."""

    name = "N,…"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        try:
            counts = sorted({int(word) for word in value.split(",")})
        except ValueError:
            self.fail(f"{value!r} are no numbers; write 1,100,1000", param, ctx)
        if counts[0] < 1:
            self.fail("a count is at least 1", param, ctx)
        return tuple(counts)
