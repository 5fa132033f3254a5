"""What the command line asks of a benchmark."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .units import size_name


@dataclass(frozen=True)
class Options:
    """None means the benchmark's own default. `more` holds the values of the options that a
    benchmark adds for itself (its module's `PARAMETERS`)."""

    sizes: tuple[int, ...] | None = None
    rounds: int | None = None
    #: Seconds that one contestant takes of one round.
    seconds: float | None = None
    #: Seconds that it may take in all: fewer rounds then, one at least.
    within: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def command(self, name: str) -> str:
        """The command line that says the same."""
        words = ["python -m benchmarks", name]
        if self.sizes is not None:
            words += ["--sizes", ",".join(size_name(size).replace(" ", "") for size in self.sizes)]
        if self.rounds is not None:
            words += ["--rounds", str(self.rounds)]
        if self.seconds is not None:
            words += ["--seconds", f"{self.seconds:g}"]
        if self.within is not None:
            words += ["--within", f"{self.within:g}"]
        for key, value in self.more.items():
            if value is True:
                words.append(f"--{key}")
            elif value not in (None, False, ()):
                words += [
                    f"--{key}",
                    shlex.quote(",".join(map(str, value)) if isinstance(value, tuple) else str(value)),
                ]
        return " ".join(words)
