"""One array whose like was seen before: what keeps its memory is its base, and the memory comes back with its end."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from object_helpers import comes_back
from patience import eventually, rounds

import shmpool
from shmpool.protocol.header import WANTED

KIB = 1024
NBYTES = 200 * KIB

fork = multiprocessing.get_context("fork")


def got(pool: shmpool.Pool, value: int = 1) -> Any:
    """An array of a kind that this process knows."""
    for _ in range(3):
        pool.get(pool.put(np.full(NBYTES, value, np.uint8)))
    return pool.get(pool.put(np.full(NBYTES, value, np.uint8)))


def test_nobody_can_write_to_it_by_its_base_either(pool: shmpool.Pool) -> None:
    array = got(pool)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    view = memoryview(array.base)
    assert (view.readonly, view.nbytes >= NBYTES) == (True, True)
    with pytest.raises(TypeError), open(os.devnull, "rb") as file:
        file.readinto(array.base)
    other = np.frombuffer(array.base, np.uint8)[-NBYTES:]
    del array, view
    for _ in range(3):  # what is made of the base keeps the memory, too
        pool.discard(pool.put(np.full(NBYTES, 9, np.uint8)))
    assert other.max() == 1


def test_it_counts_among_what_views_hold_until_its_end(pool: shmpool.Pool) -> None:
    arrays = [got(pool, value) for value in range(3)]
    eventually(lambda: pool.stats().held_by_views == 3, "the gauge")
    assert pool.stats().active_buffers == 3
    part = arrays[1][5:7]
    arrays.clear()
    eventually(lambda: pool.stats().held_by_views == pool.stats().active_buffers == 1, "the gauge")
    assert part.tolist() == [1, 1]
    del part
    eventually(lambda: pool.stats().held_by_views == pool.stats().active_buffers == 0, "the gauge")


def test_who_waits_for_memory_has_it_with_the_array_s_end() -> None:
    with shmpool.Broker(memory_limit="16MiB") as broker, broker.connect() as pool, broker.connect() as other:
        kept = [got(pool)]
        with suppress(shmpool.LeaseTimeout):
            while True:
                kept.append(pool.get(other.put(np.full(NBYTES, 1, np.uint8), timeout=0)))
        waiting = threading.Thread(target=lambda: other.discard(other.put(np.full(NBYTES, 1, np.uint8), timeout=30)))
        waiting.start()
        session: Any = other._session
        eventually(lambda: session.header[WANTED : WANTED + len(session.tiers)].tolist().count(0) < len(session.tiers))
        kept.pop(5)
        waiting.join(20)
        assert not waiting.is_alive()
        assert {int(array.max()) for array in kept} == {1}
        kept.clear()


def test_it_outlives_its_publisher_and_the_pool(module_broker: shmpool.Broker) -> None:
    with module_broker.connect() as reader:
        with module_broker.connect() as pool:
            for _ in range(2):
                reader.get(pool.put(np.full(NBYTES, 1, np.uint8)))
            arrays = [reader.get(pool.put(np.full(NBYTES, value, np.uint8))) for value in range(4)]
        del arrays[0]  # its publisher's custody has passed to the broker
        eventually(lambda: reader.stats().active_buffers == 3, "what was released")
    assert [array.max() for array in arrays] == [1, 2, 3]
    arrays.clear()
    assert comes_back(module_broker.address)


def test_a_child_reads_on_what_its_parent_lets_go_of(pool: shmpool.Pool) -> None:
    arrays = [got(pool, 3), got(pool, 4)]
    ours, theirs = fork.Pipe()

    def look() -> None:
        one = arrays.pop()
        pipes = theirs
        pipes.send("forked")
        pipes.recv()
        pipes.send((int(one.min()), int(one.max())))
        del one
        arrays.clear()
        pipes.recv()

    child = fork.Process(target=look)
    child.start()
    assert ours.recv() == "forked"
    arrays.clear()
    for _ in range(6):
        pool.discard(pool.put(np.full(NBYTES, 8, np.uint8)))
    ours.send(None)
    assert ours.recv() == (4, 4)
    ours.send(None)
    child.join()
    assert child.exitcode == 0
    mine = got(pool, 5)  # as quick as before
    del mine
    assert comes_back(pool.address)


def test_threads_get_and_let_go_in_each_other_s_place(pool: shmpool.Pool) -> None:
    places: list[Any] = [None] * 4
    got(pool)

    def work(seed: int) -> None:
        for turn in range(150):
            value = (seed * 31 + turn) % 250
            places[(seed + turn) % 4] = array = pool.get(pool.put(np.full(NBYTES // 2, value, np.uint8)), copy=False)
            assert array[0] == array[-1] == value

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(set(place[:: NBYTES // 16].tolist())) == 1 for place in places)
    places.clear()
    assert comes_back(pool.address)


AT_THE_END = """
import sys
import numpy as np
import shmpool
broker = shmpool.Broker(memory_limit="64MiB")
pool = broker.connect()
for _ in range(3):
    got = pool.get(pool.put(np.ones(30_000)), copy=False)
    setattr(sys, f"kept{_}", [got[5:]])
sys.modules["kept"] = pool.get(pool.put(np.ones(30_000)), copy=False)
"""


def test_an_array_may_live_until_the_interpreter_ends() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shmpool.__compiled__, reason="the plain client takes the ticket long before")
def test_an_array_that_there_was_no_memory_for_is_had_by_who_asks_again(pool: shmpool.Pool) -> None:
    testcapi = pytest.importorskip("_testcapi")
    got(pool)
    get, failed = pool.get, list[bool]()
    for _ in rounds(1, lambda: bool(failed)):  # it may have been the helper that was refused
        handle = pool.put(np.full(NBYTES, 7, np.uint8))
        try:
            testcapi.set_nomemory(1, 2)
            get(handle)
        except MemoryError:
            failed.append(True)
        finally:
            testcapi.remove_mem_hooks()
    assert pool.get(handle).max() == 7
    eventually(lambda: pool.stats().held_by_views == pool.stats().active_buffers == 0, "the gauge")
