"""Objects over leases: what `Pool.put` and `Pool.get` do with arrays, frames, tables, tensors.

    put: encoding (reducers say what travels out of band) -> layout -> one lease, written in parts
    get: layout (bounds checked before anything is trusted) -> decoding, over the leased memory

An object is one buffer, pickle protocol 5 with its large buffers out of band. Nothing here imports
numpy, pandas, pyarrow or torch: each is served when the process has it. What the verbs of a pool
(`verbs`) need is imported when it is first used, and so is this package's own.
"""

from __future__ import annotations

from ..system.importing import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .decoding import decode
    from .encoding import Encoded, encode
    from .reducers import register_reducer

__all__ = ["Encoded", "decode", "encode", "register_reducer"]

_LAZY = {"Encoded": "encoding", "decode": "decoding", "encode": "encoding", "register_reducer": "reducers"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(load(_LAZY[name], globals()), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
