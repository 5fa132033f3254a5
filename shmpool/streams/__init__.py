"""Streams through leased memory: copying (`copying`), copying what passes by (`tee`), a lease and a
buffer as files (`files`), an object handed over while it is written (`writing`, `reading`); the verbs
of a pool (`verbs`). Each is imported when it is first used."""

from __future__ import annotations

from ..system.importing import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .copying import copy
    from .files import BufferFile, LeaseFile
    from .reading import StreamReader
    from .tee import ChunkedTeeReader
    from .writing import StreamWriter

__all__ = ["BufferFile", "ChunkedTeeReader", "LeaseFile", "StreamReader", "StreamWriter", "copy"]

_LAZY = {
    "BufferFile": "files",
    "ChunkedTeeReader": "tee",
    "LeaseFile": "files",
    "StreamReader": "reading",
    "StreamWriter": "writing",
    "copy": "copying",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = globals()[name] = getattr(load(_LAZY[name], globals()), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
