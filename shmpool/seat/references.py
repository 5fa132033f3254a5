"""Whether anybody but its table knows a thing: what an exception lost on its way is found so."""

from __future__ import annotations

from sys import getrefcount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


def references(table: dict[int, Any], key: int) -> int:
    """To what the table has there; 0 for nothing."""
    thing = table.get(key)
    return 0 if thing is None else getrefcount(thing)


class _Thing:
    pass


#: The references to a thing that only its table knows; measured, since it depends on the interpreter.
KNOWN_TO_NOBODY: Final = references({0: _Thing()}, 0)


def _references_of_one() -> int:
    thing = _Thing()
    return getrefcount(thing)


#: What ``getrefcount`` says of a local variable's thing that nobody else has.
KNOWN_TO_ONE: Final = _references_of_one()
