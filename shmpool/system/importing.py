"""The door of imports that come late: in a call, when it first needs them.

A module that one thread is just importing is half a module in the child of a fork by another, and the lock of its
import is held there by nobody who lives. So whoever imports in a call goes through the `door`, and a fork waits for who
is in it, as who comes meanwhile waits for the fork. A thread that forks in the middle of its own import goes on, as its
child does.

Each thread holds a lock of its own there. A fork looks at them where anybody came since the last; so it has nothing to
take, nor to give back, and of what it touches the kernel has nothing to copy.
"""

from __future__ import annotations

import sys
import time
from _thread import allocate_lock, get_ident
from types import FunctionType, ModuleType

from .here import FORKING, HERE, IMPORTING
from .limits import refused
from .outside import is_from_outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import Any, Final

#: Seconds from look to look whether another thread's fork, or import, is over.
_ITS_TURN: Final = 0.0002
#: Seconds that a fork waits at most: an import may wait itself for what another hook of the fork has taken (logging's
#: takes all handlers' locks).
LONGEST_IMPORT: Final = 5.0
#: A lock for each thread that ever came; `get_ident` may count greenlets.
_locks: Final[dict[int, LockType]] = {}
#: The helpers that are not at rest. A fork that is under way waits for them, so they do not wait for it.
waited_for: Final[set[int]] = set()


class _Door:
    """``with door:`` around each import statement that stands in a function. May be nested.

    What enters and leaves are the methods of a lock, in C: an exception cannot come between. Both are looked up first,
    in an order that depends on the version, and from the last look on nothing is called until the lock is held; so no
    fork begins there."""

    @property
    def __enter__(self) -> Callable[[], object]:
        lock = _come()
        return lock.__enter__ if lock is not None else _pass

    @property
    def __exit__(self) -> Callable[..., None]:
        lock = _come()
        return lock.__exit__ if lock is not None else _pass_out


def _come() -> LockType | None:
    """Announce this thread and wait for another's fork; None where it is in the door already."""
    me = get_ident()
    lock = _locks.get(me) or _locks.setdefault(me, allocate_lock())
    if lock.locked():
        return None
    HERE[IMPORTING] = 1
    while HERE[FORKING] and HERE[FORKING] != me and me not in waited_for:
        time.sleep(_ITS_TURN)
        HERE[IMPORTING] = 1
    return lock


def _pass() -> None:
    """This thread is in the door already."""


def _pass_out(kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
    """The same. A signal handler, or a finalizer, in the middle of an import finds the half of it: not what it wants,
    or that without what it needs."""
    if kind is None:
        names = [_module_of(one) for one in sys._getframe(1).f_locals.values()]
    else:
        names = [str(error.name)] if isinstance(error, ImportError) else []
    if any(name.startswith(_OURS) and _is_half(sys.modules.get(name)) for name in names):
        raise RuntimeError(_TOO_EARLY) from error


def _module_of(one: object) -> str:
    if isinstance(one, ModuleType):
        return one.__name__
    return str(one.__module__) if isinstance(one, FunctionType | type) else ""


def _is_half(module: object) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


_OURS: Final = f"{__name__.partition('.')[0]}."


_TOO_EARLY: Final = (
    "a signal handler or finalizer has interrupted this thread's import of what it calls, which a first call does:"
    " have it note what is to be done, and call again later"
)


door: Final = _Door()


class _Explained:
    """``with door, explained:`` says it in an error of ours where this process may open, or map, no module any more."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not is_from_outside(error):
            said = refused(error, "what a first call needs cannot be imported")
            if said is not error:
                raise said from error


explained: Final = _Explained()


def load(name: str, package: dict[str, Any]) -> Any:
    """A module of the *package* with these globals, by what an import statement calls: `importlib` is one more module,
    and to read it takes a descriptor, of which there may be none. Raises ConfigError then."""
    with door, explained:
        module = __import__(name, package, None, ("__name__",), 1)
    return module


def wait_for_imports() -> None:
    """For who forks, and has said so: wait until no other thread imports."""
    me, gives_up = get_ident(), time.monotonic() + LONGEST_IMPORT
    for thread, lock in _locks.copy().items():
        while thread != me and lock.locked() and time.monotonic() < gives_up:
            time.sleep(_ITS_TURN)
    HERE[IMPORTING] = any(lock.locked() for lock in _locks.copy().values())  # who comes now says so again


def abandon() -> None:
    """In a forked child: no other thread of its parent's is there."""
    me = get_ident()
    waited_for.clear()
    for thread in _locks.copy():
        if thread != me:
            del _locks[thread]
        elif _locks[me].locked():
            HERE[IMPORTING] = 1
