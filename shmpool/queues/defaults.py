"""Which pool a queue is in that was given none: what knows how to connect says so here."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..pool import BasePool

find_pool: Callable[[], BasePool]
