"""Which cores processes run on: sharing one leaves only the work, no halted core's wake-up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def on_one_core(*pids: int) -> Iterator[None]:
    """This process (the calling thread, and what it starts) and the given ones share a core."""
    core = {max(os.sched_getaffinity(0))}
    before = {pid: os.sched_getaffinity(pid) for pid in (0, *pids)}
    try:
        for pid in before:
            os.sched_setaffinity(pid, core)
        yield
    finally:
        for pid, cores in before.items():
            os.sched_setaffinity(pid, cores)
