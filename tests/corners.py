"""What of a parametrisation is of the default setting: its corners. The rest is of the long one, or on demand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def corner(default: Any, *others: Any) -> list[Any]:
    """The parameters *default* and, in the long setting, the *others*; tuples are several at a time."""
    return [
        default,
        *(pytest.param(*(o if isinstance(o, tuple) else (o,)), marks=pytest.mark.long) for o in others),
    ]


def sizes(default: Any, long: Any, exhaustive: Any) -> list[Any]:
    """The same in three sizes, one for each setting."""
    return [default, pytest.param(long, marks=pytest.mark.long), pytest.param(exhaustive, marks=pytest.mark.exhaustive)]


def across(*axes: Sequence[Any]) -> list[Any]:
    """All combinations of a value of each axis. Of the default setting are those that differ from the first value
    of every axis in one axis at most. A tuple is one value, named by its first."""
    made = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        name = "-".join(str(value[0] if isinstance(value, tuple) else value) for value in values)
        made.append(pytest.param(*values, id=name, marks=pytest.mark.long if sum(map(bool, places)) > 1 else ()))
    return made
