"""Which pool a queue is in that was given none: what knows how to connect says so here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pool import BasePool

find_pool: Callable[[], BasePool]
