"""Every lease timed, where the broker's configuration asks for it (``detailed_metrics = true``).

A pool without it does not come here: a pool with it is of another class. A lease pays for two looks at
the clock, which are most of it, and for an entry in a list of this process's. The counters in shared
memory are told by `Pool.stats`, when there are many, at the end, and by the helper after a second or so:
so much is missing of a process that is killed.
"""

from __future__ import annotations

from time import perf_counter_ns
from types import FunctionType
from typing import Any, Final

from .lease import Lease
from .pool import BasePool
from .protocol.sizing import Strategy, StrategyLike
from .seat.session import Session

_ADAPTIVE: Final = Strategy.ADAPTIVE
_SMALL, _MEDIUM, _LARGE, _VERY_LARGE = range(4)
#: So many leases of a category are told at once: they share what the stores cost.
_TOLD_AT_ONCE: Final = 512


def _by_position(function: Any) -> Any:
    """The same code, with parameters that are passed by their place. To pass a function on what it would
    take for a default costs three times as much where it has parameters by keyword only."""
    code = function.__code__
    positional = code.replace(co_argcount=code.co_argcount + code.co_kwonlyargcount, co_kwonlyargcount=0)
    defaults = tuple((function.__kwdefaults__ or {}).values())
    return FunctionType(positional, function.__globals__, function.__name__, defaults)


_lease: Final = _by_position(BasePool.lease)


class DetailedPool(BasePool):
    """A pool that times each lease."""

    def lease(self, nbytes: int, *, strategy: StrategyLike = _ADAPTIVE, timeout: float | None = None) -> Lease:
        started = perf_counter_ns()
        lease: Lease = _lease(self, nbytes, strategy, timeout)
        session = lease._slot.session
        if nbytes < session.medium_from:
            timed = session.timed[_SMALL]
        elif nbytes < (sizing := session.sizing).large_object_threshold:
            timed = session.timed[_MEDIUM]
        else:
            timed = session.timed[_LARGE if nbytes < sizing.very_large_object_threshold else _VERY_LARGE]
        timed.append(perf_counter_ns() - started)
        return lease

    def _note_latency(self, session: Session, counter: int, nanoseconds: int) -> None:
        """Tell of those before this one, which `lease` itself notes, once they are many."""
        session.note_timed(_TOLD_AT_ONCE)
