"""Holds over the broker's death: they are told again, and nothing is freed before everybody has told."""

from __future__ import annotations

import gc
import pickle
import signal
import threading

import pytest
from client_helpers import StartDaemon, eventually

import shmpool
from shmpool.link.link import Link
from shmpool.protocol.messages import Held, Message, Share


def test_holds_are_told_again_when_the_broker_comes_back(daemon: StartDaemon, address: str) -> None:
    broker = daemon(on_stop="keep")
    pool, other = shmpool.connect(address), shmpool.connect(address)
    shared = pool.share(b"a" * 300_000, "named")
    nameless = [other.share(bytes([at]) * 100_000) for at in range(100)]
    theirs = shared.open()
    other.share(b"k" * 9000, "kept", keep=True).release()
    broker.end(signal.SIGKILL)
    assert shared.get() == b"a" * 300_000  # no broker is needed
    nameless.pop().release()
    daemon(on_stop="remove")
    eventually(lambda: pool.stats().shared["holds"] == 100)
    assert other.find("named", timeout=20).get() == b"a" * 300_000
    assert other.names() == ["kept", "named"]
    assert [pickle.loads(pickle.dumps(one)).get()[0] for one in nameless] == list(range(99))
    with pytest.raises(shmpool.NameTaken):
        other.share(1, "named")
    other.drop("kept")
    shared.release()
    pool.close()
    assert bytes(theirs.view).count(b"a") >= 300_000
    theirs.release()
    nameless.clear()
    gc.collect()
    eventually(lambda: other.stats().active_buffers == 0)
    other.close()


def test_what_was_being_shared_when_the_broker_died_is_held_by_the_next(daemon: StartDaemon, address: str) -> None:
    """Published, but not told: the next broker finds it among its rows, before its maker can say that he has it."""
    broker = daemon(on_stop="keep")
    with shmpool.connect(address) as pool:
        pool.share(b"a" * 5000).release()  # a slot lies ready
        broker.process.send_signal(signal.SIGSTOP)
        made: list[shmpool.Shared] = []
        session = pool._session
        assert session is not None
        asked = session.link.requests.all
        sharing = threading.Thread(target=lambda: made.append(pool.share(b"c" * 5000)))
        sharing.start()
        eventually(lambda: any(isinstance(request.message, Share) for request in asked()))
        broker.end(signal.SIGKILL)
        daemon(on_stop="remove")
        sharing.join()
        assert made[0].get() == b"c" * 5000
        made.clear()
        gc.collect()
        eventually(lambda: pool.stats().active_buffers == 0)


def test_what_was_shared_when_its_answer_was_lost_is_held(
    daemon: StartDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon()
    handle, lost = Link.handle, list[Held]()

    def lose_the_first(link: Link, message: Message) -> None:
        if isinstance(message, Held) and not lost:
            lost.append(message)
            link.close_connection()
        else:
            handle(link, message)

    with shmpool.connect(address) as pool:
        monkeypatch.setattr(Link, "handle", lose_the_first)
        shared = pool.share(b"a" * 5000)
        assert lost and shared.get() == b"a" * 5000
        shared.release()
        eventually(lambda: pool.stats().active_buffers == 0)


def test_what_is_shared_and_never_told_of_is_nobody_s(
    daemon: StartDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost, and the broker silent for as long as it is waited for."""
    broker = daemon(lease_timeout="100ms")
    with shmpool.connect(address) as pool:
        await_connection = Link.await_connection

        def is_there_and_then_gone(link: Link, timeout: float | None) -> bool:
            await_connection(link, timeout)
            connection = link.connection
            broker.process.send_signal(signal.SIGSTOP)
            link.close_connection()
            link.connection = connection  # as it is until the end is seen
            return True

        with monkeypatch.context() as patched:
            patched.setattr(Link, "await_connection", is_there_and_then_gone)
            with pytest.raises((shmpool.BrokerUnavailable, shmpool.LeaseTimeout)):
                pool.share(b"a" * 5000)
        broker.process.send_signal(signal.SIGCONT)
        eventually(lambda: pool.stats().active_buffers == 0)


def test_a_name_is_found_at_once_though_the_connection_is_just_made_anew(
    daemon: StartDaemon, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception has ended it here, and the broker is as near as before."""
    daemon()
    monkeypatch.setattr("shmpool.link.asking.WORD", 5.0)  # this host may be busy
    with shmpool.connect(address) as pool, pool.share(1, "there"):
        session = pool._session
        assert session is not None
        for _ in range(5):
            session.link.close_connection()
            assert pool.find("there").get() == 1


def test_timeout_of_a_share_is_all_that_it_waits_for_a_stopped_broker(daemon: StartDaemon, address: str) -> None:
    """It was once for each step, and the last had the pool's own; what was shared then is nobody's."""
    broker = daemon(lease_timeout="1h")
    with shmpool.connect(address) as pool:
        pool.share(b"a" * 5000).release()  # a slot lies ready
        broker.process.send_signal(signal.SIGSTOP)
        for name in (None, "named"):
            with pytest.raises(shmpool.LeaseTimeout):
                pool.share(b"a" * 5000, name, timeout=0)
        broker.process.send_signal(signal.SIGCONT)
        assert pool.names() == []
        eventually(lambda: pool.stats().active_buffers == 0)
