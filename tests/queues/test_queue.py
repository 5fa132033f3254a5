"""Queues: the semantics of `multiprocessing.Queue`, and what is more."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from corners import sizes

import shmpool
from shmpool.protocol.queues import HEAD, TAIL
from shmpool.stats import query

SOON = 30.0


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=16) as broker:
        yield broker


def settled(address: str, seconds: float = SOON) -> int:
    """Buffers that are out, once they do not change for the better any more."""
    deadline = time.monotonic() + seconds
    while (out := query(address).active_buffers) and time.monotonic() < deadline:
        time.sleep(0.005)
    return out


@pytest.fixture
def pool(module_broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with module_broker.connect() as pool:
        yield pool
    assert settled(module_broker.address) == 0


@pytest.fixture
def made(pool: shmpool.Pool) -> Iterator[Callable[..., Any]]:
    """Makes queues, and closes them at the end."""
    queues: list[Any] = []

    def make(maxsize: int = 0, kind: type = shmpool.Queue, **options: Any) -> Any:
        queues.append(kind(maxsize, pool=pool, **options))
        return queues[-1]

    yield make
    for one in queues:
        one.close()


@contextlib.contextmanager
def process(body: Callable[[], Any]) -> Iterator[int]:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


OBJECTS = [
    None,
    0,
    "text",
    b"",
    b"x" * 1000,
    b"y" * 100_000,
    bytearray(b"z" * 5000),
    list(range(2000)),
    {"a": (1, 2.5)},
]


def test_what_is_put_is_got_in_order(made: Callable[..., Any]) -> None:
    one = made()
    for obj in OBJECTS:
        one.put(obj)
    assert one.qsize() == len(OBJECTS)
    assert not one.empty()
    assert [one.get() for _ in OBJECTS] == OBJECTS
    assert one.empty()
    assert one.qsize() == 0


@pytest.mark.parametrize("nbytes", [100, 10_000, 300_000, 2_000_000])
def test_arrays_come_out_of_the_pool_s_memory(made: Callable[..., Any], nbytes: int) -> None:
    one = made()
    sent = np.arange(nbytes, dtype=np.uint8)
    one.put((1, sent))
    one.put(sent)
    for got in (one.get()[1], one.get()):
        np.testing.assert_array_equal(got, sent)


def test_what_nobody_has_is_gone_at_once(module_broker: shmpool.Broker) -> None:
    """Without a look for garbage, which may not come for long: arrays, and queues that nobody closed."""

    def use(**options: Any) -> None:
        one = shmpool.Queue(pool=pool, **options)
        one.put(np.arange(300_000, dtype=np.uint8))
        assert one.get()[1] == 1

    gc.collect()
    gc.disable()
    try:
        with module_broker.connect() as pool:
            threading.Thread(target=use).start()  # its first use in a thread
            use()
            use(on_dead_consumer="requeue")
            assert settled(module_broker.address) == 0
    finally:
        gc.enable()


def test_a_full_queue_and_an_empty_one(made: Callable[..., Any]) -> None:
    one = made(2)
    with pytest.raises(queue.Empty):
        one.get_nowait()
    with pytest.raises(queue.Empty):
        one.get(timeout=0.01)
    one.put(1)
    one.put_nowait(2)
    assert one.full()
    with pytest.raises(queue.Full):
        one.put_nowait(3)
    with pytest.raises(queue.Full):
        one.put(3, timeout=0.01)
    assert one.get() == 1
    one.put(3)
    assert (one.get(), one.get()) == (2, 3)


def test_many_at_once(made: Callable[..., Any]) -> None:
    one = made(5)
    assert one.put_many(range(8), timeout=0) == 5
    assert one.get_many(3) == [0, 1, 2]
    assert one.get_many(10) == [3, 4]
    assert one.put_many([]) == 0
    with pytest.raises(ValueError, match="whole number"):
        one.get_many(0)
    taker = threading.Thread(target=lambda: [one.get() for _ in range(50)])
    taker.start()
    assert one.put_many(range(50)) == 50
    taker.join()


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [3, 4, 5]), ("drop_newest", [0, 1, 2])])
def test_where_the_newest_counts_or_the_oldest(made: Callable[..., Any], overflow: str, kept: list[int]) -> None:
    one = made(3, overflow=overflow)
    for number in range(6):
        one.put((number, bytes(5000 * (number % 2))))
    assert one.dropped == 3
    assert [one.get()[0] for _ in range(3)] == kept
    one.put_many(range(10))
    assert one.qsize() == 3


def test_what_cannot_be_put_raises_at_once_and_leaves_nothing(made: Callable[..., Any]) -> None:
    one = made(4)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        one.put(lambda: None)
    with pytest.raises(shmpool.ShmpoolError):
        one.put(bytes(65 << 20), timeout=1)
    assert one.empty()
    one.put(1)
    assert one.get() == 1


def test_wrong_arguments_are_named(pool: shmpool.Pool) -> None:
    with pytest.raises(TypeError, match="maxsize"):
        shmpool.Queue(1.5, pool=pool)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="overflow"):
        shmpool.Queue(overflow="drop", pool=pool)  # type: ignore[arg-type]
    with pytest.raises(shmpool.InvalidSize, match="items"):
        shmpool.Queue(10_000_000, pool=pool)
    with pytest.raises(TypeError, match="pool is a"):
        shmpool.Queue(pool=5)  # type: ignore[arg-type]
    one = shmpool.Queue(pool=pool)
    one.put_many([1, 2, 3])  # so that nothing is waited for: a time that makes no sense is refused all the same
    wrong: list[tuple[Any, type[Exception]]] = [("soon", TypeError), (float("nan"), ValueError), (True, TypeError)]
    for timeout, error in [*wrong, (86_401, ValueError), (10**400, TypeError), (np.True_, TypeError)]:
        for verb in (
            lambda timeout, block: one.get(block, timeout),
            lambda timeout, block: one.get_many(1, block, timeout),
            lambda timeout, block: one.put(4, block, timeout),
            lambda timeout, block: one.put_many([4], block, timeout),
        ):
            for block in (True, False):
                with pytest.raises(error, match="a timeout is"):
                    verb(timeout, block)
    assert one.get_many(4, timeout=np.float32(1)) == [1, 2, 3]
    with pytest.raises(queue.Empty):
        one.get(timeout=-1)  # as multiprocessing's
    one.close()


def test_after_close_it_raises(made: Callable[..., Any]) -> None:
    one = made()
    with pytest.raises(AssertionError):
        one.join_thread()
    one.cancel_join_thread()
    one.close()
    one.close()
    one.join_thread()
    for use in (lambda: one.put(1), one.get, one.qsize):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_the_last_one_to_close_discards_what_is_in_it(pool: shmpool.Pool, made: Callable[..., Any]) -> None:
    one = made()
    other = pickle.loads(pickle.dumps(one))
    for _ in range(3):
        one.put(b"x" * 10_000)
    one.close()
    assert other.get() == b"x" * 10_000
    other.close()
    assert settled(pool.address) == 0


def test_shutdown_ends_puts_at_once_and_gets_when_it_is_empty(made: Callable[..., Any]) -> None:
    one = made()
    one.put(1)
    one.shutdown()
    with pytest.raises(shmpool.QueueShutDown):
        one.put(2)
    assert one.get() == 1
    with pytest.raises(shmpool.QueueShutDown):
        one.get()
    other = made()
    other.put(b"x" * 10_000)
    other.shutdown(immediate=True)
    with pytest.raises(shmpool.QueueShutDown):
        other.get()


def test_shutdown_wakes_who_waits(made: Callable[..., Any]) -> None:
    one, told = made(), []

    def wait() -> None:
        try:
            one.get()
        except shmpool.QueueShutDown:
            told.append(True)

    waiter = threading.Thread(target=wait)
    waiter.start()
    one.shutdown()
    waiter.join()
    assert told == [True]


def test_join_waits_for_all_tasks(made: Callable[..., Any]) -> None:
    one = made(kind=shmpool.JoinableQueue)
    for number in range(10):
        one.put(number)

    def work() -> None:
        for _ in range(10):
            one.get()
            one.task_done()

    worker = threading.Thread(target=work)
    worker.start()
    one.join()
    worker.join()
    with pytest.raises(ValueError, match="too many times"):
        one.task_done()
    one.join()


def test_a_name_gives_the_same_queue_to_who_asks(pool: shmpool.Pool, module_broker: shmpool.Broker) -> None:
    with module_broker.connect() as other:
        one, same = pool.queue("frames", maxsize=8), other.queue("frames", maxsize=8)
        one.put("first")
        assert same.get() == "first"
        with pytest.raises(ValueError, match="maxsize=8"):
            other.queue("frames", maxsize=9)
        one.close()
        same.close()


def echo(incoming: Any, outgoing: Any) -> None:
    while (item := incoming.get()) is not None:
        outgoing.put(item)


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.long)])
def test_processes_of_every_kind_share_it(made: Callable[..., Any], method: str) -> None:
    there, back = made(), made()
    process = multiprocessing.get_context(method).Process(target=echo, args=(there, back))
    process.start()
    for obj in OBJECTS:
        there.put(obj or 1)
        assert back.get() == (obj or 1)
    there.put(None)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(("putters", "getters"), [(1, 1), (2, 2)])
def test_order_and_count_hold_over_processes(made: Callable[..., Any], putters: int, getters: int) -> None:
    one, results = made(16), made()
    each = 2000

    def put(name: int) -> None:
        for number in range(each):
            one.put((name, number, b"x" * (5000 if number % 7 == 0 else 10)))

    def get() -> None:
        got = []
        while (item := one.get()) is not None:
            got.append(item[:2])
        results.put(got)

    with contextlib.ExitStack() as stack:
        getting = [stack.enter_context(process(get)) for _ in range(getters)]
        putting = [stack.enter_context(process(lambda name=name: put(name))) for name in range(putters)]
        assert [ended(pid) for pid in putting] == [0] * putters
        for _ in getting:
            one.put(None)
        gots = [results.get() for _ in getting]
        assert [ended(pid) for pid in getting] == [0] * getters
    assert sorted(item for got in gots for item in got) == [(n, i) for n in range(putters) for i in range(each)]
    for got in gots:
        for name in range(putters):
            mine = [number for who, number in got if who == name]
            assert mine == sorted(mine)


def test_waiting_is_interruptible(made: Callable[..., Any]) -> None:
    class Ring(Exception):
        pass

    def ring(*_: object) -> None:
        raise Ring

    one = made(1)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Ring):
            one.get()
        one.put(1)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Ring):
            one.put(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert one.get() == 1
    one.put(3)
    assert one.get() == 3


def test_a_handler_that_puts_inside_a_put_is_refused_not_blocked(made: Callable[..., Any]) -> None:
    one = made()
    end = one._here().tail_end
    end.take_gate(False)  # as in the middle of a put
    with pytest.raises(RuntimeError, match="signal handler"):
        one.put(1)
    end.leave_gate()
    one.put(2)
    assert one.get() == 2


def test_a_scribbled_cell_is_told_and_stepped_over(made: Callable[..., Any]) -> None:
    one = made()
    one.put(1)
    one.put(2)
    ring = one._here()
    ring.words[ring.word_of(0)] = 0xFFFF_FFFF_FFFF_FFFF
    with pytest.raises(shmpool.FormatError, match="damaged"):
        one.get()
    assert one.get() == 2


@pytest.mark.parametrize("word", [HEAD, TAIL], ids=["HEAD", "TAIL"])
@pytest.mark.parametrize("further", [1 << 63 | 5, 70_000 << 32 | 1, 0xDEAD_BEEF])
def test_a_scribbled_end_is_told_and_the_queue_goes_on(made: Callable[..., Any], word: int, further: int) -> None:
    """Nobody walks through four thousand million places, while the others wait at the lock."""
    one = made()
    one.put_many([1, 2, 3])
    words = one._here().words
    words[word] = words[word] + further & (1 << 64) - 1
    for _ in range(10):
        try:
            one.get_many(5, timeout=0.01)
        except shmpool.FormatError:
            continue
        except queue.Empty:
            break
    one.put("on it goes", timeout=5)
    assert one.get(timeout=5) == "on it goes"


# --- deaths ---------------------------------------------------------------------------------------


def test_runs_of_small_items_come_as_they_were_put(made: Callable[..., Any]) -> None:
    """`put_many` and `get_many` move items of one granule at once, others one by one: all ways through one queue."""
    import random
    from collections import deque

    chance, one, expected = random.Random(14), made(100), deque()
    lengths = [0, 1, 10, 23, 24, 25, 100, 4096, 5000]
    for number in range(600):
        length = chance.choice(lengths)
        batch: list[Any] = [
            [bytes([number % 256]) * length] * chance.randrange(1, 30),
            [b"x" * chance.choice(lengths[:5]) for _ in range(5)],
            list(range(250, 250 + chance.randrange(80))),
            [number, str(number), None, b"mixed"],
            [(number, "pickled")],
        ][number % 5]
        room = 100 - len(expected)
        if len(batch) > room:
            with pytest.raises(queue.Full) if not room else contextlib.nullcontext():
                assert one.put_many(batch, timeout=0) == room
            batch = batch[:room]
        elif len(batch) == 1:
            one.put(batch[0])
        else:
            assert one.put_many(batch) == len(batch)
        expected.extend(batch)
        assert one.qsize() == len(expected)
        while len(expected) > chance.randrange(100):
            got = one.get_many(chance.randrange(1, 40)) if number % 2 else [one.get()]
            assert got == [expected.popleft() for _ in got]
    assert one.get_many(1000, timeout=1)[:1] == list(expected)[:1] if expected else one.empty()


KILLS = sizes(10, 100, 1000)


@pytest.mark.parametrize("kills", KILLS)
def test_kills_at_random_points_block_nobody(pool: shmpool.Pool, made: Callable[..., Any], kills: int) -> None:
    """Putters and getters are killed while they work: nobody is blocked, nothing doubled or out of order, and no more
    lost than the killed had in their hands. Says how long the longest pause was."""
    import random

    chance = random.Random(kills)
    one, results = made(32), made()

    def put(name: int) -> None:
        number = 0
        while True:
            one.put((name, number, b"x" * (6000 if number % 3 == 0 else 10)))
            number += 1

    def get(name: int) -> None:
        while True:
            results.put((name, *one.get()[:2]))

    alive: dict[int, bool] = {}
    names = iter(range(10**9))

    def start(is_putter: bool) -> None:
        name = next(names)
        pid = os.fork()
        if not pid:
            try:
                (put if is_putter else get)(name)
            finally:
                os._exit(1)
        alive[pid] = is_putter

    last: dict[tuple[int, int], int] = {}
    seen: set[tuple[int, int]] = set()

    def see(getter: int, putter: int, number: int) -> None:
        assert (putter, number) not in seen, "doubled"
        assert number > last.get((getter, putter), -1), "out of order"
        seen.add((putter, number))
        last[getter, putter] = number

    for is_putter in (True, True, False, False):
        start(is_putter)
    longest, dead_getters, moment = 0.0, 2, time.monotonic()
    try:
        for _ in range(kills):
            until = time.monotonic() + chance.uniform(0.01, 0.06)
            count = 0
            while count < 20 or time.monotonic() < until:
                see(*results.get(timeout=SOON))
                longest, moment = max(longest, time.monotonic() - moment), time.monotonic()
                count += 1
            pid = chance.choice(list(alive))
            is_putter = alive.pop(pid)
            dead_getters += not is_putter
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            start(is_putter)
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    while True:
        try:
            see(*results.get(timeout=0))
        except queue.Empty:
            break
    while not one.empty():
        putter, number, _ = one.get(timeout=SOON)
        assert (putter, number) not in seen, "doubled"
        seen.add((putter, number))
    one.put("still works", timeout=SOON)
    assert one.get(timeout=SOON) == "still works"
    ends: dict[int, int] = {}
    for putter, number in seen:
        ends[putter] = max(ends.get(putter, 0), number + 1)
    assert sum(ends.values()) - len(seen) <= dead_getters, "lost"
    print(f"{kills} kills: {len(seen)} items, longest pause {1000 * longest:.0f} ms")
    one.shutdown(immediate=True)
    results.shutdown(immediate=True)


def test_a_queue_outlives_who_put_it_and_the_broker(tmp_path: Any) -> None:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
    from client_helpers import Daemon

    address = str(tmp_path / "broker.sock")
    daemon = Daemon(address, memory_limit="16MiB")
    with shmpool.connect(address) as pool:
        one = shmpool.Queue(pool=pool)
        with process(lambda: [one.put((i, b"x" * 6000 * (i % 2))) for i in range(6)]) as pid:
            assert ended(pid) == 0
        assert one.get()[0] == 0
        daemon.end(signal.SIGKILL)
        assert one.get()[0] == 1
        one.put("between")
        daemon = Daemon(address, memory_limit="16MiB")
        assert [one.get()[0] for _ in range(4)] == [2, 3, 4, 5]
        assert one.get() == "between"
        one.close()
        assert settled(address) == 0
    daemon.end(signal.SIGTERM)
