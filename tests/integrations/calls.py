"""What the workers of these tests are asked to do. Spawned ones import it."""

from __future__ import annotations

import os
import signal
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np

LARGE = 200_000  # floats: above the threshold for objects that are copied, below a direct segment's
HUGE = 300_000


def make(length: int) -> Any:
    return np.full(length, 7.0)


def double(array: Any) -> Any:
    """In place: what arrives is the worker's own."""
    array *= 2
    return array


def total(array: Any) -> float:
    return float(array.sum())


def kill_once(array: Any, mark: str) -> float:
    """Die the first time, in the middle of it."""
    got = float(array.sum())
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return got


def kill(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_: Any) -> None:
    raise ZeroDivisionError("by the task")


def send_made(pipe: Any, length: int) -> None:
    pipe.send(make(length))


def receive(text: bytes) -> None:
    """What came through some pipe of another process."""
    ForkingPickler.loads(text)


def wait_for(event: Any) -> int:
    assert event.wait(60)
    return os.getpid()


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("never pickled")


class FailsToArrive:
    """Unpickling it raises."""

    def __reduce__(self) -> Any:
        return fail, ()
