"""Worker processes that are asked together and answer together."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

#: From asking until everybody begins, so that the last one was told. Seconds.
LEAD = 0.02

#: Answers a question, in the worker.
Answer = Callable[[Any], Any]


class WorkerFailed(Exception):
    """A worker died; its traceback is on stderr."""


class Crew:
    """*count* forked processes. Each enters what *start* makes of its place (0, 1, ...), which
    gives it the function that answers. Make it before the process has threads."""

    def __init__(self, count: int, start: Callable[[int], AbstractContextManager[Answer]]) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self.processes = []
        for place in range(count):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(target=_work, args=(start, place, theirs, list(self._pipes)), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
        self.ask(None)

    def ask(self, question: Any, *, meanwhile: Callable[[], object] | None = None) -> list[Any]:
        """Ask everybody, and gather the answers by place; *meanwhile* is called in between."""
        for pipe in self._pipes:
            pipe.send((question,))
        if meanwhile is not None:
            meanwhile()
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise WorkerFailed("a worker died in the middle of a question") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()
            process.join()


def start_time() -> float:
    """When all begin, to be part of a question: `time.perf_counter`, one clock for all on Linux."""
    return time.perf_counter() + LEAD


def wait_until(moment: float) -> None:
    """Sleep until then."""
    time.sleep(max(0.0, moment - time.perf_counter()))


def _work(
    start: Callable[[int], AbstractContextManager[Answer]], place: int, pipe: Connection, others: list[Connection]
) -> None:
    for other in others:
        other.close()
    gc.freeze()
    with start(place) as answer:
        pipe.send(None)
        pipe.recv()  # the first question only waits until all are there
        try:
            while True:
                (question,) = pipe.recv()
                pipe.send(answer(question))
        except (EOFError, BrokenPipeError):
            pass  # the crew is dismissed
    os._exit(0)
