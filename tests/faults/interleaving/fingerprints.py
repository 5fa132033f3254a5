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
from typing import Any
from weakref import ProxyType

#: Attributes that the scenarios keep from mattering: ages are not shown, nothing is cooled or
#: rests; and what is the same in all states.
UNSEEN = frozenset({
    "_freed_at", "began", "granted_at", "since", "resting", "until", "spent", "newest", "settings", "tiers", "sizing",
    "pooled",
})  # fmt: skip
#: Of these it matters that they are there.
OPAQUE = frozenset({"Windows", "Context", "Words", "Page"})
_PLAIN = (int, float, str, bytes, bool, type(None))


def fingerprint(*things: Any) -> Any:
    """Hashable; objects that occur twice are told from equal ones."""
    return _walk(things, {})


def _walk(thing: Any, seen: dict[int, int]) -> Any:
    kind = type(thing)
    if kind in _PLAIN:
        return thing
    if kind is ProxyType:  # its referent may be gone
        return "proxy"
    if isinstance(thing, Enum):
        return thing.value
    if kind in (bytearray, array):
        return bytes(thing)
    if id(thing) in seen:
        return ("again", seen[id(thing)])
    seen[id(thing)] = len(seen)
    if kind in (set, frozenset):
        return (kind.__name__, *sorted(_walk(item, seen) for item in thing))
    if isinstance(thing, list | tuple | deque):
        return (kind.__name__, *(_walk(item, seen) for item in thing))
    if isinstance(thing, dict):
        return tuple((_walk(key, seen), _walk(value, seen)) for key, value in thing.items())
    if isinstance(thing, Callable) or not kind.__module__.startswith(("shmpool", "interleaving", "tests")):  # type: ignore[arg-type]
        return kind.__name__
    if kind.__name__ == "Window":
        return (kind.__name__, thing.inode, thing.length)
    if kind.__name__ in OPAQUE:
        return kind.__name__
    names = _slots(kind)
    if hasattr(thing, "__dict__"):
        names = sorted({*names, *(name for name in vars(thing) if name not in UNSEEN)})
    walked: list[Any] = [kind.__name__]
    for name in names:
        try:
            value = getattr(thing, name)
        except Exception:  # an ended lease has no view
            continue
        walked.append((name, _walk(value, seen)))
    return tuple(walked)


@cache
def _slots(kind: type) -> list[str]:
    slots = {name for base in kind.__mro__ for name in getattr(base, "__slots__", ())}
    return sorted(slots - UNSEEN - {"__weakref__"})
