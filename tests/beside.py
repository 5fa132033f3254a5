"""Two computations at once: CI has two cores, and what explores states or simulates is pure."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


def both(first: Callable[[], T], second: Callable[[], T]) -> tuple[T, T]:
    """The results of two computations; the second runs in a forked child, and what it returns is
    pickled. An error of the child is raised here with its traceback in a note."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_compute, args=(second, theirs))
    child.start()
    theirs.close()
    try:
        one = first()
        is_good, other = ours.recv()
    finally:
        ours.close()
        child.join()
        child.close()
    if not is_good:
        raise AssertionError(other)
    return one, other


def _compute(compute: Callable[[], Any], pipe: Connection) -> None:
    try:
        answer = True, compute()
    except BaseException:
        answer = False, traceback.format_exc()
    pipe.send(answer)
    pipe.close()
