"""`shmpool.Executor`: a `concurrent.futures.Executor` whose arguments and results go through a pool of its own."""

from __future__ import annotations

import multiprocessing
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from functools import partial
from itertools import islice
from multiprocessing.context import BaseContext
from time import monotonic
from typing import Any, Final, ParamSpec, TypeVar

from ..embedded import Broker
from ..errors import ShmpoolError
from ..objects.encoding import PicklerClass
from ..pools import Pool
from ..protocol.ledger import MAX_TICKETS
from ..system import outside
from ..system.memory import limiting_places, memory_groups, tightest_place
from ..uncopied import Uncopied
from .crew import Crew, Task
from .workers import Duty

P = ParamSpec("P")
T = TypeVar("T")

#: Of what there is, so much is left to others where *memory_limit* is more.
_LEFT: Final = 0.25
#: Connections besides the workers': ours, those of workers that are just ending, tools.
_MORE_CLIENTS: Final = 16


class Executor(Uncopied, futures.Executor):
    """Runs calls in worker processes; large arguments and results lie in a pool of its own.

    What CPython's `ProcessPoolExecutor` does it does too, and its errors are the same. Besides:

    - Arguments and results of 64 KiB and more (of all types) pass through shared memory. They arrive as copies
      would: writable, and nobody else's. What the pool has no room for goes through a pipe, so nothing stands still.
    - Calls are pickled when a worker is free for them, and their inputs wait for room while others are under way:
      *memory_limit* bounds what lies in shared memory, however many calls are submitted.
    - *retries* says how often a call is tried again, with the same input, when its worker was killed: only that
      call counts, and the others go on. With 0 the death of a worker breaks the executor, as CPython's.

    *max_workers*: None means one for each processor. *memory_limit* is that of its private broker, and less on a host
    that has less; *pool* takes the place of that broker, and is not closed. *mp_context*, *initializer*, *initargs*
    and *max_tasks_per_child* are CPython's; the last, and *retries*, start workers later on, and so not by fork:
    with them the default context is spawn. *pickler* is a class like `cloudpickle.Pickler`.

    Thread-safe; of no use in a forked child. Raises ValueError and TypeError for arguments, and like `Broker`.
    """

    _why = "one process owns its workers: submit to it here"

    def __init__(
        self,
        max_workers: int | None = None,
        memory_limit: int | str = "512MiB",
        *,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        retries: int = 0,
        pool: Pool | None = None,
        pickler: PicklerClass | None = None,
    ) -> None:
        size = (os.cpu_count() or 1) if max_workers is None else max_workers
        if size <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if type(retries) is not int or not 0 <= retries < MAX_TICKETS:
            raise ValueError(f"retries is 0 to {MAX_TICKETS - 1}, not {retries!r}")
        if max_tasks_per_child is not None and type(max_tasks_per_child) is not int:
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child is not None and max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        if mp_context is None:
            starts_later = retries or max_tasks_per_child is not None
            mp_context = multiprocessing.get_context("spawn" if starts_later else None)
        elif mp_context.get_start_method(allow_none=False) == "fork":
            if max_tasks_per_child is not None:
                raise ValueError("max_tasks_per_child is incompatible with the 'fork' start method")
            if retries:
                raise ValueError("retries is incompatible with the 'fork' start method")
        broker = None if pool is not None else _start_broker(memory_limit, size)
        try:
            own = None if broker is None else broker.connect()
            duty = Duty((pool or own).address, pickler, initializer, initargs, max_tasks_per_child)  # type: ignore[union-attr]
            self._crew = Crew(pool or own, duty, mp_context, size, retries, partial(_close, own, broker))  # type: ignore[arg-type]
        except BaseException:
            _close(None, broker)
            raise
        self._finalizer = weakref.finalize(self, self._crew.shutdown)
        self._finalizer.atexit = False  # then what was submitted is done first: see `crew`

    @property
    def pool(self) -> Pool:
        """The pool that arguments and results go through. It is closed when the executor has ended."""
        return self._crew.pool

    @property
    def spilled(self) -> int:
        """How many inputs of 64 KiB and more went through a pipe, since the pool had no room."""
        return self._crew.spilled

    @property
    def _processes(self) -> dict[int, Any]:
        """By the name that CPython's has, for who looks at its workers."""
        return self._crew.processes

    @property
    def _max_workers(self) -> int:
        return self._crew.size

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Have ``fn(*args, **kwargs)`` called in a worker. Returns at once, whatever the pool holds; the arguments
        must not change until the call has begun. What cannot be pickled is the future's error. Raises
        RuntimeError after `shutdown`, BrokenProcessPool after a worker has died (without *retries*)."""
        future: futures.Future[T] = futures.Future()
        self._crew.submit(Task(future, (fn, args, kwargs)))
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like the builtin `map`, in the workers. *chunksize* calls go to a worker together. With *buffersize*
        so many are submitted ahead of what was taken from the result, and the iterables are read no further;
        without it all are submitted at once. TimeoutError when a result is not there *timeout* seconds after
        the call of `map`."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and (type(buffersize) is not int or buffersize < 1):
            raise ValueError(f"buffersize is None or an integer of 1 and more, not {buffersize!r}")
        calls = zip(*iterables)  # noqa: B905  (as map does)
        ahead = None if buffersize is None else max(1, -(-buffersize // chunksize))
        submitted: deque[futures.Future[list[T]]] = deque()
        work = partial(_call_each, fn)

        def submit_next() -> bool:
            chunk = tuple(islice(calls, chunksize))
            if chunk:
                submitted.append(self.submit(work, chunk))
            return bool(chunk)

        deadline = None if timeout is None else monotonic() + timeout
        while (ahead is None or len(submitted) < ahead) and submit_next():
            pass

        def results() -> Iterator[T]:
            try:
                done: list[T] = []
                while True:
                    if not submitted:
                        break
                    future = submitted.popleft()
                    if ahead is not None:
                        submit_next()
                    try:
                        done = future.result(None if deadline is None else deadline - monotonic())
                    finally:
                        future.cancel()
                        del future
                    done.reverse()
                    while True:
                        if not done:
                            break
                        yield done.pop()
            finally:
                for future in submitted:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. With *wait* it returns when all that was submitted is done, and workers and broker
        are gone; *cancel_futures* cancels what has not begun. Results stay as they are: arrays keep their memory."""
        self._crew.shutdown(cancel_futures=cancel_futures)
        thread = self._crew.thread
        if wait and thread is not None:
            thread.join()


def _call_each(fn: Callable[..., T], chunk: tuple[tuple[Any, ...], ...]) -> list[T]:
    return [fn(*args) for args in chunk]


def _start_broker(memory_limit: int | str, workers: int) -> Broker:
    """A private broker; where the host has less, one that fits."""
    try:
        return Broker(memory_limit=memory_limit, max_clients=workers * 2 + _MORE_CLIENTS)
    except outside.own(ShmpoolError):
        place = tightest_place(limiting_places(memory_groups()))
        if place is None or place.free < 0:
            raise
        fitting = int(place.free * (1 - _LEFT))
        try:
            return Broker(memory_limit=fitting, max_clients=workers * 2 + _MORE_CLIENTS)
        except outside.own(ShmpoolError):
            pass
        raise


def _close(pool: Pool | None, broker: Broker | None) -> None:
    if pool is not None:
        pool.close()
    if broker is not None:
        broker.close()
