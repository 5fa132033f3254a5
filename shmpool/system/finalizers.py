"""Finalizers out of which what a signal handler raises arrives.

CPython prints what a ``__del__`` raises, and throws it away, Ctrl-C too; and at the beginning of one in Python, as of
any function, a handler may come. So what stands there is C, as for hooks of a fork (`hooks`): it has a generator go on
in the middle of its ``try``, which does what is to be done at an object's end. What comes meanwhile is kept, the rest
is done, and it comes anew by C, in what its thread does next in Python. What the finalizer raises itself is printed.
"""

from __future__ import annotations

import ctypes
from collections import deque
from functools import partial
from itertools import repeat, starmap
from operator import attrgetter, call

from .hooks import comes_from_outside, kind_of, put_together, send, thread_number
from .outside import own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, Final, TypeVar

    _T = TypeVar("_T")

#: So many generators stand by: finalizers that come in the middle of each other, or in threads, take one each.
_SPARE: Final = 16
#: After so many exceptions one gives up.
_TRIES: Final = 8

_ready: Final[deque[Generator[None, None, None]]] = deque()
#: By thread: what it is to be sent.
_kept: Final[dict[int, Any]] = {}
#: To no thread. (One that is just starting has the number 0 until it runs.)
_nothing: Final = ctypes.c_ulong(-1), ctypes.py_object(Exception)


class _Ending(partial):  # type: ignore[type-arg]
    """What is to be called with an object that is collected. It has steps of C's, each with this as its argument, which
    all but the first take for a default."""

    #: Who ends the object has it here; its finalizer does not run a second time.
    waiting: Final[deque[_Ending]] = deque()
    waits = property(waiting.append)
    is_made = property(partial(next, map(next, iter(_ready.popleft, None), repeat(None))))
    is_told = property(partial(next, starmap(send, map(_kept.pop, map(call, repeat(thread_number)), repeat(_nothing)))))
    __call__ = property(partial(partial, attrgetter("waits", "is_made", "is_told")))


def ends_by(act: Callable[[_T], object]) -> Callable[[type[_T]], type[_T]]:
    """For a class: its objects are ended by *act* when they are collected. It may be done again where something came in
    its middle, and is a finalizer: it takes no lock and starts no thread."""

    def decorate(cls: type[_T]) -> type[_T]:
        cls.__del__ = property(partial(_Ending, act))  # type: ignore[attr-defined]
        return cls

    return decorate


def ending(act: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    """The same for what is called at an object's end and has no use for it."""
    return _Ending(act, *arguments)


def _stand_by() -> None:
    while len(_ready) < _SPARE:
        one = _turn()
        next(one)
        _ready.append(one)


def _turn() -> Generator[None, None, None]:
    # As in `hooks`: what keeps one calls nothing, and all else is within the outer `try`.
    kept: list[BaseException] = []
    mine: list[_Ending] = []
    is_ready = is_over = False
    tries = 0
    while True:
        try:
            while True:
                tries += 1
                try:
                    if not is_ready:
                        is_ready = True
                        yield
                    _stand_by()
                    while True:
                        if not _take(mine):
                            break
                        mine[-1].func(*mine[-1].args)
                        mine.pop()
                    if kept:
                        put_together(kept, _put)
                    return
                except GeneratorExit:
                    return
                except BaseException as error:
                    is_over = tries >= _TRIES or not (kept or comes_from_outside(error))
                    if is_over:
                        raise
                    kept += [error]
        except BaseException as error:
            if is_over:
                raise
            kept += [error]


def _take(mine: list[_Ending]) -> bool:
    """Take one that waits, if there is none yet, in one step: what comes here finds it in one of the two."""
    try:
        mine.extend(map(deque.pop, (_Ending.waiting,) if _Ending.waiting and not mine else ()))
    except own(IndexError):
        pass  # another thread was faster
    return bool(mine)


def _put(error: BaseException) -> None:
    number = thread_number()
    _kept[number] = ctypes.c_ulong(number), ctypes.py_object(kind_of(error))


_stand_by()
