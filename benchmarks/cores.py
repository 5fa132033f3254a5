"""Which cores processes run on. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on_one_core(*pids: int) -> Iterator[None]:
    """This process (the calling thread, and what it starts) and the given ones share a core:
    only the work is left, no halted core has to wake."""
    core = {max(os.sched_getaffinity(0))}
    before = {pid: os.sched_getaffinity(pid) for pid in (0, *pids)}
    try:
        for pid in before:
            os.sched_setaffinity(pid, core)
        yield
    finally:
        for pid, cores in before.items():
            os.sched_setaffinity(pid, cores)


def pin_to_core(number: int) -> None:
    """Keep this process on one of its cores, where there are that many and more than one. Else the
    kernel may wake it on another's core, and the same lap is fast or slow by turns."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > number and len(cores) > 1:
        os.sched_setaffinity(0, {cores[number]})
