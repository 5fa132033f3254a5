"""What an exception keeps of functions that it has ended.

Whoever keeps one (in a variable, a log record, ``sys.last_exc``) keeps the frames that it came through, and these what
their variables had: a lease, a record, a view that nobody knows of, and that would be in use for as long.
"""

from __future__ import annotations

from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_OURS: Final = f"{__name__.partition('.')[0]}."
#: So many exceptions behind one another are looked through.
_MOST: Final = 8


def clear(error: BaseException | None) -> None:
    """Empty the frames of ours among those of functions that are over. Who calls this is not: what it has, it has to
    let go of itself."""
    for _ in range(_MOST):
        if error is None:
            return
        trace = error.__traceback__
        while trace is not None:
            if str(trace.tb_frame.f_globals.get("__name__")).startswith(_OURS):
                try:
                    trace.tb_frame.clear()
                except own(RuntimeError):
                    pass  # it goes on
            trace = trace.tb_next
        error = error.__context__
