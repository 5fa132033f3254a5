"""A canonical value for the state of a party's objects: equal values, equal future.

Everything that is reachable counts, whatever the product's classes have today, but for what
cannot change what happens next: times, locks, functions, maps (only whether there is one).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import ProxyType

#: Attributes that the scenarios keep from mattering: ages are not shown, nothing is cooled or
#: rests; and what is the same in all states.
UNSEEN = frozenset({
    "_freed_at", "began", "granted_at", "since", "resting", "until", "spent", "newest", "settings", "tiers", "sizing",
    "pooled", "turnover", "over", "awaits_since",
})  # fmt: skip
#: Of these it matters that they are there.
OPAQUE = frozenset({"Windows", "Context", "Words", "Page"})
_PLAIN = frozenset((int, float, str, bytes, bool, type(None)))


def fingerprint(*things: Any) -> Any:
    """Hashable; objects that occur twice are told from equal ones."""
    return _walk(things, {})


def _walk(thing: Any, seen: dict[int, int]) -> Any:
    kind = type(thing)
    if kind in _PLAIN:
        return thing
    walk = _way(kind)
    if walk is not _value:
        number = len(seen)
        first = seen.setdefault(id(thing), number)
        if first != number:
            return ("again", first)
        if walk is None:
            return kind.__name__
    return walk(thing, seen)


@cache
def _way(kind: type) -> Callable[[Any, dict[int, int]], Any] | None:
    """How things of a type are walked; None for those of which it matters that they are there."""
    if kind in (ProxyType, bytearray, array) or issubclass(kind, Enum):
        return _value
    if kind in (set, frozenset):
        return lambda thing, seen: (kind.__name__, *sorted(_walk(item, seen) for item in thing))
    if issubclass(kind, list | tuple | deque):
        return lambda thing, seen: (
            kind.__name__, *[item if type(item) in _PLAIN else _walk(item, seen) for item in thing],
        )  # fmt: skip
    if issubclass(kind, dict):
        return lambda thing, seen: tuple([(_walk(key, seen), _walk(value, seen)) for key, value in thing.items()])
    is_ours = kind.__module__.startswith(("shmpool", "interleaving", "tests"))
    if not is_ours or kind.__name__ in OPAQUE or issubclass(kind, Callable):  # type: ignore[arg-type]
        return None
    if kind.__name__ == "Window":
        return lambda thing, seen: (kind.__name__, thing.inode, thing.length)
    return _attributes


def _value(thing: Any, seen: dict[int, int]) -> Any:
    """What is equal wherever it occurs."""
    if type(thing) is ProxyType:  # its referent may be gone
        return "proxy"
    return thing.value if isinstance(thing, Enum) else bytes(thing)


def _attributes(thing: Any, seen: dict[int, int]) -> Any:
    layout = _layout(type(thing), tuple(getattr(thing, "__dict__", ())))
    try:
        values = layout.values(thing)
    except Exception:  # an ended lease has no view
        values = tuple([_value_of(thing, name) for name in layout.names])
    return (layout.number, *[value if type(value) in _PLAIN else _walk(value, seen) for value in values])


class _Layout(NamedTuple):
    """What is looked at of an object, and a number that stands for its type and for that."""

    number: int
    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]


@cache
def _layout(kind: type, own: tuple[str, ...]) -> _Layout:
    slots = {name for base in kind.__mro__ for name in getattr(base, "__slots__", ())}
    names = tuple(sorted({*slots, *own} - UNSEEN - {"__weakref__"}))
    number = _NUMBERS.setdefault((kind.__name__, names), len(_NUMBERS))
    if len(names) > 1:
        return _Layout(number, names, attrgetter(*names))
    return _Layout(number, names, lambda thing: tuple([getattr(thing, name) for name in names]))


_NUMBERS: dict[tuple[str, tuple[str, ...]], int] = {}


def _value_of(thing: Any, name: str) -> Any:
    try:
        return getattr(thing, name)
    except Exception:
        return "(it has none)"
