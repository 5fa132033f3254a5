"""One Pool, many threads: nothing is lost, nothing is given twice, nobody sees another's bytes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import queue
import random
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import client_workers
import pytest
from client_helpers import KIB, MIB, PATIENCE, Connect, Start, child, eventually, hear
from corners import corner, sizes

import shmpool
from shmpool.seat.session import Session

SIZES = [0, 700, 5000, 40_000, 200_000, 300_000, MIB + 5]


def run_threads(count: int, work: Callable[[int], None]) -> None:
    """Run *work* in threads at once; the first error of any is raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(which: int) -> None:
        try:
            barrier.wait()
            work(which)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(which,), daemon=True) for which in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def pass_around(pool: shmpool.Pool, reader: shmpool.Pool, rounds: int, sizes: list[int], timeout: float) -> None:
    """Eight threads lease, fill, publish, and open what any of them has published."""
    box: queue.Queue[tuple[shmpool.Handle, bytes]] = queue.Queue()

    def work(which: int) -> None:
        dice = random.Random(which)
        for _ in range(rounds):
            nbytes = dice.choice(sizes)
            with pool.lease(nbytes, timeout=timeout) as lease:
                lease.write(dice.randbytes(nbytes))
                digest = hashlib.sha256(lease.view).digest()
                box.put((lease.publish(), digest))
            handle, digest = box.get()
            with reader.open(handle) as buffer:
                assert hashlib.sha256(buffer.view).digest() == digest

    run_threads(8, work)
    assert box.empty()


def test_eight_threads_of_one_pool_keep_all_content(pool: shmpool.Pool) -> None:
    before = pool.stats()
    pass_around(pool, pool, 150, SIZES, 20)
    after = pool.stats()
    assert after.active_buffers == 0
    assert after.lease_timeouts == before.lease_timeouts


def test_eight_threads_share_a_pool_that_is_too_small(start: Start) -> None:
    """They wait for each other all the time."""
    broker = start(memory_limit="2MiB", pooled_sizes=["256KiB"], chunk_sizes=["256KiB"])
    with broker.connect() as pool, broker.connect() as reader:
        pass_around(pool, reader, 60, [200 * KIB, 250 * KIB], 30)
        assert pool.stats().lease_timeouts == 0


def test_counters_of_one_thread_are_exact(pool: shmpool.Pool) -> None:
    before = pool.stats()
    for nbytes in (100, 50_000, 300_000, MIB):
        for _ in range(100):
            pool.lease(nbytes).release()
    after = pool.stats()
    assert after.total_gets - before.total_gets == 400
    assert after.total_puts - before.total_puts == 400
    assert {key: after.operations[key] - before.operations[key] for key in after.operations} == dict.fromkeys(
        ("small", "medium", "large", "very_large"), 100
    )
    assert after.pool_hits - before.pool_hits == 297
    assert after.pool_misses - before.pool_misses == 3


def test_finalizers_in_many_threads_lose_nothing(pool: shmpool.Pool) -> None:
    """Arrays die in other threads than the one that opened them."""
    import numpy as np

    def work(which: int) -> None:
        kept: list[object] = []
        for number in range(100):
            with pool.lease(2000) as lease:
                lease.view[:] = bytes([which]) * 2000
                handle = lease.publish()
            with pool.open(handle) as buffer:
                kept.append(np.frombuffer(buffer.view, dtype=np.uint8))
            if len(kept) > 3:
                dying = kept.pop(0)
                assert set(dying.tolist()) == {which}  # type: ignore[attr-defined]
                ends.put(dying)
                del dying
            if number % 2:
                ends.get()

    ends: queue.Queue[object] = queue.Queue()
    for _ in range(1000):
        ends.put(None)
    run_threads(8, work)
    while not ends.empty():
        ends.get()
    eventually(lambda: pool.stats().active_buffers == 0)


def test_two_processes_with_threads_exchange_everything(connect: Connect) -> None:
    pool = connect()
    with child("forkserver", client_workers.exchange, pool.address, 60, SIZES) as (_, pipe):
        handles = hear(pipe)
        assert len(handles) == 240
        box: queue.Queue[tuple[shmpool.Handle, bytes]] = queue.Queue()
        for pair in handles:
            box.put(pair)

        def work(which: int) -> None:
            while True:
                try:
                    handle, digest = box.get_nowait()
                except queue.Empty:
                    return
                with pool.open(handle) as buffer:
                    assert hashlib.sha256(buffer.view).digest() == digest

        run_threads(4, work)


def test_pools_are_opened_and_closed_by_many_threads(connect: Connect) -> None:
    pool = connect()

    def work(which: int) -> None:
        for _ in range(5):
            with shmpool.connect(pool.address) as own, own.lease(100) as lease:
                lease.view[:8] = os.urandom(8)
                own.discard(lease.publish())

    run_threads(6, work)
    eventually(lambda: len(pool.stats().clients) == 1)


def test_close_in_one_thread_ends_the_others_cleanly(start: Start) -> None:
    broker = start(handle_ttl="100ms")  # what was published last cannot be discarded any more
    pool, other = broker.connect(), broker.connect()
    leased = threading.Semaphore(0)

    def work(which: int) -> None:
        if which == 0:
            for _ in range(200):
                leased.acquire()
            pool.close()
            return
        with pytest.raises((shmpool.PoolClosed, shmpool.LeaseReleased)):
            use_for_ever()

    def use_for_ever() -> None:
        while True:
            lease = pool.lease(100, timeout=PATIENCE)
            leased.release()
            pool.discard(lease.publish())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        run_threads(4, work)
    eventually(lambda: len(other.stats().clients) == 1)
    other.close()


@pytest.mark.parametrize("take", ["open", "discard"])
def test_ticket_is_taken_or_its_pool_is_closed_whichever_thread_comes_first(start: Start, take: str) -> None:
    """Both want the tickets' descriptor: its number may be another file's after the close."""
    pool = start(handle_ttl="1s").connect()  # else what nobody opens would stay
    with pool.lease(1000) as lease:
        handle = lease.publish()
    gate = pool._session.ticket_gate
    outcomes: list[object] = []

    def reader() -> None:
        try:
            taken = getattr(pool, take)(handle)
            outcomes.append(taken and taken.release())
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=reader), threading.Thread(target=pool.close)]
    with gate:
        for thread in threads:
            thread.start()
        threads[1].join(0.2)  # a close that does not ask for the gate is through by then
    for thread in threads:
        thread.join()
    (outcome,) = outcomes
    assert outcome is None or isinstance(outcome, (shmpool.PoolClosed, shmpool.StaleHandle)), repr(outcome)


class Meanwhile:
    """Does something in another thread when this one comes to the n-th line of the client's code, or of what is
    called *within* there."""

    def __init__(self, n: int, act: Callable[[], object], *, within: str = "") -> None:
        self.left, self.within, self.thread = n, within, threading.Thread(target=act)

    def __enter__(self) -> Meanwhile:
        sys.settrace(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        if self.left <= 0:
            self.thread.join()

    def _on_event(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(os.path.dirname(shmpool.__file__)):
            return None
        if event == "line" and self.within in ("", frame.f_code.co_name):
            self.left -= 1
            if self.left == 0:
                self.thread.start()
                self.thread.join(0.05)  # it may wait for a lock that this one has
        return self._on_event


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a lease was open when its pool was closed
@pytest.mark.parametrize("step", sizes(61, 13, 1))
def test_lease_whose_pool_another_thread_closes_meanwhile_says_so(connect: Connect, step: int) -> None:
    """At any line of what is done with it: it ends well or raises, and nothing is left."""
    verbs: dict[str, Callable[[shmpool.Lease], Any]] = {
        "write": lambda lease: lease.write(bytes(lease.nbytes)),
        "write_parts": lambda lease: lease.write_parts([(0, bytes(lease.nbytes))]),
        "publish": lambda lease: lease.publish(),
        "publish_many": lambda lease: lease.publish_many(2),
        "shorten": lambda lease: lease.shorten(1000),
        "release": lambda lease: lease.release(),
    }
    pool = connect()
    for nbytes in (5000, 2 * MIB):
        for act in verbs.values():
            for n in itertools.count(random.randint(1, step), step):
                other = connect()
                lease = other.lease(nbytes)
                with Meanwhile(n, other.close) as meanwhile:
                    with contextlib.suppress(shmpool.LeaseReleased, shmpool.PoolClosed):
                        made = act(lease)
                        for handle in [made] if isinstance(made, shmpool.Handle) else made or []:
                            pool.discard(handle)
                    other.close()
                del lease
                if meanwhile.left > 0:
                    break
    eventually(lambda: len(pool.stats().clients) == 1)


@pytest.mark.parametrize(("end", "within"), [("release", "_return_row"), ("publish", "_await_readers")])
def test_pool_that_is_closed_while_a_segment_goes_back_stores_nothing_afterwards(
    connect: Connect, end: str, within: str
) -> None:
    """At every line of it. Its row may be another's by then: who leases it next finds whether it was stored to."""
    pool = connect()
    for n in itertools.count(1):
        other = connect()
        lease = other.lease(2 * MIB)
        with Meanwhile(n, other.close, within=within) as meanwhile:
            handle = getattr(lease, end)()
        other.close()
        if handle is not None:
            pool.discard(handle)
        eventually(lambda: len(pool.stats().clients) == 1)
        pool.lease(2 * MIB).release()
        if meanwhile.left > 0:
            break
    assert n > 3


@pytest.mark.parametrize("step", corner(4, 1))
def test_segment_whose_ticket_is_closed_while_it_is_published_is_stored_to_no_more(start: Start, step: int) -> None:
    """At every line of it. Its row may be another's as soon as its ticket is closed."""
    broker = start(memory_limit="16MiB")
    other = broker.connect()
    for n in itertools.count(random.randint(1, step), step):
        pool = broker.connect()  # anew: a steady producer would keep its segment

        taken: list[shmpool.Lease] = []

        def reclaim(pool: shmpool.Pool = pool, taken: list[shmpool.Lease] = taken) -> None:
            pool.reclaim()
            taken.append(other.lease(2 * MIB))

        lease = pool.lease(2 * MIB)
        lease.write(b"\x07" * lease.nbytes)
        with Meanwhile(n, reclaim) as meanwhile:
            handle = lease.publish()
        with contextlib.suppress(shmpool.HandleUsed, shmpool.StaleHandle), other.open(handle) as buffer:
            assert buffer.view == b"\x07" * buffer.nbytes
        for lease in taken:
            lease.write(b"\x63" * lease.nbytes)
            with other.open(lease.publish()) as buffer:
                assert buffer.view == b"\x63" * buffer.nbytes
        pool.close()
        if meanwhile.left > 0:
            break
    assert n > 20
    assert not other.stats().alerts
    other.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a stream was open when its pool was closed
@pytest.mark.parametrize("nbytes", [pytest.param(None, marks=pytest.mark.long), 4 * KIB])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
def test_pool_that_is_closed_while_a_stream_is_written_stores_nothing_afterwards(
    start: Start, nbytes: int | None, step: int
) -> None:
    """At every line of it. What the stream had may be another's by then, whose bytes stay right."""
    broker = start(memory_limit="16MiB")
    pool = broker.connect()
    for n in itertools.count(1, step):
        other = broker.connect()
        writer = other.stream(nbytes)
        reader = pool.open_reader(writer.handle)
        data = b"\x07" * (nbytes or writer._chunk)
        if nbytes is None:
            for _ in range(4):  # so that its chunks come back
                writer.write(data)
                reader.read(len(data))

        taken: list[shmpool.Lease] = []

        def close_and_lease(
            closed: shmpool.Pool = other, length: int = len(data), taken: list[shmpool.Lease] = taken
        ) -> None:
            closed.close()
            with contextlib.suppress(shmpool.LeaseTimeout):
                lease = pool.lease(length, timeout=0)
                lease.write(b"\x63" * length)
                taken.append(lease)

        with (
            Meanwhile(n, close_and_lease) as meanwhile,
            contextlib.suppress(shmpool.LeaseReleased, shmpool.PoolClosed, shmpool.StreamBroken),
        ):
            try:
                writer.write(data)
                writer.close()
            except ValueError as error:
                if "on closed file" not in str(error):
                    raise
        reader.close()
        other.close()
        del writer
        for lease in taken:
            assert lease.view == b"\x63" * lease.nbytes, f"line {n}"
            pool.open(lease.publish()).release()
        eventually(lambda: len(pool.stats().clients) == 1, f"line {n}")
        if meanwhile.left > 0:
            break
    assert n > 20
    assert not pool.stats().alerts


@pytest.mark.parametrize("nbytes", [60_000, pytest.param(2 * MIB, marks=pytest.mark.long)])
def test_open_that_a_recall_meets_keeps_its_bytes(start: Start, nbytes: int) -> None:
    """At every line of it somebody waits for memory, so that all that nobody uses is given back and taken again."""
    broker = start(memory_limit="8MiB")
    with broker.connect() as writer, broker.connect() as reader:

        def take_all() -> None:
            leases = []
            with contextlib.suppress(shmpool.ShmpoolError):
                while True:
                    leases.append(writer.lease(nbytes, timeout=0.001))
                    leases[-1].view[:] = b"\x63" * nbytes
            for lease in leases:
                lease.release()

        for n in itertools.count(1):
            with writer.lease(nbytes, timeout=10) as lease:
                lease.view[:] = b"\x07" * nbytes
                handle = lease.publish()
            with Meanwhile(n, take_all) as meanwhile:
                buffer = reader.open(handle)
            take_all()
            assert buffer.view == b"\x07" * nbytes, f"line {n}"
            buffer.release()
            if meanwhile.left > 0:
                break


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a buffer is open when its pool is closed
@pytest.mark.parametrize("tickets", ["locks", pytest.param("cas", marks=pytest.mark.long)])
@pytest.mark.parametrize(("verb", "within"), [("open", "open"), ("discard", "_under_lock")])
@pytest.mark.parametrize("step", corner(3, 1))
def test_ticket_is_taken_before_the_seat_ends_or_not_at_all(
    start: Start, monkeypatch: pytest.MonkeyPatch, verb: str, within: str, tickets: str, step: int
) -> None:
    """At every line another thread closes the pool and has come as far as the broker's word, while what the seat locks
    and swaps with is there yet. The broker closes an ended seat's tickets, and gives their memory to others."""
    broker, say_goodbye = start(tickets=tickets), Session.say_goodbye
    writer = broker.connect()
    for n in itertools.count(random.randint(1, step), step):
        lease = writer.lease(2 * MIB)
        lease.write(b"\x07" * lease.nbytes)
        handle = lease.publish()
        reader, has_said, goes_on = broker.connect(), threading.Event(), threading.Event()

        def say_and_wait(session: Session, said: threading.Event = has_said, go: threading.Event = goes_on) -> bool:
            is_left = say_goodbye(session)
            said.set()
            return go.wait(PATIENCE) and is_left

        def close_as_far(
            pool: shmpool.Pool = reader, said: threading.Event = has_said, go: threading.Event = goes_on
        ) -> None:
            closing = threading.Thread(target=pool.close)
            closing.start()
            said.wait(0.05)  # it may need what the thread has that stands at this line
            threading.Thread(target=lambda: (said.wait(PATIENCE), go.wait(PATIENCE), closing.join())).start()

        monkeypatch.setattr(Session, "say_goodbye", say_and_wait)
        done = None
        with (
            Meanwhile(n, close_as_far, within=within if tickets == "locks" else "") as meanwhile,
            contextlib.suppress(shmpool.PoolClosed),
        ):
            done = getattr(reader, verb)(handle) or verb
        if isinstance(done, shmpool.Buffer):
            assert len(writer.stats().clients) == 2, f"line {n}: the seat stays for what is open"
            assert done.view == b"\x07" * done.nbytes
            done.release()
        elif done is None:
            writer.discard(handle)
        goes_on.set()
        reader.close()
        monkeypatch.undo()
        eventually(lambda: len(writer.stats().clients) == 1)
        if meanwhile.left > 0:
            break
    assert n > 5
