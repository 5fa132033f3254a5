"""Sending or copying the thing itself, where its handle or address is meant; and who keeps whom."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from client_helpers import MIB, Common, eventually

import shmpool
from shmpool.seat.session import Session

WAYS: list[Callable[[Any], Any]] = [pickle.dumps, copy.copy, copy.deepcopy, lambda thing: pickle.dumps(thing, 0)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("nbytes", [100, 300_000, 2 * MIB])
def test_leases_and_buffers_are_refused_and_stay_what_they_are(
    pool: shmpool.Pool, way: Callable[[Any], Any], nbytes: int
) -> None:
    with pool.lease(nbytes) as lease:
        lease.write(b"x" * nbytes)
        with pytest.raises(TypeError, match=r"Lease cannot be copied or pickled.*send the handle"):
            way(lease)
        handle = lease.publish()
    with pool.open(handle) as buffer:
        with pytest.raises(TypeError, match=r"Buffer cannot be copied or pickled.*a handle for each reader"):
            way(buffer)
        assert bytes(buffer) == b"x" * nbytes
    for over in (lease, buffer):
        with pytest.raises(TypeError, match="cannot be copied"):
            way(over)


def read_stream(pool: shmpool.Pool) -> Any:
    with pool.stream() as writer:
        writer.write(b"x")
    return pool.open_reader(writer.handle)


MAKERS: list[Callable[[shmpool.Pool], Any]] = [
    lambda pool: pool.open_writer(100),
    lambda pool: pool.stream(),
    lambda pool: pool.open_reader(pool.lease(100).publish()),
    read_stream,
    lambda pool: pool.empty(100, "u1"),
    lambda pool: pool.share(b"x").open(),
    lambda pool: shmpool.ChunkedTeeReader(io.BytesIO(b"x"), io.BytesIO(), pool),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", MAKERS)
def test_what_is_made_over_a_buffer_is_refused_and_stays_what_it_is(
    pool: shmpool.Pool, make: Callable[[shmpool.Pool], Any]
) -> None:
    """A shallow copy gave the memory of the first back with its own end."""
    one = make(pool)
    name = type(one).__name__.removeprefix("Shared")
    for way in WAYS:
        with pytest.raises(TypeError, match=rf"a {name} cannot be copied or pickled"):
            way(one)
    gc.collect()
    getattr(one, "close", getattr(one, "release", None))()
    del one
    gc.collect()
    pool.reclaim()
    eventually(lambda: pool.stats().active_buffers == 0)


def test_brokers_are_refused_and_their_address_is_what_to_send() -> None:
    with shmpool.Broker(memory_limit="16MiB", max_clients=4) as broker:
        for way in WAYS:
            with pytest.raises(TypeError, match=r"Broker cannot be copied or pickled.*broker\.address"):
                way(broker)
        assert broker.is_running()


def test_a_broker_that_nobody_names_serves_as_long_as_its_pool_is_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = shmpool.Broker(memory_limit="16MiB", max_clients=4).connect()
        gc.collect()
        with pool.lease(100) as lease:  # asks the broker
            lease.write(bytes(100))
        (client,) = pool.stats().clients
        assert client.leases == 0
        address = pool.address
        pool.close()
    gc.collect()
    with pytest.raises(shmpool.BrokerUnavailable):
        shmpool.connect(address, timeout=0.1)


def test_a_pool_that_is_collected_lets_its_broker_go() -> None:
    pools = [shmpool.Broker(memory_limit="16MiB", max_clients=4).connect()]
    address = pools[0].address
    with pytest.warns(ResourceWarning, match="unclosed"):
        pools.clear()

    def is_gone() -> bool:
        try:
            shmpool.connect(address, timeout=0.1).close()
        except shmpool.BrokerUnavailable:
            return True
        return False

    eventually(is_gone, "the broker's end")


def test_a_forgotten_pool_is_warned_of_however_soon_its_helper_closes_it(
    common: Common, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake = Session.wake_helper

    def wake_and_wait(session: Session) -> None:
        wake(session)
        eventually(lambda: session.is_over, "the session's end")

    pools = [shmpool.connect(common.broker().address)]
    pools[0].lease(100).release()
    monkeypatch.setattr(Session, "wake_helper", wake_and_wait)
    with pytest.warns(ResourceWarning, match="unclosed"):
        pools.clear()
