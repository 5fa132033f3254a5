"""What comes from outside into the middle of our work: a signal handler's exception, or another thread's.

It may be of any kind, an OSError too: alarms mostly raise TimeoutError. A clause that catches what its call may raise
would take it for the call's, and nobody would ever see it. So each clause that handles anything says
``except own(OSError):``. That is looked at only when there is an exception, and matches none that came from outside.

Not told from ours: a handler's in C that has arguments, and what a handler raises that is no longer set, out of the
standard library and with an errno.

Some of the standard library's calls catch for themselves what a handler may raise in them: those are here anew.
"""

from __future__ import annotations

import os
import sys
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeVar

    _E = TypeVar("_E", bound=BaseException)


def origin(module: object) -> str:
    """The top of its package."""
    return str(module).partition(".")[0]


#: Whose errors, and whose code, those of our work are.
_HERE: Final = origin(__name__)
OURS: Final = sys.stdlib_module_names | {_HERE}
#: Whose errors C raises without arguments.
_SAY_NOTHING: Final = (MemoryError, StopIteration)


def own(*kinds: type[_E]) -> tuple[type[_E], ...]:
    """For an ``except`` clause: *kinds*; none of them when what is just being caught came from outside."""
    error = sys.exception()
    if error is None:
        return kinds
    trace = error.__traceback__
    if type(error) in kinds and error.args and trace is not None and trace.tb_next is None:
        return kinds  # by what is called in C there: on the way of each release over whose view an array lies
    return () if is_from_outside(error) else kinds


def own_or_called(*kinds: type[_E]) -> tuple[type[_E], ...]:
    """The same where code of users is called, or numpy's: what that raises is not from outside."""
    error = sys.exception()
    return () if error is not None and is_a_handlers(error) else kinds


def let_through(error: BaseException | None) -> None:
    """Raise it anew where a handler has: something has put an error of its own around it."""
    if error is not None and is_a_handlers(error):
        raise error


def is_from_outside(error: BaseException) -> bool:
    """Whether neither our work has raised it, nor what that calls."""
    return was_sent(error) or _is_anothers(error) or is_a_handlers(error)


def note_sent(error: BaseException) -> None:
    """It came where CPython would have thrown it away, and comes once more, elsewhere and with another traceback."""
    error.__dict__["_shmpool_sent"] = True


def was_sent(error: BaseException) -> bool:
    """Whether that was noted of it."""
    return "_shmpool_sent" in error.__dict__


def _is_anothers(error: BaseException) -> bool:
    """Whether it came from another thread, or out of code that is neither ours nor Python's."""
    if getattr(error, "errno", None) is not None:
        return False  # the kernel's, through whatever was put around its call: gevent's, a profiler's
    if origin(type(error).__module__) not in OURS or (isinstance(error, OSError) and not error.args):
        return True  # the last is another thread's: neither ours nor the kernel's are bare
    trace, where = error.__traceback__, _HERE
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
        if trace.tb_next is None:
            where = origin(trace.tb_frame.f_globals.get("__name__"))
    if where != _HERE:
        return where not in OURS
    # Of another thread's there is the class alone; what C raises in our code says something, where there is memory.
    return not error.args and type(error).__module__ == "builtins" and not isinstance(error, _SAY_NOTHING)


def is_a_handlers(error: BaseException) -> bool:
    """Whether it came through a signal handler that is set."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is None:
        return False
    handlers = _handlers()
    while trace.tb_next is not None:
        trace = trace.tb_next
        if id(trace.tb_frame.f_code) in handlers:
            return True
    return False


def _handlers() -> set[int]:
    """What runs when a signal comes, by its code's identity: another's may be equal, and the hash of one is of all of
    its instructions."""
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
                    found.add(id(code))
    return found


# --- calls of the standard library's that would take it for their own -------------------------------------


def exists(path: str) -> bool:
    """As `os.path.exists`."""
    try:
        os.stat(path)
    except own(OSError, ValueError):
        return False
    return True


def real_path(path: str) -> str:
    """As `os.path.realpath`."""
    try:
        return os.path.realpath(path, strict=True)
    except own(OSError):
        return os.path.realpath(path)


def variable(name: str) -> str:
    """An environment variable; empty where it is not set."""
    try:
        return os.environ[name]
    except own(KeyError) as error:
        let_through(error.__context__)
        return ""
