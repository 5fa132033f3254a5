"""Objects over leases: what `Pool.put` and `Pool.get` do with arrays, frames, tables, tensors.

    put: encoding (reducers say what travels out of band) -> layout -> one lease, written in parts
    get: layout (bounds checked before anything is trusted) -> decoding, over the leased memory

An object is one buffer, pickle protocol 5 with its large buffers out of band. Nothing here imports
numpy, pandas, pyarrow or torch: each is served when the process has it.
"""

from __future__ import annotations

from .decoding import decode
from .encoding import Encoded, encode
from .reducers import register_reducer

__all__ = ["Encoded", "decode", "encode", "register_reducer"]
