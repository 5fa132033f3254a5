"""The embedded default: a private broker in a child process (`launch`), for this process tree."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Unpack

from .addresses import ENVIRONMENT
from .launch import start, stop
from .system import hooks
from .system.importing import door

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
    ends it. A broker that nobody closed ends at interpreter exit, or when this object and
    the pools that its `connect` made are closed or collected (with a ResourceWarning, unless
    it had pools).
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self._running = start({**settings})
        #: A pool keeps it, and nobody else may be left to close it.
        self._is_kept = False
        self._finalizer = weakref.finalize(self, stop, self._running)
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
        with door:
            from .pools import open_pool

        pool = open_pool(self.address, timeout, strict)
        pool._broker = self
        self._is_kept = True
        return pool

    def close(self) -> None:
        """End the broker and remove its segments and files; returns when it is gone.
        What pools of it still have mapped stays readable. Does nothing the second time."""
        self._finalizer()

    def is_running(self) -> bool:
        """Whether the process lives. Always False in a forked child, which cannot tell."""
        return self._finalizer.alive and self._running.process.poll() is None

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
        finalizer = getattr(self, "_finalizer", None)
        if finalizer is not None and finalizer.alive and not self._is_kept:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)


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
    _autostarted = None  # last: with it goes what is only kept here, and that must not be ours to close then


hooks.in_child(_after_fork_in_child)
