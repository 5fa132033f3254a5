"""Hooks of a fork that do their work whatever a signal handler raises in the middle of it.

CPython prints what such a hook raises, and throws it away, Ctrl-C too. So what is registered is no function in Python,
at whose beginning a handler may come: it is C, which has a generator go on in the middle of its ``try``. What comes is
kept, the work is done again, and what was kept comes anew once the fork is over, by C: in what its thread does next in
Python.

What came before a fork comes behind the hooks of all others: in one of theirs it would be thrown away, and what it
does left undone (logging's gives its locks back). So a hook is registered for it then, and another when modules were
imported since, which may have hooks: there is no way to take one away.

Of several the last arrives, with the others as its context. What a hook's own work raises is not kept: where
memory was short, say, a second try is the answer.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from functools import partial
from itertools import repeat, takewhile
from operator import itemgetter

from .outside import OURS, is_a_handlers, note_sent, origin, was_sent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, Final, TypeAlias

    _Ready: TypeAlias = deque[Generator[None, None, None]]

#: So many generators of each hook stand by: threads that fork at once take one each.
_SPARE: Final = 8
#: After so many exceptions a hook gives up, and CPython prints the last one.
_TRIES: Final = 8

#: An exception's class to a thread, by its number of CPython's: `get_ident` may count greenlets.
send: Final = ctypes.pythonapi.PyThreadState_SetAsyncExc
thread_number: Final = ctypes.pythonapi.PyThread_get_thread_ident
thread_number.restype = ctypes.c_ulong


class Arrival:
    """Where an exception comes that was kept: *hook* is to be registered behind those that it may come from."""

    def __init__(self) -> None:
        self.hook: Any = partial(bool)
        #: What has yet to come there, with what is sent for it.
        self._waits: list[tuple[Any, BaseException]] = []

    def put(self, error: BaseException) -> None:
        """It comes there once, in this thread; what waits there already, as what it came in the middle of."""
        for _, earlier in self._waits:
            _put_behind(earlier, error)
        self._waits = waits = [(ctypes.py_object(kind_of(error)), error)]
        sending = map(send, [ctypes.c_ulong(thread_number())], map(itemgetter(0), iter(waits.pop, None)))
        self.hook.__setstate__((next, (sending, None), {}, None))

    def abandon(self) -> None:
        """In a forked child: its parent has it."""
        self._waits = []
        self.hook.__setstate__((bool, (), {}, None))

    @property
    def is_awaited(self) -> bool:
        """Whether anything has yet to come there."""
        return bool(self._waits)


def unbroken(act: Callable[[], None], put: Callable[[BaseException], None]) -> Callable[[], None]:
    """A hook that does *act* until it is done, and *put* with what came in between."""
    ready: _Ready = deque()
    _stand_by(act, put, ready)
    return partial(next, map(next, iter(ready.popleft, None), repeat(None)))


def in_child(act: Callable[[], None]) -> None:
    """Have forked children do *act*, which may be done again."""
    arrival = Arrival()
    os.register_at_fork(after_in_child=unbroken(act, arrival.put))
    os.register_at_fork(after_in_child=arrival.hook)


def put_last(error: BaseException) -> None:
    """Before a fork: it comes behind all hooks."""
    global last, _modules
    if last is None or (_modules != len(sys.modules) and not last.is_awaited):
        new, _modules = Arrival(), len(sys.modules)
        os.register_at_fork(after_in_parent=new.hook)
        last = new
    last.put(error)


def put_first(arrival: Arrival, error: BaseException) -> None:
    """Behind a fork, there; but behind all hooks, where something waits: one thread is sent one at a time."""
    (last if last is not None and last.is_awaited else arrival).put(error)


#: Where what came before a fork comes.
last: Arrival | None = None
_modules = 0


def _stand_by(act: Callable[[], None], put: Callable[[BaseException], None], ready: _Ready) -> None:
    while len(ready) < _SPARE:
        one = _turn(act, put, ready)
        next(one)
        ready.append(one)


def _turn(act: Callable[[], None], put: Callable[[BaseException], None], ready: _Ready) -> Generator[None, None, None]:
    # In a list, that is emptied: a variable would be in a circle with its traceback. What keeps one calls nothing, so
    # that none comes there; and where the inner loop jumps back, and one may come, is within the outer `try`.
    kept: list[BaseException] = []
    is_ready, tries = False, 0
    while True:
        try:
            while True:
                tries += 1
                try:
                    if not is_ready:
                        is_ready = True
                        yield
                    _stand_by(act, put, ready)
                    act()
                    put_together(kept, put)
                    return
                except GeneratorExit:
                    return
                except BaseException as error:
                    kept += [error]
                    if tries >= _TRIES:
                        del kept[:]
                        raise
        except BaseException as error:
            if tries >= _TRIES:
                raise
            kept += [error]


def put_together(kept: list[BaseException], put: Callable[[BaseException], None]) -> None:
    """Put the last of those that came from outside, and the others as what it came in the middle of. May be done
    again."""
    while kept and not comes_from_outside(kept[-1]):
        kept.pop()
    while len(kept) > 1:
        if comes_from_outside(kept[-2]):
            _put_behind(kept[-2], kept[-1])
        del kept[-2]
    if kept:
        put(kept[0])
        kept.clear()


def _put_behind(earlier: BaseException, later: BaseException) -> None:
    """As if *later* had been raised in the middle of what *earlier* ended. What the caller was handling is a context
    of both, and stays behind them."""
    before = _contexts(earlier)
    ahead = list(takewhile(lambda error: not any(error is one for one in before), _contexts(later)))
    if ahead:
        ahead[-1].__context__ = earlier


def _contexts(error: BaseException) -> list[BaseException]:
    chain, behind = [error], error.__context__
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__context__
    return chain


def comes_from_outside(error: BaseException) -> bool:
    """From a handler, or another thread: not of the kinds that the work itself raises, or not by it."""
    if not isinstance(error, Exception) or was_sent(error) or is_a_handlers(error):
        return True
    if isinstance(error, MemoryError | RecursionError):
        return False
    if origin(type(error).__module__) not in OURS:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and origin(trace.tb_frame.f_globals.get("__name__")) not in OURS


def kind_of(error: BaseException) -> type[BaseException]:
    """What is sent to a thread for it."""
    note_sent(error)
    box, kind = [error], type(error)
    if kind is not KeyboardInterrupt or error.args or error.__context__:  # else CPython makes one of the class
        # Where an error is being handled CPython asks for the instance, and asks the class again about what it got.
        space: dict[str, Any] = {"__new__": lambda _, *got: got[0] if got else box.pop()}
        try:
            kind = type(kind.__name__, (kind,), space)
        except Exception:  # it has a mind of its own about what comes below it
            kind = type(kind.__name__, (BaseException,), space)
    return kind
