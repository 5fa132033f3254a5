"""Units and how they are written: numbers stay raw until they are shown.

A column or a bar names its unit, one of `FORMATS`; a ratio is (median, low, high)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_FACTORS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB}


def parse_size(text: str) -> int:
    """Bytes of "4KiB", "1.5 MiB" or "4096". Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _FACTORS:
        raise ValueError(f"{text!r} is no size; write it like 64KiB")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def size_name(nbytes: float) -> str:
    """The largest unit that leaves a short number."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.4g} {unit}"
    return f"{nbytes:.4g} B"


def seconds_name(seconds: float) -> str:
    """Three digits, in the unit that fits."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds * 1e9)} ns"


def _rate_name(per_second: float) -> str:
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= factor:
            return f"{_three_digits(per_second / factor)} {unit}/s"
    return f"{_three_digits(per_second)}/s"


def _ratio_name(ratio: float | Sequence[float]) -> str:
    if isinstance(ratio, int | float):
        return f"{ratio:.2f}"
    digits = 2 if ratio[0] < 9.995 else 1 if ratio[0] < 99.95 else 0
    return f"{ratio[0]:.{digits}f} ({ratio[1]:.{digits}f}-{ratio[2]:.{digits}f})"


def _three_digits(number: float) -> str:
    return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f}"


#: unit -> a text for people. "" is text as it is.
FORMATS: dict[str, Callable[[Any], str]] = {
    "": str,
    "B": size_name,
    "s": seconds_name,
    "1/s": _rate_name,
    "B/s": lambda rate: f"{_three_digits(rate / MIB)} MiB/s" if rate < GIB else f"{_three_digits(rate / GIB)} GiB/s",
    "s/B": lambda cost: f"{cost * 1e9 * KIB:.1f} ns/KiB",
    "x": _ratio_name,
    "%": lambda part: f"{part * 100:.1f} %",
    "count": lambda count: f"{count:,.4g}" if isinstance(count, float) else f"{count:,}",
}

#: unit -> what an axis of a plot is labelled with.
AXES = {"B": "bytes", "s": "seconds", "1/s": "objects/s", "B/s": "bytes/s", "s/B": "seconds/byte", "x": "ratio"}


def show(value: Any, unit: str) -> str:
    """*value* as people read it; None, which is no figure, as a dash."""
    return "-" if value is None else FORMATS[unit](value)
