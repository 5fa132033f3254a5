"""Slots that were returned and are granted again: seen through the maps that are there already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from client_helpers import KIB, MIB, Common, Start, pattern

import shmpool
from shmpool.link.connection import Connection
from shmpool.protocol.messages import Bell, Message, Return
from shmpool.seat import custody

SIZES = [1, 4 * KIB, 256 * KIB, 700 * KIB]


@pytest.fixture(scope="module")
def patient() -> Iterator[Common]:
    one = Common(memory_limit="16MiB", magazine_idle="1h")
    one.broker()
    yield one
    one.close()


@pytest.fixture
def pool(patient: Common) -> Iterator[shmpool.Pool]:
    with patient.used() as broker, broker.connect() as pool:
        yield pool


def maps_of(pool: shmpool.Pool) -> int:
    """Maps of the pool's tiers that this process has."""
    with open("/proc/self/maps") as file:
        return sum(f"{pool._session.pool_id:016x}-tier" in line for line in file)


def lease_and_return(pool: shmpool.Pool, nbytes: int, seed: int) -> None:
    leases = [pool.lease(nbytes) for _ in range(4)]
    for lease in leases:
        lease.write(pattern(nbytes, seed))
        assert lease.view == pattern(nbytes, seed)
        lease.release()
    pool._session.return_all()


@pytest.mark.parametrize("nbytes", SIZES)
def test_what_is_granted_again_is_not_mapped_again(pool: shmpool.Pool, nbytes: int) -> None:
    lease_and_return(pool, nbytes, 1)
    maps = maps_of(pool)
    for seed in range(2, 6):
        lease_and_return(pool, nbytes, seed)
        assert maps_of(pool) == maps


def test_runs_of_another_length_get_maps_of_their_own(pool: shmpool.Pool) -> None:
    for nbytes in (300 * KIB, 900 * KIB, 300 * KIB, 500 * KIB, 900 * KIB):
        lease_and_return(pool, nbytes, nbytes)


def test_what_a_user_still_sees_is_not_given_a_second_user(pool: shmpool.Pool) -> None:
    lease = pool.lease(4 * KIB)
    lease.write(pattern(4 * KIB))
    seen = lease.view[:16]
    with pytest.warns(ResourceWarning, match="still alive"):
        lease.release()
    pool._session.return_all()
    lease_and_return(pool, 4 * KIB, 9)
    assert seen == pattern(4 * KIB)[:16]


def test_no_more_maps_are_kept_than_the_bound(pool: shmpool.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custody, "MAX_RETURNED", 2)
    lease_and_return(pool, 4 * KIB, 1)
    assert maps_of(pool) <= 2


def test_memory_that_was_cooled_meanwhile_is_there_again(pool: shmpool.Pool) -> None:
    lease_and_return(pool, 4 * KIB, 1)
    memory = pool.stats().memory
    whole = pool.lease(memory["limit"] - memory["overhead"] - MIB // 4, strategy=shmpool.Strategy.DIRECT)
    assert pool.stats().memory["by_state"]["free"] < MIB // 4  # what was idle has no pages now
    whole.release()
    lease_and_return(pool, 4 * KIB, 2)


def test_the_map_of_a_direct_segment_goes_with_it(pool: shmpool.Pool) -> None:
    """Also where it is returned as one that an exception left behind (`recovery`), its map made."""
    lease = pool.lease(2 * MIB)
    lease.view[0] = 1
    slot, session = lease._slot, pool._session
    lease._take_view([])
    session.return_to_broker([slot])
    assert slot.window is None
    with open("/proc/self/maps") as file:
        assert not any(f"{session.pool_id:016x}-direct" in line for line in file)
    lease.release()


def test_what_is_returned_without_a_word_is_found_while_somebody_waits(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start(memory_limit="4MiB", lease_timeout="30s")
    with broker.connect() as holder, broker.connect() as other:
        leases = []
        with contextlib.suppress(shmpool.LeaseTimeout):
            while True:
                leases.append(holder.lease(64 * KIB, timeout=0))
        told: list[object] = []
        monkeypatch.setattr(Connection, "send", _send_all_but_bells(told))
        for lease in leases:
            lease.release()
        holder._session.return_all()
        assert told
        with contextlib.ExitStack() as kept:
            for _ in leases:
                kept.enter_context(other.lease(64 * KIB))
            monkeypatch.undo()


def _send_all_but_bells(told: list[object]) -> Callable[..., None]:
    send = Connection.send

    def send_others(connection: Connection, *messages: Message) -> None:
        told.extend(message for message in messages if isinstance(message, Return | Bell))
        send(connection, *(message for message in messages if not isinstance(message, Return | Bell)))

    return send_others
