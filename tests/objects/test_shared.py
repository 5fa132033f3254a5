"""Shared publications through real processes: opened again and again, held by whoever has a view, found
by name, made once, and kept as long as was said. The broker's death: tests/client/test_client_holds.py."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corners import sizes
from object_helpers import comes_back

import shmpool

KIB, MIB = 1024, 1024 * 1024
SIZES = [10, 200 * KIB, 600 * KIB, 3 * MIB]

#: Longer than a helper's pauses in a pool whose magazines rest soon.
LONGEST_LOOK = 0.3

fork = multiprocessing.get_context("fork")


def await_(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@contextmanager
def child(work: Callable[..., Any], *args: Any) -> Iterator[Any]:
    """A forked process that works; its end of a pipe is the last argument."""
    ours, theirs = fork.Pipe()
    process = fork.Process(target=work, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(20)
        if process.is_alive():
            process.kill()
            process.join()


def read(address: str, shared: shmpool.Shared, pipe: Any) -> None:
    """Open it, say what is in it, and hold it until told."""
    with shmpool.connect(address):
        got = shared.get(copy=False)
        pipe.send(int(got.sum()))
        pipe.recv()
        del got
        pipe.send("gone")
        pipe.recv()


@pytest.mark.parametrize("nbytes", SIZES)
def test_it_is_opened_again_and_again_and_lives_as_long_as_its_maker_or_a_view(pool: shmpool.Pool, nbytes: int) -> None:
    shared = pool.share(np.full(nbytes, 3, np.uint8))
    assert shared.nbytes >= nbytes
    for _ in range(20):
        assert int(shared.get().sum()) == 3 * nbytes
    kept = shared.get(copy=False)
    buffers = [shared.open() for _ in range(3)]
    assert len({bytes(buffer) for buffer in buffers}) == 1
    with pytest.raises(TypeError):
        buffers[0].view[0] = 1
    private = shared.get(writable=True)
    private[:] = 5
    assert int(kept[:].sum()) == 3 * nbytes
    shared.release()
    shared.release()
    for buffer in buffers:
        buffer.release()
    del private, buffers, buffer
    assert pool.stats().shared["publications"] == 1
    assert int(shared.get().sum()) == 3 * nbytes  # somebody holds it still
    del kept
    assert comes_back(pool.address)
    with pytest.raises(shmpool.StaleHandle):
        shared.get()


def sleeps(pool: shmpool.Pool) -> bool:
    """Whether a pool's helper did not wake for longer than any of its pauses."""
    session = pool._session
    assert session is not None
    assert session.helper.thread is not None

    def switches() -> str:
        with open(f"/proc/self/task/{session.helper.thread.native_id}/status") as lines:  # type: ignore[union-attr]
            return next(line for line in lines if line.startswith("voluntary_ctxt_switches"))

    before = switches()
    time.sleep(2 * LONGEST_LOOK)
    return switches() == before


def test_a_hold_ends_with_its_last_view_although_the_helper_slept_before() -> None:
    limits: dict[str, Any] = {"memory_limit": "64MiB", "magazine_idle": "50ms"}
    with shmpool.Broker(**limits) as broker, broker.connect() as reader, broker.connect() as maker:
        made = maker.share(np.arange(100_000), "found", keep=True)
        found = reader.find("found")
        assert await_(lambda: sleeps(maker) and sleeps(reader))
        views = [made.get(copy=False), found.get(copy=False)]
        made.release()
        reader.drop("found")
        assert all(view[-1] == 99_999 for view in views)
        views.clear()
        assert comes_back(broker.address, 10)


def test_a_process_asks_the_broker_once_and_holds_it_when_its_maker_is_gone(module_broker: shmpool.Broker) -> None:
    maker = module_broker.connect()
    shared = maker.share(np.arange(100_000))
    ways = pickle.loads(pickle.dumps(shared)), shared
    with child(read, module_broker.address, ways[0]) as one, child(read, module_broker.address, ways[1]) as two:
        assert one.recv() == two.recv() == 4_999_950_000
        maker.close()
        del shared, ways
        with module_broker.connect() as pool:
            assert pool.stats().shared["holds"] == 2
            one.send(None)
            assert one.recv() == "gone"
            assert await_(lambda: pool.stats().shared["holds"] == 1)
            assert pool.stats().shared["publications"] == 1
        two.send(None)
        assert two.recv() == "gone"
        assert comes_back(module_broker.address)
        one.send(None)
        two.send(None)


def test_a_dead_reader_s_hold_ends_with_it_and_a_child_s_of_its_own_reads_on(module_broker: shmpool.Broker) -> None:
    with module_broker.connect() as pool:
        shared = pool.share(np.full(300_000, 2, np.uint8))

        def hold(pipe: Any) -> None:
            kept = shared.get(copy=False)
            if os.fork() == 0:  # reads on what its parent had
                pipe.recv()
                pipe.send(int(kept.sum()))
                pipe.recv()
                os._exit(0)
            pipe.send(os.getpid())
            signal.pause()

        with child(hold) as pipe:
            pid = pipe.recv()
            os.kill(pid, signal.SIGKILL)
            shared.release()
            for _ in range(5):  # nothing is used again that the grandchild reads
                pool.discard(pool.put(np.zeros(300_000, np.uint8)))
            assert pool.stats().shared["publications"] == 1
            pipe.send(None)
            assert pipe.recv() == 600_000
            pipe.send(None)
        assert comes_back(module_broker.address)


def test_a_forked_child_has_what_its_parent_has_open_and_holds_by_itself_what_it_opens(pool: shmpool.Pool) -> None:
    shared = pool.share(np.full(300_000, 7, np.uint8))
    kept = [shared.get(copy=False)]

    def go_on(pipe: Any) -> None:
        pipe.recv()  # the parent has let go by now
        first = int(kept[0].sum())
        pipe.send((first, int(shared.get(copy=False).sum())))

    with child(go_on) as pipe:
        kept.clear()
        pipe.send(None)
        assert pipe.recv() == (2_100_000, 2_100_000)
        shared.release()
    assert comes_back(pool.address)


@pytest.mark.parametrize("nbytes", [300_000, 3 * MIB])
def test_a_child_s_arrays_that_refer_to_no_view_are_right_too(pool: shmpool.Pool, nbytes: int) -> None:
    """numpy.ndarray(shape, dtype, view) refers to the map, and exports no buffer of it."""
    mine = pool.lease(nbytes)
    arrays = [mine.ndarray()]
    arrays[0][:] = 1
    opened = pool.open(pool.put(np.full(nbytes, 2, np.uint8)))
    arrays += [opened.ndarray()[-nbytes:], pool.get(pool.put(np.full(nbytes, 3, np.uint8)))]
    opened.release()

    def look(pipe: Any) -> None:
        pipe.send("forked")
        pipe.recv()  # the parent has used the memory again
        pipe.send([int(array.min()) for array in arrays] + [int(arrays[2].max())])

    with child(look) as pipe:
        assert pipe.recv() == "forked"
        arrays[0][:] = 9
        arrays.clear()
        for _ in range(4):
            pool.discard(pool.put(np.full(nbytes, 8, np.uint8)))
        pipe.send(None)
        assert pipe.recv() == [1, 2, 3, 3]
    mine.release()
    assert comes_back(pool.address)


# --- names -------------------------------------------------------------------------------------------------


def test_a_name_is_found_once_it_is_there_and_dropped_by_whoever_made_it(pool: shmpool.Pool) -> None:
    name = "täble/" + "x" * 88
    assert len(name.encode()) == 95
    with pytest.raises(shmpool.NotFound):
        pool.find(name)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(pool.find(name, timeout=20).get()))
    waiting.start()
    shared = pool.share({"a": np.arange(50_000)}, name)
    waiting.join()
    assert found[0]["a"][-1] == 49_999
    assert pool.names() == [name]
    with pytest.raises(shmpool.NameTaken):
        pool.share(1, name)
    with pool.lease(100) as lease, pytest.raises(shmpool.NameTaken):
        lease.publish_shared(name)
    assert pool.find(name).name == name
    pool.drop(name)
    assert pool.names() == []
    with pytest.raises(shmpool.NotFound):
        pool.drop(name)
    assert shared.get()["a"][5] == 5
    again = pool.share(2, name)
    assert pool.find(name).get() == 2
    found.clear()
    del again, shared
    assert comes_back(pool.address)


@pytest.mark.parametrize("name", ["", "x" * 97, "\ud800", "ä" * 49, 5, b"x", None])
def test_a_name_that_is_none_is_refused_and_nothing_is_shared(pool: shmpool.Pool, name: Any) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        pool.share(1, keep=True)  # nobody could drop it
    makes = [] if name is None else [lambda: pool.share(1, name), lambda: pool.queue(name)]
    for verb in (*makes, lambda: pool.find(name), lambda: pool.drop(name), lambda: pool.get_or_share(name, int)):
        with pytest.raises((TypeError, ValueError), match=r"^a name is"):
            verb()
    assert pool.stats().active_buffers == 0


def test_what_cannot_be_pickled_claims_no_name(pool: shmpool.Pool) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        pool.share(lambda: 1, "x")
    assert pool.share(1, "x").get() == 1
    assert comes_back(pool.address)


def test_keep_outlives_its_maker_until_it_is_dropped(module_broker: shmpool.Broker) -> None:
    with module_broker.connect() as maker:
        maker.share(np.zeros(70_000), "kept", keep=True)
        maker.share(np.zeros(70_000), "not kept")
    with module_broker.connect() as pool:
        assert await_(lambda: pool.names() == ["kept"])
        assert pool.find("kept").get().nbytes == 560_000
        pool.drop("kept")
        assert comes_back(module_broker.address)
        pool.share(1, "short", keep=True, ttl=0.05)
        assert await_(lambda: pool.names() == [])
    assert comes_back(module_broker.address)


def test_caches_make_room_least_recently_held_first_and_never_under_a_view() -> None:
    with shmpool.Broker(memory_limit="24MiB", max_clients=4) as broker, broker.connect() as pool:
        for number in range(4):
            pool.share(np.full(4 * MIB, number, np.uint8), f"c{number}", keep="cache").release()
        kept = pool.find("c0").get(copy=False)
        assert pool.find("c1").get()[0] == 1  # held more recently than c2 and c3
        assert await_(lambda: pool.stats().shared["holds"] == 1)
        first = pool.put(np.zeros(9 * MIB, np.uint8))
        assert pool.names() == ["c0", "c1", "c3"]
        second = pool.put(np.zeros(4 * MIB, np.uint8))
        assert pool.names() == ["c0", "c1"]
        assert pool.stats().shared["evictions"] == 2
        pool.discard(first)
        pool.discard(second)
        with pytest.raises(shmpool.LeaseTimeout):
            pool.lease(22 * MIB, timeout=0)
        assert (kept == 0).all()
        del kept
        pool.drop("c0")
        if "c1" in pool.names():
            pool.drop("c1")
        assert comes_back(broker.address)


# --- single flight -----------------------------------------------------------------------------------------


def make_once(address: str, pipe: Any) -> None:
    with shmpool.connect(address) as pool:
        pipe.send("ready")
        pipe.recv()
        made = []

        def make() -> Any:
            made.append(1)
            time.sleep(0.05)
            return np.full(100_000, os.getpid())

        shared = pool.get_or_share("once", make)
        pipe.send((len(made), int(shared.get()[0])))
        pipe.recv()


def test_of_many_processes_one_makes_it(module_broker: shmpool.Broker) -> None:
    pipes, processes = zip(*[_started(make_once, module_broker.address) for _ in range(8)], strict=True)
    assert {pipe.recv() for pipe in pipes} == {"ready"}
    for pipe in pipes:
        pipe.send("go")
    answers = [pipe.recv() for pipe in pipes]
    assert sum(made for made, _ in answers) == 1
    assert len({pid for _, pid in answers}) == 1
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
        pipe.close()
    assert comes_back(module_broker.address)


def _started(work: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    ours, theirs = fork.Pipe()
    process = fork.Process(target=work, args=(*args, theirs))
    process.start()
    theirs.close()
    return ours, process


def test_a_maker_that_raises_or_dies_hands_the_turn_to_the_next(module_broker: shmpool.Broker) -> None:
    def die(pipe: Any) -> None:
        with module_broker.connect() as pool:

            def make() -> Any:
                pipe.send("making")
                signal.pause()

            pool.get_or_share("x", make)

    with module_broker.connect() as pool:
        with pytest.raises(ZeroDivisionError):
            pool.get_or_share("x", lambda: 1 // 0)
        pipe, process = _started(die)
        assert pipe.recv() == "making"
        got: list[Any] = []
        waiting = [
            threading.Thread(target=lambda: got.append(pool.get_or_share("x", lambda: np.arange(9)).get().sum()))
            for _ in range(3)
        ]
        for thread in waiting:
            thread.start()
        with pytest.raises((shmpool.NotFound, shmpool.LeaseTimeout)):  # the last where a busy host keeps the word back
            pool.get_or_share("x", list, timeout=0.05)
        os.kill(process.pid, signal.SIGKILL)
        for thread in waiting:
            thread.join()
        assert got == [36] * 3
        process.join()
        pipe.close()
        gc.collect()
    assert comes_back(module_broker.address)


def make_and_die(address: str, steps: int, pipe: Any) -> None:
    """Make what has a name, and be killed after so many calls and returns of shmpool's functions."""
    left = steps

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "return") and "/shmpool/" in frame.f_code.co_filename:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    pool = shmpool.connect(address)
    sys.setprofile(count)
    shared = pool.get_or_share("it", lambda: np.ones(100_000), keep="cache")
    shared.get()
    sys.setprofile(None)
    pipe.send(None)


@pytest.mark.parametrize("stride", sizes(37, 7, 1))
def test_whenever_a_maker_is_killed_the_next_gets_or_makes_it(
    module_broker: shmpool.Broker, pool: shmpool.Pool, stride: int
) -> None:
    made = []
    for steps in range(1, 100_000, stride):
        with child(make_and_die, module_broker.address, steps) as pipe:
            is_done = False
            with suppress(EOFError, ConnectionResetError):
                pipe.recv()
                is_done = True
        with pool.get_or_share("it", lambda: made.append(1) or np.ones(100_000), timeout=60, keep="cache") as shared:
            assert shared.get().sum() == 100_000
        pool.drop("it")
        if is_done:
            break
    assert 0 < len(made) < steps // stride + 1, "each found it, or each made it"


def test_a_view_that_lives_for_hours_has_nobody_wake_for_it(
    pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty processes that read one table woke four hundred times a second."""
    from shmpool.seat import holds as module

    later = [0.0]
    with pool.share(np.ones(100_000), "table"), shmpool.connect(pool.address) as other:
        table = other.find("table").get(copy=False)
        assert other._session is not None
        holds = other._session.holds
        assert holds.pause == module.PAUSE
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + later[0]))
        later[0] = 3600.0
        assert holds.pause == module.LONGEST_PAUSE
        del table
        holds.look()
        assert holds.pause == module.PAUSE
        later[0] += 1.0
        holds.look()
        assert holds.pause is None
        assert await_(lambda: pool.names() == ["table"])
    assert await_(lambda: pool.names() == [])
