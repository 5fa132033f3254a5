"""A process that gevent has patched: threads are greenlets, and a wait that gevent does not know holds
all of them."""

from __future__ import annotations

import pytest
from client_helpers import run_script
from corners import corner

pytest.importorskip("gevent")

CYCLE = """
from gevent import monkey
monkey.patch_all()
import os, sys, threading
import shmpool
with shmpool.Broker(memory_limit="16MiB") as broker:
    pool = broker.connect()
    for nbytes in {sizes}:
        with pool.lease(nbytes, timeout=5) as lease:
            lease.write(bytes(nbytes))
            handle = lease.publish()
        with pool.open(handle) as buffer:
            assert buffer.nbytes == nbytes
    held = []
    try:
        while True:
            held.append(pool.lease(200_000, timeout=0))
    except shmpool.LeaseTimeout:
        pass
    got = []
    waiting = threading.Thread(target=lambda: got.append(pool.lease(200_000, timeout=10)))
    waiting.start()
    held.pop().release()
    waiting.join()
    for lease in held + got:
        lease.release()
    pid = os.fork()
    if not pid:
        with pool.lease(1000, timeout=5):
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    pool.lease(70_000, timeout=5).release()
    pool.close()
print("end")
"""


@pytest.mark.parametrize("sizes", corner("[2 << 20, 100, 300_000]", "[2 << 20] * 3", "[100, 300_000]"))
def test_everything_works_and_ends_in_a_patched_process(sizes: str) -> None:
    done = run_script(CYCLE.replace("{sizes}", sizes))
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr
    assert "Traceback" not in done.stderr


BETWEEN_GREENLETS = """
from gevent import monkey
monkey.patch_all()
import threading
import shmpool
with shmpool.Broker(memory_limit="16MiB") as broker, broker.connect() as pool:
    queue = shmpool.JoinableQueue(1, pool=pool)
    got = []
    def take():
        for _ in range(20):
            got.append(queue.get())
            queue.task_done()
    taking = threading.Thread(target=take)
    taking.start()
    for at in range(20):
        queue.put(at)
    queue.join()
    taking.join()
    assert got == list(range(20)), got
    queue.close()
    with pool.stream() as writer:
        read = []
        reading = threading.Thread(target=lambda: read.append(pool.open_reader(writer.handle, timeout=60).read()))
        reading.start()
        for _ in range(40):
            writer.write(bytes(30_000))
    reading.join()
    assert read == [bytes(1_200_000)]
print("end")
"""


def test_both_ends_of_a_queue_and_of_a_stream_may_be_greenlets_of_one_thread() -> None:
    """Who waits in the kernel keeps the one from running that it waits for."""
    done = run_script(BETWEEN_GREENLETS)
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr
    assert "Traceback" not in done.stderr
