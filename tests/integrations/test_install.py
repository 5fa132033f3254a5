"""`shmpool.install`: what multiprocessing pickles arrives as it does without, and lies in the pool on its way."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from typing import Any

import calls
import numpy as np
import pytest
from patience import eventually, settle

import shmpool
from shmpool.stats import query

fork = multiprocessing.get_context("fork")


def there_and_back(obj: Any) -> Any:
    return ForkingPickler.loads(ForkingPickler.dumps(obj))


def test_arrays_pass_through_multiprocessing_s_pool_in_and_out(pool: shmpool.Pool) -> None:
    installed = shmpool.install(pool=pool)
    with fork.Pool(2) as workers:
        sent = [np.full(length, 1.0) for length in (10, calls.LARGE, calls.HUGE)]
        doubled = workers.map(calls.double, sent)
    assert installed.passed == 2 and not installed.fallbacks
    for before, after in zip(sent, doubled, strict=True):
        assert (after == 2 * before).all() and after.flags.writeable and after.flags.c_contiguous
        after += 1
    assert query(pool.address).active_buffers >= 1  # the results' memory is the pool's


def test_arrays_pass_through_a_process_pool_executor_in_and_out(pool: shmpool.Pool) -> None:
    shmpool.install(pool=pool)
    before = pool.stats().total_gets
    with ProcessPoolExecutor(2, mp_context=fork) as executor:
        made = list(executor.map(calls.make, [calls.HUGE] * 3))
        totals = list(executor.map(calls.total, made))
    assert totals == [7.0 * calls.HUGE] * 3
    assert pool.stats().total_gets == before + 6


def test_a_spawned_process_passes_what_it_sends_though_it_was_sent_nothing(pool: shmpool.Pool) -> None:
    shmpool.install(pool=pool)
    before = pool.stats().total_gets
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe()
    process = spawn.Process(target=calls.send_made, args=(its, calls.HUGE))
    process.start()
    assert calls.total(mine.recv()) == 7.0 * calls.HUGE
    process.join()
    assert pool.stats().total_gets == before + 1
    mine.close(), its.close()


def test_what_is_made_of_arrays_passes_with_them(pool: shmpool.Pool) -> None:
    installed = shmpool.install(pool=pool)
    array = np.arange(calls.LARGE)
    got = there_and_back({"same": [array, array], "other": array[::2], "text": "x" * 100_000})
    assert got["same"][0] is got["same"][1]  # as pickle has it
    assert (got["same"][0] == array).all() and (got["other"] == array[::2]).all() and len(got["text"]) == 100_000
    assert installed.passed == 2


def test_what_would_not_arrive_the_same_goes_as_before(pool: shmpool.Pool) -> None:
    installed = shmpool.install(pool=pool)
    objects = np.array([{"a": 1}, None] * 50_000, dtype=object)
    repeated = np.broadcast_to(np.arange(1000), (100, 1000))
    for array in (objects, repeated, np.arange(1000)):
        got = there_and_back(array)
        assert (got == array).all() and got.flags.writeable
    assert installed.passed == 0


@pytest.mark.long
def test_frames_and_tables_pass_with_their_buffers(pool: shmpool.Pool) -> None:
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    installed = shmpool.install(pool=pool)
    frame = pd.DataFrame({"n": np.arange(100_000.0), "text": [f"row {at}" for at in range(100_000)]})
    pd.testing.assert_frame_equal(there_and_back(frame), frame)
    passed = installed.passed
    table = pa.table({"n": np.arange(100_000)})
    assert there_and_back(table).equals(table)
    assert installed.passed > passed > 0


def test_a_full_pool_is_no_error(pool: shmpool.Pool, caplog: pytest.LogCaptureFixture) -> None:
    installed = shmpool.install(pool=pool)
    kept = [there_and_back(np.full(calls.HUGE * 4, at)) for at in range(10)]
    assert [int(one[0]) for one in kept] == list(range(10))
    assert 0 < installed.passed < 10 and installed.fallbacks == {"full": 10 - installed.passed}
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_broker_that_is_gone_is_no_error() -> None:
    broker = shmpool.Broker(memory_limit="16MiB")
    with broker.connect() as pool:
        installed = shmpool.install(pool=pool)
        os.kill(broker.pid, 9)
        eventually(lambda: pool._session is None or pool._session.connection is None, "the end of the connection")
        with fork.Pool(1) as workers:
            assert workers.apply(calls.total, (np.ones(calls.HUGE),)) == calls.HUGE
        assert installed.fallbacks == {"broker": 1}
        shmpool.uninstall()
    broker.close()


def test_a_pickle_that_fails_leaves_nothing_in_the_pool(pool: shmpool.Pool) -> None:
    installed = shmpool.install(pool=pool)
    with pytest.raises(TypeError, match="never pickled"):
        ForkingPickler.dumps([np.ones(calls.HUGE), calls.Unpicklable()])
    assert installed.passed == 1
    assert settle(lambda: query(pool.address).active_buffers) == 0


def test_what_is_lost_in_a_pipe_comes_back_by_its_ttl(pool: shmpool.Pool) -> None:
    shmpool.install(pool=pool, ttl=0.1)
    reading, writing = fork.Pipe(duplex=False)
    writing.send(np.ones(calls.HUGE))
    reading.close(), writing.close()
    assert settle(lambda: query(pool.address).active_buffers) == 0


def test_a_pickle_that_is_read_again_or_late_says_so(pool: shmpool.Pool) -> None:
    shmpool.install(pool=pool, ttl=3600)
    text = ForkingPickler.dumps(np.ones(calls.HUGE))
    ForkingPickler.loads(text)
    with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle), match="unpickled once, and within its ttl"):
        ForkingPickler.loads(text)


def test_uninstall_leaves_multiprocessing_as_it_was(pool: shmpool.Pool) -> None:
    array = np.ones(calls.HUGE)
    before = bytes(ForkingPickler.dumps(array))
    shmpool.install(pool=pool)
    on_its_way = ForkingPickler.dumps(array)
    assert len(on_its_way) < 1000
    shmpool.uninstall()
    assert bytes(ForkingPickler.dumps(array)) == before
    assert (ForkingPickler.loads(on_its_way) == array).all()
    shmpool.uninstall()


def test_what_arrives_from_workers_does_not_undo_an_uninstall(pool: shmpool.Pool) -> None:
    """They go on passing their results through the pool, which installed their parent anew."""
    sent = [np.full(calls.HUGE, at) for at in range(3)]
    shmpool.install(pool=pool)
    with fork.Pool(1) as workers:
        workers.map(calls.double, sent, chunksize=1)
        shmpool.uninstall()
        before = pool.stats().total_gets
        for _ in range(2):
            assert [got[0] for got in workers.map(calls.double, sent, chunksize=1)] == [0, 2, 4]
    assert pool.stats().total_gets == before + 6  # the results, and no argument
    assert len(ForkingPickler.dumps(sent[0])) > sent[0].nbytes
    before = pool.stats().total_gets
    with fork.Pool(1) as workers:  # which a child of it may be, by what arrives there
        workers.apply(calls.receive, (on_its_way(pool, sent[0]),))
        assert (workers.apply(calls.make, (calls.HUGE,)) == 7).all()
    assert pool.stats().total_gets == before + 2


def on_its_way(pool: shmpool.Pool, obj: Any) -> bytes:
    """What an installed process sends."""
    shmpool.install(pool=pool)
    try:
        return bytes(ForkingPickler.dumps(obj))
    finally:
        shmpool.uninstall()


def test_a_forgotten_array_is_not_remembered_until_its_ttl(pool: shmpool.Pool) -> None:
    """A steady producer with a long ttl: what was read long ago takes no memory."""
    shmpool.install(1, pool=pool, ttl=3600)
    array = np.ones(16)
    for _ in range(5000):
        there_and_back(array)
    gc.collect()
    assert pool._session is not None
    assert len(pool._session.expiry) < 2500


@pytest.mark.parametrize("wrong", [{"min_nbytes": -1}, {"ttl": 0}, {"ttl": 1e9}])
def test_wrong_arguments_install_nothing(pool: shmpool.Pool, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"min_nbytes|ttl"):
        shmpool.install(pool=pool, **wrong)
    assert len(ForkingPickler.dumps(np.ones(calls.HUGE))) > 1_000_000


def test_install_brings_a_broker_where_there_is_none_and_says_where_the_host_is_small() -> None:
    script = (
        "import multiprocessing, numpy as np, shmpool, warnings\n"
        "installed = shmpool.install()\n"
        "with multiprocessing.get_context('fork').Pool(1) as workers:\n"
        "    print(workers.map(np.sum, [np.ones(100_000)] * 5), installed.passed)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "SHMPOOL_SOCKET"}
    inner = [sys.executable, "-W", "always", "-c", script]
    small = 'mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm && exec "$@"'
    can_mount = (
        os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    )
    command = ["unshare", "--mount", "sh", "-c", small, "sh", *inner] if can_mount else inner
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("100000") == 5 and int(done.stdout.split()[-1]) > 0
    assert not can_mount or ("/dev/shm has 64 MiB" in done.stderr and "--shm-size" in done.stderr)
