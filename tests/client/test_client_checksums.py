"""A pool with checksums: bytes that changed between publish and open are never handed out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from client_helpers import KIB, MIB, Common, assert_settles, pattern

import shmpool
from shmpool.protocol.names import PREFIX

SIZES = [1, 3 * KIB, 200 * KIB, 300 * KIB, 2 * MIB]


@pytest.fixture(scope="module")
def summed() -> Iterator[Common]:
    one = Common(checksums=True)
    one.broker()
    yield one
    one.close()


@pytest.fixture
def broker(summed: Common) -> Iterator[shmpool.Broker]:
    with summed.used() as broker:
        yield broker


def damage(pool_id: str, content: bytes) -> None:
    """Change one byte of *content* wherever the pool has it, as a peer could that may write it."""
    needle, found = content[: 4 * KIB], 0
    for name in os.listdir("/dev/shm"):
        if name.startswith(f"{PREFIX}{pool_id}-") and "ledger" not in name and "header" not in name:
            fd = os.open(f"/dev/shm/{name}", os.O_RDWR)
            try:
                end = os.lseek(fd, 0, os.SEEK_END)
                at = _next_data(fd, 0)
                while at < end:
                    if os.pread(fd, len(needle), at) == needle:
                        os.pwrite(fd, bytes([needle[0] ^ 1]), at)
                        found += 1
                    at = _next_data(fd, at + 4 * KIB)
            finally:
                os.close(fd)
    assert found == 1


def _next_data(fd: int, at: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # nothing but holes from here on
        return 1 << 62


def publish(pool: shmpool.Pool, content: bytes, *, by_view: bool) -> shmpool.Handle:
    with pool.lease(len(content)) as lease:
        if by_view:
            lease.view[:] = content
        else:
            lease.write(content)
        return lease.publish()


@pytest.mark.parametrize("by_view", [False, True])
@pytest.mark.parametrize("nbytes", SIZES)
def test_sound_bytes_are_opened(broker: shmpool.Broker, nbytes: int, by_view: bool) -> None:
    with broker.connect() as writer, broker.connect() as reader:
        for number in range(3):
            handle = publish(writer, pattern(nbytes, number), by_view=by_view)
            with reader.open(handle) as buffer:
                assert buffer.view == pattern(nbytes, number)


@pytest.mark.parametrize("by_view", [False, True])
@pytest.mark.parametrize("nbytes", SIZES[1:])
def test_changed_bytes_are_an_error_and_come_back(broker: shmpool.Broker, nbytes: int, by_view: bool) -> None:
    content = os.urandom(nbytes)
    with broker.connect() as writer, broker.connect() as reader:
        handle = publish(writer, content, by_view=by_view)
        damage(f"{handle.pool_id:016x}", content)
        with pytest.raises(shmpool.ChecksumError, match="CRC-32"):
            reader.open(handle)
        with pytest.raises((shmpool.HandleUsed, shmpool.StaleHandle)):
            reader.open(handle)
    assert_settles(broker.address)


def test_twelve_readers_verify_the_same_bytes(broker: shmpool.Broker) -> None:
    with broker.connect() as pool, pool.lease(5 * KIB) as lease:
        lease.write(pattern(5 * KIB))
        with pytest.raises(ValueError, match="1 to 12 readers"):
            lease.publish_many(13)
        for handle in lease.publish_many(12):
            with pool.open(handle) as buffer:
                assert buffer.view == pattern(5 * KIB)


# --- shared publications ----------------------------------------------------------------------------


def share(pool: shmpool.Pool, content: bytes, name: str, *, by_view: bool) -> shmpool.Shared:
    with pool.lease(len(content)) as lease:
        if by_view:
            lease.view[:] = content
        else:
            lease.write(content)
        return lease.publish_shared(name)


@pytest.mark.parametrize("by_view", [False, True])
@pytest.mark.parametrize("nbytes", SIZES)
def test_sound_shared_bytes_are_opened_by_all(broker: shmpool.Broker, nbytes: int, by_view: bool) -> None:
    content = pattern(nbytes, 5)
    with broker.connect() as maker, broker.connect() as reader, broker.connect() as late:
        shared = share(maker, content, "n" * 88, by_view=by_view)
        for pool in (reader, late, reader, maker):
            with pool.find("n" * 88).open() as buffer:
                assert buffer.view == content
        shared.release()


@pytest.mark.parametrize("nbytes", SIZES[1:])
def test_changed_shared_bytes_are_an_error_at_each_open_of_who_never_saw_sound_ones(
    broker: shmpool.Broker, nbytes: int
) -> None:
    content = os.urandom(nbytes)
    with broker.connect() as maker, broker.connect() as early, broker.connect() as late:
        shared = share(maker, content, "it", by_view=True)
        with early.find("it").open() as buffer:
            damage(maker.stats().pool_id, content)
            for _ in range(2):
                with late.find("it") as found, pytest.raises(shmpool.ChecksumError, match="CRC-32"):
                    found.open()
            early.find("it").open().release()  # verified once: a further open costs no pass over the bytes
            buffer.release()
        shared.release()
    assert_settles(broker.address)


def test_names_leave_room_for_the_checksum(broker: shmpool.Broker) -> None:
    with broker.connect() as pool, pool.lease(1) as lease:
        with pytest.raises(ValueError, match="1 to 88 bytes of UTF-8, in a pool with checksums, this one has 89"):
            lease.publish_shared("n" * 89)
        with pytest.raises(ValueError, match="88"):
            pool.get_or_share("n" * 89, list)
        assert pool.names() == []


def test_a_queue_whose_memory_changes_is_not_summed(broker: shmpool.Broker) -> None:
    with broker.connect() as pool, broker.connect() as other:
        queue = pool.queue("q")
        queue.put("one")
        assert other.queue("q").get(timeout=20) == "one"
