"""shmpool: hand buffers between the processes of one host for the price of a pointer.

    with pool.lease(len(data)) as lease:      # a worker
        lease.write(data)
        queue.put(lease.publish())

    with pool.open(queue.get()) as buffer:    # another
        consume(buffer.view)

`connect` gives a `Pool` of a running broker, `Broker` starts a private one.

What ends is said with these words, each of which means one thing:

========= ===========================================================================================
word      what ends
========= ===========================================================================================
release   a lease, or a buffer with its ticket, by who has it; it takes effect when its last view is gone
return    custody of a slot: it comes back to its magazine, or goes back to the broker
discard   what nobody will use: a ticket unopened, a request that nobody waits for, a seat given up
close     what was opened: a pool, its seat when nothing of it is in use any more, a socket, a descriptor
abandon   in a forked child, what is its parent's: it is out of reach from then on, and untouched
========= ===========================================================================================

How the parts work together: docs/internals.md.
"""

from __future__ import annotations

import gc
import sys

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("shmpool needs a CPython with the GIL: its reference counts are not proven without it")
if sys.platform != "linux":
    raise ImportError(f"shmpool runs on Linux, this is {sys.platform}")

#: What is imported stays. To look for garbage among it meanwhile is a twelfth of the time that it takes.
_collects = gc.isenabled()
gc.disable()
try:
    from . import _fast
    from .buffer import Buffer
    from .connecting import connect
    from .errors import (
        BrokerUnavailable,
        ChecksumError,
        ConfigError,
        FormatError,
        HandleUsed,
        InvalidHandle,
        InvalidSize,
        LeakedView,
        LeaseReleased,
        LeaseTimeout,
        LocalProtocolError,
        NameTaken,
        NotFound,
        PoolClosed,
        PoolingRefused,
        ProtocolError,
        QueueShutDown,
        QuotaExceeded,
        RemoteProtocolError,
        SharedMemoryFull,
        ShmpoolError,
        StaleHandle,
        StreamBroken,
        StreamTimeout,
        TeeError,
    )
    from .lease import Lease
    from .life import forks as _forks  # noqa: F401  (its hooks are registered by the import)
    from .pools import Pool
    from .protocol.handle import Handle
    from .protocol.sizing import SizeCategory, Sizing, Strategy, categorize, optimal_chunk_size, select_strategy
    from .shared import Shared
    from .system.importing import load as _load
finally:
    if _collects:
        gc.enable()

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import aio as aio
    from . import joblib as joblib
    from . import torch as torch
    from .embedded import Broker
    from .integrations.executor import Executor
    from .integrations.pickling import install, uninstall
    from .objects import register_reducer
    from .queues import JoinableQueue, Queue
    from .stats import Stats
    from .streams import ChunkedTeeReader, copy

__version__ = "0.2.0"
#: Whether the hot paths are the compiled twin's.
__compiled__ = _fast.COMPILED

__all__ = [
    "Broker",
    "BrokerUnavailable",
    "Buffer",
    "ChecksumError",
    "ChunkedTeeReader",
    "ConfigError",
    "Executor",
    "FormatError",
    "Handle",
    "HandleUsed",
    "InvalidHandle",
    "InvalidSize",
    "JoinableQueue",
    "LeakedView",
    "Lease",
    "LeaseReleased",
    "LeaseTimeout",
    "LocalProtocolError",
    "NameTaken",
    "NotFound",
    "Pool",
    "PoolClosed",
    "PoolingRefused",
    "ProtocolError",
    "Queue",
    "QueueShutDown",
    "QuotaExceeded",
    "RemoteProtocolError",
    "Shared",
    "SharedMemoryFull",
    "ShmpoolError",
    "SizeCategory",
    "Sizing",
    "StaleHandle",
    "Stats",
    "Strategy",
    "StreamBroken",
    "StreamTimeout",
    "TeeError",
    "categorize",
    "connect",
    "copy",
    "install",
    "optimal_chunk_size",
    "register_reducer",
    "select_strategy",
    "uninstall",
]

_LAZY = {
    "Broker": "embedded",
    "ChunkedTeeReader": "streams",
    "Executor": "integrations.executor",
    "Stats": "stats",
    "JoinableQueue": "queues",
    "Queue": "queues",
    "copy": "streams",
    "install": "integrations.pickling",
    "register_reducer": "objects",
    "uninstall": "integrations.pickling",
}
#: Modules that few need: ``shmpool.aio`` without a further import.
_MODULES = ("aio", "joblib", "torch")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))]


def __getattr__(name: str) -> Any:
    """Import what most workers never need when it is first asked for."""
    if name in _LAZY or name in _MODULES:
        if name in _MODULES:
            return _load(name, globals())
        value = globals()[name] = getattr(_load(_LAZY[name], globals()), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
