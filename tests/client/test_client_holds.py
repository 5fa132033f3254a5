"""Holds over the broker's death: they are told again, and nothing is freed before everybody has told."""

from __future__ import annotations

import gc
import pickle
import signal

import pytest
from client_helpers import StartDaemon, eventually

import shmpool


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
