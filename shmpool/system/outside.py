"""What comes from outside into the middle of our work: a signal handler's exception, or another thread's.

It may be of any kind, an OSError too: alarms mostly raise TimeoutError. A clause that catches what its call may raise
would take it for the call's, and nobody would ever see it. So such a clause says ``except own(OSError):``. That is
looked at only when there is an exception, and matches none that came from outside.

Not told from ours: a handler's in C with an errno, and what a handler raises that is no longer set, out of the
standard library and with an errno. BufferError and AttributeError are caught as they are: these clauses are on the
way of every release, and no handler means them.
"""

from __future__ import annotations

import sys
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, Final, TypeVar

    _E = TypeVar("_E", bound=BaseException)


def origin(module: object) -> str:
    """The top of its package."""
    return str(module).partition(".")[0]


#: Whose errors, and whose code, those of our work are.
OURS: Final = sys.stdlib_module_names | {origin(__name__)}


def own(*kinds: type[_E]) -> tuple[type[_E], ...]:
    """For an ``except`` clause: *kinds*; none of them when what is just being caught came from outside."""
    error = sys.exception()
    return () if error is not None and _is_from_outside(error) else kinds


def own_or_called(*kinds: type[_E]) -> tuple[type[_E], ...]:
    """The same where code of users is called, or numpy's: what that raises is not from outside."""
    error = sys.exception()
    return () if error is not None and _is_a_handlers(error) else kinds


def _is_from_outside(error: BaseException) -> bool:
    if getattr(error, "errno", None) is None:
        if origin(type(error).__module__) not in OURS or (isinstance(error, OSError) and not error.args):
            return True  # the last is another thread's: neither ours nor the kernel's are bare
        # One with an errno is the kernel's, through whatever was put around its call: gevent's, a profiler's.
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
            if trace.tb_next is None and origin(trace.tb_frame.f_globals.get("__name__")) not in OURS:
                return True
    return _is_a_handlers(error)


def _is_a_handlers(error: BaseException) -> bool:
    """Whether it came through a signal handler that is set."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is None:
        return False
    handlers = _handlers()
    while trace.tb_next is not None:
        trace = trace.tb_next
        if trace.tb_frame.f_code in handlers:
            return True
    return False


def _handlers() -> set[CodeType]:
    """What runs when a signal comes."""
    signals: Any = sys.modules.get("_signal")  # the interpreter's own: `signal` is an import that most do without
    found = set()
    if signals is not None:
        for number in range(1, signals.NSIG):
            handler = signals.getsignal(number)
            while isinstance(handler, partial):
                handler = handler.func
            if callable(handler):
                code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
                if code is not None:
                    found.add(code)
    return found
