"""Handles: what they name, how often they open, and what is refused."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import random
import struct
import threading
from collections.abc import Iterator
from typing import Any

import client_workers
import pytest
from client_helpers import KIB, MIB, Connect, Start, child, eventually, hear, out, pattern

import shmpool
from shmpool import Handle, HandleUsed, InvalidHandle, StaleHandle, Strategy
from shmpool.protocol.handle import pack_handle, unpack_handle
from shmpool.protocol.ledger import NBYTES_BITS
from shmpool.protocol.names import tickets_path
from shmpool.seat import expiry, tickets
from shmpool.seat.tickets import BUSY_SECONDS
from shmpool.system.locks import F_OFD_SETLK

SIZES = [100, 100_000, 300_000, 2 * MIB]


def publish(pool: shmpool.Pool, data: bytes = b"content") -> Handle:
    with pool.lease(len(data)) as lease:
        lease.write(data)
        return lease.publish()


def test_handle_is_24_bytes_hashable_and_frozen(pool: shmpool.Pool) -> None:
    handle = publish(pool)
    assert len(bytes(handle)) == 24
    assert Handle.from_bytes(bytes(handle)) == handle
    assert Handle.from_bytes(bytearray(handle)) in {handle}
    assert handle.nbytes == 7
    with pytest.raises(AttributeError):
        handle.nbytes = 8  # type: ignore[misc]
    pool.discard(handle)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_handle_s_bytes_are_as_good_for_discarding_as_for_opening(pool: shmpool.Pool, kind: type[Any]) -> None:
    with pool.open(kind(publish(pool))) as buffer:
        assert bytes(buffer.view) == b"content"
    handle = publish(pool)
    pool.discard(kind(handle))
    for use in (pool.open, pool.discard):
        with pytest.raises(HandleUsed):
            use(kind(handle))
        with pytest.raises(InvalidHandle):
            use(kind(bytes(handle)[:-1]))
        with pytest.raises(TypeError):
            use("x" * 24)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_handle_opens(pool: shmpool.Pool, protocol: int) -> None:
    handle = pickle.loads(pickle.dumps(publish(pool, b"pickled"), protocol))
    assert type(handle) is Handle
    with pool.open(handle) as buffer:
        assert bytes(buffer.view) == b"pickled"


def test_handle_pickles_into_a_spawned_process(pool: shmpool.Pool) -> None:
    handle = publish(pool)
    with child("forkserver", client_workers.say_pickled, pickle.dumps(handle)) as (_, pipe):
        name, raw, nbytes, _ = hear(pipe)
    assert (name, raw, nbytes) == ("Handle", bytes(handle), 7)
    pool.discard(handle)


def test_plain_bytes_open_like_the_handle(pool: shmpool.Pool) -> None:
    with pool.open(bytes(publish(pool, b"raw"))) as buffer:  # type: ignore[arg-type]
        assert bytes(buffer.view) == b"raw"


# --- once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", SIZES)
def test_open_handle_is_used_for_everybody(connect: Connect, nbytes: int) -> None:
    pool, other = connect(), connect()
    handle = publish(pool, pattern(nbytes))
    with other.open(handle) as buffer:
        for party in (pool, other):
            with pytest.raises(HandleUsed):
                party.open(handle)
            with pytest.raises(HandleUsed):
                party.discard(handle)
        assert buffer.view == pattern(nbytes)


@pytest.mark.parametrize("nbytes", SIZES[:3])
def test_released_handle_is_used_until_the_row_is_reused_then_stale(connect: Connect, nbytes: int) -> None:
    pool, other = connect(), connect()
    handle = publish(pool, pattern(nbytes))
    with other.open(handle):
        pass
    with pytest.raises(HandleUsed) as used:
        other.open(handle)
    assert isinstance(used.value, LookupError)
    for _ in range(8):  # those that came with it are leased first
        again = publish(pool, pattern(nbytes))
        if again.row == handle.row:
            break
        pool.discard(again)
    assert again.row == handle.row, "the slot was not recycled: the test shows nothing"
    for party in (pool, other):
        for refused in (party.open, party.discard):
            with pytest.raises(StaleHandle, match="generation"):
                refused(handle)
    with other.open(again) as buffer:
        assert buffer.view == pattern(nbytes)


def test_direct_handle_is_stale_when_its_segment_is_gone(connect: Connect) -> None:
    pool, other = connect(), connect()
    handle = publish(pool, b"d" * MIB)
    with other.open(handle):
        pass
    eventually(lambda: out(pool.stats()) == 0, "the direct segment's end")
    for party in (pool, other):
        with pytest.raises((StaleHandle, HandleUsed)):
            party.open(handle)


@pytest.mark.parametrize("nbytes", SIZES)
def test_discarded_handle_is_used_and_its_buffer_comes_back(pool: shmpool.Pool, nbytes: int) -> None:
    handle = publish(pool, pattern(nbytes))
    pool.discard(handle)
    with pytest.raises((HandleUsed, StaleHandle)):
        pool.open(handle)
    with pytest.raises((HandleUsed, StaleHandle)):
        pool.discard(handle)
    eventually(lambda: pool.stats().active_buffers == 0)


# --- several readers ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 14))
@pytest.mark.parametrize("nbytes", [1000, 2 * MIB])
def test_each_of_several_handles_opens_once(connect: Connect, n: int, nbytes: int) -> None:
    pool, other = connect(), connect()
    with pool.lease(nbytes) as lease:
        lease.write(pattern(nbytes))
        handles = lease.publish_many(n)
    assert len(set(handles)) == n
    buffers = [(other if i % 2 else pool).open(handle) for i, handle in enumerate(handles)]
    assert all(buffer.view == pattern(nbytes) for buffer in buffers)
    for handle in handles:
        with pytest.raises(HandleUsed):
            pool.open(handle)
    for buffer in buffers[1:]:
        buffer.release()
    assert pool.stats().active_buffers == 1
    assert buffers[0].view == pattern(nbytes)
    buffers[0].release()
    eventually(lambda: pool.stats().active_buffers == 0)


@pytest.mark.parametrize("n", [0, 14, -1, 255, 256, 2**64, True, 1.0, "1", None])
def test_impossible_number_of_readers_is_refused_and_the_lease_goes_on(pool: shmpool.Pool, n: Any) -> None:
    for nbytes in (10, MIB):
        with pool.lease(nbytes) as lease:
            with pytest.raises(ValueError, match="1 to 13"):
                lease.publish_many(n)
            lease.view[:3] = b"abc"
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert bytes(buffer.view[:3]) == b"abc"


def test_slot_is_not_reused_before_its_slowest_reader_is_done(connect: Connect) -> None:
    pool, other = connect(), connect()
    with pool.lease(1000) as lease:
        lease.write(b"a" * 1000)
        first, second, third = lease.publish_many(3)
    other.open(first).release()
    pool.discard(second)
    assert first.row not in {publish_and_open(pool, other) for _ in range(50)}
    with other.open(third) as buffer:
        assert bytes(buffer.view) == b"a" * 1000
    again = [pool.lease(1000) for _ in range(9)]
    handles = [lease.publish() for lease in again]
    assert first.row in {handle.row for handle in handles}
    for handle in handles:
        pool.discard(handle)


def publish_and_open(pool: shmpool.Pool, other: shmpool.Pool) -> int:
    handle = publish(pool, b"c" * 1000)
    other.open(handle).release()
    return handle.row


# --- no handles -----------------------------------------------------------------------------------


def test_handle_of_another_pool_is_stale(pool: shmpool.Pool, start: Start) -> None:
    with start().connect() as elsewhere:
        handle = publish(elsewhere)
        for refused in (pool.open, pool.discard):
            with pytest.raises(StaleHandle, match=f"{elsewhere.stats().pool_id}"):
                refused(handle)
        elsewhere.discard(handle)


def test_random_handles_are_stale(pool: shmpool.Pool) -> None:
    for _ in range(500):
        for refused in (pool.open, pool.discard):
            with pytest.raises(StaleHandle):
                refused(Handle(os.urandom(24)))


def test_forged_handles_of_this_pool_are_refused_and_change_nothing(pool: shmpool.Pool) -> None:
    handles = [publish(pool, b"f" * nbytes) for nbytes in SIZES]
    dice = random.Random(4)
    for handle in handles:
        pool_id, granted, tail = unpack_handle(handle)
        forged = {(granted ^ 1 << bit, tail) for bit in range(64)} | {(granted, tail ^ 1 << bit) for bit in range(64)}
        forged |= {(dice.getrandbits(64), tail) for _ in range(50)} | {
            (granted, dice.getrandbits(64)) for _ in range(50)
        }
        forged |= {(0, tail), (granted, 0), (2**64 - 1, tail), (granted, 2**64 - 1)}
        for word, where in forged - {(granted, tail)}:
            for refused in (pool.open, pool.discard):
                with pytest.raises((StaleHandle, HandleUsed)):
                    refused(Handle(pack_handle(pool_id, word, where)))
    for handle in handles:
        with pool.open(handle) as buffer:
            assert buffer.view == b"f" * handle.nbytes


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 23, b"x" * 25, b"x" * 1000])
def test_wrong_length_is_no_handle(pool: shmpool.Pool, data: bytes) -> None:
    for refused in (pool.open, pool.discard, Handle.from_bytes, lambda raw: pool.open(Handle(raw))):
        with pytest.raises(InvalidHandle, match=str(len(data))) as wrong:
            refused(data)  # type: ignore[arg-type]
        assert isinstance(wrong.value, ValueError)
        assert isinstance(wrong.value, StaleHandle)


@pytest.mark.parametrize("thing", [None, 24, "x" * 24, [0] * 24, ["x"] * 24, object(), {}])
def test_what_is_not_bytes_is_a_type_error(pool: shmpool.Pool, thing: Any) -> None:
    for refused in (pool.open, pool.discard):
        with pytest.raises(TypeError):
            refused(thing)


def test_handle_of_a_lease_of_each_strategy_names_its_bytes(pool: shmpool.Pool) -> None:
    for strategy in (Strategy.POOLED, Strategy.CHUNKED, Strategy.DIRECT):
        for nbytes in (0, 1, 60 * KIB):
            with pool.lease(nbytes, strategy=strategy) as lease:
                lease.view[:] = b"z" * nbytes
                handle = lease.publish()
            assert handle.nbytes == nbytes
            assert str(nbytes) in repr(handle)
            pool.discard(handle)


@contextlib.contextmanager
def all_tickets_busy(broker: shmpool.Broker, seconds: float) -> Iterator[None]:
    """Somebody has the locks of all tickets for so long: as one has a single one who is stopped in the middle of
    opening what was published there before."""
    with open(tickets_path(os.path.realpath(broker.address)), "rb+") as file:

        def set_lock(kind: int) -> None:
            fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 1, 1 << 31, 0))

        set_lock(fcntl.F_WRLCK)
        unlocking = threading.Timer(seconds, set_lock, [fcntl.F_UNLCK])
        unlocking.start()
        yield
        unlocking.cancel()
        unlocking.join()


def test_a_good_handle_whose_ticket_is_only_busy_is_not_used(start: Start) -> None:
    broker = start(tickets="locks")
    with broker.connect() as pool, pool.open(publish(pool)) as buffer:
        good, used = publish(pool), publish(pool)
        pool.discard(used)
        with all_tickets_busy(broker, 10 * BUSY_SECONDS), pool.open(good) as opened:
            assert bytes(opened.view) == b"content"
        refused = pytest.raises(HandleUsed, match="was opened and released, discarded or expired")
        with all_tickets_busy(broker, 60), refused:
            pool.open(used)
        with all_tickets_busy(broker, 10 * BUSY_SECONDS):
            pool.discard(publish(pool))
        assert bytes(buffer.view) == b"content"


def test_a_ttl_is_kept_though_the_ticket_is_busy_when_it_is_over(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[HandleUsed] = []

    def discard_handle(*args: Any, real: Any = tickets.discard_handle) -> None:
        try:
            real(*args)
        except HandleUsed as error:
            tried.append(error)
            raise

    monkeypatch.setattr(tickets, "STOPPED_SECONDS", BUSY_SECONDS)
    monkeypatch.setattr(expiry, "AGAIN", 2 * BUSY_SECONDS)
    monkeypatch.setattr(tickets, "discard_handle", discard_handle)
    broker = start(tickets="locks")
    with broker.connect() as pool:
        with all_tickets_busy(broker, 60):
            with pool.lease(100) as lease:
                handle = lease.publish(ttl=0.001)
            eventually(lambda: tried)
        eventually(lambda: tickets.is_done(pool._session, *_granted_and_index(handle)))


def _granted_and_index(handle: Handle) -> tuple[int, int]:
    _, granted, tail = unpack_handle(handle)
    return granted, tail >> NBYTES_BITS
