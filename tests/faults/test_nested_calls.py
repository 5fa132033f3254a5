"""A finalizer or a signal handler that calls the pool, wherever it may come in the middle of the pool's own work.

One call goes on, and at its n-th place another one begins and ends, in the same thread: at a place where the
interpreter looks for signals (since 3.12 for garbage, too), or at any line. Neither may wait for the other for ever;
both are right; afterwards everything is given back. By default a place of some, drawn; with ``-m long`` some places
of each, from a random one on; with ``-m exhaustive``, for minutes each, all of them.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, Literal

import numpy as np
import pytest
from corners import sizes
from fault_helpers import ENV, Daemon, assert_all_is_back, eventually, pattern
from interrupter import Interrupter

import shmpool
from shmpool.stats import query

MIB = 1024 * 1024
#: Seconds after which a call waits for ever.
FOR_EVER = 8
#: Pairs of a call and a way of visiting it that are tried by default, and places of each in the long setting.
SOME, MANY = 2, 3
#: Nothing else is ready of these sizes: each asks the broker.
UNUSED = itertools.cycle(range(1_100_000, 1_900_000, 4096))

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what is collected


class Hangs(BaseException):
    """Nothing in the product knows it."""


class Visitor(Interrupter):
    """Calls *act* at the n-th place, or, with *lines*, at the n-th line. What it raises comes out of `check`."""

    def __init__(self, n: int, act: Callable[[], object], *, lines: bool = False) -> None:
        super().__init__(n)
        self._act, self._lines = act, lines
        self._error: BaseException | None = None

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if self._lines and event == "line":
            self._visit(frame, f"line {frame.f_lineno}")
        return super()._on_event(frame, event, argument)

    def _come_to(self, frame: FrameType, where: str) -> None:
        if not self._lines:
            self._visit(frame, where)

    def _visit(self, frame: FrameType, where: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.place = f"{frame.f_code.co_qualname}, {where}"
            try:
                self._act()
            except BaseException as error:
                self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
            frame = frame.f_back
        raise Hangs(" < ".join(stack[:20]))

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, FOR_EVER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", params=["locks", "cas"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    way: Literal["locks", "cas"] = request.param
    one = Daemon(
        str(tmp_path_factory.mktemp("run") / "broker.sock"),
        on_stop="remove", handle_ttl="50ms", memory_limit="64MiB", tickets=way,
    )  # fmt: skip
    yield one
    one.end(signal.SIGTERM)
    assert "Traceback" not in one.logged()


def published(pool: shmpool.Pool, nbytes: int = 1000, seed: int = 1) -> shmpool.Handle:
    with pool.lease(nbytes, timeout=4) as lease:
        lease.write(pattern(nbytes, seed))
        return lease.publish()


def read(pool: shmpool.Pool, handle: shmpool.Handle, nbytes: int = 1000, seed: int = 1) -> None:
    with pool.open(handle) as buffer:
        assert bytes(buffer.view) == pattern(nbytes, seed)


class Things:
    """What a call in the middle may have to do with, made before."""

    def __init__(self, pool: shmpool.Pool) -> None:
        self.pool = pool
        self.mine, self.theirs = published(pool, seed=1), published(pool, seed=2)
        self.buffer: shmpool.Buffer | None = pool.open(published(pool, seed=3))
        self.left: shmpool.Buffer | None = pool.open(published(pool, seed=4))
        self.shared = pool.share({"a": np.arange(3000)})
        self.is_closed = False

    def leave(self) -> None:
        self.buffer = self.left = None
        self.shared.release()


# --- what goes on ------------------------------------------------------------------------------------------


def opens(things: Things) -> None:
    read(things.pool, things.mine)


def leases(things: Things) -> None:
    read(things.pool, published(things.pool, seed=5), seed=5)


def misses(things: Things) -> None:
    things.pool.lease(70_000, timeout=4).release()
    things.pool.lease(next(UNUSED), timeout=4).release()


def keeps_a_view(things: Things) -> None:
    """Its release is left to the next call, and that settles it."""
    with things.pool.open(published(things.pool, seed=8)) as buffer:
        kept = memoryview(buffer.view)
        assert bytes(kept) == pattern(1000, 8)
    kept.release()
    read(things.pool, published(things.pool, seed=6), seed=6)


def discards(things: Things) -> None:
    with contextlib.suppress(shmpool.HandleUsed):
        things.pool.discard(things.mine)


def gives_back(things: Things) -> None:
    things.pool.open(things.mine).give_back()
    read(things.pool, things.mine)


def puts(things: Things) -> None:
    assert things.pool.get(things.pool.put([np.arange(100), "text"]))[1] == "text"


def opens_shared(things: Things) -> None:
    assert things.shared.get()["a"][7] == 7


def lets_go(things: Things) -> None:
    """As the helper does where somebody waits for memory."""
    session: Any = things.pool._session
    if session is not None:
        session.answer_recall()
        session.look_after_views()


# --- what comes in the middle ------------------------------------------------------------------------------


def opens_another(things: Things) -> None:
    read(things.pool, things.theirs, seed=2)


def opens_many(things: Things) -> None:
    """One of them in the row that was just given up."""
    handles = [published(things.pool, seed=9) for _ in range(12)]
    for handle in handles:
        read(things.pool, handle, seed=9)


def opens_the_same(things: Things) -> None:
    with contextlib.suppress(shmpool.HandleUsed, shmpool.StaleHandle):
        read(things.pool, things.mine)


def releases(things: Things) -> None:
    assert things.buffer is not None
    things.buffer.release()


def leaves(things: Things) -> None:
    """A buffer that is collected, and whatever looks for such."""
    things.left = None
    things.pool.stats()


def forks(things: Things) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            signal.setitimer(signal.ITIMER_REAL, FOR_EVER)
            read(things.pool, published(things.pool))
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def closes(things: Things) -> None:
    things.is_closed = True
    things.pool.close()


OUTER = [opens, leases, misses, keeps_a_view, discards, gives_back, puts, opens_shared, lets_go]
INNER = [
    opens_another, opens_the_same, leases, misses, keeps_a_view, releases, leaves, discards, puts, opens_shared,
    lets_go, forks, closes,
]  # fmt: skip


def visit(broker: Daemon, outer: Callable[[Things], None], inner: Callable[[Things], None], visitor_of: Any) -> Visitor:
    pool = shmpool.connect(broker.address)
    things = Things(pool)
    visitor: Visitor = visitor_of(lambda: inner(things))
    refused = shmpool.HandleUsed, shmpool.StaleHandle
    with in_time():
        try:
            with visitor:
                outer(things)
        except refused:
            # What is given back waits for a child that may read it yet.
            has_it = inner in (opens_the_same, discards, closes) or (outer is gives_back and inner is forks)
            assert has_it, "refused, and nobody else had it"
        except (shmpool.PoolClosed, shmpool.LeaseReleased):
            assert things.is_closed
        visitor.check()
        if not things.is_closed:
            read(pool, published(pool, seed=7), seed=7)
            pool.reclaim()
        things.leave()
        gc.collect()
        pool.close()
    return visitor


STARTED_AFTER_A_FORK = """
import os, sys, threading
import shmpool

def on_call(frame, event, argument):
    if frame.f_code is threading.Thread.start.__code__:
        return on_line

def on_line(frame, event, argument):
    global left
    if event == "line":
        left -= 1
        if not left and (pid := os.fork()):
            assert os.waitpid(pid, 0)[1] == 0
    return on_line

me, n, left = os.getpid(), 0, 0
while left <= 0:
    n += 1
    left = n
    sys.settrace(on_call)
    pool = shmpool.connect(sys.argv[1])
    sys.settrace(None)
    if os.getpid() != me:
        pool.open(pool.lease(1000).publish()).release()  # its own
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(0.05)  # a helper that is to end has done so
        os._exit(0)
    pool.close()
print("end", n > 5)
"""


def test_child_of_a_fork_in_the_middle_of_a_helper_s_start_has_its_own_and_is_silent(broker: Daemon) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STARTED_AFTER_A_FORK, broker.address]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("end True\n", "", 0)
    eventually(lambda: not query(broker.address).clients)
    assert_all_is_back(broker.address)


def test_what_is_published_anew_in_the_middle_of_a_discard_is_opened_there(broker: Daemon) -> None:
    """At each of its last lines: the discarded row may be leased again while the discard has yet to unlock it."""
    before = helpers()
    idle = visit(broker, discards, lambda things: None, partial(Visitor, -1, lines=True))
    for n in range(max(1, -1 - idle.left - 20), -idle.left):
        visit(broker, discards, opens_many, lambda act, n=n: Visitor(n, act, lines=True))
    eventually(lambda: helpers() == before)
    assert_all_is_back(broker.address)


def helpers() -> int:
    return sum(thread.name == "shmpool-helper" for thread in threading.enumerate())


@pytest.mark.parametrize("reach", sizes("some", "many", "all"))
@pytest.mark.parametrize("inner", INNER, ids=lambda act: act.__name__)
def test_a_call_in_the_middle_of_another_waits_for_nothing_of_its_own(
    broker: Daemon, inner: Callable[[Things], None], reach: str
) -> None:
    before = helpers()
    pairs = [(outer, lines) for outer in OUTER for lines in (False, True)]
    for outer, lines in random.sample(pairs, SOME) if reach == "some" else pairs:
        idle = visit(broker, outer, lambda things: None, partial(Visitor, -1, lines=lines))
        count = -1 - idle.left
        assert count > 3 or shmpool.__compiled__
        step = {"some": count, "many": max(1, count // MANY), "all": 1}[reach]
        for n in range(random.randint(1, step), count + 1, step):
            place: list[Visitor] = []

            def at(act: Callable[[], object], n: int = n, lines: bool = lines, place: Any = place) -> Visitor:
                place.append(Visitor(n, act, lines=lines))
                return place[0]

            try:
                visit(broker, outer, inner, at)
            except BaseException as error:
                error.add_note(f"{inner.__name__} within {outer.__name__}, {n} of {count}: {place[0].place}")
                raise
    eventually(lambda: not query(broker.address).clients)
    eventually(lambda: helpers() == before)
    assert_all_is_back(broker.address)


IN_AN_IMPORT = """
import sys
import shmpool

LATE = ("objects.sharing", "objects.encoding", "objects.arrays", "streams.writing")
pool, outcomes = shmpool.connect(sys.argv[1]), {}

def use():
    with pool.share([1, 2]) as shared:
        assert shared.get() == [1, 2]
    with pool.empty(10) as made:
        pool.discard(made.publish())
    with pool.open_writer(10) as file:
        file.write(b"abc")
    pool.discard(file.handle)

def visited(n):
    lines = 0
    def trace(frame, event, _):
        nonlocal lines
        if frame.f_code.co_name != "<module>" or not frame.f_code.co_filename.startswith(shmpool.__path__[0]):
            return None
        if event == "line":
            lines += 1
            if lines == n:
                sys.settrace(None)
                try:
                    use()
                    outcomes[n] = "done"
                except BaseException as error:
                    outcomes[n] = repr(error).split("(")[0]
        return trace
    for name in LATE:
        sys.modules.pop(f"shmpool.{name}", None)
    sys.settrace(trace)
    try:
        use()
    finally:
        sys.settrace(None)
    return lines >= n

n = 1
while visited(n):
    n += int(sys.argv[2])
pool.close()
print(n > 60, set(outcomes.values()))
"""


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.long)])
def test_a_call_in_the_middle_of_the_import_of_what_it_needs_is_told_so(broker: Daemon, step: int) -> None:
    """A verb imports what is behind it when it is first called, and half of that is of no use to a handler. The
    interrupted call goes on."""
    command = [sys.executable, "-W", "ignore", "-c", IN_AN_IMPORT, broker.address, str(step)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("True {'RuntimeError'}\n", "")
    assert_all_is_back(broker.address)
