"""How long a caller may say that it waits."""

from __future__ import annotations

from typing import Any, Final

#: In seconds; whoever wants to wait longer says infinity.
LONGEST_TIMEOUT: Final = 86_400.0


def check_timeout(timeout: Any) -> float:
    """*timeout* in seconds, as a float: 0 to a day, or infinity. Raises TypeError and ValueError."""
    try:
        if isinstance(timeout, str | bytes | bytearray | bool):
            raise TypeError
        seconds = float(timeout)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"a timeout is a number of seconds or None, not {timeout!r}") from None
    if not (0 <= seconds <= LONGEST_TIMEOUT or seconds == float("inf")):
        raise ValueError(f"a timeout is 0 to {LONGEST_TIMEOUT:.0f} seconds, or infinity; this is {timeout!r}")
    return seconds
