"""An exception wherever a signal handler's may come, in the middle of the client's work.

Each test does one thing again and again, and has it end at its n-th place (`interrupter`). The
exception must arrive at the caller; afterwards the pool works on from another thread, so that no
lock is kept; what the exception left behind goes back when somebody needs it or the pool is closed,
and no finalizer complains. By default some places of each, from a random one on, more of them with ``-m long``, all
with ``-m exhaustive``.

Then the same from outside: exceptions that another thread sends, Ctrl-C, memory that is refused, the
end of the stack. Not covered: the helper thread, since signal handlers run in the main thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import io
import itertools
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from corners import across, corner, sizes
from fault_helpers import ENV, Daemon, assert_all_is_back, eventually, pattern
from interrupter import Interrupt, Interrupter

import shmpool
from shmpool.link.bells import Bells
from shmpool.stats import query
from shmpool.system import hooks, libc

MIB = 1024 * 1024
#: So many places of each kind are tried by default, and about so many in the long setting: which, is drawn. On demand
#: all of them are.
SOME, MANY, ALL = 5, 40, 10**9
NUMBERS = itertools.count()
SETTINGS = {"on_stop": "remove", "handle_ttl": "50ms", "memory_limit": "64MiB"}
KINDS = {"pooled": 1000, "chunked": 300_000, "direct": 2 * MIB}

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of what is interrupted


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon(str(tmp_path_factory.mktemp("run") / "broker.sock"), **SETTINGS)
    yield one
    one.end(signal.SIGTERM)
    assert "Traceback" not in one.logged()


@pytest.fixture
def unraised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reached nobody."""
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append(f"{args.exc_value!r} in {args.object!r}"))
    return found


def that_are_traced(places: int) -> int:
    """How many of so many at least: CPython 3.13 does not tell of the instructions of a function's first call."""
    return places // 2 if sys.version_info >= (3, 13) else places


def places(act: Callable[[Interrupter], None], *, most: int, least: int = 5) -> None:
    """Have *act* end at about *most* of its places. It says where it was, or that there
    was none."""
    whole = Interrupter(-1)
    act(whole)
    count = -1 - whole.left
    # No signal handler comes in the middle of the compiled part.
    assert count >= that_are_traced(least) or shmpool.__compiled__, "nothing was traced"
    step = max(1, count // most)
    for n in range(random.randint(1, step), count + 1, step):
        interrupter = Interrupter(n)
        try:
            act(interrupter)
        except BaseException as error:
            error.add_note(f"interrupted at place {n} of {count}: {interrupter.place}")
            raise


def look_up() -> None:
    """The interpreter looks at what came in a finalizer at the end of what was called just before."""


def interrupted(interrupter: Interrupter, act: Callable[[], object]) -> bool:
    """Whether *act* ended early. The exception must arrive here."""
    arrived = False
    with interrupter:
        try:
            act()
            look_up()
        except Interrupt:
            arrived = True
    gc.collect()
    assert arrived == bool(interrupter.place), "the exception reached nobody"
    return arrived


def cycle(pool: shmpool.Pool, nbytes: int, readers: int = 1) -> None:
    with pool.lease(nbytes, timeout=5) as lease:
        lease.write(pattern(nbytes))
        handles = lease.publish_many(readers) if readers > 1 else [lease.publish()]
    for handle in handles:
        with pool.open(handle) as buffer:
            assert buffer.view[-1:] == pattern(nbytes)[-1:]


def works_elsewhere(act: Callable[[], object]) -> None:
    """*act* must work, in another thread: a lock that was kept would hold it up."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            act()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    if outcome[0] is not None:
        raise outcome[0]


def misses(pool: shmpool.Pool) -> None:
    """Sizes that were not leased before: each asks the broker."""
    for nbytes in (70_000, 400_000, 3_000_000):
        pool.lease(nbytes, timeout=5).release()


def nobody_sits(address: str) -> None:
    eventually(lambda: not (query(address).clients or query(address).active_buffers))


def helpers() -> int:
    return sum(thread.name == "shmpool-helper" for thread in threading.enumerate())


at_places = pytest.mark.parametrize("most", sizes(SOME, MANY, ALL), ids=["some", "many", "all"])


@at_places
@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("kind", ["pooled", "chunked"])
def test_interrupted_cycle_loses_nothing(broker: Daemon, kind: str, readers: int, most: int) -> None:
    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(broker.address) as pool:
            cycle(pool, KINDS[kind], readers)
            interrupted(interrupter, lambda: cycle(pool, KINDS[kind], readers))
            works_elsewhere(lambda: cycle(pool, KINDS[kind], readers))
        nobody_sits(broker.address)

    places(act, most=most)
    assert_all_is_back(broker.address)


def puts(pool: shmpool.Pool) -> None:
    assert pool.get(pool.put(np.arange(30_000)))[-1] == 29_999


def shares(pool: shmpool.Pool) -> None:
    with pool.share(np.arange(3000)) as shared:
        assert shared.get()[-1] == 2999


def makes_once(pool: shmpool.Pool) -> None:
    pool.get_or_share("once", lambda: "made").release()


def finds(pool: shmpool.Pool) -> None:
    name = f"found {next(NUMBERS)}"  # an interrupted one's lingers
    with pool.share(np.arange(3000), name):
        with find(pool, name) as found:
            assert found.get()[-1] == 2999
        assert pickle.loads(pickle.dumps(found)).get()[-1] == 2999


def fills_in_place(pool: shmpool.Pool) -> None:
    with pool.empty(3000, "f8") as made:
        made.array[...] = 1
        handle = made.publish()
    assert pool.get(handle)[-1] == 1


def writes_in_private(pool: shmpool.Pool) -> None:
    with pool.lease(70_000, timeout=5) as lease:
        lease.write(pattern(70_000))
        handle = lease.publish()
    with pool.open(handle, writable=True) as buffer:
        buffer.view[0] = 1


def tells_figures(pool: shmpool.Pool) -> None:
    assert pool.stats().clients


VERBS = [puts, shares, makes_once, finds, fills_in_place, writes_in_private, tells_figures]


@at_places
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_interrupted_verb_is_done_again_at_once_and_loses_nothing(
    broker: Daemon, verb: Callable[[shmpool.Pool], None], most: int, unraised: list[str]
) -> None:
    """Also while the connection, which the exception may have ended, is made anew."""

    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(broker.address) as pool:
            verb(pool)
            interrupted(interrupter, lambda: verb(pool))
            works_elsewhere(lambda: verb(pool))
            pool.reclaim()
        nobody_sits(broker.address)

    places(act, most=most)
    assert_all_is_back(broker.address)
    assert unraised == []


class Where(Interrupter):
    """Only in some functions."""

    PLACES: tuple[str, ...] = ()

    def _come_to(self, frame: FrameType, where: str) -> None:
        if frame.f_code.co_qualname in self.PLACES:
            super()._come_to(frame, where)


class WhereItIsLookedAt(Where):
    """Where publications are taken up to be looked at or handed over."""

    PLACES = (
        "Magazine.reap",
        "Magazine._reap_newest",
        "Custody.close_magazines",
        "DeferredReleases.look_at_partings",
    )


class WhereItIsShared(Where):
    """From before the store that publishes to who has it."""

    PLACES = (
        "publish", "announce", "LiveLease._return_shared", "HoldTable.ask", "Asking.ask", "Asking.begin", "Link.send",
        "Asking._settle", "made", "_made", "HoldTable.keep", "HoldTable.begin_sharing",
    )  # fmt: skip


def each_place(kind: type[Where], act: Callable[[Interrupter], None], *, least: int) -> None:
    """Have *act* end at each of few places."""
    n = 1
    while True:
        interrupter = kind(n)
        try:
            act(interrupter)
        except BaseException as error:
            error.add_note(f"interrupted at place {n}: {interrupter.place}")
            raise
        if not interrupter.place:
            break
        n += 1
    assert n > that_are_traced(least)


@pytest.mark.parametrize("nbytes", corner(1000, 2 * MIB))
def test_interrupted_share_is_nobody_s_while_its_pool_lives(broker: Daemon, nbytes: int) -> None:
    """Its maker alone could tell the broker that nobody will."""
    with shmpool.connect(broker.address) as pool:
        pool.share(bytes(nbytes)).release()

        def act(interrupter: Interrupter) -> None:
            interrupted(interrupter, lambda: pool.share(bytes(nbytes)))
            works_elsewhere(lambda: pool.share(bytes(nbytes)).release())
            eventually(lambda: pool.stats().shared["publications"] == 0)

        each_place(WhereItIsShared, act, least=20)
    assert_all_is_back(broker.address)


def find(pool: shmpool.Pool, name: str) -> shmpool.Shared:
    """What has the name by now. The connection that an exception has ended may be away for longer than who does not
    wait is given."""
    while True:
        with contextlib.suppress(shmpool.LeaseTimeout):
            return pool.find(name)


def test_interrupted_share_that_is_kept_is_whole_and_named_or_nothing(broker: Daemon) -> None:
    """Whether it came so far its maker is not told: it is found, and dropped, by its name."""
    with shmpool.connect(broker.address) as pool:
        pool.share(b"x" * 1000, "kept", keep=True).release()
        pool.drop("kept")
        outcomes = set()

        def act(interrupter: Interrupter) -> None:
            interrupted(interrupter, lambda: pool.share(b"x" * 1000, "kept", keep=True).release())
            try:
                with find(pool, "kept") as found:
                    assert found.get() == b"x" * 1000
                outcomes.add("named")
            except shmpool.NotFound:
                outcomes.add("nothing")
                works_elsewhere(lambda: pool.share(b"y" * 1000, "kept", keep=True).release())
            pool.drop("kept")
            eventually(lambda: pool.stats().shared["publications"] == 0)

        each_place(WhereItIsShared, act, least=20)
        assert outcomes == {"named", "nothing"}
    assert_all_is_back(broker.address)


@at_places
@pytest.mark.parametrize("options", [{}, {"on_dead_consumer": "requeue"}], ids=["drop", "requeue"])
def test_interrupted_queue_doubles_nothing_and_serves_others(
    broker: Daemon, options: dict[str, str], most: int
) -> None:
    """At most what was in hand is lost, all is in order, and both its ends are free."""

    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(broker.address) as pool:
            one = shmpool.JoinableQueue(100, pool=pool, **options)  # type: ignore[arg-type]
            got: list[tuple[int, bytes]] = []

            def use() -> None:
                one.put((0, b""))
                one.put((1, bytes(10_000)))
                one.put_many([(2, bytes(5000)), (3, b""), (4, bytes(300_000))])
                got.append(one.get())
                one.task_done()
                got.extend(one.get_many(2))

            def go_on() -> None:
                one.put((5, bytes(10_000)), timeout=5)
                while got[-1:] == [] or got[-1][0] != 5:
                    got.append(one.get(timeout=5))

            interrupted(interrupter, use)
            works_elsewhere(go_on)
            numbers = [number for number, _ in got]
            assert numbers == sorted(set(numbers)), numbers
            assert all(not any(content) for _, content in got)
            one.shutdown(immediate=True)
            one.close()
        nobody_sits(broker.address)

    places(act, most=most)
    assert_all_is_back(broker.address)


@pytest.mark.parametrize("turns", corner(1, 4 << 20))
def test_interrupted_look_at_publications_takes_none_from_its_reader(
    broker: Daemon, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """What an exception took out of a magazine had its handles delivered: it is not given back."""
    monkeypatch.setattr("shmpool.seat.magazine.TURNS_BYTES", turns)

    def act(interrupter: Interrupter, end: Callable[[shmpool.Pool], object]) -> None:
        with shmpool.connect(broker.address) as other:
            pool = shmpool.connect(broker.address)
            handles, views = [], []
            for keeps in (False, True):
                lease = pool.lease(1000)
                lease.write(b"\x07" * 1000)
                views += [memoryview(lease.view)] if keeps else []
                handles.append(lease.publish())
            del lease
            buffers = [other.open(handle) for handle in handles]
            views.clear()
            interrupted(interrupter, lambda: end(pool))
            pool.close()
            leases = [other.lease(1000, timeout=0) for _ in range(40)]
            for lease in leases:
                lease.write(b"\x63" * 1000)
                lease.release()
            assert [bytes(buffer.view) for buffer in buffers] == [b"\x07" * 1000] * 2
            for buffer in buffers:
                buffer.release()
        nobody_sits(broker.address)

    def lease_more(pool: shmpool.Pool) -> None:
        [pool.lease(1000, timeout=5) for _ in range(7)].clear()  # the seventh is none that lies ready

    def close(pool: shmpool.Pool) -> None:
        pool.close()

    for end in (lease_more, close):
        each_place(WhereItIsLookedAt, partial(act, end=end), least=4)
    assert_all_is_back(broker.address)


@at_places
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_lease_that_asks_the_broker_leaves_a_pool_that_asks(
    broker: Daemon, kind: str, most: int, unraised: list[str]
) -> None:
    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(broker.address) as pool:
            interrupted(interrupter, lambda: pool.lease(KINDS[kind]).release())
            works_elsewhere(lambda: misses(pool))
        nobody_sits(broker.address)

    places(act, most=most)
    assert_all_is_back(broker.address)
    assert unraised == []


@at_places
def test_interrupted_producer_of_direct_segments_goes_on_at_once(broker: Daemon, most: int) -> None:
    """Its next segment is asked for ahead: a request that was remembered and never sent must hold
    nobody up."""

    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(broker.address) as pool:
            for _ in range(2):
                pool.lease(2 * MIB).release()
            interrupted(interrupter, lambda: pool.lease(2 * MIB).release())
            works_elsewhere(lambda: pool.lease(2 * MIB, timeout=5).release())
        nobody_sits(broker.address)

    places(act, most=most)
    assert_all_is_back(broker.address)


@at_places
@pytest.mark.parametrize("what", ["buffer", "lease"])
def test_interrupted_release_that_rings_serves_who_waits(
    tmp_path_factory: pytest.TempPathFactory, what: str, most: int
) -> None:
    one = Daemon(
        str(tmp_path_factory.mktemp("run") / "broker.sock"),
        on_stop="remove", handle_ttl="50ms", memory_limit="4MiB", pooled_sizes=["256KiB"], chunk_sizes=["256KiB"],
    )  # fmt: skip

    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(one.address) as holder, shmpool.connect(one.address) as other:
            held = []
            with contextlib.suppress(shmpool.LeaseTimeout):
                while True:
                    held.append(holder.lease(200_000, timeout=0))
            thing = holder.open(held.pop().publish()) if what == "buffer" else held.pop()
            got: list[shmpool.Lease] = []
            waiting = threading.Thread(target=lambda: got.append(other.lease(200_000, timeout=20)))
            waiting.start()
            eventually(lambda: any("wait for memory" in alert for alert in query(one.address).alerts))
            interrupted(interrupter, thing.release)
            thing.release()
            held.pop().release()  # the next recall is answered
            waiting.join(20)
            assert got, "who waits got nothing"
            for lease in held + got:
                lease.release()
        nobody_sits(one.address)

    try:
        places(act, most=most)
        assert_all_is_back(one.address)
    finally:
        one.end(signal.SIGTERM)


KEPT = {"pooled": 200_000, "chunked": 300_000, "direct": 2 * MIB}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    one = Daemon(str(tmp_path_factory.mktemp("run") / "broker.sock"), **SETTINGS | {"memory_limit": "6MiB"})
    yield one
    one.end(signal.SIGTERM)


@at_places
@pytest.mark.parametrize(
    "kind", ["direct", *(pytest.param(kind, marks=pytest.mark.long) for kind in KEPT if kind != "direct")]
)
@pytest.mark.filterwarnings("ignore:a view of a published or released buffer:ResourceWarning")
@pytest.mark.parametrize(
    "what",
    ["lease", "buffer", *corner("publish array", "publish", "publish_many", "give_back", "array", "lease array")],
)
def test_an_object_that_is_kept_though_its_end_was_interrupted_keeps_no_memory(
    small: Daemon, what: str, kind: str, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody calls it again: the next who needs the memory has it. *array*: of a buffer that is released
    while one lives on it, or of what is released or published so."""
    kept, all_of_it = [], [0]

    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(small.address) as pool:
            thing: Any = pool.lease(KEPT[kind], timeout=5)
            thing.write(bytes(KEPT[kind]))
            if what in ("buffer", "give_back", "array"):
                handle = thing.publish()
                thing = pool.open(handle)
            views = [memoryview(thing.view)] if what.endswith("array") else []
            verb = what.removesuffix(" array")
            end = getattr(thing, verb if verb in ("publish", "publish_many", "give_back") else "release")
            handles: Any = ()
            with contextlib.suppress(Interrupt), interrupter:
                handles = end(*[2] if what == "publish_many" else [])
            views.clear()
            if not interrupter.place and handles:
                for one in [handles] if isinstance(handles, shmpool.Handle) else handles:
                    pool.discard(one)
            kept.append(thing)
            with contextlib.suppress(shmpool.LeaseReleased):
                if thing.view is not None:  # it was not begun
                    thing.release()
            if what.startswith("publish"):
                pool.reclaim()  # an exception on the way to the caller loses the handle alone
            given_back = handle if what == "give_back" else None
            eventually(lambda: is_had(pool, given_back), f"at {interrupter.place}", 15)

    def is_had(pool: shmpool.Pool, given_back: shmpool.Handle | None = None) -> bool:
        """All of the limit."""
        with contextlib.suppress(shmpool.ShmpoolError):
            if given_back is not None:
                pool.discard(given_back)
        leases = so_many(pool)
        all_of_it[0] = max(all_of_it[0], leases)
        return leases == all_of_it[0]

    with shmpool.connect(small.address) as pool:
        is_had(pool)
    places(act, most=most, least=3)
    nobody_sits(small.address)
    assert "unexpected error" not in caplog.text


def so_many(pool: shmpool.Pool) -> int:
    """How many leases of the smallest kind are to be had at once."""
    leases = []
    try:
        with contextlib.suppress(shmpool.LeaseTimeout):
            while True:
                leases.append(pool.lease(KEPT["pooled"], timeout=0.1))  # who waits has recalled what is idle
        return len(leases)
    finally:
        for lease in leases:
            lease.release()


@at_places
@pytest.mark.parametrize(("kind", "with_views"), across([*KEPT], (False, True)))
@pytest.mark.filterwarnings("ignore:a view of a published or released buffer:ResourceWarning")
def test_what_is_over_hides_nothing_that_an_exception_loses(
    small: Daemon, kind: str, with_views: bool, most: int
) -> None:
    """Somebody keeps the leases and buffers that had the same slot and the same cell before, and those that the
    exception met."""
    kept: list[Any] = []

    def use(pool: shmpool.Pool) -> None:
        for publishes in (True, False):
            kept.append(pool.lease(KEPT[kind], timeout=5))
            view = memoryview(kept[-1].view) if with_views else None
            if publishes:
                handle = kept[-1].publish()
                del view
                kept.append(pool.open(handle))
                view = memoryview(kept[-1].view) if with_views else None
            kept[-1].release()

    def act(interrupter: Interrupter) -> None:
        kept.clear()
        with shmpool.connect(small.address) as pool:
            use(pool)
            use(pool)
            interrupted(interrupter, lambda: use(pool))
            with contextlib.suppress(shmpool.LeaseReleased):
                if kept[-1].view is not None:  # its end was not begun
                    kept[-1].release()
            pool.reclaim()
            eventually(lambda: so_many(pool) == all_of_it, f"at {interrupter.place}", 15)

    with shmpool.connect(small.address) as pool:
        all_of_it = so_many(pool)
    places(act, most=most)
    nobody_sits(small.address)


@at_places
def test_interrupted_connect_leaves_no_seat(broker: Daemon, most: int) -> None:
    def act(interrupter: Interrupter) -> None:
        before = helpers()
        interrupted(interrupter, lambda: shmpool.connect(broker.address).close())
        nobody_sits(broker.address)
        eventually(lambda: helpers() == before)

    places(act, most=most)
    assert_all_is_back(broker.address)


def test_interrupt_in_the_wait_for_a_helper_s_start_arrives(broker: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython's wait on a condition raises RuntimeError in the place of what comes behind its release of the lock."""
    release, me, raised = threading.Condition._release_save, threading.get_ident(), [False]  # type: ignore[attr-defined]

    def release_and_raise(condition: threading.Condition) -> Any:
        saved = release(condition)
        if threading.get_ident() == me and not raised[0]:
            raised[0] = True
            raise Interrupt
        return saved

    monkeypatch.setattr(threading.Condition, "_release_save", release_and_raise)

    def connect() -> None:
        while not raised[0]:  # the thread may have begun before it was waited for
            shmpool.connect(broker.address).close()

    with pytest.raises(Interrupt):
        connect()
    monkeypatch.undo()
    nobody_sits(broker.address)
    with shmpool.connect(broker.address) as pool:
        cycle(pool, 1000)


@pytest.mark.parametrize("first", ["exception", "thread"])
def test_interrupt_in_the_middle_of_a_helper_s_start_arrives(
    broker: Daemon, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of threading, which then forgets the thread, and the thread, which says that it is there, the second finds
    nothing: that was raised in the place of the exception, or printed by the thread."""
    name = "_start_joinable_thread" if sys.version_info >= (3, 13) else "_start_new_thread"
    start, passed_by, error = getattr(threading, name), threading.Event(), TimeoutError("an alarm")

    def start_and_raise(bootstrap: Callable[[], None], *arguments: Any, **options: Any) -> None:
        def begin() -> None:
            if first == "exception":
                passed_by.wait(10)
            bootstrap()

        start(begin, *arguments, **options)
        if first == "thread":
            eventually(lambda: not threading._limbo)  # type: ignore[attr-defined]
        raise error

    printed: list[object] = []
    monkeypatch.setattr(threading, name, start_and_raise)
    monkeypatch.setattr(threading, "excepthook", printed.append)
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with pytest.raises(TimeoutError) as came:
        shmpool.connect(broker.address)
    monkeypatch.undo()
    monkeypatch.setattr(threading, "excepthook", printed.append)
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    passed_by.set()
    assert came.value is error
    eventually(lambda: not helpers())
    with shmpool.connect(broker.address) as pool:
        cycle(pool, 1000)
    assert printed == []


@at_places
@pytest.mark.parametrize("has_view", [False, True])
def test_second_close_finishes_what_the_first_began(broker: Daemon, has_view: bool, most: int) -> None:
    def act(interrupter: Interrupter) -> None:
        pool = shmpool.connect(broker.address)
        cycle(pool, 1000)
        lease = pool.lease(300_000)
        handle = pool.lease(1000).publish()
        kept = pool.open(handle) if has_view else None
        interrupted(interrupter, pool.close)
        works_elsewhere(pool.close)
        with pytest.raises(shmpool.PoolClosed):
            pool.lease(1000)
        if kept is not None:
            assert len(query(broker.address).clients) == 1
            kept.release()
        lease.release()
        nobody_sits(broker.address)

    before = helpers()
    places(act, most=most)
    eventually(lambda: helpers() == before)
    assert_all_is_back(broker.address)


@at_places
def test_interrupted_release_of_what_is_shared_is_finished_by_the_next(
    broker: Daemon, most: int, unraised: list[str]
) -> None:
    """What is let go of here the broker is told of, if not at once."""

    def act(interrupter: Interrupter) -> None:
        name = f"let go of {next(NUMBERS)}"
        shared = pool.share([1, 2], name)
        interrupted(interrupter, shared.release)
        shared.release()
        eventually(lambda: not is_there(name))

    def is_there(name: str) -> bool:
        try:
            other.find(name, timeout=0).release()
        except shmpool.NotFound:
            return False
        return True

    with shmpool.connect(broker.address) as pool, shmpool.connect(broker.address) as other:
        places(act, most=most)
    assert_all_is_back(broker.address)


def _streams(pool: shmpool.Pool) -> tuple[Any, Any]:
    writer = pool.stream()
    writer.write(b"x" * 5000)
    return writer, pool.open_reader(writer.handle)


FILES: dict[str, Callable[[shmpool.Pool, shmpool.Handle], Any]] = {
    "tee": lambda pool, handle: shmpool.ChunkedTeeReader(io.BytesIO(), io.BytesIO(), pool),
    "reader": lambda pool, handle: pool.open_reader(handle),
    "writer": lambda pool, handle: pool.open_writer(5000),
    "stream": lambda pool, handle: _streams(pool),
    "queue": lambda pool, handle: pool.queue(),
}


@at_places
@pytest.mark.parametrize("kind", corner("reader", *(kind for kind in FILES if kind != "reader")))
def test_what_is_interrupted_while_it_is_made_ends_in_silence(
    broker: Daemon, kind: str, most: int, unraised: list[str]
) -> None:
    """What its finalizer does with what there is of it. Python itself closes a file that is collected, and tells what
    that raises from 3.13 on: here it is closed by hand."""

    def act(interrupter: Interrupter) -> None:
        with shmpool.connect(broker.address) as pool:
            FILES[kind](pool, cycle_without_reader(pool))
            handle = cycle_without_reader(pool)
            gc.collect()
            made = None
            try:
                with interrupter:
                    made = FILES[kind](pool, handle)
            except Interrupt as error:
                # Without this frame, which would keep what it has told of itself.
                for frame, _ in itertools.islice(traceback.walk_tb(error.__traceback__), 1, None):
                    one = frame.f_locals.get("self")
                    if isinstance(one, io.IOBase) and "__del__" not in vars(type(one)):
                        one.close()
                one = frame = None  # type: ignore[assignment]
            del made
            gc.collect()
            assert not unraised
        nobody_sits(broker.address)

    def cycle_without_reader(pool: shmpool.Pool) -> shmpool.Handle:
        with pool.lease(1000, timeout=5) as lease:
            return lease.publish()

    places(act, most=most)
    assert_all_is_back(broker.address)


def test_an_interrupted_look_for_an_address_exports_nothing_afterwards() -> None:
    """Else what it looked at could never be unmapped."""
    memory, n, place = bytearray(8), 0, "?"
    while place:
        n, interrupter = n + 1, Interrupter(n + 1)
        with contextlib.suppress(Interrupt), interrupter:
            assert libc.address_of(memory)
        place = interrupter.place
        memory.append(0)
    assert n > that_are_traced(3), "nothing was traced"


#: Classes of what a caller has.
ITS_OWN = (
    "Lease.", "LiveLease.", "Buffer.", "LiveBuffer.", "SharedBuffer.", "ArrayLease.", "Shared.", "LeaseFile.",
    "BufferFile.",
)  # fmt: skip


def _leases(pool: shmpool.Pool, nbytes: int) -> None:
    pool.lease(nbytes, timeout=5).release()


def _writes(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes, timeout=5) as lease:
        lease.write(np.zeros((2, nbytes // 16), "f8"))


def _opens(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes, timeout=5) as lease:
        handle = lease.publish()
    pool.open(handle).release()


def _opens_to_write(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes, timeout=5) as lease:
        handle = lease.publish()
    pool.open(handle, writable=True).release()


def _puts(pool: shmpool.Pool, nbytes: int) -> None:
    pool.get(pool.put(np.zeros(nbytes // 8), timeout=5))


def _fills(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.empty(nbytes // 8, timeout=5) as made:
        handle = made.publish()
    pool.get(handle)


def _shares(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.share(np.zeros(nbytes // 8), f"kept {next(NUMBERS)}", timeout=5) as shared:
        shared.get()


def _publishes_shared(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes, timeout=5) as lease:
        shared = lease.publish_shared()
    with shared:
        shared.open().release()


def _queues(pool: shmpool.Pool, nbytes: int) -> None:
    with contextlib.closing(pool.queue()) as queue:
        queue.put_many([np.zeros(nbytes // 8)] * 2, timeout=5)
        queue.get_many(2)


def _files(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.open_writer(timeout=5) as writer:
        for _ in range(2):
            writer.write(bytes(nbytes // 2))
    with pool.open_reader(writer.handle) as reader:
        reader.read()


MORE_VERBS = [_writes, _opens_to_write, _puts, _fills, _shares, _publishes_shared, _files]
#: Where a queue is just made or closed some places do keep it, until the exception goes: docs/reliability.md.
NOT_ALL = [_queues]


@at_places
@pytest.mark.parametrize(
    "verb",
    [
        _leases,
        _opens,
        *(pytest.param(verb, marks=pytest.mark.long) for verb in MORE_VERBS),
        *(pytest.param(verb, marks=pytest.mark.exhaustive) for verb in NOT_ALL),
    ],
)
def test_an_exception_that_is_kept_keeps_no_memory(
    small: Daemon, verb: Callable[[shmpool.Pool, int], None], most: int, unraised: list[str]
) -> None:
    """Its frames are kept with it, and what their variables had: not what the caller had, and where a method of it was
    just beginning, which has done nothing yet, it has that, too."""
    nbytes = KEPT["pooled"]

    def all_there_is() -> int:
        leases = []
        with contextlib.suppress(shmpool.LeaseTimeout):
            while True:
                leases.append(other.lease(nbytes, timeout=0))
        for lease in leases:
            lease.release()
        return len(leases)

    def act(interrupter: Interrupter) -> None:
        kept = None
        with shmpool.connect(small.address) as pool:
            verb(pool, nbytes)
            try:
                with interrupter:
                    verb(pool, nbytes)
            except Interrupt as error:
                kept = error
                for frame, _ in traceback.walk_tb(kept.__traceback__):
                    # The tracer's, too: they have the frame that was just beginning, of which no traceback tells.
                    if frame.f_code.co_filename in (__file__, inspect.getfile(Interrupter)):
                        with contextlib.suppress(RuntimeError):
                            frame.clear()
                del frame
            if interrupter.place.startswith(ITS_OWN) and interrupter.place.endswith("begin"):
                kept = None
            pool.reclaim()  # what was published, and its handle lost
            for lease in [other.lease(nbytes, timeout=10) for _ in range(most_leases)]:
                lease.release()
        del kept

    with shmpool.connect(small.address) as other:
        most_leases = max(all_there_is() for _ in range(3))
        assert most_leases > 10
        places(act, most=most)
    assert_all_is_back(small.address)


def test_interrupted_bells_all_ring() -> None:
    """The broker does not look by itself at what a living client has given back."""
    rows, n, place = set(range(5)), 0, "?"
    while place:
        n += 1
        bells, taken, interrupter = Bells(lambda: None), set[int](), Interrupter(n)
        bells.now(*rows)
        with contextlib.suppress(Interrupt), interrupter:
            bells.take(taken)
        place = interrupter.place
        assert taken | set(bells._rows) == rows, place
    assert n > that_are_traced(3), "nothing was traced"


@at_places
def test_interrupted_fork_leaves_a_parent_that_works(broker: Daemon, most: int, unraised: list[str]) -> None:
    """CPython prints what a hook of a fork raises. What comes in ours arrives, in a child too."""

    def act(interrupter: Interrupter) -> None:
        me = os.getpid()

        def forks() -> None:
            try:
                pid = os.fork()
            except Interrupt:
                if os.getpid() == me:
                    raise
                os._exit(0)
            if not pid:
                # It came here, and to nobody: but for a hook of somebody else's that was registered behind ours.
                theirs = [lost for lost in unraised if "functools.partial" not in lost]
                os._exit(bool(interrupter.place) and not theirs)

        with shmpool.connect(broker.address) as pool:
            cycle(pool, 1000)
            came = interrupted(interrupter, forks)
            assert os.wait()[1] == 0 or came, "the exception reached nobody in the child"
            works_elsewhere(lambda: misses(pool))
            cycle(pool, 1000)
            assert helpers() == 1
            if not os.fork():
                os._exit(0)
            os.wait()
            works_elsewhere(lambda: cycle(pool, 1000))
        nobody_sits(broker.address)

    places(act, most=most)
    assert_all_is_back(broker.address)
    assert unraised == []


CTRL_C_BEFORE_A_FORK = """
import _thread, os, signal, sys, time
import shmpool
signal.signal(signal.SIGINT, signal.default_int_handler)
vanished, arrived = [], 0
sys.unraisablehook = lambda args: vanished.append(args.object)
pool = shmpool.connect(sys.argv[1])
os.register_at_fork(before=_thread.interrupt_main)  # the last comes first: the handler waits for Python code
for _ in range(20):
    try:
        if not os.fork():
            os._exit(0)
    except KeyboardInterrupt:
        arrived += 1
    os.wait()
    pool.open(pool.lease(1000).publish()).release()  # who opens has the guards know of the fork
print(arrived, vanished)
pool.close()
"""


def test_ctrl_c_that_comes_while_a_fork_begins_arrives_behind_it(broker: Daemon) -> None:
    """CPython throws away what a hook raises, and what its warning of threads does (from 3.12 on)."""
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", CTRL_C_BEFORE_A_FORK, broker.address]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("20 []\n", "")
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


class Alarmed(Interrupter):
    """By a signal's handler that raises what a call of ours may raise too, where somebody would catch that."""

    def __init__(self, n: int, error: BaseException, only: tuple[str, ...] = ()) -> None:
        super().__init__(n)
        self.error, self._only = error, only

    def __enter__(self) -> Alarmed:
        self._before = signal.signal(signal.SIGUSR1, self._ring)
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        signal.signal(signal.SIGUSR1, self._before)

    def _come_to(self, frame: FrameType, where: str) -> None:
        callers = (frame, frame.f_back)
        if not any(caller and {"own", "own_or_called"} & set(caller.f_code.co_names) for caller in callers):
            return
        if not self._only or frame.f_code.co_qualname in self._only:
            super()._come_to(frame, where)

    def _interrupt(self) -> None:
        signal.raise_signal(signal.SIGUSR1)

    def _ring(self, *_: object) -> None:
        raise self.error.with_traceback(None)


def uses_much(pool: shmpool.Pool) -> None:
    """Little of it is compiled."""
    handle = pool.lease(next(NUMBERS) % 16 * 1000 + 70_000, timeout=5).publish()
    pool.open(handle).release()
    pool.discard(pool.lease(2 * MIB, timeout=5).publish())
    try:
        pool.open(handle)
    except shmpool.HandleUsed as refused:
        if refused in FOREIGN:
            raise
    with shmpool.connect(pool.address) as other:
        other.lease(1000).release()


def keeps_views(pool: shmpool.Pool) -> None:
    """As most do: what is kept over a view is seen by a BufferError, or by nothing at all."""
    for nbytes in (3000, 2 * MIB):
        lease = pool.lease(nbytes, timeout=5)
        written = lease.view[:10]
        lease.shorten(nbytes - 1)
        with pool.open(lease.publish()) as buffer:
            read = buffer.view[:10]
        del written, read
        with pool.lease(nbytes, timeout=5) as lease:
            written = lease.view[:10]
        del written, lease
    made = pool.empty(3000)
    assert pool.get(made.publish()).nbytes == 24_000
    with pool.share(bytes(3000)) as shared, shared.open() as buffer:
        read = buffer.view[:10]
    del read


def queues_up(pool: shmpool.Pool) -> None:
    with contextlib.closing(pool.queue(maxsize=2)) as items:
        items.put_many([b"", bytes(20_000)])
        for act in (lambda: items.put(b"", timeout=0), lambda: items.put_many([b""], timeout=0)):
            try:
                act()
            except queue.Full as refused:
                if refused in FOREIGN:
                    raise
        taken = items.get_many(1) + items.get_many(1)
        assert len(taken) == 2
        try:
            items.get_nowait()
        except queue.Empty as refused:
            if refused in FOREIGN:
                raise


FOREIGN = [
    TimeoutError("an alarm"),
    FileNotFoundError(2, "a file of the handler's", "missing"),
    BlockingIOError(11, "a socket of the handler's"),
    shmpool.LeaseTimeout("of another pool"),
    shmpool.HandleUsed("of another pool"),
    shmpool.BrokerUnavailable("of another pool"),
    shmpool.PoolClosed("another pool"),
    IndexError("an empty list"),
    KeyError("missing"),
    RuntimeError("enough"),
    AttributeError("of the handler's"),
    BufferError("of the handler's"),
    ValueError("of the handler's"),
    TypeError("of the handler's"),
    MemoryError("of the handler's"),
    ResourceWarning("of the handler's"),
    queue.Full(),
    queue.Empty(),
    shmpool.LeakedView("of another pool"),
    shmpool.LeaseReleased("of another pool"),
    shmpool.FormatError("of another pool"),
]
USES = (uses_much, keeps_views, queues_up)


def connects(pool: shmpool.Pool) -> None:
    shmpool.connect(pool.address).close()


#: Most of their places are within a `try`.
AT_THE_KERNEL = ("Connection._send_some", "Connection.poll_with", "Connection.receive", "open_owned", "_identity")


AT_A_VIEW = (
    "LiveLease.release", "LiveLease._take_view", "LiveBuffer.release", "DirectLease._take_view",
    "SharedBuffer._release_view", "ArrayLease._release_array",
)  # fmt: skip


@pytest.mark.parametrize(
    ("error", "use", "only", "most"),
    [
        (FOREIGN[0], connects, AT_THE_KERNEL, SOME),
        (FOREIGN[10], keeps_views, AT_A_VIEW, SOME),
        *(
            pytest.param(error, use, (), MANY, marks=pytest.mark.long)
            for error, use in zip(FOREIGN, itertools.cycle(USES))
        ),
        *(pytest.param(error, use, (), ALL, marks=pytest.mark.exhaustive) for error in FOREIGN for use in USES),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else getattr(value, "__name__", ""),
)
def test_what_a_handler_raises_is_not_taken_for_a_call_s_own(
    broker: Daemon,
    error: Exception,
    use: Callable[[shmpool.Pool], None],
    only: tuple[str, ...],
    most: int,
    unraised: list[str],
) -> None:
    """An alarm's TimeoutError is an OSError, as what the kernel refuses is."""
    with shmpool.connect(broker.address) as pool:
        use(pool)

        def arrives(interrupter: Alarmed) -> None:
            arrived = None
            with interrupter:
                try:
                    use(pool)
                    look_up()
                except type(error) as caught:
                    arrived = caught
            error.__traceback__ = error.__context__ = None  # nobody else has it: it would keep what it ended
            if isinstance(error, AttributeError):
                error.obj = None
            gc.collect()
            assert (arrived is error) == bool(interrupter.place), "the exception reached nobody"
            works_elsewhere(lambda: pool.lease(70_000, timeout=5).release())

        whole = Alarmed(-1, error, only)
        arrives(whole)
        count = -1 - whole.left
        assert count > 5
        step = max(1, count // most)
        for n in range(random.randint(1, step), count + 1, step):
            interrupter = Alarmed(n, error, only)
            try:
                arrives(interrupter)
            except BaseException as failure:
                failure.add_note(f"interrupted at place {n} of {count}: {interrupter.place}")
                raise
    assert unraised == []
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


def _leaves_a_lease(pool: shmpool.Pool) -> object:
    return pool.lease(1000)


def _leaves_a_direct_lease(pool: shmpool.Pool) -> object:
    lease = pool.lease(2 * MIB)
    lease.view[0] = 1
    return lease


def _leaves_a_buffer(pool: shmpool.Pool) -> object:
    with pool.lease(1000) as lease:
        handle = lease.publish()
    return pool.open(handle)


def _leaves_a_pool(pool: shmpool.Pool) -> object:
    return shmpool.connect(pool.address)


class Anywhere(Alarmed):
    """The same, at every place."""

    _come_to = Interrupter._come_to


LEFT: dict[str, Callable[[shmpool.Pool], object]] = {
    "lease": _leaves_a_lease,
    "direct": _leaves_a_direct_lease,
    "buffer": _leaves_a_buffer,
    "pool": _leaves_a_pool,
    "shared": lambda pool: pool.share(1),
    "queue": lambda pool: pool.queue(),
    "file": lambda pool: pool.open_writer(1000),
    "writer": lambda pool: pool.stream(2 * MIB),
    "reader": lambda pool: (writer := pool.stream(2 * MIB)) and pool.open_reader(writer.handle),
}


@at_places
@pytest.mark.parametrize("error", [Interrupt("of a handler's"), TimeoutError("an alarm", 1)], ids=["outside", "alarm"])
@pytest.mark.parametrize("what", LEFT)
def test_what_comes_in_a_finalizer_arrives_behind_it(
    broker: Daemon, what: str, error: BaseException, most: int, unraised: list[str]
) -> None:
    """CPython prints what a `__del__` raises, from its beginning on, and throws it away."""
    with shmpool.connect(broker.address) as pool, warnings.catch_warnings(record=True):
        warnings.simplefilter("always", ResourceWarning)  # else a buffer's is C alone
        LEFT[what](pool)

        def leaves(interrupter: Anywhere) -> None:
            left, arrived = [LEFT[what](pool)], None
            try:
                with interrupter:
                    left.clear()
                    for _ in range(3):
                        pass
            except type(error) as caught:
                arrived = caught
            assert (arrived is error) == bool(interrupter.place), "the exception reached nobody"
            error.__traceback__ = error.__context__ = None
            gc.collect()

        whole = Anywhere(-1, error)
        leaves(whole)
        count = -1 - whole.left
        assert count > 3
        for n in range(1, count + 1, max(1, count // most)):
            interrupter = Anywhere(n, error)
            try:
                leaves(interrupter)
            except BaseException as failure:
                failure.add_note(f"interrupted at place {n} of {count}: {interrupter.place}")
                raise
    assert unraised == []
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


@at_places
def test_an_attribute_error_of_a_handler_s_in_a_property_arrives(broker: Daemon, most: int) -> None:
    """CPython asks `__getattr__` then, which a lease of the plain client has for a view that is taken."""
    error = AttributeError("an alarm", 1)
    properties: list[Callable[[shmpool.Lease], object]] = [
        lambda lease: lease.view,
        lambda lease: lease.chunks,
        lambda lease: lease.category,
        lambda lease: lease.strategy,
    ]
    with shmpool.connect(broker.address) as pool:
        pool.lease(2 * MIB).release()
        for look, nbytes in itertools.product(properties, (2 * MIB, 1000)):
            for n in itertools.count(1, 1 if most > SOME else 3):
                arrived, interrupter = None, Anywhere(n, error)
                with pool.lease(nbytes) as lease:
                    try:
                        with interrupter:
                            look(lease)
                    except AttributeError as caught:
                        arrived = caught
                if "getter, begin" not in interrupter.place:  # of that nothing of ours is told
                    assert (arrived is error) == bool(interrupter.place), f"{interrupter.place}: {arrived!r}"
                error.__traceback__ = error.__context__ = error.obj = None
                if not interrupter.place:
                    break


ALARMS = """
import builtins, os, random, signal, sys, time
import shmpool
class Alarm(getattr(builtins, sys.argv[3])):
    def __init__(self, one, other):
        super().__init__(one, other)
def ring(*_):
    global rung
    rung += 1
    raise Alarm(rung, "rings")
signal.signal(signal.SIGALRM, ring)
rung, arrived, pool, children = 0, 0, shmpool.connect(sys.argv[1]), []
with pool.lease(5000) as lease:
    lease.write(bytes(5000))
    buffer = pool.open(lease.publish())
began = time.perf_counter()
if not os.fork():
    os._exit(0)
longest = 1.5 * (time.perf_counter() - began)
while rung < int(sys.argv[2]):
    before = rung
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, longest))
        while True:  # not by a condition of its own: CPython 3.13 would leave its jump out of the try
            if rung != before:
                break
            if not os.fork():
                os._exit(0)
            if before % 2:
                pool.lease(1000).release()
                pool.lease(70_000).release()
    except Alarm as alarm:
        arrived += alarm.args == (rung, "rings")
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        while os.waitpid(-1, 0):
            pass
    except ChildProcessError:
        pass
print(rung - arrived, bytes(buffer.view) == bytes(5000))
buffer.release()
pool.close()
"""


@pytest.mark.parametrize(
    ("kind", "times"),
    corner(("TimeoutError", 40), ("TimeoutError", 1500), ("Exception", 300), ("LookupError", 300)),
)
def test_alarms_that_ring_while_a_process_forks_all_arrive(broker: Daemon, kind: str, times: int) -> None:
    """At any moment of forks, and of what is done between them: as they were raised, and once."""
    command = [sys.executable, "-W", "ignore", "-c", ALARMS, broker.address, str(times), kind]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=600)
    assert (done.stdout, done.stderr) == ("0 True\n", "")
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


BEHIND_ALL_HOOKS = """
import _thread, os, signal, sys
import shmpool
signal.signal(signal.SIGINT, signal.default_int_handler)
pool, others = shmpool.connect(sys.argv[1]), []
os.register_at_fork(before=_thread.interrupt_main)
def behind():
    others.append(1)
os.register_at_fork(after_in_parent=behind)
try:
    if not os.fork():
        os._exit(0)
except KeyboardInterrupt:
    print("arrived behind", len(others))
os.wait()
pool.close()
"""


def test_what_comes_in_a_hook_arrives_behind_those_of_others(broker: Daemon) -> None:
    """In one of theirs it would be thrown away, with what is to be done there: logging's gives its locks back."""
    command = [sys.executable, "-W", "ignore", "-c", BEHIND_ALL_HOOKS, broker.address]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("arrived behind 1\n", "")


@pytest.mark.parametrize("error", [Interrupt(), Interrupt("with an argument", 2), KeyboardInterrupt("of the user's")])
def test_what_comes_in_a_hook_arrives_as_it_was_where_an_error_is_being_handled(error: BaseException) -> None:
    """A program may fork in an ``except``: CPython then asks twice for what is raised."""
    arrival = hooks.Arrival()
    arrival.put(error)
    handled = ValueError()

    def fork() -> None:
        try:
            raise handled
        except ValueError:
            arrival.hook()
            len("")

    with pytest.raises(type(error)) as came:
        fork()
    assert came.value is error and came.value.__context__ is handled and came.type is type(error)


def arrives(arrival: hooks.Arrival) -> None:
    arrival.hook()
    len("")


def ringing(errors: list[BaseException]) -> Callable[[], None]:
    """What a hook does, which a signal interrupts as often."""

    def ring(*_: object) -> None:
        raise errors.pop(0)

    signal.signal(signal.SIGUSR1, ring)
    return lambda: signal.raise_signal(signal.SIGUSR1) if errors else None


@pytest.fixture
def usr1() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, shmpool.BrokerUnavailable, OSError])
def test_what_a_handler_raises_in_a_hook_is_not_taken_for_the_hook_s(usr1: None, kind: type[BaseException]) -> None:
    error, came = kind("a handler's"), list[BaseException]()
    hooks.unbroken(ringing([error]), came.append)()
    assert came == [error]


def test_of_two_exceptions_in_a_hook_the_last_arrives_with_the_other_as_its_context(usr1: None) -> None:
    first, last = KeyboardInterrupt(), TimeoutError("an alarm")
    came: list[BaseException] = []
    hooks.unbroken(ringing([first, last]), came.append)()
    assert came == [last] and last.__context__ is first


def test_of_two_exceptions_in_a_hook_none_is_lost_while_another_is_handled(usr1: None) -> None:
    """As where somebody forks within an ``except``: that is the context of both."""
    first, last, handled = KeyboardInterrupt(), TimeoutError("an alarm"), ValueError()
    came: list[BaseException] = []
    hook = hooks.unbroken(ringing([first, last]), came.append)
    try:
        raise handled
    except ValueError:
        hook()
    assert came == [last] and last.__context__ is first and first.__context__ is handled


def test_of_two_exceptions_that_come_in_two_hooks_none_is_lost() -> None:
    arrival, first, last = hooks.Arrival(), KeyboardInterrupt(), KeyboardInterrupt()
    for error in (first, last):
        arrival.put(error)
    assert arrival.is_awaited
    with pytest.raises(KeyboardInterrupt) as came:
        arrives(arrival)
    assert came.value is last and last.__context__ is first and not arrival.is_awaited
    arrives(arrival)


def test_an_exception_while_another_is_being_kept_ends_neither() -> None:
    """At each place of the hook."""

    def keeps(n: int) -> Alarmed:
        first, second, arrival = Interrupt("first"), Interrupt("second"), hooks.Arrival()
        errors, interrupter = [first], Alarmed(n, second, ("_turn",))

        def act() -> None:
            if errors:
                raise errors.pop()

        hook = hooks.unbroken(act, arrival.put)
        interrupter._come_to = partial(Interrupter._come_to, interrupter)  # type: ignore[method-assign]
        with interrupter:
            hook()
        if interrupter.place:
            with pytest.raises(Interrupt) as came:
                arrives(arrival)
            assert {came.value, came.value.__context__} == {first, second}, interrupter.place
        return interrupter

    count = -1 - keeps(-1).left
    for n in range(1, count + 1):
        keeps(n)


AGAIN_IN_THE_CHILD = """
import _thread, os, signal, sys
import shmpool
signal.signal(signal.SIGINT, signal.default_int_handler)
pool = shmpool.connect(sys.argv[1])
os.register_at_fork(before=_thread.interrupt_main)
try:
    pid = os.fork()
except KeyboardInterrupt:
    print("arrived", flush=True)
    pid = -1
if pid == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if not os.fork():
            os._exit(0)
        os.wait()
    except BaseException as error:
        print("again", repr(error), flush=True)
    os._exit(0)
os.wait()
pool.close()
"""


def test_what_came_before_a_fork_does_not_come_in_the_child_s_own(broker: Daemon) -> None:
    command = [sys.executable, "-W", "ignore", "-c", AGAIN_IN_THE_CHILD, broker.address]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("arrived\n", "")


# --- exceptions from elsewhere -------------------------------------------------------------------------


def test_exceptions_that_another_thread_sends_lose_nothing(broker: Daemon) -> None:
    """``PyThreadState_SetAsyncExc``: they come where a signal handler's do, in any thread."""
    send = ctypes.pythonapi.PyThreadState_SetAsyncExc
    send.argtypes = (ctypes.c_ulong, ctypes.py_object)
    is_at_work, stop = threading.Event(), threading.Event()

    def work(pool: shmpool.Pool) -> None:
        while not stop.is_set():
            try:
                is_at_work.set()
                while not stop.is_set():  # it is left by the exception only
                    for nbytes in KINDS.values():
                        cycle(pool, nbytes)
            except Interrupt:
                pass

    with shmpool.connect(broker.address) as pool:
        thread = threading.Thread(target=work, args=(pool,), daemon=True)
        thread.start()
        for _ in range(40):
            assert is_at_work.wait(20), "the exception reached nobody"
            is_at_work.clear()
            send(thread.ident or 0, Interrupt)
        assert is_at_work.wait(20)
        stop.set()
        thread.join(20)
        assert not thread.is_alive(), "it hangs"
        works_elsewhere(lambda: misses(pool))
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


def deep(levels: int, act: Callable[[], object]) -> None:
    if levels:
        deep(levels - 1, act)
    else:
        act()


@pytest.mark.parametrize("kind", ["connect", *corner(*KINDS)])
def test_the_end_of_the_stack_loses_nothing(broker: Daemon, kind: str, unraised: list[str]) -> None:
    """The same work from every depth at which it does not fit any more: no descriptor stays open either, and no
    finalizer fails for want of room."""

    def work() -> None:
        if kind == "connect":
            shmpool.connect(broker.address).close()
        else:
            cycle(pool, KINDS[kind])

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before, seats = helpers(), len(query(broker.address).clients)
    with shmpool.connect(broker.address) as pool:
        work()
        misses(pool)  # the tiers' files stay open
        limit, failed, opened = sys.getrecursionlimit(), 0, descriptors()
        for levels in range(limit - 60, limit + 1):
            try:
                deep(levels - len(inspect.stack(0)), work)
            except (RecursionError, shmpool.BrokerUnavailable):  # where it drops the connection
                failed += 1
        assert failed
        works_elsewhere(lambda: misses(pool))
        eventually(lambda: helpers() == before + 1 and len(query(broker.address).clients) == seats + 1)
        eventually(lambda: descriptors() <= opened, "none left", 10)
    assert unraised == []
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


NO_MEMORY_FOR = """
import gc, os, sys, threading, warnings, weakref
import _testcapi, shmpool
warnings.simplefilter("ignore")
sys.unraisablehook = lambda args: None  # CPython prints what a fork's hook raises
# CPython's own: 3.11 crashes at one allocation of an empty WeakValueDictionary, and waits for ever for a thread that
# found no memory to begin.
weakref.WeakValueDictionary.update = lambda *_, **__: None
start = threading.Thread.start
def start_with_memory(thread):
    _testcapi.remove_mem_hooks()
    start(thread)
threading.Thread.start = start_with_memory
address, verb = sys.argv[1:3]
pool = shmpool.connect(address)
with pool.lease(5000) as lease:
    lease.write(b"\\x07" * 5000)
    handle = lease.publish()
buffer, other, failed = pool.open(handle), None, 0
for n in range(int(sys.argv[3]), int(sys.argv[5]), int(sys.argv[4])):
    if verb == "close":
        other = shmpool.connect(address)
    if verb == "release":  # its publisher has gone: the broker is its custodian, and is told
        with shmpool.connect(address) as publisher:
            rings = pool.open(publisher.lease(5000).publish())
    pid = -1
    _testcapi.set_nomemory(n, n + 1)
    try:
        if verb == "connect":
            shmpool.connect(address).close()
        elif verb == "close":
            other.close()
        elif verb == "release":
            rings.release()
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
    except BaseException:
        failed += 1
    finally:
        _testcapi.remove_mem_hooks()
    if pid > 0:
        os.waitpid(pid, 0)
    if verb == "close":
        other.close()
    if verb == "release":
        rings.release()
        del rings
    gc.collect()
right = bytes(buffer.view) == b"\\x07" * 5000
buffer.release()
for nbytes in (70_000, 400_000, 3_000_000):
    pool.lease(nbytes, timeout=5).release()
pool.close()
print("end", failed > 0 or verb in ("fork", "release"), right)
"""


@at_places
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="CPython ends by SIGSEGV now and then, in its collector and elsewhere"
)
@pytest.mark.parametrize("verb", ["connect", "close", "release", "fork"])
def test_memory_that_is_refused_to_a_connect_a_close_a_release_or_a_fork_leaves_nothing(
    broker: Daemon, verb: str, most: int
) -> None:
    """At some allocations, at every seventh one, or at each in turn."""
    pytest.importorskip("_testcapi")
    last = {"connect": 2000, "close": 600, "release": 120, "fork": 600}[verb]
    step = {SOME: last // 12, MANY: 7, ALL: 1}[most]
    first = str(random.randint(0, step))
    command = [sys.executable, "-c", NO_MEMORY_FOR, broker.address, verb, first, str(step), str(last)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=900)
    assert (done.stdout, done.returncode) == ("end True True\n", 0), done.stderr
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


NO_MEMORY_FOR_THE_HELPER = """
import logging, sys, threading, time
import _testcapi, shmpool
logging.basicConfig()
nbytes = iter(range(1_100_000, 2_000_000, 4096))  # nothing is ready of these sizes: each asks the broker
pool = shmpool.connect(sys.argv[1])
for refused in range(6, 13):
    pool.lease(1000).release()  # what is idle is looked after
    _testcapi.set_nomemory(1, refused + 1)
    time.sleep(0.03)
    _testcapi.remove_mem_hooks()
    pool.lease(next(nbytes), timeout=20).release()
    names = [thread.name for thread in threading.enumerate()]
    assert "shmpool-helper" in names, refused
pool.close()
print("end")
"""


def test_helper_that_is_refused_memory_again_and_again_goes_on(tmp_path: Path) -> None:
    """Those in what it does about the first one, too: it would end, and nobody would answer a recall."""
    pytest.importorskip("_testcapi")
    one = Daemon(str(tmp_path / "broker.sock"), **SETTINGS, magazine_idle="10ms")
    try:
        command = [sys.executable, "-c", NO_MEMORY_FOR_THE_HELPER, one.address]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr
        nobody_sits(one.address)
        assert_all_is_back(one.address)
    finally:
        one.end(signal.SIGTERM)


CTRL_C = """
import os, random, signal, sys, threading, time
import shmpool
times, nbytes, lost, sent = int(sys.argv[2]), int(sys.argv[3]), 0, 0
pool, data, go = shmpool.connect(sys.argv[1]), bytes(nbytes), threading.Semaphore(0)

def send():
    global sent
    while go.acquire():
        time.sleep(random.uniform(0.002, 0.02))
        os.kill(os.getpid(), signal.SIGINT)
        sent += 1

threading.Thread(target=send, daemon=True).start()
for n in range(times):
    try:
        go.release()
        after = 0
        while after < 20:  # it goes on for a while after the signal
            with pool.lease(nbytes, timeout=10) as lease:
                lease.write(data)
                handle = lease.publish()
            with pool.open(handle) as buffer:
                buffer.view[0]
            after += sent > n
        lost += 1
    except KeyboardInterrupt:
        pass
    pool.reclaim()
print("lost", lost)
pool.close()
"""


@pytest.mark.parametrize(
    ("times", "nbytes"),
    [
        (15, 100_000),
        (15, 4 * MIB),
        *(pytest.param(*one, marks=pytest.mark.long) for one in ((300, 100_000), (60, 4 * MIB))),
    ],
)
def test_ctrl_c_arrives_however_often_and_nothing_stays_held(broker: Daemon, times: int, nbytes: int) -> None:
    """A process that does nothing but read and write, and a signal at any moment of it."""
    command = [sys.executable, "-W", "ignore", "-c", CTRL_C, broker.address, str(times), str(nbytes)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=900)
    assert (done.stdout, done.returncode) == ("lost 0\n", 0), done.stderr
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)


NO_MEMORY = """
import gc, sys, warnings
import _testcapi, shmpool
warnings.simplefilter("ignore")
pool, nbytes = shmpool.connect(sys.argv[1]), int(sys.argv[2])
failed = 0
for n in range(int(sys.argv[3]), 2000, int(sys.argv[4])):
    done = False
    _testcapi.set_nomemory(n, n + 1)
    try:
        with pool.lease(nbytes, timeout=5) as lease:
            handle = lease.publish()
        pool.open(handle).release()
        done = True
    except Exception:  # ctypes says ArgumentError
        failed += 1
    finally:
        _testcapi.remove_mem_hooks()
    gc.collect()
for other in (70_000, 400_000, 3_000_000):
    pool.lease(other, timeout=5).release()
pool.close()
print("end", failed > 0)
"""


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        *((kind, 37) for kind in KINDS),
        *(pytest.param(kind, 7, marks=pytest.mark.long) for kind in KINDS),
        *(pytest.param(kind, 1, marks=pytest.mark.exhaustive) for kind in KINDS),
    ],
)  # fmt: skip
def test_memory_that_is_refused_loses_nothing(broker: Daemon, kind: str, step: int) -> None:
    """At each allocation in turn, where the interpreter can be told to."""
    pytest.importorskip("_testcapi")
    first = str(random.randint(0, step))
    command = [sys.executable, "-c", NO_MEMORY, broker.address, str(KINDS[kind]), first, str(step)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=900)
    assert (done.stdout, done.returncode) == ("end True\n", 0), done.stderr
    nobody_sits(broker.address)
    assert_all_is_back(broker.address)
