"""What the tests' worker processes run; importable, so that ``spawn`` finds it."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import threading
from multiprocessing.connection import Connection as Pipe
from typing import Any

import shmpool
from shmpool.link.connection import Connection
from shmpool.protocol.handle import Handle
from shmpool.stats import query


def until_told(pipe: Pipe) -> None:
    """Wait for a word, or for the end of the test."""
    try:
        pipe.recv()
    except EOFError:
        pass


def open_all(pipe: Pipe, address: str) -> None:
    """Open every handle of every batch that comes; answer which ones were won."""
    with shmpool.connect(address) as pool:
        pipe.send("ready")
        while handles := pipe.recv():
            won = []
            for number, handle in enumerate(handles):
                try:
                    with pool.open(handle) as buffer:
                        won.append((number, bytes(buffer.view)))
                except (shmpool.HandleUsed, shmpool.StaleHandle):
                    pass
            pipe.send(won)


def lease_and_wait(pipe: Pipe, address: str, sizes: list[int], published: int = 0, taken: int = 0) -> None:
    """Hold leases of all sizes, *published* unread publications, and *taken* more that
    stand open; then wait to be killed."""
    pool = shmpool.connect(address)
    leases = [pool.lease(nbytes) for nbytes in sizes]
    for lease in leases:
        lease.view[:] = b"k" * lease.nbytes
    handles = [_publish(pool, b"%d" % number * 1000) for number in range(published)]
    buffers = [pool.open(_publish(pool, b"x" * 5000)) for _ in range(taken)]
    pipe.send([bytes(handle) for handle in handles])
    until_told(pipe)
    del leases, buffers


def _publish(pool: shmpool.Pool, data: bytes) -> Handle:
    lease = pool.lease(len(data))
    lease.write(data)
    return lease.publish()


def open_and_wait(pipe: Pipe, address: str) -> None:
    """Open what comes and keep it open until told, then release it."""
    with shmpool.connect(address) as pool:
        pipe.send("ready")
        buffers = [pool.open(handle) for handle in pipe.recv()]
        pipe.send([hashlib.sha256(buffer.view).digest() for buffer in buffers])
        until_told(pipe)
        for buffer in buffers:
            buffer.release()
        pipe.send("released")
        until_told(pipe)


def publish_with_pool(pipe: Pipe, pool: shmpool.Pool, nbytes: int) -> None:
    """A `Pool` that came as an argument."""
    with pool:
        with pool.lease(nbytes) as lease:
            lease.write(b"p" * nbytes)
            pipe.send((os.getpid(), lease.publish()))
        until_told(pipe)


def hold(pipe: Pipe, address: str, nbytes: int, count: int, strategy: str = "adaptive") -> None:
    """Hold *count* leases; each word gives one back."""
    with shmpool.connect(address) as pool:
        leases = [pool.lease(nbytes, strategy=shmpool.Strategy(strategy)) for _ in range(count)]
        pipe.send("ready")
        while leases:
            pipe.recv()
            leases.pop().release()
        until_told(pipe)


def blocked_until_interrupted(pipe: Pipe, address: str, nbytes: int, strategy: str) -> None:
    """Wait for a lease that cannot be had until Ctrl-C, then go on with the pool."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with shmpool.connect(address) as pool:
        for _ in range(5):
            pipe.send("waits")
            try:
                pool.lease(nbytes, strategy=shmpool.Strategy(strategy), timeout=60)
                pipe.send("leased")
            except KeyboardInterrupt:
                pipe.send("interrupted")
            pipe.recv()
        pipe.recv()
        with pool.lease(nbytes, strategy=shmpool.Strategy(strategy), timeout=60) as lease:
            lease.view[:3] = b"abc"
            pipe.send("leased")
        until_told(pipe)


def consume_counting(pipe: Pipe, address: str) -> None:
    """Open and release what comes, say so for each; at the end how many messages the
    broker was sent since the word "count"."""
    sent: list[str] = []
    send = Connection.send
    Connection.send = lambda self, message: (sent.append(type(message).__name__), send(self, message))[1]  # type: ignore
    with shmpool.connect(address) as pool:
        pipe.send("ready")
        while True:
            word = pipe.recv_bytes()
            if word == b"count":
                sent.clear()
                pipe.send_bytes(b"counting")
            elif word == b"end":
                pipe.send(list(sent))
                return
            else:
                with pool.open(Handle(word)) as buffer:
                    first = buffer.view[:8].tobytes()
                pipe.send_bytes(first)


def exchange(pipe: Pipe, address: str, rounds: int, sizes: list[int]) -> None:
    """Publish *rounds* objects from four threads and send them over; answer with the
    digests of what comes back the same way."""
    lock, digests = threading.Lock(), []

    def work(which: int) -> None:
        for number in range(rounds):
            nbytes = sizes[(number + which) % len(sizes)]
            with pool.lease(nbytes) as lease:
                lease.write(os.urandom(nbytes))
                digest = hashlib.sha256(lease.view).digest()
                handle = lease.publish()
            with lock:
                digests.append((handle, digest))

    with shmpool.connect(address) as pool:
        threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipe.send(digests)
        until_told(pipe)


def say_pickled(pipe: Pipe, data: bytes) -> None:
    handle = pickle.loads(data)
    pipe.send((type(handle).__name__, bytes(handle), handle.nbytes, hash(handle)))


def own_seats(address: str) -> list[int]:
    """The seats that this process has."""
    return [client.seat for client in query(address).clients if client.pid == os.getpid()]


def strict_child(pipe: Pipe, arguments: dict[str, Any]) -> None:
    with shmpool.connect(**arguments) as pool:
        lease = pool.lease(100)
        kept = lease.view[:10]
        try:
            pool.discard(lease.publish())
            pipe.send("published")
        except shmpool.LeakedView:
            pipe.send("leaked")
        del kept
        lease.release()


def churn(pipe: Pipe, address: str) -> None:
    """Everything a client does, as fast as it can, until killed. What it publishes it
    opens itself, and publications that are its last are left to expire or are discarded."""
    with shmpool.connect(address) as pool:
        for number in range(10**9):
            nbytes = (100, 40_000, 300_000, 1 << 20)[number % 4]
            lease = pool.lease(nbytes)
            lease.view[:4] = b"live"
            if number % 3:
                with pool.open(lease.publish()) as buffer:
                    assert bytes(buffer.view[:4]) == b"live"
            else:
                lease.release()
            if number % 20 == 0:
                pipe.send(number)


def hoard(pipe: Pipe, address: str, queue: Any) -> None:
    """Keep an array's worth of every handle that comes, until None; then say whether their bytes
    are still what they were: the n-th all n % 251."""
    kept = []
    with shmpool.connect(address) as pool:
        pipe.send("ready")
        for handle in iter(queue.get, None):
            with pool.open(handle) as buffer:
                kept.append(buffer.view[:])
        pipe.send(all(bytes(view) == bytes([n % 251]) * len(view) for n, view in enumerate(kept)))
        until_told(pipe)
