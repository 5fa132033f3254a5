"""An exception wherever a signal handler's may come, in the middle of the client's work.

A trace function raises at the n-th place of a cycle (lease, write, publish, open, release) where
the interpreter looks for signals: at the begin of a function, after each call, at each jump
back. Afterwards the pool works on, what the exception left behind goes back when somebody needs
it or the pool is closed, and no finalizer complains. Every eighth place, from a random one on; all
of them in the long setting.

Not covered: the helper thread (signal handlers run in the main thread), the connecting.
"""

from __future__ import annotations

import dis
import gc
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from fault_helpers import Daemon, assert_all_is_back, eventually, pattern

import shmpool
from shmpool.stats import query

CLIENT = os.path.dirname(shmpool.__file__) + os.sep
#: After these the interpreter looks for signals.
LOOKS = ("CALL", "JUMP_BACKWARD", "RESUME")


class Interrupt(BaseException):
    """Nothing in the product knows it."""


class Interrupter:
    """Raises at the n-th place in the client's code; *place* says where that was."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.place = ""
        #: Frame -> the instruction that it has just done.
        self._last: dict[int, str] = {}

    def __enter__(self) -> Interrupter:
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(CLIENT) or "__del__" in frame.f_code.co_name:
            return None  # what a finalizer raises is printed and no more
        frame.f_trace_opcodes = True
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "opcode":
            last = self._last.get(id(frame), "")
            self._last[id(frame)] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self.left -= last.startswith(LOOKS)
            if self.left == 0 and not self.place:
                self.place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise Interrupt
        elif event == "return":
            self._last.pop(id(frame), None)
        return self._on_event


def cycle(pool: shmpool.Pool, nbytes: int, readers: int) -> None:
    with pool.lease(nbytes) as lease:
        lease.write(pattern(nbytes))
        handles = lease.publish_many(readers) if readers > 1 else [lease.publish()]
    for handle in handles:
        with pool.open(handle) as buffer:
            assert buffer.view[-1:] == pattern(nbytes)[-1:]


def interrupted(pool: shmpool.Pool, n: int, nbytes: int, readers: int) -> str:
    """One cycle that ends at its n-th place: where. "" when it is shorter."""
    with Interrupter(n) as interrupter:
        try:
            cycle(pool, nbytes, readers)
        except Interrupt:
            pass
    gc.collect()
    return interrupter.place


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon(str(tmp_path_factory.mktemp("run") / "broker.sock"), on_stop="remove", handle_ttl="50ms")
    yield one
    one.end(signal.SIGTERM)
    assert "Traceback" not in one.logged()


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the lease that is interrupted
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("nbytes", [1000, 300_000], ids=["pooled", "chunked"])
def test_interrupted_cycle_loses_nothing(broker: Daemon, nbytes: int, readers: int, step: int) -> None:
    n = random.randint(1, step)
    places = 0
    while True:
        with shmpool.connect(broker.address) as pool:
            cycle(pool, nbytes, readers)
            place = interrupted(pool, n, nbytes, readers)
            cycle(pool, nbytes, readers)
        try:
            eventually(lambda: not (query(broker.address).clients or query(broker.address).active_buffers))
        except AssertionError as error:
            error.add_note(f"interrupted at place {n}: {place}")
            raise
        if not place:
            break
        n, places = n + step, places + 1
    print(f"{places} places")
    assert places >= 30 // step  # the shortest cycle has 31, and a random one of the first is where this began
    assert_all_is_back(broker.address)
