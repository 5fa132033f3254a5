"""An exception in the middle of a message has ended the connection, and the broker is as near as before: what asks it
next works."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable

import pytest
from client_helpers import MIB, Connect, StartDaemon, eventually

import shmpool
import shmpool.aio
from shmpool.link.link import Link
from shmpool.seat.session import Session


def _streams(pool: shmpool.Pool) -> None:
    with pool.stream(3 * MIB) as writer, pool.open_reader(writer.handle) as reader:
        writer.write(bytes(MIB))
        assert reader.read(1000) == bytes(1000)
        writer.discard()


def _publishes_shared(pool: shmpool.Pool) -> None:
    with pool.lease(1000) as lease:
        lease.publish_shared("published").release()


def _queues(pool: shmpool.Pool) -> None:
    queue = pool.queue(name="queue")
    queue.put(bytes(100_000))
    assert queue.get() == bytes(100_000)
    queue.close()


def _drops(pool: shmpool.Pool) -> None:
    pool.share(1, "dropped", keep=True).release()
    pool.drop("dropped")


VERBS: dict[str, Callable[[shmpool.Pool], object]] = {
    "share": lambda pool: pool.share(1).release(),
    "share a name": lambda pool: pool.share(1, "name").release(),
    "publish_shared": _publishes_shared,
    "find": lambda pool: pool.find("there").get(),
    "get_or_share": lambda pool: pool.get_or_share("made", lambda: 1, timeout=20).release(),
    "drop": _drops,
    "names": lambda pool: pool.names(),
    "stats": lambda pool: pool.stats(),
    "queue": _queues,
    "stream": _streams,
    "direct": lambda pool: pool.lease(3 * MIB).release(),
    "direct, not waiting": lambda pool: pool.lease(3 * MIB, timeout=0).release(),
    "chunks": lambda pool: pool.lease(400_000, strategy="chunked").release(),
}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host may be busy."""
    monkeypatch.setattr("shmpool.link.asking.WORD", 5.0)


def _close(link: Link) -> None:
    link.close_connection()


def _shut_down(link: Link) -> None:
    if link.connection is not None:
        link.connection.shut_down()  # which the helper has yet to see


def _tear(link: Link) -> None:
    if link.connection is not None:
        link.connection._is_torn = True


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("end", [_close, _shut_down, _tear])
def test_every_verb_works_though_its_connection_has_just_ended(connect: Connect, end: Callable[[Link], None]) -> None:
    pool = connect()
    session = pool._session
    assert session is not None
    with pool.share(1, "there"):
        for verb, act in VERBS.items():
            end(session.link)
            try:
                act(pool)
            except BaseException as error:
                error.add_note(verb)
                raise


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.parametrize("is_async", [False, True], ids=["threads", "asyncio"])
def test_a_share_waits_for_a_connection_that_ends_behind_its_lease(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, is_async: bool, timeout: float | None
) -> None:
    """What an exception has shut down is there until the helper sees its end, be it in the middle of the next call."""
    pool = connect()
    pool.share(b"a" * 5000).release()  # a slot lies ready
    reconnect, pause, goes_on = Session.reconnect, Link.pause, threading.Event()

    def is_held_up(session: Session, *arguments: object) -> bool:
        assert goes_on.wait(20)
        return reconnect(session, *arguments)  # type: ignore[arg-type]

    def pauses(link: Link, seconds: float) -> bool:
        goes_on.set()  # somebody waits for it
        return pause(link, seconds)

    def ends(one: shmpool.Pool) -> None:
        lease = one.lease

        def lease_and_lose(nbytes: int, **options: object) -> shmpool.Lease:
            leased = lease(nbytes, **options)  # type: ignore[arg-type]
            one._live_session().link.close_connection()
            return leased

        one.lease = lease_and_lose  # type: ignore[method-assign]

    monkeypatch.setattr(Session, "reconnect", is_held_up)
    monkeypatch.setattr(Link, "pause", pauses)

    async def share() -> None:
        async with shmpool.aio.connect(pool.address) as one:
            (await one.share(b"a" * 5000)).release()
            ends(one.sync)
            assert (await one.share(b"b" * 5000, timeout=timeout)).get() == b"b" * 5000

    try:
        if is_async:
            asyncio.run(share())
        else:
            ends(pool)
            assert pool.share(b"b" * 5000, timeout=timeout).get() == b"b" * 5000
    finally:
        goes_on.set()
    eventually(lambda: pool.stats().active_buffers == 0)


def test_an_asynchronous_share_waits_no_longer_for_a_broker_than_it_was_told(daemon: StartDaemon, address: str) -> None:
    broker = daemon()

    async def share() -> None:
        async with shmpool.aio.connect(address) as pool:
            (await pool.share(1)).release()
            broker.end(signal.SIGKILL)
            for timeout in (0, 0.1):
                with pytest.raises(shmpool.BrokerUnavailable, match="away"):
                    async with asyncio.timeout(20):
                        await pool.share(1, timeout=timeout)

    asyncio.run(share())
