"""The surface that users meet: names, reprs, what wrong arguments are told, pools as arguments."""

from __future__ import annotations

import array
import copy
import io
import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from client_helpers import MIB, eventually, run_script

import shmpool


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    shown = {name for name in dir(shmpool) if not name.startswith("__")}
    assert shown == {*shmpool.__all__, "aio", "joblib", "torch"}


@pytest.mark.parametrize("nbytes", [100, 300_000, 2 * MIB])
def test_reprs_have_public_names(pool: shmpool.Pool, nbytes: int) -> None:
    with pool.lease(nbytes) as lease:
        assert repr(lease).startswith(f"<Lease of {nbytes} bytes, {lease.strategy.value}, row ")
        handle = lease.publish()
    assert repr(lease) == f"<Lease of {nbytes} bytes, over>"
    with pool.open(handle) as buffer:
        assert repr(buffer).startswith(f"<Buffer of {nbytes} bytes, row ")
    assert repr(buffer) == f"<Buffer of {nbytes} bytes, over>"


def test_a_pool_has_a_name_and_tells_whether_it_is_closed(start: Any) -> None:
    broker = start()
    with broker.connect() as pool, broker.connect() as other:
        assert (pool.closed, pool.name) == (False, pool.stats().pool_id)
        assert pool.name == other.name
        assert len(pool.name) == 16
    assert pool.closed
    assert pool.name == other.name


@pytest.mark.parametrize(
    "thing",
    [
        None,
        5,
        "x" * 24,
        [1] * 24,
        array.array("B", bytes(23)),
        np.zeros(3, np.int64),
        memoryview(bytes(192)).cast("Q"),
        memoryview(bytes(48))[::2],
    ],
)
def test_what_is_no_handle_is_told_what_is_expected(pool: shmpool.Pool, thing: Any) -> None:
    for use in (pool.open, pool.discard):
        with pytest.raises((TypeError, shmpool.InvalidHandle)) as refused:
            use(thing)
        assert "a Handle or its bytes" in str(refused.value) or "24 bytes" in str(refused.value)
        assert refused.value.__cause__ is None


def leased(pool: shmpool.Pool, verb: str, *arguments: Any) -> None:
    with pool.lease(9) as lease:
        getattr(lease, verb)(*arguments)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda pool: shmpool.Handle.from_bytes(1 << 40), "24 bytes of a handle are expected, not int"),
        (lambda pool: shmpool.select_strategy(10, None), "a Sizing is expected, as pool.sizing, not NoneType"),
        (lambda pool: shmpool.optimal_chunk_size(10, "small"), "a Sizing is expected, as pool.sizing, not str"),
        (lambda pool: pool.put(1, pickler=3), "a pickler is a class like pickle.Pickler, not 3"),
        (lambda pool: pool.put(1, pickler=int), "a pickler is a class like pickle.Pickler, not <class 'int'>"),
        (lambda pool: pool.empty(1 << 64, "u1"), "the largest object is"),
        (lambda pool: pool.empty(1.5, "u1"), "a shape is a length or a sequence of lengths, not 1.5"),
        (lambda pool: shmpool.Handle.from_bytes([1]), "24 bytes of a handle are expected, not list"),
        (lambda pool: shmpool.categorize("5"), "nbytes must be an int, a number of bytes, not str"),
        (lambda pool: shmpool.Sizing(large_object_threshold=1 << 9999), "large_object_threshold"),
        (lambda pool: leased(pool, "readinto_from", 1 << 31), "a file descriptor is 0 to 2147483647"),
        (lambda pool: leased(pool, "readinto_from", 0, 1 << 63), "offset is a number of bytes from the file's start"),
        (lambda pool: leased(pool, "write_parts", 5), "parts are pairs of an offset in bytes and data, not 5"),
        (lambda pool: pool.get_or_share("one", 5), "make is a function that returns the object to share, not 5"),
        (lambda pool: pool.get(bytes(24), allow=5), "allow is a set of names"),
        (lambda pool: pool.queue(overflow=[]), "overflow is 'block', 'drop_oldest' or 'drop_newest', not []"),
        (lambda pool: pool.queue(on_dead_consumer=[]), "on_dead_consumer is 'drop' or 'requeue', not []"),
        (
            lambda pool: shmpool.connect(b"x.sock"),
            "a str or a pathlib.Path, not b'x.sock'",
        ),
        (lambda pool: shmpool.copy(None, io.BytesIO(), pool), "what is read from is a binary file object"),
        (lambda pool: shmpool.copy(io.BytesIO(), None, pool), "what is written to is a binary file object"),
        (lambda pool: shmpool.copy(io.BytesIO(), io.BytesIO(), None), "pool is a shmpool.Pool, not None"),
        (lambda pool: shmpool.ChunkedTeeReader(io.BytesIO(), 5, pool), "what is written to is a binary file object"),
    ],
)
def test_what_is_no_argument_is_told_what_is_expected(
    pool: shmpool.Pool, call: Callable[[Any], object], expected: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        call(pool)
    assert expected in str(refused.value)


def test_a_strategy_may_be_named(pool: shmpool.Pool) -> None:
    for strategy in shmpool.Strategy:
        with pool.lease(5000, strategy=strategy.value) as lease:
            assert lease.strategy is (shmpool.Strategy.POOLED if strategy is shmpool.Strategy.ADAPTIVE else strategy)
    with pytest.raises(ValueError, match=r"shmpool\.Strategy or one of 'pooled'.*not 'fast'"):
        pool.lease(5000, strategy="fast")  # type: ignore[arg-type]


# --- pools as arguments --------------------------------------------------------------------------------


def test_a_pool_that_is_unpickled_where_it_is_open_is_that_pool(pool: shmpool.Pool) -> None:
    data = pickle.dumps(pool)
    assert pickle.loads(data) is pool
    assert copy.copy(pool) is copy.deepcopy(pool) is pool
    pool.close()
    other = pickle.loads(data)
    try:
        assert other is not pool
        assert other.lease(100).release() is None
        assert pickle.loads(data) is other
    finally:
        other.close()


def test_a_strict_pool_is_another_one(start: Any) -> None:
    broker = start()
    with broker.connect() as pool, broker.connect(strict=True) as strict:
        assert pickle.loads(pickle.dumps(pool)) is pool
        assert pickle.loads(pickle.dumps(strict)) is strict


def task(pool: shmpool.Pool, number: int) -> tuple[int, int, str]:
    with pool.lease(1000) as lease:
        lease.write(bytes(1000))
    return id(pool), len(pool.stats().clients), threading.current_thread().name


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=pytest.mark.long)])
def test_an_argument_of_every_task_connects_each_process_once(start: Any, method: str) -> None:
    broker = start()
    with broker.connect() as pool:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            answers = list(executor.map(task, [pool] * 40, range(40)))
        assert len({pool_id for pool_id, _, _ in answers}) <= 2
        assert max(clients for _, clients, _ in answers) <= 3


# --- the logger ------------------------------------------------------------------------------------------


def test_a_broker_that_is_lost_and_found_is_told_of(daemon: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shmpool")

    def said(words: str) -> bool:
        return any(record.name == "shmpool" and words in record.getMessage() for record in caplog.records)

    first = daemon(on_stop="keep")
    with shmpool.connect(first.address) as pool:
        name = pool.name
        first.end(signal.SIGTERM)
        eventually(lambda: said(f"the broker at {first.address} is away"))
        second = daemon(on_stop="keep")
        eventually(lambda: said(f"the broker at {first.address} is back"))
        assert not said("with another pool")
        assert pool.name == name
        caplog.clear()
        second.end(signal.SIGKILL)
        for path in Path(first.address).parent.iterdir():
            path.unlink()
        daemon()
        eventually(lambda: said("is back with another pool"))
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2
        pool.lease(100).release()
        assert pool.name != name
    for segment in Path("/dev/shm").glob(f"*{name}*"):  # nobody's any more
        segment.unlink()


def test_close_does_not_wait_for_a_log_handler_that_the_helper_is_in(daemon: Any) -> None:
    """It may hold what that waits for."""
    first = daemon(on_stop="keep")
    has_come, may_go_on = threading.Event(), threading.Event()

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is back" in record.getMessage():
                has_come.set()
                may_go_on.wait(60)

    handler, logger = Waits(), logging.getLogger("shmpool")
    before = logger.level
    logger.setLevel("INFO")
    logger.addHandler(handler)
    try:
        pool = shmpool.connect(first.address)
        first.end(signal.SIGTERM)
        daemon()
        assert has_come.wait(30)
        closer = threading.Thread(target=pool.close)
        closer.start()
        closer.join(30)
        has_closed = not closer.is_alive()
    finally:
        may_go_on.set()
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert has_closed
    eventually(lambda: not any(thread.name == "shmpool-helper" for thread in threading.enumerate()))


def test_a_program_that_did_not_set_up_logging_is_not_bothered() -> None:
    done = run_script(
        "import os, shmpool, signal, time\n"
        "broker = shmpool.Broker(memory_limit='16MiB'); pool = broker.connect()\n"
        "os.kill(broker.pid, signal.SIGKILL)\n"
        "while broker.is_running(): time.sleep(0.01)\n"
        "try: shmpool.connect(broker.address, timeout=0.3)\n"
        "except shmpool.BrokerUnavailable: pass\n"
        "pool.close(); broker.close(); print('well')"
    )
    assert (done.stdout, done.stderr) == ("well\n", "")
