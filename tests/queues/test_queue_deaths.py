"""What becomes of queues, and of what is in them, when somebody dies, stops, forks or drops them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Process
from queue import Empty, Full
from typing import Any

import pytest
from corners import sizes

import shmpool
from shmpool.protocol.names import tickets_path
from shmpool.queues.bell import Bell
from shmpool.seat.tickets import BUSY_SECONDS
from shmpool.stats import query
from shmpool.system.descriptors import Descriptor
from shmpool.system.locks import F_OFD_SETLK

SOON = 30.0
LARGE = 20_000


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=16, handle_ttl="50ms") as broker:
        yield broker


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def pool(module_broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with module_broker.connect() as pool:
        yield pool
    eventually(lambda: query(module_broker.address).active_buffers == 0)


class Child:
    """A process that runs *body* with a function that tells us something, and then waits to be killed."""

    def __init__(self, body: Callable[[Callable[[], None]], None]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.close(self._read)
                body(lambda: os.write(write, b".") and None)
                code = 0
                signal.pause()
            finally:
                os._exit(code)
        os.close(write)

    def wait(self) -> None:
        """Until it has told."""
        assert select.select([self._read], [], [], SOON)[0]
        assert os.read(self._read, 1) == b"."

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        os.close(self._read)


def test_what_lies_in_a_queue_outlives_who_put_it(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(pool=pool)
    before = query(pool.address).active_buffers

    def put(tell: Callable[[], None]) -> None:
        one.put(b"q" * LARGE)
        lease = pool.lease(LARGE)
        lease.publish()  # lies in no queue: its time is soon over
        tell()

    with Child(put) as child:
        child.wait()
        assert query(pool.address).active_buffers == before + 2
        child.kill()
        eventually(lambda: query(pool.address).active_buffers == before + 1)
        eventually(lambda: len(query(pool.address).clients) == 1)
    assert one.get(timeout=SOON) == b"q" * LARGE
    one.close()


def test_what_is_in_a_queue_goes_with_its_last_member(pool: shmpool.Pool) -> None:
    def put(tell: Callable[[], None]) -> None:
        one = pool.queue("lost")
        one.put_many([b"q" * LARGE] * 3)
        tell()

    with Child(put) as child:
        child.wait()
        assert query(pool.address).active_buffers >= 3
    eventually(lambda: query(pool.address).active_buffers == 0)
    with pytest.raises(shmpool.NotFound):
        pool.find("lost", timeout=0)


def test_a_kept_queue_outlives_its_members_until_it_is_dropped(pool: shmpool.Pool) -> None:
    def put(tell: Callable[[], None]) -> None:
        pool.queue("kept", keep=True).put_many([1, b"q" * LARGE, 3])
        tell()

    with Child(put) as child:
        child.wait()
    eventually(lambda: len(query(pool.address).clients) == 1)
    one = pool.queue("kept")
    assert one.get(timeout=SOON) == 1
    pool.drop("kept")
    with pytest.raises(shmpool.QueueShutDown):
        one.get()
    with pytest.raises(shmpool.QueueShutDown):
        one.put(1)
    one.close()
    with pytest.raises(shmpool.NotFound):
        pool.drop("kept")


@pytest.mark.parametrize("size", [10, LARGE, 300_000], ids=["inline", "pooled", "chunked"])
def test_an_item_in_a_dead_consumer_s_hands_comes_to_another(pool: shmpool.Pool, size: int) -> None:
    one = shmpool.Queue(pool=pool, on_dead_consumer="requeue")
    one.put_many([(number, b"q" * size) for number in range(4)])

    def get(tell: Callable[[], None]) -> None:
        assert one.get(timeout=SOON)[0] == 0  # finished by the next
        assert one.get(timeout=SOON)[0] == 1
        tell()

    with Child(get) as child:
        child.wait()
    eventually(lambda: len(query(pool.address).clients) == 1)
    assert [one.get(timeout=SOON) for _ in range(3)] == [(number, b"q" * size) for number in (1, 2, 3)]
    with pytest.raises(Empty):
        one.get(timeout=0)
    one.close()


def test_hands_that_are_full_are_waited_for(pool: shmpool.Pool) -> None:
    one = shmpool.JoinableQueue(pool=pool, on_dead_consumer="requeue")
    one.put_many(range(70))
    taken = one.get_many(70)
    assert taken == list(range(64))
    with pytest.raises(Empty):
        one.get(timeout=0.01)
    one.task_done()
    assert one.get(timeout=SOON) == 64
    for _ in range(64):
        one.task_done()
    assert one.get_many(70) == list(range(65, 70))
    for _ in range(5):
        one.task_done()
    one.join()
    with pytest.raises(ValueError, match="too many"):
        one.task_done()
    one.close()


@pytest.mark.parametrize("on_dead_consumer", ["drop", "requeue"])
def test_who_joins_does_not_wait_for_the_dead(pool: shmpool.Pool, on_dead_consumer: Any) -> None:
    one = shmpool.JoinableQueue(pool=pool, on_dead_consumer=on_dead_consumer)
    one.put_many(range(3))

    def get(tell: Callable[[], None]) -> None:
        one.get(timeout=SOON)
        one.task_done()
        one.get(timeout=SOON)
        tell()

    with Child(get) as child:
        child.wait()
        joined = threading.Thread(target=one.join)
        joined.start()
    left = [1, 2] if on_dead_consumer == "requeue" else [2]
    eventually(lambda: len(query(pool.address).clients) == 1)
    for number in left:
        assert joined.is_alive()
        assert one.get(timeout=SOON) == number
        one.task_done()
    joined.join(SOON)
    assert not joined.is_alive()
    one.close()


def test_a_stopped_holder_of_a_lock_delays_others_by_their_timeouts(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(pool=pool)

    def stop(tell: Callable[[], None]) -> None:
        ring = one._here()
        ring.head_end.acquire(0)
        tell()
        os.kill(os.getpid(), signal.SIGSTOP)

    with Child(stop) as child:
        child.wait()
        one.put(1)
        with pytest.raises(Empty):
            one.get(timeout=0.05)
        with pytest.raises(Empty):
            one.get_nowait()
        [shown] = query(pool.address).queues
        assert (shown.getting, shown.putting) == ([child.pid], []), "an operator sees whom they wait for"
    assert one.get(timeout=SOON) == 1  # its lock went with it
    one.close()


@pytest.mark.parametrize("moment", ["has it", "is about to take it", "has let go"])
def test_who_dies_at_a_lock_blocks_nobody_though_no_broker_looks(moment: str) -> None:
    """The lock's holder and the broker die at once: who waits mends the lock himself."""
    with shmpool.Broker(memory_limit="16MiB", max_clients=4) as broker, broker.connect() as pool:
        one = shmpool.Queue(pool=pool)

        def hold(tell: Callable[[], None]) -> None:
            end = one._here().tail_end
            assert end.acquire(0)
            if moment == "has let go":
                end.now[1]()
            elif moment == "is about to take it":
                end.now[1]()
                one._here().words[end.said] = end.name
            tell()

        with Child(hold) as child:
            child.wait()
            os.kill(broker.pid, signal.SIGKILL)
            child.kill()
            for number in range(3):
                one.put(number, timeout=SOON)
            assert one.get_many(3) == [0, 1, 2]
        one.close()


def test_a_scribbled_lock_is_made_anew(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(pool=pool)
    ring = one._here()
    at = 128 + 4 * (ring.words[72] % 8)
    ring.words[at] = 0  # as if somebody had it, who never said so
    with pytest.raises(Full):
        one.put(1, timeout=0)
    one.put(2, timeout=SOON)
    ring.words[at + 32] = 0
    assert one.get(timeout=SOON) == 2
    one.close()


def test_who_takes_the_seat_of_a_dead_holder_frees_the_lock(pool: shmpool.Pool) -> None:
    one = pool.queue("seat")
    seats = []

    def hold(tell: Callable[[], None]) -> None:
        other = pool.queue("seat")
        assert other._here().tail_end.acquire(0)
        tell()

    def put(tell: Callable[[], None]) -> None:
        other = pool.queue("seat")
        other.put(other._here().session.seat)
        tell()

    for body in (hold, put):
        with Child(body) as child:
            child.wait()
            seats.append({client.seat for client in query(pool.address).clients})
        eventually(lambda: len(query(pool.address).clients) == 1)
    assert one.get(timeout=SOON) in seats[0] & seats[1]
    one.close()


def test_a_child_keeps_no_lock_of_a_parent_that_dies(pool: shmpool.Pool) -> None:
    """A grandchild lives on that was forked while its parent was in the middle of a put."""
    one = shmpool.Queue(pool=pool)
    read, write = os.pipe()

    def fork(tell: Callable[[], None]) -> None:
        ring = one._here()
        ring.tail_end.acquire(0)
        if not os.fork():
            tell()
            os.read(read, 1)
            os._exit(0)

    with Child(fork) as child:
        child.wait()
        child.kill()
        one.put(1, timeout=SOON)
        assert one.get() == 1
    os.write(write, b".")
    os.close(read)
    os.close(write)
    one.close()


def test_a_fork_in_the_middle_of_a_get(pool: shmpool.Pool) -> None:
    one, got = shmpool.Queue(pool=pool), []
    getter = threading.Thread(target=lambda: got.append(one.get(timeout=SOON)))
    getter.start()
    eventually(lambda: bool(one._here().words[40] & 0xFFFF))  # it sleeps

    def put(tell: Callable[[], None]) -> None:
        one.put(b"q" * LARGE)
        tell()

    with Child(put) as child:
        child.wait()
        getter.join(SOON)
    assert got == [b"q" * LARGE]
    one.close()


def test_a_forked_child_has_the_queue_though_its_parent_let_go(pool: shmpool.Pool) -> None:
    there, back = shmpool.Queue(pool=pool), shmpool.Queue(pool=pool)
    there.put("to the child")
    read, write = os.pipe()

    def echo(tell: Callable[[], None]) -> None:
        os.read(read, 1)
        back.put(there.get(timeout=SOON))
        tell()

    with Child(echo) as child:
        there.close()
        session = pool._session
        assert session is not None
        session.holds.look(at_once=True)
        os.write(write, b".")
        child.wait()
        assert back.get(timeout=SOON) == "to the child"
    os.close(read)
    os.close(write)
    back.close()


def put_one(one: Any) -> None:
    one.put("from a child whose parent forgot the queue")


def test_a_spawned_child_has_the_queue_though_its_parent_forgot_it(pool: shmpool.Pool) -> None:
    from multiprocessing import get_context

    back = pool.queue("back", keep=True)
    process = get_context("spawn").Process(target=put_one, args=(pool.queue("back"),))
    process.start()
    assert back.get(timeout=SOON).startswith("from a child")
    process.join()
    assert process.exitcode == 0
    pool.drop("back")
    back.close()


def test_names(pool: shmpool.Pool, module_broker: shmpool.Broker, tmp_path: Any) -> None:
    shared = pool.share([1], name="object")
    with pytest.raises(shmpool.NameTaken, match="'object'"):
        pool.queue("object")
    shared.release()
    one = pool.queue("first")
    with pytest.raises(shmpool.NameTaken):
        pool.share([1], name="first")
    with pytest.raises(shmpool.FormatError, match=r"pool\.queue"):
        pool.find("first").get()
    with pytest.raises(ValueError, match="first"):
        pool.queue("first", on_dead_consumer="requeue")
    other = pool.queue("second")
    one.put("in the first")
    assert other.empty()
    other.close()
    # The same queue by another path of the broker's.
    (tmp_path / "link").symlink_to(os.path.dirname(pool.address))
    with shmpool.connect(str(tmp_path / "link" / os.path.basename(pool.address))) as by_link:
        same = by_link.queue("first")
        assert same.get(timeout=SOON) == "in the first"
        same.put("back")
        same.close()
    assert one.get(timeout=SOON) == "back"
    one.close()


def test_a_broker_that_is_slow_to_answer_delays_who_makes_or_drops_a_queue(pool: shmpool.Pool) -> None:
    made: list[shmpool.Queue] = []
    pid = pool._live_session().broker_pid()
    for act in (lambda: made.append(pool.queue("slow")), lambda: pool.drop("slow")):
        thread = threading.Thread(target=act)
        os.kill(pid, signal.SIGSTOP)
        try:
            thread.start()
            thread.join(0.2)
            assert thread.is_alive(), "it is not given up"
        finally:
            os.kill(pid, signal.SIGCONT)
        thread.join(SOON)
    assert len(made) == 1
    with pytest.raises(shmpool.NotFound):
        pool.find("slow", timeout=0)
    made.pop().close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be somebody else")
def test_who_may_not_use_the_pool_is_told(pool: shmpool.Pool, module_broker: shmpool.Broker) -> None:
    one = pool.queue("private")
    script = (
        f"import os, shmpool; os.setuid(65534); shmpool.connect({pool.address!r}, timeout=0.1).queue('private').get()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SOON)
    assert done.returncode != 0
    assert "BrokerUnavailable" in done.stderr or "Permission" in done.stderr
    one.close()


def test_its_descriptor_is_readable_when_something_was_put(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(pool=pool)
    fd = one.fileno()
    assert fd == one.fileno()
    assert not select.select([one], [], [], 0)[0]
    one.put(1)
    assert select.select([one], [], [], SOON)[0]
    assert one.get_nowait() == 1
    assert not select.select([one], [], [], 0)[0]

    def put(tell: Callable[[], None]) -> None:
        one.put(b"q" * LARGE)
        tell()

    with Child(put) as child:
        assert select.select([one], [], [], SOON)[0]
        child.wait()
        assert one.get_nowait() == b"q" * LARGE
        with pytest.raises(Empty):
            one.get_nowait()
        assert not select.select([one], [], [], 0)[0]
    one.shutdown()
    assert select.select([one], [], [], SOON)[0]
    one.close()


def test_threads_that_ask_for_its_descriptor_at_once_have_the_same(
    pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that the other's has closed."""
    one = shmpool.Queue(pool=pool)
    opened, others = Bell._opened, list[int]()

    def is_overtaken(bell: Bell, how: int) -> Descriptor:
        if not others:
            others.append(-1)
            thread = threading.Thread(target=lambda: others.append(one.fileno()))
            thread.start()
            thread.join(SOON)
        return opened(bell, how)

    monkeypatch.setattr(Bell, "_opened", is_overtaken)
    fd = one.fileno()
    assert others == [-1, fd]
    one.put(1)
    assert select.select([fd], [], [], SOON)[0]
    one.close()


def test_its_descriptor_is_quiet_though_all_that_put_have_ended(pool: shmpool.Pool) -> None:
    """Else an event loop that watches it never sleeps again."""
    one = shmpool.Queue(pool=pool)
    one.fileno()

    def put(tell: Callable[[], None]) -> None:
        one.put(1)
        tell()

    with Child(put) as child:
        child.wait()
        assert one.get() == 1
    poll = select.poll()
    poll.register(one)
    assert poll.poll(0) == []
    one.put(2)
    assert poll.poll(SOON * 1000) == [(one.fileno(), select.POLLIN)]
    assert one.get_nowait() == 2
    assert poll.poll(0) == []
    one.close()


def test_there_is_room_for_as_many_as_were_asked_for(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(600, pool=pool)
    for number in range(600):
        one.put((number, bytes(3000)), False)
    assert one.full()
    assert [one.get_nowait()[0] for _ in range(600)] == list(range(600))
    one.close()


def test_a_queue_in_a_segment_that_was_something_else_before(pool: shmpool.Pool) -> None:
    for nbytes in (1_100_000, 1_066_000, 2_000_000) * 2:  # as long as a queue, and others
        pool.lease(nbytes, strategy=shmpool.Strategy.DIRECT).release()
    for number in range(10):
        one = shmpool.Queue(pool=pool)
        one.put(number)
        assert one.get(timeout=SOON) == number
        one.close()


def test_what_lies_in_a_queue_is_not_reclaimed(pool: shmpool.Pool) -> None:
    one = shmpool.Queue(pool=pool)
    one.put(b"q" * LARGE)
    handle = pool.put(b"h" * LARGE)
    assert pool.reclaim() == 1
    with pytest.raises(shmpool.HandleUsed):
        pool.get(handle)
    assert one.get() == b"q" * LARGE
    one.close()


@pytest.mark.parametrize("kills", sizes(12, 60, 300))
def test_with_requeue_every_item_comes_at_least_once(pool: shmpool.Pool, kills: int) -> None:
    """Consumers are killed at random points: nothing that was put is lost, and only what a dead one had comes twice."""
    import random

    chance = random.Random(kills)
    one, results = shmpool.Queue(16, pool=pool, on_dead_consumer="requeue"), shmpool.Queue(pool=pool)
    total = 25 * kills

    def work() -> None:
        with contextlib.suppress(shmpool.QueueShutDown):
            while True:
                number, _ = one.get()
                results.put(number)

    def feed() -> None:
        for number in range(total):
            one.put((number, bytes(6000 * (number % 2))))

    crew = [Process(target=work, daemon=True) for _ in range(2)]
    feeder = threading.Thread(target=feed)
    for process in crew:
        process.start()
    feeder.start()
    seen: list[int] = []
    killed = 0
    while len(set(seen)) < total:
        seen.append(results.get(timeout=SOON))
        if killed < kills and len(set(seen)) > 25 * killed + chance.randrange(25):
            killed += 1
            victim = crew.pop(0)
            victim.kill()
            victim.join()
            crew.append(Process(target=work, daemon=True))
            crew[-1].start()
    feeder.join()
    assert set(seen) == set(range(total))
    assert len(seen) - total <= 2 * killed
    one.shutdown()
    for process in crew:
        process.join(SOON)
        assert process.exitcode == 0
    one.close()
    results.close()


def test_an_item_whose_ticket_is_busy_stays_until_it_is_not() -> None:
    """Somebody has its byte: a process that is stopped while it opens what was published there before, or a broker that
    closes that. The item was stepped over after 10 ms, and nobody ever saw it."""
    with (
        shmpool.Broker(memory_limit="64MiB", tickets="locks") as broker,
        broker.connect() as pool,
        contextlib.closing(pool.queue()) as queue,
        open(tickets_path(os.path.realpath(broker.address)), "rb+") as file,
    ):
        for number in range(3):
            queue.put(bytes([number]) * LARGE)

        def set_lock(kind: int) -> None:
            fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 1, 1 << 31, 0))

        for act in (lambda: queue.get(timeout=SOON)[:1], lambda: queue.shutdown(immediate=True)):
            set_lock(fcntl.F_WRLCK)
            thread = threading.Timer(10 * BUSY_SECONDS, set_lock, [fcntl.F_UNLCK])
            thread.start()
            assert act() in (b"\0", None)
            thread.join()
        eventually(lambda: query(broker.address).active_buffers == 1)  # the queue's own
