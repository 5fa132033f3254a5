"""The broker dies: its clients go on with what they have; a new one takes the pool up."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import client_workers
import numpy as np
import pytest
from client_helpers import KIB, MIB, PATIENCE, SOON, StartDaemon, child, eventually, hear, in_fork, out, pattern

import shmpool
from shmpool import Handle, LeaseTimeout, Strategy

SIZES = [1000, 100_000, 300_000]


def publish(pool: shmpool.Pool, data: bytes) -> Handle:
    with pool.lease(len(data), timeout=0) as lease:
        lease.write(data)
        return lease.publish()


def is_gone(pool: shmpool.Pool) -> bool:
    try:
        pool.stats()
    except shmpool.BrokerUnavailable:
        return True
    return False


def connected(pool: shmpool.Pool) -> list[int]:
    try:
        return [client.seat for client in pool.stats().clients if client.connected]
    except shmpool.BrokerUnavailable:
        return []


def test_leasing_publishing_and_opening_go_on_without_a_broker(daemon: StartDaemon, address: str) -> None:
    broker = daemon(magazine_idle="1h")
    with shmpool.connect(address) as pool, shmpool.connect(address) as reader:
        for lease in [pool.lease(nbytes) for nbytes in SIZES * 2]:
            lease.release()
        direct = pool.lease(2 * MIB)
        direct.write(pattern(2 * MIB))
        open_before = publish(pool, pattern(1000))
        with reader.open(open_before) as buffer:
            broker.end(signal.SIGKILL)
            for number in range(300):
                nbytes = SIZES[number % 3]
                handle = publish(pool, pattern(nbytes, number)) if number else direct.publish()
                with reader.open(handle) as other:
                    assert other.view == (pattern(nbytes, number) if number else pattern(2 * MIB))
                with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
                    reader.open(handle)
            assert buffer.view == pattern(1000)
        assert is_gone(pool)
        daemon()
        eventually(lambda: len(connected(pool)) == 2, "both clients' return")
        stats = pool.stats()
        assert (stats.pool_id, stats.epoch) == (f"{handle.pool_id:016x}", 2)
        eventually(lambda: not pool.stats().active_buffers)
        assert publish_and_read(pool, reader) == b"after"


def publish_and_read(pool: shmpool.Pool, reader: shmpool.Pool) -> bytes:
    with pool.lease(5, timeout=PATIENCE) as lease:
        lease.write(b"after")
        handle = lease.publish()
    with reader.open(handle) as buffer:
        return bytes(buffer.view)


def test_dead_broker_is_a_timeout_for_who_needs_it_and_timeout_zero_does_not_wait(
    daemon: StartDaemon, address: str
) -> None:
    broker = daemon()
    with shmpool.connect(address) as pool:
        broker.end(signal.SIGKILL)
        eventually(lambda: pool._session is not None and pool._session.connection is None)
        for strategy, nbytes in ((Strategy.POOLED, 1000), (Strategy.CHUNKED, 300_000), (Strategy.DIRECT, MIB)):
            started = time.monotonic()
            with pytest.raises(LeaseTimeout, match=address):
                pool.lease(nbytes, strategy=strategy, timeout=0)
            with pytest.raises(LeaseTimeout, match="away"):
                pool.lease(nbytes, strategy=strategy, timeout=0.05)
            assert time.monotonic() - started < SOON
        with pytest.raises(shmpool.BrokerUnavailable, match="shmpoold"):
            pool.stats()
        with pytest.raises(shmpool.BrokerUnavailable, match=address):
            shmpool.connect(address, timeout=0.2)


@pytest.mark.parametrize("held", [False, True])
def test_close_does_not_hang_without_a_broker(daemon: StartDaemon, address: str, held: bool) -> None:
    broker = daemon()
    pool = shmpool.connect(address)
    lease = pool.lease(1000)
    handle = publish(pool, b"for nobody")
    if not held:
        lease.release()
        pool.discard(handle)
    broker.end(signal.SIGKILL)
    started = time.monotonic()
    if held:
        with pytest.warns(ResourceWarning, match="open when its pool was closed"):
            pool.close()
    else:
        pool.close()
    assert time.monotonic() - started < SOON


def test_blocked_lease_succeeds_when_the_broker_comes_back(daemon: StartDaemon, address: str) -> None:
    broker = daemon(on_stop="keep")
    with shmpool.connect(address) as pool:
        broker.end(signal.SIGTERM)
        eventually(lambda: is_gone(pool))
        got: list[bytes] = []
        started = time.monotonic()

        def wait() -> None:
            with pool.lease(300_000, timeout=2 * PATIENCE) as lease:
                lease.write(pattern(300_000))
                handle = lease.publish()
            with pool.open(handle) as buffer:
                got.append(bytes(buffer.view))

        thread = threading.Thread(target=wait)
        thread.start()
        daemon()
        thread.join(2 * PATIENCE)
        assert got == [pattern(300_000)]
        assert time.monotonic() - started < PATIENCE, "it was served by its timeout, not by the new broker"
        assert pool.stats().epoch == 2


def test_own_slot_that_comes_back_serves_a_blocked_lease_without_a_broker(daemon: StartDaemon, address: str) -> None:
    broker = daemon(magazine_first_batch=1)
    with shmpool.connect(address) as pool:
        lease = pool.lease(1000)
        broker.end(signal.SIGKILL)
        eventually(lambda: pool._session is not None and pool._session.connection is None)
        got: list[int] = []
        thread = threading.Thread(target=lambda: [got.append(1), pool.lease(1000, timeout=60).release(), got.append(2)])
        thread.start()
        eventually(lambda: got == [1])
        lease.release()
        thread.join(15)
        assert got == [1, 2]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL])
def test_restarted_broker_keeps_the_pool_and_what_everybody_has(
    daemon: StartDaemon, address: str, number: signal.Signals
) -> None:
    broker = daemon(on_stop="keep")
    with shmpool.connect(address) as pool, shmpool.connect(address) as reader:
        seats = sorted(connected(pool))
        leases = [pool.lease(nbytes) for nbytes in (*SIZES, 2 * MIB)]
        for lease in leases:
            lease.view[:] = pattern(lease.nbytes)
        handles = [publish_late(pool, nbytes) for nbytes in (*SIZES, 2 * MIB)]
        buffers = [reader.open(publish_late(pool, nbytes)) for nbytes in (*SIZES, 2 * MIB)]
        array = np.frombuffer(buffers[0].view, dtype=np.uint8)
        broker.end(number)
        eventually(lambda: is_gone(pool))
        buffers.pop(1).release()
        daemon()
        eventually(lambda: sorted(connected(pool)) == seats)
        stats = pool.stats()
        assert (stats.pool_id, stats.epoch) == (f"{handles[0].pool_id:016x}", 2)
        assert stats.active_buffers == 4 + 4 + 3
        assert all(lease.view == pattern(lease.nbytes) for lease in leases)
        handles += [lease.publish() for lease in leases]
        for handle in handles:
            with reader.open(handle) as buffer:
                assert buffer.view == pattern(handle.nbytes)
        assert all(buffer.view == pattern(buffer.nbytes) for buffer in buffers)
        for buffer in buffers:
            buffer.release()
        assert pool.stats().active_buffers == 1
        assert array.tobytes() == pattern(1000)
        del array
        eventually(lambda: pool.stats().active_buffers == 0)
        assert not pool.stats().alerts
    with shmpool.connect(address) as last:
        eventually(lambda: out(last.stats()) == 0)


def publish_late(pool: shmpool.Pool, nbytes: int) -> Handle:
    with pool.lease(nbytes, timeout=PATIENCE) as lease:
        lease.write(pattern(nbytes))
        return lease.publish()


def test_client_killed_while_the_broker_is_away_is_swept_by_the_next(daemon: StartDaemon, address: str) -> None:
    broker = daemon()
    with shmpool.connect(address) as pool:
        with child("forkserver", client_workers.lease_and_wait, address, [1000, 300_000, 2 * MIB], 3, 2) as (
            process,
            pipe,
        ):
            handles = [Handle(raw) for raw in hear(pipe)]
            broker.end(signal.SIGKILL)
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            daemon()
            eventually(lambda: len(connected(pool)) == 1)
            for number, handle in enumerate(handles):
                with pool.open(handle) as buffer:
                    assert bytes(buffer.view) == b"%d" % number * 1000
        eventually(lambda: out(pool.stats()) == 0)


def test_many_restarts_lose_nothing(daemon: StartDaemon, address: str) -> None:
    """The broker is killed three times while a client works as fast as it can."""
    broker = daemon()
    with shmpool.connect(address) as pool, shmpool.connect(address) as reader:
        stop = threading.Event()
        errors: list[BaseException] = []
        done: list[int] = []

        def work() -> None:
            number = 0
            try:
                while not stop.is_set():
                    number += 1
                    nbytes = (*SIZES, MIB)[number % 4]
                    with pool.lease(nbytes, timeout=PATIENCE) as lease:
                        lease.view[:8] = b"%08d" % number
                        handle = lease.publish()
                    with reader.open(handle) as buffer:
                        assert bytes(buffer.view[:8]) == b"%08d" % number
                    done.append(number)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(3):
                before = len(done)
                eventually(lambda before=before: len(done) > before + 50 or errors)  # type: ignore[misc]
                broker.end(signal.SIGKILL)
                broker = daemon()
        finally:
            stop.set()
            thread.join(30)
        assert errors == []
        eventually(lambda: len(connected(pool)) == 2)
        eventually(lambda: not pool.stats().active_buffers)
        assert pool.stats().epoch == 4
        assert not pool.stats().alerts


def test_another_pool_at_the_same_address_ends_the_old_leases_and_serves_new_ones(
    daemon: StartDaemon, address: str
) -> None:
    broker = daemon()
    with shmpool.connect(address) as pool:
        lease = pool.lease(1000)
        lease.view[:] = b"o" * 1000
        buffer = pool.open(publish_late(pool, 1000))
        handle = publish_late(pool, 1000)
        broker.end(signal.SIGTERM)  # on_stop is remove: the pool is gone
        daemon()
        eventually(lambda: pool._session is not None and pool._session.is_over)
        assert buffer.view == pattern(1000)
        assert lease.view == b"o" * 1000
        with pytest.raises(shmpool.LeaseReleased, match="seat"):
            lease.publish()
        buffer.release()
        with pytest.raises(shmpool.StaleHandle):
            pool.open(handle)
        assert publish_and_read(pool, pool) == b"after"
        assert pool.stats().epoch == 1
        eventually(lambda: pool.stats().active_buffers == 0)


def test_what_is_first_looked_for_when_the_pool_was_removed_is_an_error_of_ours(
    daemon: StartDaemon, address: str
) -> None:
    """Segments are opened when they are first needed: those of a tier, and of what was leased ahead."""
    broker = daemon(memory_limit="64MiB", magazine_idle="1h")
    with shmpool.connect(address) as writer, shmpool.connect(address) as reader:
        published = [writer.put(bytes(nbytes)) for nbytes in SIZES]
        leased = [writer.lease(2 * MIB) for _ in range(3)]  # of one size: the next one is asked for
        published += [lease.publish() for lease in leased]
        eventually(lambda: writer.stats().tiers[-1].idle == 1, "what is leased ahead")
        broker.end(signal.SIGTERM)  # on_stop is remove
        for handle in published:
            for verb in (reader.open_reader, reader.open, reader.get):
                with pytest.raises(shmpool.StaleHandle, match="gone"):
                    verb(handle)
            with pytest.raises(shmpool.StaleHandle, match="gone"):
                reader.open(handle, writable=True)
        with pytest.raises(shmpool.BrokerUnavailable, match="its pool was removed"):
            writer.lease(2 * MIB)


def test_view_of_a_pool_that_was_replaced_is_a_copy_in_a_forked_child(daemon: StartDaemon, address: str) -> None:
    broker = daemon()
    with shmpool.connect(address) as pool:
        lease = pool.lease(1000)
        kept = lease.view[:]
        kept[:] = b"o" * 1000
        broker.end(signal.SIGTERM)
        daemon()
        eventually(lambda: pool._session is not None and pool._session.is_over)
        del lease
        publish_and_read(pool, pool)

        def scribble() -> bytes:
            seen = bytes(kept[:4])
            kept[:4] = b"CHLD"
            return seen

        assert in_fork(scribble) == b"oooo"
        assert kept == b"o" * 1000


def test_stopped_broker_delays_only_who_needs_it(daemon: StartDaemon, address: str) -> None:
    broker = daemon(magazine_idle="1h")
    with shmpool.connect(address) as pool, shmpool.connect(address) as reader:
        pool.lease(1000).release()
        broker.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(100):
                reader.open(publish(pool, pattern(1000))).release()
            with pytest.raises(LeaseTimeout):
                pool.lease(64 * KIB, timeout=0.05)
        finally:
            broker.process.send_signal(signal.SIGCONT)
        with pool.lease(64 * KIB, timeout=PATIENCE) as lease:
            lease.write(pattern(64 * KIB))


def test_slot_given_back_during_a_reconnect_is_not_taken_for_a_lost_grant(broker: shmpool.Broker) -> None:
    """The helper adopts rows that say (IDLE, own seat) and that it does not know; another
    thread gives one back just then. Forced: the reconnect runs between forget and store."""
    with broker.connect() as pool, broker.connect() as other:
        pool.lease(100).release()
        session = pool._session
        assert session is not None
        reconnects: list[threading.Thread] = []

        class Owned(dict[int, Any]):
            def __delitem__(self, row: int) -> None:
                super().__delitem__(row)
                reconnects.append(threading.Thread(target=session._adopt_unknown))
                reconnects[-1].start()
                reconnects[-1].join(0.1)  # it ends by then, unless it rightly waits for us

        session._owned = Owned(session._owned)
        session.return_all()
        for thread in reconnects:
            thread.join()
        assert reconnects
        assert not any(magazine.ready for magazine in session.magazines.values())
        session._owned = dict(session._owned)
        with pool.lease(100) as mine, other.lease(100) as theirs:
            assert mine._slot.row != theirs._slot.row


def test_pool_that_was_replaced_while_no_broker_answers_closes_its_descriptors_once(
    daemon: StartDaemon, address: str
) -> None:
    """A second close of a number would be of whatever has that number by then."""
    broker = daemon()
    with shmpool.connect(address, timeout=PATIENCE) as pool:
        session = pool._session
        broker.end(signal.SIGTERM)  # on_stop is remove: the next pool is another
        broker = daemon()
        eventually(lambda: session is not None and session.is_over, "the old seat's end")
        broker.end(signal.SIGTERM)
        mine = []
        try:
            for _ in range(5):
                with pytest.raises(shmpool.BrokerUnavailable):
                    pool.lease(1000, timeout=0.1)
                mine += [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
            assert all(os.fstat(fd) for fd in mine)
        finally:
            for fd in mine:
                os.close(fd)
        daemon()
        assert publish_and_read(pool, pool) == b"after"
