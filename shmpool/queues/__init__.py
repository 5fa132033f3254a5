"""Queues in memory that the broker owns: their words (`protocol.queues`), locks (`locks`), the moves of put and get
(`ring`), what becomes of an object (`pickling`), and what users see (`queue`). Imported when first used."""

from __future__ import annotations

from ..system.importing import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .queue import JoinableQueue, Queue

__all__ = ["JoinableQueue", "Queue"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(load("queue", globals()), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
