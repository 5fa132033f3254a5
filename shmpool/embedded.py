"""The embedded default: a private broker in a child process (`launch`), for this process tree.

At the interpreter's exit it ends behind all exit handlers, whenever these were registered, and when no daemon thread
runs any more: until then they go on working with it, and are told of no broker that has gone.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Unpack

from .addresses import ENVIRONMENT
from .errors import BrokerUnavailable
from .launch import Running, start, stop
from .life import closing
from .system import hooks
from .system.importing import door, explained

if TYPE_CHECKING:
    from .pools import Pool
    from .settings import Settings


class Broker:
    """A private broker: a child process, gone with this one.

    ::

        with shmpool.Broker(memory_limit="256MiB") as broker:
            pool = broker.connect()

    Keywords are the configuration file's keys; sizes and times may be strings with a unit.
    Without ``socket`` it has a directory of its own; it logs warnings only, to our stderr.
    It runs when the constructor returns. Raises `ConfigError` for a setting that is wrong
    and `BrokerUnavailable` when the broker does not start; nothing is left behind then.

    Use it from any thread. In a forked child it still names the parent's broker, and
    `connect` works, but `close` does nothing there: only the process that started a broker
    ends it. A broker that nobody closed ends with the interpreter, behind its exit handlers, or when this object and
    the pools that its `connect` made are closed or collected (with a ResourceWarning, unless
    it had pools).
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self._running = start({**settings})
        #: A pool keeps it, and nobody else may be left to close it.
        self._is_kept = False
        _running.add(self._running)
        self._finalizer = weakref.finalize(self, _close, self._running)
        self._finalizer.atexit = False
        _brokers.add(self)

    @property
    def address(self) -> str:
        """The path of its socket, for `connect` and for SHMPOOL_SOCKET."""
        return self._running.address

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.process.pid

    def connect(self, *, timeout: float = 5.0, strict: bool = False) -> Pool:
        """A `Pool` of this broker; the options are those of `shmpool.connect`. The pool keeps
        the broker until it is closed: ``shmpool.Broker().connect()`` serves as long."""
        with door, explained:
            from .pools import open_pool

        running = self._running
        if running not in _running and running.directory is not None and running.owner == os.getpid():
            raise BrokerUnavailable(f"the private broker at {self.address} was closed: start another")
        pool = open_pool(self.address, timeout, strict)
        pool._broker = self
        self._is_kept = True
        return pool

    def close(self) -> None:
        """End the broker and remove its segments and files; returns when it is gone.
        What pools of it still have mapped stays readable; who waits for it is told at once. Once more
        finishes what an exception (Ctrl-C) has ended, else does nothing."""
        self._finalizer()
        if self._running in _running:  # that was interrupted; or weakref calls none any more, at exit
            _close(self._running)

    def is_running(self) -> bool:
        """Whether the process lives. Always False in a forked child, which cannot tell."""
        return self._running in _running and self._running.process.poll() is None

    def _abandon(self) -> None:
        """In a forked child: the process is not our child, and not ours to end."""
        self._finalizer.detach()
        self._running.process.returncode = 0  # else Popen would wait for it

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Broker cannot be copied or pickled, since one process owns it: send broker.address,"
            " or a pool of it, and connect there"
        )

    def __repr__(self) -> str:
        return f"<shmpool.Broker pid={self.pid} address={self.address!r}>"

    def __del__(self) -> None:
        running = getattr(self, "_running", None)
        if running in _running and not self._is_kept:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)


# --- its end ------------------------------------------------------------------------------

#: Those of this process that have not been ended.
_running: set[Running] = set()


def _close(running: Running) -> None:
    """End one. Twice is fine; nothing in a forked child."""
    if running.owner != os.getpid():
        return
    stop(running)
    if (
        running.directory is not None and not sys.is_finalizing()
    ):  # its path is drawn anew each time: no broker comes there again
        closing.broker_is_gone(running.address)
    _running.discard(running)  # last: `Broker.close` once more does what an exception has ended


def _close_all() -> None:
    for running in list(_running):
        _close(running)


def _at_exit() -> None:
    """Exit handlers run last to first, so some run behind this one, beside daemon threads. Then no other thread of
    Python's runs any more, and the interpreter collects, before it takes its modules apart: there it is told of."""
    is_exit = sys._getframe().f_back is None  # else somebody runs the handlers, who may end without all this
    if is_exit and gc.isenabled():
        gc.callbacks.append(_at_last)
    else:
        _close_all()


def _at_last(phase: str, info: dict[str, int]) -> None:
    if not sys.is_finalizing():
        return
    for running in _running:
        running.process._waitpid_lock = threading.Lock()  # type: ignore[attr-defined]  # who has it never goes on
    _close_all()


atexit.register(_at_exit)


# --- one broker for everybody who asks -----------------------------------------------------

_brokers: weakref.WeakSet[Broker] = weakref.WeakSet()
_autostart_lock = threading.RLock()
_autostarted: Broker | None = None


def autostart() -> Broker:
    """This process's own broker, started at the first call or when the last one has died.

    Exports SHMPOOL_SOCKET, so that children started from now on find it. It ends with
    this process. Thread-safe; a forked child that needs a broker of its own gets one.
    """
    global _autostarted
    with _autostart_lock:
        if _autostarted is None or not _autostarted.is_running():
            if _autostarted is not None:
                _autostarted.close()
            _autostarted = None
            broker = Broker()
            if _autostarted is not None:  # a finalizer was faster
                broker.close()
                return _autostarted
            _autostarted = broker
            os.environ[ENVIRONMENT] = _autostarted.address
        return _autostarted


def _after_fork_in_child() -> None:
    global _autostart_lock, _autostarted
    _autostart_lock = threading.RLock()
    for broker in _brokers:
        broker._abandon()
    _running.clear()
    _autostarted = None  # last: with it goes what is only kept here, and that must not be ours to close then


hooks.in_child(_after_fork_in_child)
