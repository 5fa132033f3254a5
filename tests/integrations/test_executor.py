"""`shmpool.Executor`: what concurrent.futures promises, with arguments and results in a pool."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import calls
import numpy as np
import pytest
from patience import eventually, settle

import shmpool
from shmpool.stats import query

fork = multiprocessing.get_context("fork")


@pytest.fixture
def executor(pool: shmpool.Pool) -> Iterator[shmpool.Executor]:
    with shmpool.Executor(2, pool=pool, mp_context=fork) as executor:
        yield executor


def test_arrays_go_in_and_out_and_belong_to_who_has_them(executor: shmpool.Executor) -> None:
    before = executor.pool.stats().total_gets
    doubled = list(executor.map(calls.double, [np.full(calls.LARGE, float(at)) for at in range(4)]))
    assert [one[0] for one in doubled] == [0, 2, 4, 6]
    for one in doubled:
        one += 1
    assert executor.pool.stats().total_gets == before + 8
    assert executor.submit(len, b"x" * 300_000).result() == 300_000  # all that is large, not arrays alone


def test_many_more_than_the_pool_holds_are_done_though_all_results_are_kept(executor: shmpool.Executor) -> None:
    results = [executor.submit(calls.double, np.full(calls.HUGE, float(at))) for at in range(60)]  # 140 MB
    assert [float(future.result()[-1]) for future in results] == [2.0 * at for at in range(60)]
    held = query(executor.pool.address).memory
    assert held["held"] <= held["limit"]


def test_an_object_larger_than_the_pool_goes_through_the_pipe(executor: shmpool.Executor) -> None:
    assert executor.submit(calls.total, np.ones(10_000_000)).result() == 10_000_000
    assert executor.spilled == 1
    assert len(executor.submit(bytes, 80_000_000).result()) == 80_000_000


def test_errors_are_the_future_s_own(executor: shmpool.Executor) -> None:
    array = np.ones(calls.LARGE)
    failing = {
        executor.submit(calls.fail, array): (ZeroDivisionError, "by the task"),
        executor.submit(lambda: None): (Exception, "local object"),
        executor.submit(calls.total, [array, calls.Unpicklable()]): (TypeError, "never pickled"),
        executor.submit(calls.total, [array, calls.FailsToArrive()]): (ZeroDivisionError, "by the task"),
        executor.submit(calls.Unpicklable): (TypeError, "never pickled"),
    }
    for future, (kind, text) in failing.items():
        with pytest.raises(kind, match=text) as raised:
            future.result()
        del raised
    del failing, future
    assert executor.submit(calls.total, array).result() == calls.LARGE
    gc.collect()
    assert settle(lambda: query(executor.pool.address).active_buffers) == 0


def test_a_cancelled_call_leases_nothing(executor: shmpool.Executor) -> None:
    started = [executor.submit(calls.total, np.ones(calls.HUGE)) for _ in range(20)]
    cancelled = [future for future in started if future.cancel()]
    for future in started:
        if future in cancelled:
            with pytest.raises(CancelledError):
                future.result()
        else:
            assert future.result() == calls.HUGE


def test_map_reads_no_further_than_asked(executor: shmpool.Executor) -> None:
    read = 0

    def arrays() -> Iterator[Any]:
        nonlocal read
        for at in range(30):
            read += 1
            yield np.full(calls.LARGE, float(at))

    totals = executor.map(calls.total, arrays(), buffersize=3)
    assert read == 3
    assert next(totals) == 0
    assert read == 4
    assert list(totals) == [calls.LARGE * float(at) for at in range(1, 30)]
    assert list(executor.map(pow, range(10), range(10), chunksize=3)) == [at**at for at in range(10)]


def test_a_killed_worker_breaks_it_without_retries(pool: shmpool.Pool) -> None:
    with shmpool.Executor(2, pool=pool, mp_context=fork) as executor:
        array = np.ones(calls.LARGE)
        futures = [executor.submit(calls.kill, array), *(executor.submit(calls.total, array) for _ in range(5))]
        with pytest.raises(BrokenProcessPool, match="exit code -9"):
            futures[0].result()
        with pytest.raises(BrokenProcessPool):
            eventually(lambda: executor.submit(abs, 1) and None, "the end", 5)
        for future in futures[1:]:
            try:
                assert future.result() == calls.LARGE
            except BrokenProcessPool:
                pass


def test_a_killed_worker_s_call_finds_its_input_again(pool: shmpool.Pool, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with shmpool.Executor(2, pool=pool, mp_context=spawn, retries=1) as executor:
        array = np.arange(calls.HUGE, dtype=float)
        future = executor.submit(calls.kill_once, array, str(tmp_path / "mark"))
        others = [executor.submit(calls.total, array) for _ in range(6)]
        eventually(future.running)
        want = calls.total(array)
        array[:] = 0  # the call was pickled: its input stays as it was
        assert future.result() == want
        assert len({other.result() for other in others}) <= 2
        doomed = executor.submit(calls.kill, np.ones(calls.HUGE))
        with pytest.raises(BrokenProcessPool, match="tried 2 times"):
            doomed.result()
        assert executor.submit(abs, -1).result() == 1


def test_a_broker_that_dies_in_the_middle_is_no_error() -> None:
    with shmpool.Executor(2, "32MiB", mp_context=fork) as executor:
        array = np.ones(calls.HUGE)
        assert list(executor.map(calls.total, [array] * 4)) == [calls.HUGE] * 4
        broker = executor.pool._session.broker_pid()  # type: ignore[union-attr]
        os.kill(broker, signal.SIGKILL)
        eventually(lambda: executor.pool._session.connection is None)  # type: ignore[union-attr]
        assert [calls.total(one) for one in executor.map(calls.double, [array] * 4)] == [2 * calls.HUGE] * 4


def test_an_initializer_and_its_failure(pool: shmpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    with shmpool.Executor(
        1, pool=pool, mp_context=fork, initializer=os.environ.__setitem__, initargs=("SHMPOOL_TEST", "here")
    ) as executor:
        assert executor.submit(os.getenv, "SHMPOOL_TEST").result() == "here"
    broken = shmpool.Executor(1, pool=pool, mp_context=fork, initializer=calls.fail)
    with broken, pytest.raises(BrokenProcessPool, match="initializer"):
        broken.submit(abs, 1).result()


class Late(type(fork)):  # type: ignore[misc]
    """Has seen the end of a process when it says that it is started."""

    class Process(fork.Process):  # type: ignore[misc, name-defined]
        def start(self) -> None:
            super().start()
            self.join()


def test_an_initializer_that_failed_before_the_first_call_is_sent_is_told_all_the_same(pool: shmpool.Pool) -> None:
    with shmpool.Executor(1, pool=pool, mp_context=Late(), initializer=calls.fail) as executor:
        future = executor.submit(abs, 1)
        with pytest.raises(BrokenProcessPool, match="initializer"):
            future.result()


@pytest.mark.long
def test_workers_end_after_their_share(pool: shmpool.Pool) -> None:
    with shmpool.Executor(1, pool=pool, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(6)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]


def test_one_that_nobody_keeps_ends_when_its_calls_are_done(pool: shmpool.Pool) -> None:
    executor = shmpool.Executor(1, pool=pool, mp_context=fork)
    future = executor.submit(calls.total, np.ones(calls.LARGE))
    thread = executor._crew.thread
    del executor
    assert future.result() == calls.LARGE
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


def test_shutdown_cancels_what_has_not_begun(pool: shmpool.Pool) -> None:
    executor = shmpool.Executor(1, pool=pool, mp_context=fork)
    futures = [executor.submit(calls.total, np.ones(calls.LARGE)) for _ in range(50)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert any(future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


def test_a_forked_child_is_told_that_it_is_its_parent_s(executor: shmpool.Executor) -> None:
    assert executor.submit(abs, -1).result() == 1
    pid = os.fork()
    if not pid:
        try:
            executor.submit(abs, -1)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_it_is_not_copied_or_sent(executor: shmpool.Executor) -> None:
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="Executor cannot be copied or pickled, since one process owns its workers"):
            way(executor)
    assert executor.submit(abs, -1).result() == 1


def test_many_threads_submit(executor: shmpool.Executor) -> None:
    sums: list[float] = []

    def submit() -> None:
        for _ in range(5):
            sums.append(executor.submit(calls.total, np.ones(calls.LARGE)).result())

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [calls.LARGE] * 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_workers": 0},
        {"retries": 13},
        {"max_tasks_per_child": 0},
        {"retries": 1, "mp_context": fork},
        {"max_tasks_per_child": 1, "mp_context": fork},
    ],
)
def test_wrong_arguments_start_nothing(pool: shmpool.Pool, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        shmpool.Executor(**{"max_workers": 1, "pool": pool, **wrong})
