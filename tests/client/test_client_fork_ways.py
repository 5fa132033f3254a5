"""Ways to start a process while something is open for reading: forks keep it right, and what executes
another program keeps nothing."""

from __future__ import annotations

import contextvars
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from client_helpers import Connect, Start, eventually, in_fork

import shmpool
from shmpool import Handle

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # 3.12: forks beside threads

SLEEPS = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


def popen(stdin: int) -> int:
    return subprocess.Popen(SLEEPS, stdin=stdin).pid


def popen_with_hook(stdin: int) -> int:
    return subprocess.Popen(SLEEPS, stdin=stdin, preexec_fn=lambda: None).pid


def popen_that_inherits(stdin: int) -> int:
    return subprocess.Popen(SLEEPS, stdin=stdin, close_fds=False).pid


def posix_spawn(stdin: int) -> int:
    return os.posix_spawn(sys.executable, SLEEPS, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, stdin, 0)])


def fork_and_exec(stdin: int) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(stdin, 0)
        os.execv(sys.executable, SLEEPS)
    return pid


@pytest.mark.parametrize("begin", [popen, popen_with_hook, popen_that_inherits, posix_spawn, fork_and_exec])
def test_program_that_is_executed_keeps_nothing_that_was_open(start: Start, begin: Callable[[int], int]) -> None:
    broker = start()
    reading, writing = os.pipe()
    with broker.connect() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Popen: it is waited for by its pid
        buffer = pool.open(publish(pool, b"x" * 5000))
        pid = begin(reading)
        os.close(reading)
        try:
            buffer.release()
            eventually(lambda: pool.stats().active_buffers == 0)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        finally:
            os.close(writing)
            os.waitpid(pid, 0)
        gc.collect()


def test_threads_that_fork_at_once_share_what_was_open(connect: Connect) -> None:
    pool = connect()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                data = bytes([number]) * 5000
                buffer = pool.open(publish(pool, data))
                assert in_fork(buffer.view.tobytes) == data
                assert buffer.view == data
                buffer.release()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    eventually(lambda: pool.stats().active_buffers == 0)


def test_what_was_frozen_before_the_fork_stays_right(connect: Connect) -> None:
    pool = connect()
    buffer = pool.open(publish(pool, b"x" * 5000))
    array = np.frombuffer(buffer.view, np.uint8)
    gc.freeze()
    try:
        assert in_fork(array.tobytes) == b"x" * 5000
    finally:
        gc.unfreeze()
    del array
    buffer.release()
    eventually(lambda: pool.stats().active_buffers == 0)


class DataSet:
    """Holds a view, as what a DataLoader's workers inherit does."""

    array: np.ndarray | None = None  # type: ignore[type-arg]


def item(at: int) -> int:
    assert DataSet.array is not None
    return int(DataSet.array[at])


def test_workers_that_inherit_a_data_set_read_it_after_its_buffer_was_released(start: Start) -> None:
    broker = start(memory_limit="4MiB")
    with broker.connect() as pool:
        buffer = pool.open(publish(pool, bytes(range(250)) * 20))
        DataSet.array = np.frombuffer(buffer.view, np.uint8)
        with multiprocessing.get_context("fork").Pool(2) as workers:
            DataSet.array = None
            buffer.release()
            for _ in range(50):  # more than there is room for, if it were all new
                pool.discard(publish(pool, b"\x63" * 200_000))
            assert workers.map(item, range(5000)) == list(range(250)) * 20
            assert pool.stats().active_buffers == 1
        eventually(lambda: pool.stats().active_buffers == 0)


def forks_itself() -> None:
    """In a worker of multiprocessing: its own child reads what both inherited."""
    assert DataSet.array is not None
    assert in_fork(DataSet.array.tobytes) == b"x" * 5000


def test_worker_of_multiprocessing_that_forks_reads_what_was_open(connect: Connect) -> None:
    pool = connect()
    buffer = pool.open(publish(pool, b"x" * 5000))
    DataSet.array = np.frombuffer(buffer.view, np.uint8)
    worker = multiprocessing.get_context("fork").Process(target=forks_itself)
    worker.start()
    DataSet.array = None
    buffer.release()
    worker.join()
    assert worker.exitcode == 0
    eventually(lambda: pool.stats().active_buffers == 0)


ENDS = """
import os, sys, numpy as np, shmpool
pool = shmpool.connect(sys.argv[1])
with pool.lease(5000) as lease:
    lease.view[:] = b"\\x07" * 5000
    handle = lease.publish()
array = np.frombuffer(pool.open(handle).view, np.uint8)
if os.fork() == 0:
    sys.stdin.read()
    os.write(1, str(sorted(set(array.tolist()))).encode())
    os._exit(0)
"""


def test_parent_that_simply_ends_leaves_its_child_what_was_open(connect: Connect) -> None:
    other = connect()
    process = subprocess.Popen(
        [sys.executable, "-c", ENDS, other.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.wait(60) == 0
    eventually(lambda: other.stats().active_buffers == 1)
    for _ in range(50):
        other.discard(publish(other, b"\x63" * 5000))
    process.stdin.close()
    assert process.stdout.read() == b"[7]"
    process.stdout.close()
    eventually(lambda: other.stats().active_buffers == 0)


def test_buffer_in_a_context_of_another_thread_outlives_a_fork(connect: Connect) -> None:
    """A child drops the contexts of threads that it has not, before any hook."""
    pool = connect()
    variable: contextvars.ContextVar[shmpool.Buffer] = contextvars.ContextVar("buffer")
    is_open, go = threading.Event(), threading.Event()
    views = []

    def work() -> None:
        buffer = pool.open(publish(pool, b"x" * 5000))
        views.append(buffer.view)
        variable.set(buffer)
        del buffer
        is_open.set()
        go.wait()
        variable.get().release()

    thread = threading.Thread(target=lambda: contextvars.Context().run(work))
    thread.start()
    assert is_open.wait(60)
    for _ in range(3):
        in_fork(lambda: None)
    for _ in range(20):
        pool.discard(publish(pool, b"\x63" * 5000))
    assert bytes(views[0]) == b"x" * 5000
    go.set()
    views.clear()
    thread.join()
    eventually(lambda: pool.stats().active_buffers == 0)
